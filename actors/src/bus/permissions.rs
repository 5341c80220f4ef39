//! What a host needs of JetStream, and nothing more: it reads the stream and the buckets and writes entries,
//! but changes and deletes none of them, and purges none but the contents of shared images. `drover bus config` gives hosts these subjects; the
//! test of `permissions` says what they leave out.

use drover_schemas::Token;
use drover_schemas::subject::Subjects;

use super::assets::AssetsConfig;

/// The first token of every inbox; a user's own is `_INBOX.<user>`.
pub const INBOX: &str = "_INBOX";
/// The first token of reply subjects that the server puts in place of those of other accounts.
pub const RELAYED: &str = "_R_";

/// What a host publishes to. With `may_create` it makes the stream and the buckets where they are absent.
#[must_use]
pub fn of_host(assets: &AssetsConfig, host: &Token, may_create: bool) -> Vec<String> {
    let mut subjects: Vec<String> = ["$JS.API.INFO", "$JS.ACK.>", "$JS.FC.>"].map(str::to_owned).into();
    for stream in assets.streams().map(|config| config.name) {
        subjects.extend(
            [
                "STREAM.INFO.{}",
                "STREAM.MSG.GET.{}",
                "DIRECT.GET.{}",
                "DIRECT.GET.{}.>",
                "CONSUMER.CREATE.{}",
                "CONSUMER.CREATE.{}.>",
                "CONSUMER.INFO.{}.*",
                "CONSUMER.LIST.{}",
                "CONSUMER.MSG.NEXT.{}.*",
                "CONSUMER.DELETE.{}.*",
            ]
            .map(|verb| format!("$JS.API.{}", verb.replace("{}", &stream))),
        );
        if may_create {
            subjects.push(format!("$JS.API.STREAM.CREATE.{stream}"));
        }
    }
    // Another host's entry says that it lives; only it may say so.
    subjects.push(format!("$KV.{}.{host}", assets.hosts_bucket()));
    subjects.push(format!("$KV.{}.{host}.>", assets.hosts_bucket()));
    subjects.push(format!("$KV.{}.>", assets.vms_bucket()));
    subjects.push(format!("$KV.{}.>", assets.state_bucket()));
    subjects.push(format!("$KV.{}.>", assets.images_bucket()));
    subjects.push(format!("$O.{}.>", assets.images_bucket()));
    // The chunks of an image that is not shared any more, or was not sent whole.
    subjects.push(format!("$JS.API.STREAM.PURGE.{}", assets.images_stream()));
    subjects
}

/// What an operator of the bus publishes to.
#[must_use]
pub fn of_admin() -> Vec<String> {
    ["$JS.API.>", "$JS.ACK.>", "$JS.FC.>", "$SRV.>"].map(str::to_owned).into()
}

/// What somebody publishes to who tells what the servers of the bus denied: beside the events themselves, only the
/// question for the last of them.
#[must_use]
pub fn of_auditor(assets: &AssetsConfig, subjects: &Subjects) -> Vec<String> {
    vec![format!("$JS.API.DIRECT.GET.{}.{}", assets.events_stream(), subjects.all_bus_audit())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_schemas::subject::matches;

    #[test]
    fn a_host_changes_and_deletes_no_stream_and_purges_none_but_contents_of_images() {
        let assets = AssetsConfig::new(Token::new("drover").unwrap());
        let host = Token::new("h1").unwrap();
        for may_create in [false, true] {
            let granted = of_host(&assets, &host, may_create);
            let may = |subject: &str| granted.iter().any(|pattern| matches(pattern, subject));
            for stream in [
                "DROVER_EVENTS",
                "KV_DROVER_VMS",
                "KV_DROVER_HOSTS",
                "KV_DROVER_STATE",
                "KV_DROVER_IMAGES",
                "OBJ_DROVER_IMAGES",
                "OTHER",
            ] {
                let purges = may(&format!("$JS.API.STREAM.PURGE.{stream}"));
                assert_eq!(purges, stream == "OBJ_DROVER_IMAGES");
                for verb in ["UPDATE", "DELETE", "MSG.DELETE", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN"] {
                    assert!(!may(&format!("$JS.API.STREAM.{verb}.{stream}")), "{verb} {stream}");
                }
                let ours = stream != "OTHER";
                assert_eq!(may(&format!("$JS.API.STREAM.INFO.{stream}")), ours);
                assert_eq!(may(&format!("$JS.API.STREAM.CREATE.{stream}")), ours && may_create);
            }
            assert!(may("$KV.DROVER_HOSTS.h1") && may("$KV.DROVER_HOSTS.h1.claim"));
            assert!(!may("$KV.DROVER_HOSTS.h2") && !may("$KV.DROVER_HOSTS.h2.claim"));
        }
    }
}
