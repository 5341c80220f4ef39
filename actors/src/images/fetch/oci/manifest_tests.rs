use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const OCI: &str = "application/vnd.oci.image.layer.v1.tar";

fn blob(n: u8) -> Blob {
    Blob { digest: format!("sha256:{}", format!("{n:02x}").repeat(32)), size: u64::from(n) }
}

fn descriptor(media_type: &str, n: u8) -> Value {
    json!({"mediaType": media_type, "digest": blob(n).digest, "size": n, "annotations": {"a": "b"}})
}

fn layers(types: &[&str]) -> Result<Next, Refused> {
    let layers: Vec<Value> = types.iter().zip(1..).map(|(media_type, n)| descriptor(media_type, n)).collect();
    let config = descriptor("application/vnd.oci.empty.v1+json", 99);
    choose(&json!({"schemaVersion": 2, "config": config, "layers": layers}))
}

fn choose(manifest: &Value) -> Result<Next, Refused> {
    read(&serde_json::to_vec(manifest).unwrap(), "amd64")
}

#[test]
fn one_layer_that_is_no_tar_is_the_file_and_layers_of_tar_are_a_container_disk() {
    for file in
        ["application/octet-stream", "application/vnd.example.qcow2", "application/vnd.example.disk.v1", ""]
    {
        assert_eq!(layers(&[file]).unwrap(), Next::File(blob(1)), "{file}");
    }
    let gz = format!("{OCI}+gzip");
    let layer = |n, gzip| Layer { blob: blob(n), gzip };
    assert_eq!(layers(&[OCI, &gz]).unwrap(), Next::Layers(vec![layer(1, false), layer(2, true)]));
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    assert_eq!(layers(&[docker]).unwrap(), Next::Layers(vec![layer(1, true)]));
}

#[test]
fn all_else_is_refused_with_what_would_be_taken() {
    let zstd = format!("{OCI}+zstd");
    for other in [
        vec![],
        vec!["application/octet-stream", "application/octet-stream"],
        vec![OCI, "application/octet-stream"],
        vec![zstd.as_str()],
        vec!["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"],
        vec!["application/vnd.oci.image.layer.nondistributable.v1.tar"],
        vec!["application/x-tar"],
        vec!["application/gzip"],
        vec!["application/vnd.example.qcow2+gzip"],
        vec![OCI; 129],
    ] {
        let error = layers(&other).unwrap_err();
        assert!(matches!(error, Refused::Kind { .. }), "{other:?}: {error}");
        assert!(error.to_string().contains("one regular file below disk/"), "{error}");
    }
    let old = choose(&json!({"schemaVersion": 1, "fsLayers": [], "layers": []})).unwrap_err();
    assert!(matches!(old, Refused::Kind { .. }), "{old}");
    for none in [
        json!({}),
        json!([]),
        json!({"schemaVersion": 2, "manifests": [], "layers": []}),
        json!({"schemaVersion": 2, "layers": [{"mediaType": "x", "digest": "sha256:00", "size": 1}]}),
        json!({"schemaVersion": 2, "layers": [{"mediaType": "x", "digest": "../../x", "size": 1}]}),
        json!({"schemaVersion": 2, "layers": [{"mediaType": "x", "digest": blob(1).digest, "size": -1}]}),
    ] {
        let error = choose(&none).unwrap_err();
        assert!(matches!(error, Refused::Manifest { .. }), "{none}: {error}");
    }
}

#[test]
fn of_an_index_the_first_for_this_host_is_taken() {
    let on = |os: &str, architecture: &str, n| {
        let mut one = descriptor("application/vnd.oci.image.manifest.v1+json", n);
        one["platform"] = json!({"os": os, "architecture": architecture, "variant": "v8"});
        one
    };
    let index = |manifests: Vec<Value>| choose(&json!({"schemaVersion": 2, "manifests": manifests}));
    let all = vec![
        on("linux", "arm64", 1),
        on("windows", "amd64", 2),
        on("linux", "amd64", 3),
        on("linux", "amd64", 4),
    ];
    assert_eq!(index(all).unwrap(), Next::Manifest(blob(3)));
    let plain = || descriptor("application/vnd.oci.image.manifest.v1+json", 5);
    assert_eq!(index(vec![plain()]).unwrap(), Next::Manifest(blob(5)));
    for (none, found) in [
        (vec![on("linux", "arm64", 1), plain()], "linux/arm64, no platform"),
        (vec![on("unknown", "unknown", 1)], "unknown/unknown"),
        (vec![], "nothing at all"),
    ] {
        let error = index(none).unwrap_err();
        assert!(matches!(&error, Refused::Platform { found: is, .. } if is == found), "{error}");
    }
}

proptest! {
    #[test]
    fn whatever_a_registry_sends_is_read_or_refused(bytes in "(\\{\"(layers|manifests)\":)?[\\[\\]{}\",:a-z0-9]{0,60}") {
        let _ = read(bytes.as_bytes(), "amd64");
    }
}
