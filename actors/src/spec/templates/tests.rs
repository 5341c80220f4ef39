use proptest::prelude::*;

use super::*;

const BASE: &str = "cpus: 1\nmemory: 64MiB\nboot:\n  kernel: k\n  cmdline: quiet\nlabels: {of: base}\n";

fn token(name: &str) -> Token {
    Token::new(name).unwrap()
}

/// Templates of a folder as its files say, over one that is built in.
fn folder(files: &[(&str, &str)]) -> Result<Templates, TemplateError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Templates::load([("base.yaml", BASE)], Some(dir.path()))
}

fn spec(templates: &Templates, namespace: &str, name: &str) -> VmSpec {
    templates.get(&token(namespace), &token(name)).unwrap().spec.clone()
}

fn told(error: &TemplateError) -> String {
    crate::chain(error).to_string()
}

#[test]
fn a_template_is_put_over_the_one_that_it_names() {
    let web = "template: base\ncpus: 2\nboot: {cmdline: loud}\nlabels: {tier: web, of: null}\n";
    let templates = folder(&[("web.yaml", web)]).unwrap();
    let found = spec(&templates, "acme", "web");
    assert_eq!((found.cpus, found.memory.unwrap()), (Some(2), drover_schemas::size::ByteSize::mib(64)));
    let boot = found.boot.unwrap();
    assert_eq!((boot.kernel.as_deref(), boot.cmdline.as_deref()), (Some("k"), Some("loud")));
    assert_eq!(found.labels, [("tier".to_owned(), "web".to_owned())].into());
    assert_eq!(found.template, None);
    let template = templates.find(&token("acme"), &token("web")).unwrap();
    assert_eq!(template.summary.files, ["host:web.yaml", "built-in:base.yaml"]);
    let places: Vec<_> = template.values().into_iter().map(|value| (value.field, value.origin)).collect();
    for (field, origin) in [
        ("cpus", "host:web.yaml:2"),
        ("memory_bytes", "built-in:base.yaml:2"),
        ("boot.kernel", "built-in:base.yaml:4"),
        ("boot.cmdline", "host:web.yaml:3"),
        ("labels.tier", "host:web.yaml:4"),
    ] {
        assert!(places.contains(&(field.to_owned(), origin.to_owned())), "{field}: {places:?}");
    }
}

#[test]
fn a_namespace_goes_before_the_host_and_the_host_before_what_is_built_in() {
    let templates = folder(&[
        ("base.yaml", "template: base\ncpus: 2\n"),
        ("acme/base.yaml", "template: base\nmemory: 128MiB\n"),
        ("other/base.yaml", "cpus: 9\n"),
        ("acme/own.yml", "template: base\ncpus: 3\n"),
        ("notes.txt", "not a template"),
    ])
    .unwrap();
    let seen = |namespace: &str, name: &str| {
        let spec = spec(&templates, namespace, name);
        (spec.cpus, spec.memory.map(|memory| memory.0 >> 20))
    };
    assert_eq!(seen("third", "base"), (Some(2), Some(64)));
    assert_eq!(seen("acme", "base"), (Some(2), Some(128)));
    // One that names none starts from nothing.
    assert_eq!(seen("other", "base"), (Some(9), None));
    assert_eq!(seen("acme", "own"), (Some(3), Some(128)));
    templates.get(&token("third"), &token("own")).unwrap_err();
    let layers = |namespace: &str| {
        let all = templates.all(&token(namespace));
        all.iter().map(|t| (t.summary.name.to_string(), t.summary.layer)).collect::<Vec<_>>()
    };
    assert_eq!(layers("third"), [("base".to_owned(), TemplateLayer::Host)]);
    let own = TemplateLayer::Namespace;
    assert_eq!(layers("acme"), [("base".to_owned(), own), ("own".to_owned(), own)]);
    assert_eq!(templates.own_names()[&token("acme")], [token("base"), token("own")]);
}

#[test]
fn a_hosts_template_does_not_see_a_namespaces() {
    let files = [("acme/own.yaml", "cpus: 1\n"), ("web.yaml", "template: own\n")];
    let error = folder(&files).unwrap_err();
    assert!(told(&error).contains("no template \"own\" to build on"), "{error}");
}

#[test]
fn firmware_takes_the_kernel_away_that_is_below_it() {
    let files = [
        ("uefi.yaml", "template: base\nboot: {firmware: f}\n"),
        ("back.yaml", "template: uefi\nboot: {kernel: k2}\n"),
    ];
    let templates = folder(&files).unwrap();
    let boot = |name: &str| spec(&templates, "acme", name).boot.unwrap();
    assert_eq!((boot("uefi").kernel, boot("uefi").firmware.as_deref()), (None, Some("f")));
    assert_eq!((boot("back").kernel.as_deref(), boot("back").firmware), (Some("k2"), None));
    assert_eq!(boot("back").cmdline.as_deref(), Some("quiet"));
}

#[test]
fn user_data_of_a_template_is_not_shown() {
    let templates = folder(&[("web.yaml", "user_data: hunter2\n")]).unwrap();
    let template = templates.find(&token("acme"), &token("web")).unwrap();
    assert!(!format!("{:?}", template.values()).contains("hunter2"));
}

#[test]
fn what_is_wrong_is_told_with_file_line_and_field() {
    for (name, text, parts) in [
        ("t.yaml", "cpus: [", vec!["line"]),
        ("t.yaml", "cpus: 1\nmemroy: 3\n", vec!["line 2", "\"memroy\"", "did you mean \"memory\"?"]),
        ("t.yaml", "disks:\n- {image: i, readnoly: true}\n", vec!["line 2", "disks.0.readnoly"]),
        ("t.yaml", "boot:\n  kernel: k\n  cmdline: 3\n", vec!["line 3", "boot.cmdline", "expected a string"]),
        ("t.yaml", "\ncpus: many\n", vec!["line 2", "\"cpus\"", "expected u32"]),
        ("t.yaml", "restart:\n\n  policy: sometimes\n", vec!["line 3", "restart.policy", "sometimes"]),
        ("t.yaml", "memory: 1GiB\nmemory_bytes: 3\n", vec!["\"memory\" and \"memory_bytes\""]),
        ("t.yaml", "- a\n", vec!["not a map"]),
        ("t.yaml", "cpus: 1\ntemplate: bsae\n", vec!["line 2", "did you mean \"base\"?"]),
        ("t.yaml", "template: t\n", vec!["no template \"t\""]),
        ("acme/t.yaml", "nics: 3\n", vec!["acme/t.yaml", "line 1", "\"nics\""]),
        ("Upper.yaml", "cpus: 1\n", vec!["NAME.yaml"]),
        ("Upper/t.yaml", "cpus: 1\n", vec!["named as a namespace"]),
        ("t.yaml", "cpus: 1\ncpus: 2\n", vec!["cpus"]),
    ] {
        let told = told(&folder(&[(name, text)]).unwrap_err());
        for part in [name].iter().chain(&parts).filter(|part| !part.starts_with("Upper")) {
            assert!(told.contains(part), "{text:?}: {told} lacks {part}");
        }
    }
    let circle = [("a.yaml", "template: b\n"), ("b.yaml", "template: a\n")];
    assert!(told(&folder(&circle).unwrap_err()).contains("perhaps in a circle"));
    let twice = [("a.yaml", "cpus: 1\n"), ("a.yml", "cpus: 1\n")];
    assert!(told(&folder(&twice).unwrap_err()).contains("there twice"));
    let long = format!("#{}", " ".repeat(1 << 18));
    assert!(told(&folder(&[("a.yaml", &long)]).unwrap_err()).contains("longer than"));
}

proptest! {
    #[test]
    fn any_file_is_taken_or_refused(text in "(?s).{0,120}|(cpus|boot|disks|template|labels): (?s).{0,40}") {
        let _ = Templates::built_in([("base.yaml", BASE), ("t.yaml", &text)]);
    }
}
