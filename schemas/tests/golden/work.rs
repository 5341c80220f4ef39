//! Bodies of the work that a guest does for its host.

use drover_schemas::codec;
use drover_schemas::guest::*;

fn body<T>(name: &str, value: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    super::check("guest", &format!("body-{name}"), value, codec::decode::<T>);
}

#[test]
fn bodies_of_a_freeze() {
    body("freeze", &FreezeRequest { timeout_ms: Some(5_000), mounts: Some(vec!["/srv".into()]) });
    let frozen =
        vec![FrozenMount { mount: "/srv".into(), fs_type: "ext4".into(), device: "/dev/vda".into() }];
    let skipped = vec![SkippedMount { mount: "/mnt".into(), reason: "it is not local".into() }];
    let hooks = vec!["10-database".to_owned()];
    let (took_ms, thaws_in_ms) = (12, 4_990);
    body(
        "freeze-result",
        &FreezeResult { frozen: frozen.clone(), skipped: skipped.clone(), hooks, took_ms, thaws_in_ms },
    );
    let thaw = ThawResult {
        thawed: vec!["/srv".into()],
        by: ThawedBy::Deadline,
        frozen_ms: 5_000,
        failed: skipped,
        hooks_failed: vec!["10-database: exit status 1".into()],
        ended_unix_ms: 1_700_000_000_000,
    };
    body("thaw-result", &thaw);
    let (state, thaws_in_ms) = (FreezeState::Frozen, Some(100));
    body("frozen-result", &FrozenResult { state, frozen, thaws_in_ms, last: Some(thaw) });
}
