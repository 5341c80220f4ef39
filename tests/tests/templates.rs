//! Templates: layers, inheritance, where values come from, what is refused, and where a VM lands that needs one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::PathBuf;

use drover_schemas::ErrorCode;
use drover_schemas::body::template::{SpecValue, TemplateLayer, TemplateListReply, TemplateReply};
use drover_schemas::body::vm::{ExplainReply, ForwardRequest, ListReply, ValidateReply};
use drover_schemas::state::VmState;
use drover_tests::node::Node;
use drover_tests::wait::until;
use drover_tests::world::{Options, run};
use serde_json::{Value, json};

const WEB: &str = "template: linux-default\ncpus: 2\nlabels: {tier: web}\n";
const OWN_WEB: &str = "# Less of it.\ntemplate: web\nmemory: 128MiB\nlabels:\n  tier: small\n";

/// A folder with templates for a host.
fn folder(host: &Node, files: &[(&str, &str)]) -> PathBuf {
    let folder = host.state_dir().parent().unwrap().join("templates-of-test");
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn origin<'a>(values: &'a [SpecValue], field: &str) -> &'a str {
    &values.iter().find(|value| value.field == field).unwrap_or_else(|| panic!("{field}")).origin
}

#[test]
fn a_value_is_known_by_the_line_that_set_it() {
    run("a_value_is_known_by_the_line_that_set_it", Options::down(), async |world| {
        let files = [("web.yaml", WEB), ("default/web.yaml", OWN_WEB), ("other/own.yaml", "cpus: 1\n")];
        let dir = folder(world, &files);
        let settings = |config: &mut Value| {
            config["templates_dir"] = json!(dir);
            config["capacity"]["forward_ports"] = json!("20000-20100");
        };
        world.up_with(settings).await;
        let bus = world.bus.clone();

        let listed: TemplateListReply = bus.ask("template.list", &json!({})).get().await.unwrap();
        let layers: Vec<_> = listed.templates.iter().map(|t| (t.name.as_str(), t.layer)).collect();
        let built_in = TemplateLayer::BuiltIn;
        assert_eq!(
            layers,
            [
                ("linux-cloud", built_in),
                ("linux-debian", built_in),
                ("linux-default", built_in),
                ("linux-microvm", built_in),
                ("web", TemplateLayer::Namespace),
            ]
        );
        let web = &listed.templates[4];
        assert_eq!(web.files, ["namespace:default/web.yaml", "host:web.yaml", "built-in:linux-default.yaml"]);
        assert_eq!((web.cpus, web.memory_bytes), (Some(2), Some(128 << 20)));
        let got: TemplateReply = bus.ask("template.get", &json!({"name": "web"})).get().await.unwrap();
        assert_eq!(origin(&got.values, "labels.tier"), "namespace:default/web.yaml:5");
        // Another namespace's are not there.
        let error =
            bus.ask("template.get", &json!({"name": "own"})).refused(ErrorCode::InvalidArgument).await;
        assert!(
            error.message.contains("known: linux-cloud, linux-debian, linux-default, linux-microvm, web"),
            "{error}"
        );
        let spec = json!({"template": "own"});
        let refused = bus.ask("vm.create", &json!({"name": "a", "spec": spec}));
        refused.refused(ErrorCode::InvalidArgument).await;

        // A look before it is made, which makes nothing.
        let wanted = json!({"template": "web", "labels": {"owner": "me"}});
        let seen: ValidateReply = bus.ask("vm.validate", &json!({"spec": wanted})).get().await.unwrap();
        assert_eq!(origin(&seen.values, "cpus"), "host:web.yaml:2");
        let create = ["vm", "create", "a", "-t", "web", "--set", "labels.owner=me"];
        let dry = world.printed(&[&create[..], &["--dry-run"]].concat()).await;
        assert!(dry.contains("host:web.yaml:2") && dry.contains("\"boot_vcpus\": 2"), "{dry}");
        let all: ListReply = bus.ask("vm.list", &json!({})).get().await.unwrap();
        assert!(all.vms.is_empty());

        world.printed(&create).await;
        let explained = async || bus.look::<ExplainReply>("vm.a.explain", &json!({})).await.unwrap().values;
        let as_made = |values: &[SpecValue]| {
            for (field, from) in [
                ("template", "request"),
                ("labels.owner", "request"),
                ("labels.tier", "namespace:default/web.yaml:5"),
                ("memory_bytes", "namespace:default/web.yaml:3"),
                ("cpus", "host:web.yaml:2"),
                ("restart.limit", "default"),
            ] {
                assert_eq!(origin(values, field), from, "{field}: {values:?}");
            }
            assert!(origin(values, "boot.kernel").starts_with("built-in:linux-default.yaml:"), "{values:?}");
        };
        as_made(&explained().await);

        // It stays as it was made, whatever becomes of the templates and of the daemon.
        world.kill().await;
        fs::write(dir.join("web.yaml"), "cpus: 7\n").unwrap();
        fs::remove_file(dir.join("default/web.yaml")).unwrap();
        world.start();
        world.ready().await;
        as_made(&explained().await);
        let page = world.printed(&["vm", "explain", "a"]).await;
        let row = page.lines().find(|line| line.contains("labels.tier")).unwrap();
        assert!(row.contains("\"small\"") && row.contains("namespace:default/web.yaml:5"), "{page}");
        let shown = world.printed(&["template", "get", "web"]).await;
        assert!(shown.contains("host:web.yaml:1") && !shown.contains("default/web.yaml"), "{shown}");
        let listed = world.printed(&["template", "ls"]).await;
        assert!(listed.contains("linux-microvm.yaml over built-in:linux-default.yaml"), "{listed}");
        // What a verb changed since is that verb's.
        bus.until("a", "up again", |vm| vm.state == VmState::Running && vm.operation.is_none()).await;
        let ports: ForwardRequest =
            serde_json::from_value(json!({"add": [{"host_port": 20_080, "guest_port": 80}]})).unwrap();
        bus.change_with("a", "forward", json!(ports)).await.unwrap();
        assert_eq!(origin(&explained().await, "nics"), "forward");
    });
}

#[test]
fn a_broken_template_stops_the_start_and_says_where() {
    run("a_broken_template_stops_the_start_and_says_where", Options::down(), async |world| {
        world.start_nats().await;
        for (name, text, parts) in [
            ("t.yaml", "cpus: 1\nboot:\n  cmdlin: x\n", vec!["t.yaml", "line 3", "boot.cmdlin"]),
            ("default/t.yaml", "memory: lots\n", vec!["default/t.yaml", "line 1", "memory", "512MiB"]),
            (
                "t.yaml",
                "cpus: 1\ntemplate: linux-defualt\n",
                vec!["line 2", "did you mean \"linux-default\"?"],
            ),
        ] {
            let dir = folder(world, &[(name, text)]);
            world.configure_with(|config: &mut Value| config["templates_dir"] = json!(dir));
            let output = world.host_fails().await;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            for part in parts {
                assert!(told.contains(part), "{told} lacks {part}");
            }
            fs::remove_dir_all(dir).unwrap();
        }
    });
}

#[test]
fn a_vm_goes_where_its_namespaces_template_is() {
    let options = Options { started: false, ..Options::fleet(2) };
    run("a_vm_goes_where_its_namespaces_template_is", options, async |world| {
        world.start_nats().await;
        let dir = folder(world.host("h2"), &[("default/own.yaml", WEB)]);
        for name in ["h1", "h2"] {
            let host = world.host(name);
            host.configure_with(|config| {
                if name == "h2" {
                    config["templates_dir"] = json!(dir);
                }
            });
            host.start();
        }
        world.ready().await;
        let bus = world.bus.clone();
        // Whichever host takes the request.
        until("a VM of the template", async || {
            bus.create("a", json!({"spec": {"template": "own", "nics": []}})).await.ok()
        })
        .await;
        assert_eq!(bus.status("a").await.unwrap().host.as_str(), "h2");
    });
}
