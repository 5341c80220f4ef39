//! Files of a guest by the command line: names, holes, what is refused at once, and a copy that is killed and goes on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use drover_schemas::ErrorCode;
use drover_schemas::body::guest::ExecReply;
use drover_schemas::guest::{FileKind, FileStat, LsReply};
use drover_tests::client::Bus;
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::{Value, json};

async fn says(world: &World, args: &[&str]) -> String {
    let done = world.drover(args).await;
    assert!(done.status.success(), "{args:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

async fn in_guest(bus: &Bus, script: &str) -> String {
    let body = json!({"argv": ["sh", "-c", script]});
    let reply: ExecReply = bus.ask("vm.web.guest.exec", &body).get().await.unwrap();
    let ExecReply::Result(result) = reply else { panic!("{reply:?}") };
    assert_eq!(result.exit_code, Some(0), "{script}: {result:?}");
    String::from_utf8_lossy(result.stdout.unwrap().as_slice()).trim().to_owned()
}

async fn stat(bus: &Bus, path: &str) -> FileStat {
    bus.ask("vm.web.guest.stat", &json!({"path": path})).get().await.unwrap()
}

#[test]
fn names_are_made_listed_and_removed_and_what_is_no_file_is_refused_at_once() {
    let test = "names_are_made_listed_and_removed_and_what_is_no_file_is_refused_at_once";
    run(test, Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        says(world, &["vm", "file", "mkdir", "web:/tmp/in/deep", "--parents"]).await;
        fs::write(world.path("note"), b"hello").unwrap();
        let note = world.path("note").display().to_string();
        says(world, &["vm", "cp", &note, "web:/tmp/in/note", "--mode", "0640"]).await;
        in_guest(
            &bus,
            "ln -s /etc/passwd /tmp/in/link; mkfifo /tmp/in/pipe; : > /tmp/kept; ln -s /tmp /tmp/in/up",
        )
        .await;
        let page: LsReply = bus.ask("vm.web.guest.ls", &json!({"path": "/tmp/in"})).get().await.unwrap();
        let names: Vec<(&str, FileKind)> =
            page.entries.iter().map(|entry| (entry.name.as_str(), entry.stat.kind)).collect();
        assert_eq!(
            names,
            [
                ("deep", FileKind::Directory),
                ("link", FileKind::Symlink),
                ("note", FileKind::File),
                ("pipe", FileKind::Fifo),
                ("up", FileKind::Symlink),
            ]
        );
        let found = stat(&bus, "/tmp/in/note").await;
        assert_eq!((found.size_bytes, found.mode & 0o777), (5, 0o640));
        let listed = says(world, &["vm", "file", "ls", "web:/tmp/in"]).await;
        assert!(listed.contains("note") && listed.contains("link"), "{listed}");
        // A pipe and a device would never end.
        for path in ["/tmp/in/pipe", "/dev/zero", "/tmp/in"] {
            let to = world.path("never").display().to_string();
            let refused = world.drover(&["vm", "cp", &format!("web:{path}"), &to, "-o", "json"]).await;
            assert!(!refused.status.success() && !world.path("never").exists(), "{path}: {refused:?}");
        }
        // What is removed is the link, and never what it leads to.
        says(world, &["vm", "file", "rm", "web:/tmp/in", "--recursive"]).await;
        bus.ask("vm.web.guest.stat", &json!({"path": "/tmp/in"})).refused(ErrorCode::NotFound).await;
        assert_eq!(in_guest(&bus, "ls /tmp/kept; test -s /etc/passwd").await, "/tmp/kept");
        let relative = bus.ask("vm.web.guest.rm", &json!({"path": "tmp/kept"}));
        relative.id(drover_schemas::RequestId::generate()).refused(ErrorCode::InvalidArgument).await;
    });
}

#[test]
fn holes_do_not_travel_also_beyond_four_gib() {
    run("holes_do_not_travel_also_beyond_four_gib", Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        let (size, path) = ((4 << 30) + 12_345, world.path("sparse"));
        let file = File::create_new(&path).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"last", size - 4).unwrap();
        let text = says(world, &["vm", "cp", path.to_str().unwrap(), "web:/tmp/sparse", "-o", "json"]).await;
        let copied: Value = serde_json::from_str(&text).unwrap();
        let found = stat(&bus, "/tmp/sparse").await;
        assert_eq!((found.size_bytes, &copied["size_bytes"]), (size, &json!(size)));
        assert!(found.allocated_bytes < 1 << 20, "{found:?}");
        assert_eq!(
            in_guest(&bus, "head -c 5 /tmp/sparse; tail -c 4 /tmp/sparse; rm /tmp/sparse").await,
            "firstlast"
        );
    });
}

#[test]
fn a_copy_that_is_killed_goes_on_and_leaves_nothing() {
    run("a_copy_that_is_killed_goes_on_and_leaves_nothing", Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        let bytes: Vec<u8> = (0..96_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (from, back) = (world.path("data"), world.path("back"));
        fs::write(&from, &bytes).unwrap();
        let (there, here) = (from.display().to_string(), back.display().to_string());
        // To the guest, killed when some of it is there.
        let some = async {
            until("some of the file is in the guest", async || {
                let page: LsReply = bus.ask("vm.web.guest.ls", &json!({"path": "/tmp"})).get().await.ok()?;
                page.entries
                    .iter()
                    .any(|e| e.name.contains(".drover") && e.stat.size_bytes > 4 << 20)
                    .then_some(())
            })
            .await;
        };
        let copy = ["vm", "cp", &there, "web:/tmp/data"];
        tokio::select! {
            done = world.drover(&copy) => panic!("not killed: {done:?}"),
            () = some => {}
        }
        assert!(
            !in_guest(&bus, "ls -A /tmp").await.lines().any(|name| name == "data"),
            "whole or not at all"
        );
        says(world, &["vm", "cp", &there, "web:/tmp/data"]).await;
        assert_eq!(in_guest(&bus, "ls -A /tmp | grep -c drover || true").await, "0", "nothing of it is left");
        // And back, killed when some of it is here.
        let partial = || {
            let entries = fs::read_dir(back.parent().unwrap()).unwrap().flatten();
            entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".part")).count()
        };
        let some = until("some of the file is here", async || (partial() > 0).then_some(()));
        let copy = ["vm", "cp", "web:/tmp/data", &here];
        tokio::select! {
            done = world.drover(&copy) => panic!("not killed: {done:?}"),
            () = some => {}
        }
        assert!(!back.exists());
        says(world, &["vm", "cp", "web:/tmp/data", &here]).await;
        assert_eq!(partial(), 0);
        assert!(fs::read(&back).unwrap() == bytes, "the same bytes");
    });
}
