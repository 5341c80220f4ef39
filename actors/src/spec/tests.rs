use std::path::Path;

use super::*;
use drover_schemas::body::spec::{DiskSpec, NicSpec};

struct Images;

impl ImageCatalogue for Images {
    fn find(&self, reference: &str) -> Option<ResolvedImage> {
        let kind = match reference {
            "drover-kernel" => ImageKind::Kernel,
            "drover-initramfs" => ImageKind::Initramfs,
            "drover-rootfs" | "drover-debian" => ImageKind::Disk,
            "ovmf" => ImageKind::Firmware,
            _ => return None,
        };
        Some(ResolvedImage::raw(reference.into(), "0".repeat(64), kind, 1))
    }
    fn names(&self, kind: ImageKind) -> Vec<String> {
        ["drover-kernel", "drover-initramfs", "drover-rootfs", "drover-debian", "ovmf"]
            .into_iter()
            .filter(|n| self.find(n).is_some_and(|i| i.kind == kind))
            .map(str::to_owned)
            .collect()
    }
}

/// The templates that the project ships.
fn shipped() -> Templates {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/templates");
    let templates = Templates::load([], Some(&dir)).unwrap();
    assert!(templates.names().count() >= 2, "no template was found in {}", dir.display());
    templates
}

fn namespace() -> Token {
    Token::new("acme").unwrap()
}

fn accepted(spec: &VmSpec) -> ResolvedSpec {
    resolve(&namespace(), spec, &shipped(), &Images).unwrap().spec
}

fn refused(spec: &VmSpec) -> ErrorBody {
    resolve(&namespace(), spec, &shipped(), &Images).unwrap_err()
}

#[test]
fn every_shipped_template_resolves_as_it_stands() {
    for name in shipped().names() {
        let spec = VmSpec { template: Some(name.clone()), ..VmSpec::default() };
        accepted(&spec);
    }
}

#[test]
fn an_empty_spec_is_linux_default() {
    let resolved = accepted(&VmSpec::default());
    assert_eq!(resolved.template.as_str(), "linux-default");
    assert_eq!(resolved.memory_bytes, 256 << 20);
    assert_eq!(resolved.nics.len(), 1);
}

#[test]
fn the_request_overrides_the_template() {
    let spec = VmSpec {
        cpus: Some(3),
        nics: Some(Vec::<NicSpec>::new()),
        disks: Some(vec![DiskSpec { image: Some("drover-rootfs".into()), ..DiskSpec::default() }]),
        labels: [("a".to_owned(), "b".to_owned())].into(),
        ..VmSpec::default()
    };
    let resolved = accepted(&spec);
    assert_eq!((resolved.cpus, resolved.nics.len(), resolved.disks.len()), (3, 0, 1));
}

#[test]
fn firmware_in_the_request_takes_the_place_of_the_templates_kernel() {
    let boot = BootSpec { firmware: Some("ovmf".into()), ..BootSpec::default() };
    let resolved = accepted(&VmSpec { boot: Some(boot), ..VmSpec::default() });
    assert!(resolved.boot.kernel.is_none() && resolved.boot.firmware.is_some());
}

#[test]
fn a_misspelt_template_is_answered_with_the_right_one() {
    let error =
        refused(&VmSpec { template: Some(Token::new("linux-defualt").unwrap()), ..VmSpec::default() });
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert_eq!(
        error.message,
        "spec.template: there is no template \"linux-defualt\"; did you mean \"linux-default\"? \
         known: linux-cloud, linux-debian, linux-default, linux-microvm"
    );
}

#[test]
fn an_unknown_image_names_those_that_are_there() {
    let boot = BootSpec { kernel: Some("drover-kernal".into()), ..BootSpec::default() };
    let error = refused(&VmSpec { boot: Some(boot), ..VmSpec::default() });
    assert_eq!(error.code, ErrorCode::NotFound);
    assert!(error.message.contains("did you mean \"drover-kernel\"?"), "{error}");
    let disk = DiskSpec { image: Some("drover-kernel".into()), ..DiskSpec::default() };
    let error = refused(&VmSpec { disks: Some(vec![disk]), ..VmSpec::default() });
    assert!(error.message.contains("is of kind Kernel, not Disk"), "{error}");
}

#[test]
fn impossible_sizes_say_what_would_do() {
    let error = refused(&VmSpec { memory: Some(ByteSize(3)), ..VmSpec::default() });
    assert_eq!(error.message, "spec.memory_bytes: 3 bytes is not possible; use 64 MiB to 1 TiB");
    let error = refused(&VmSpec { memory: Some(ByteSize((64 << 20) + 1)), ..VmSpec::default() });
    assert!(error.message.contains("multiple of 1 MiB"));
    let error = refused(&VmSpec { cpus: Some(0), ..VmSpec::default() });
    assert!(error.message.contains("use 1 to 255"));
}

#[test]
fn each_value_says_where_it_comes_from() {
    let spec = VmSpec {
        template: Some(Token::new("linux-debian").unwrap()),
        cpus: Some(3),
        boot: Some(BootSpec { cmdline: Some("quiet".into()), ..BootSpec::default() }),
        labels: [("a".to_owned(), "b".to_owned())].into(),
        ..VmSpec::default()
    };
    let resolved = resolve(&namespace(), &spec, &shipped(), &Images).unwrap();
    let values = origins::values(&resolved.spec, &resolved.origins);
    let of = |field: &str| {
        let value = values.iter().find(|value| value.field == field).unwrap_or_else(|| panic!("{field}"));
        (value.value.as_str(), value.origin.split(".yaml").next().unwrap())
    };
    assert_eq!(of("cpus"), ("3", "request"));
    assert_eq!(of("boot.cmdline"), ("\"quiet\"", "request"));
    assert_eq!(of("boot.kernel"), ("\"drover-kernel@000000000000\"", "host:linux-default"));
    assert_eq!(of("memory_bytes"), ("536870912", "host:linux-debian"));
    assert_eq!(of("disks").1, "host:linux-debian");
    assert_eq!(of("labels.a"), ("\"b\"", "request"));
    assert_eq!(of("template"), ("\"linux-debian\"", "request"));
    assert_eq!(of("restart.limit").1, "default");
}

#[test]
fn what_a_template_got_wrong_is_told_with_its_line() {
    let templates = Templates::built_in([
        ("few.yaml", "cpus: 0\nmemory: 64MiB\nboot: {kernel: drover-kernel}\n"),
        ("gone.yaml", "cpus: 1\nmemory: 64MiB\nboot:\n  kernel: none\n"),
    ])
    .unwrap();
    let resolve = |name: &str, cpus| {
        let spec = VmSpec { template: Some(Token::new(name).unwrap()), cpus, ..VmSpec::default() };
        super::resolve(&namespace(), &spec, &templates, &Images)
    };
    let error = resolve("few", None).unwrap_err();
    assert_eq!(error.details["origin"], "built-in:few.yaml:1");
    assert!(error.message.ends_with("(the template sets it in built-in:few.yaml:1)"), "{error}");
    resolve("few", Some(1)).unwrap();
    // What the request says is not the template's fault.
    assert!(!resolve("few", Some(256)).unwrap_err().details.contains_key("origin"));
    assert_eq!(resolve("gone", None).unwrap_err().details["origin"], "built-in:gone.yaml:4");
}

#[test]
fn a_field_below_a_list_of_the_request_is_the_requests() {
    let request =
        serde_json::json!({"boot": {"kernel": "k"}, "agent": {"checks": [{"name": "a"}]}, "nics": []});
    for (field, says) in [
        ("boot.kernel", true),
        ("boot.cmdline", false),
        ("boot", true),
        ("cpus", false),
        ("nics[0].egress.deny[0].to", true),
        ("agent.checks[0].argv", true),
        ("agent.deny", false),
    ] {
        assert_eq!(origins::says(&request, field), says, "{field}");
    }
}
