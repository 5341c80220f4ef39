//! Pins the bytes of the contract: `golden/<group>/<name>.msgpack` beside the same value as JSON.
//!
//! `UPDATE_GOLDEN=1` writes the files anew; a difference in review is a change of the contract.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Debug;
use std::path::PathBuf;

use serde::Serialize;

#[path = "golden/bus.rs"]
mod bus;
#[path = "golden/guest.rs"]
mod guest;
#[path = "golden/work.rs"]
mod work;

fn path(group: &str, name: &str, ext: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(group).join(format!("{name}.{ext}"))
}

/// Checks that `value` is written as the pinned bytes and JSON, and that `decode` reads it back.
#[track_caller]
pub fn check<T, E>(group: &str, name: &str, value: &T, decode: impl Fn(&[u8]) -> Result<T, E>)
where
    T: Serialize + PartialEq + Debug,
    E: Debug,
{
    let bytes = drover_schemas::codec::encode(value).unwrap();
    let json = serde_json::to_string_pretty(value).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path(group, name, "json").parent().unwrap()).unwrap();
        std::fs::write(path(group, name, "msgpack"), &bytes).unwrap();
        std::fs::write(path(group, name, "json"), &json).unwrap();
    }
    let pinned = std::fs::read(path(group, name, "msgpack")).unwrap();
    let pinned_json = std::fs::read_to_string(path(group, name, "json")).unwrap();
    assert_eq!(bytes, pinned, "{group}/{name}: the bytes have changed");
    assert_eq!(json, pinned_json, "{group}/{name}: the JSON has changed");
    assert_eq!(&decode(&pinned).unwrap(), value, "{group}/{name}: the pinned bytes read differently");
}
