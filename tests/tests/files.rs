//! Files of a guest by the command line: names, holes, what is refused at once, a copy that is killed and goes on, and
//! folders.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use drover_schemas::ErrorCode;
use drover_schemas::body::guest::ExecReply;
use drover_schemas::guest::{FileKind, FileStat, LsReply, TreeResult};
use drover_schemas::stream::{Channel, MAX_CHUNK, StreamEnd, StreamFrame};
use drover_tests::client::{Bus, Failure};
use drover_tests::digest::sha256;
use drover_tests::stream::Stream;
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Runs the command line until `then`, and kills it; it has ended, and what it held is free.
async fn killed(world: &World, args: &[&str], then: impl Future<Output = ()>) {
    let mut child = world.command(args).spawn().unwrap();
    tokio::select! {
        done = child.wait() => panic!("not killed: {done:?}"),
        () = then => {}
    }
    child.kill().await.unwrap();
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
        world.printed(&["vm", "file", "mkdir", "web:/tmp/in/deep", "--parents"]).await;
        fs::write(world.path("note"), b"hello").unwrap();
        let note = world.path("note").display().to_string();
        world.printed(&["vm", "cp", &note, "web:/tmp/in/note", "--mode", "0640"]).await;
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
        let listed = world.printed(&["vm", "file", "ls", "web:/tmp/in"]).await;
        assert!(listed.contains("note") && listed.contains("link"), "{listed}");
        // A pipe and a device would never end.
        for path in ["/tmp/in/pipe", "/dev/zero", "/tmp/in"] {
            let to = world.path("never").display().to_string();
            let refused = world.drover(&["vm", "cp", &format!("web:{path}"), &to, "-o", "json"]).await;
            assert!(!refused.status.success() && !world.path("never").exists(), "{path}: {refused:?}");
        }
        // What is removed is the link, and never what it leads to.
        world.printed(&["vm", "file", "rm", "web:/tmp/in", "--recursive"]).await;
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
        let text =
            world.printed(&["vm", "cp", path.to_str().unwrap(), "web:/tmp/sparse", "-o", "json"]).await;
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
        killed(world, &["vm", "cp", &there, "web:/tmp/data"], some).await;
        assert!(
            !in_guest(&bus, "ls -A /tmp").await.lines().any(|name| name == "data"),
            "whole or not at all"
        );
        world.printed(&["vm", "cp", &there, "web:/tmp/data"]).await;
        assert_eq!(in_guest(&bus, "ls -A /tmp | grep -c drover || true").await, "0", "nothing of it is left");
        // And back, killed when some of it is here.
        let partial = || {
            let entries = fs::read_dir(back.parent().unwrap()).unwrap().flatten();
            entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".part")).count()
        };
        let some = until("some of the file is here", async || (partial() > 0).then_some(()));
        killed(world, &["vm", "cp", "web:/tmp/data", &here], some).await;
        assert!(!back.exists());
        world.printed(&["vm", "cp", "web:/tmp/data", &here]).await;
        assert_eq!(partial(), 0);
        assert!(fs::read(&back).unwrap() == bytes, "the same bytes");
    });
}

/// What lies below a folder here: a line each, with what is in it.
fn listed(root: &Path) -> Vec<String> {
    let list = "find . -printf '%y %m %P %l\\n' | sort; find . -type f -exec sha256sum {} + | sort -k2";
    let done = std::process::Command::new("sh").args(["-c", list]).current_dir(root).output().unwrap();
    String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_folder_travels_both_ways_whole_or_not_at_all() {
    run("a_folder_travels_both_ways_whole_or_not_at_all", Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        let site = world.path("site");
        fs::create_dir_all(site.join("a/b/empty")).unwrap();
        let bytes: Vec<u8> = (0..24_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for n in 0..4 {
            fs::write(site.join(format!("a/data{n}")), &bytes).unwrap();
        }
        fs::write(site.join("a/b/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(site.join("a/b/run"), fs::Permissions::from_mode(0o4711)).unwrap();
        symlink("b/run", site.join("a/link")).unwrap();
        let file = File::create_new(site.join("sparse")).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let from = site.display().to_string();

        // A file's copy is asked for what is a folder, and the other way round.
        let refused = world.drover(&["vm", "cp", &from, "web:/srv/site"]).await;
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--recursive"), "{refused:?}");
        // Ended in the middle by Ctrl-C, it leaves nothing.
        let copy = ["vm", "cp", "-r", "--parents", &from, "web:/srv/www/"];
        let mut child = world.command(&copy).spawn().unwrap();
        until("some of the folder is in the guest", async || {
            let page: LsReply = bus.ask("vm.web.guest.ls", &json!({"path": "/srv/www"})).get().await.ok()?;
            (!page.entries.is_empty()).then_some(())
        })
        .await;
        kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(130));
        until("nothing of it is left", async || {
            let page: LsReply = bus.ask("vm.web.guest.ls", &json!({"path": "/srv/www"})).get().await.unwrap();
            assert!(page.entries.iter().all(|entry| entry.name != "site"), "whole or not at all");
            page.entries.is_empty().then_some(())
        })
        .await;
        let text = world.printed(&[&copy[..], &["-o", "json"]].concat()).await;
        let copied: TreeResult = serde_json::from_str(&text).unwrap();
        assert_eq!((copied.entries, copied.skipped), (10, 0));
        assert_eq!(copied.size_bytes, 4 * (24 << 20) + 10 + (64 << 20));
        assert!(stat(&bus, "/srv/www/site/sparse").await.allocated_bytes < 1 << 20, "it has its hole still");
        let (run, root) = (stat(&bus, "/srv/www/site/a/b/run").await, stat(&bus, "/srv/www/site").await);
        assert_eq!((run.mode, run.uid, root.kind), (0o711, 0, FileKind::Directory), "no set-id bit travels");

        // Nothing is replaced unasked, and then at once.
        let again = ["vm", "cp", "-r", &from, "web:/srv/www/site"];
        let refused = world.drover(&[&again[..], &["-o", "json"]].concat()).await;
        assert!(String::from_utf8_lossy(&refused.stderr).contains("already_exists"), "{refused:?}");
        in_guest(&bus, "echo old > /srv/www/site/old").await;
        world.printed(&[&again[..], &["--replace"]].concat()).await;
        bus.ask("vm.web.guest.stat", &json!({"path": "/srv/www/site/old"}))
            .refused(ErrorCode::NotFound)
            .await;
        assert_eq!(in_guest(&bus, "ls -A /srv/www").await, "site");

        // And back, but for what is no file, and links that would lead elsewhere here.
        in_guest(&bus, "cd /srv/www/site; mkfifo pipe; ln -s /etc/passwd out; ln -s ../../x a/up").await;
        let back = world.path("back");
        let there = back.display().to_string();
        let text = world.printed(&["vm", "cp", "-r", "web:/srv/www/site", &there, "-o", "json"]).await;
        let copied: TreeResult = serde_json::from_str(&text).unwrap();
        assert_eq!((copied.entries, copied.skipped), (10, 3));
        fs::set_permissions(site.join("a/b/run"), fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(listed(&back), listed(&site));
        let here = fs::read_dir(back.parent().unwrap()).unwrap().flatten();
        assert!(here.into_iter().all(|e| !e.file_name().to_string_lossy().ends_with(".part")));
    });
}

/// A file on its way to the guest, of which the first bytes are there.
async fn begun(bus: &Bus, path: &str, bytes: &[u8]) -> Stream {
    let body = json!({"path": path, "size_bytes": bytes.len()});
    let stream = Stream::open(bus, "vm.web.guest.put", &body).await.unwrap();
    stream.data(Channel::Data, 0, &bytes[..MAX_CHUNK]).await;
    let drafts = format!("ls -A {} | grep -c drover$ || true", Path::new(path).parent().unwrap().display());
    until("its first bytes are there", async || (in_guest(bus, &drafts).await == "1").then_some(())).await;
    stream
}

/// Sends the rest, and hears the end.
async fn goes_on(mut stream: Stream, bytes: &[u8]) -> StreamEnd {
    let chunks = bytes.chunks(MAX_CHUNK).enumerate().skip(1);
    for (n, chunk) in chunks {
        stream.data(Channel::Data, (n * MAX_CHUNK) as u64, chunk).await;
    }
    let (ch, off) = (Some(Channel::Data), Some(bytes.len() as u64));
    stream.send(&StreamFrame { ch, off, eof: true, ..StreamFrame::default() }).await;
    let end = stream.find(|frame| frame.end.is_some()).await.end.unwrap();
    stream.send(&StreamFrame { done: true, ..StreamFrame::default() }).await;
    end
}

/// What comes from the guest; with the first bytes a script runs there.
async fn comes(bus: &Bus, verb: &str, path: &str, script: &str) -> (Vec<u8>, StreamEnd) {
    let mut stream =
        Stream::open(bus, &format!("vm.web.guest.{verb}"), &json!({"path": path})).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        let frame = stream.next().await;
        if let Some(end) = frame.end {
            stream.send(&StreamFrame { done: true, ..StreamFrame::default() }).await;
            return (bytes, end);
        }
        let (Some(Channel::Data), Some(off)) = (frame.ch, frame.off) else { continue };
        if bytes.is_empty() {
            in_guest(bus, script).await;
        }
        let data = frame.data.unwrap_or_default();
        // What is sent again was there.
        if off == bytes.len() as u64 {
            bytes.extend_from_slice(data.as_slice());
        }
        let acked = bytes.len() as u64 + u64::from(frame.eof);
        stream.ack(Channel::Data, acked, MAX_CHUNK as u64).await;
    }
}

#[test]
fn links_that_are_swapped_in_on_the_way_lead_nowhere() {
    run("links_that_are_swapped_in_on_the_way_lead_nowhere", Options::default(), async |world| {
        let bus = world.bus.clone();
        bus.up("web").await;
        let bytes: Vec<u8> =
            (0..300_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        let etc = "ls -A /etc | sort | sha256sum; cat /etc/passwd | sha256sum";
        let before = in_guest(&bus, etc).await;
        let done = |end: StreamEnd| match end {
            StreamEnd::Result(_) => {}
            StreamEnd::Error(error) => panic!("{error}"),
        };
        in_guest(&bus, "mkdir -p /tmp/in /tmp/pack/z; echo kept > /tmp/kept").await;

        // The folder that it goes to becomes a link: it is in the folder that was looked up.
        let stream = begun(&bus, "/tmp/in/file", &bytes).await;
        in_guest(&bus, "mv /tmp/in /tmp/was && ln -s /etc /tmp/in").await;
        done(goes_on(stream, &bytes).await);
        assert_eq!(in_guest(&bus, "ls -A /tmp/was").await, "file");
        assert!(in_guest(&bus, "sha256sum < /tmp/was/file").await.starts_with(&sha256(&bytes)));
        // Its own name becomes one: the link is replaced, and not what it names.
        let stream = begun(&bus, "/tmp/was/name", &bytes).await;
        in_guest(&bus, "ln -s /tmp/kept /tmp/was/name").await;
        done(goes_on(stream, &bytes).await);
        assert_eq!(in_guest(&bus, "cat /tmp/kept; stat -c %F /tmp/was/name").await, "kept\nregular file");
        // Or a pipe, which nobody replaces and nobody waits for.
        let stream = begun(&bus, "/tmp/was/pipe", &bytes).await;
        in_guest(&bus, "mkfifo /tmp/was/pipe").await;
        assert!(matches!(goes_on(stream, &bytes).await, StreamEnd::Error(_)));
        assert_eq!(
            in_guest(&bus, "stat -c %F /tmp/was/pipe; ls -A /tmp/was").await,
            "fifo\nfile\nname\npipe"
        );

        // What is read is what was opened.
        let swap = "ln -s /etc/passwd /tmp/was/new && mv -T /tmp/was/new /tmp/was/file";
        let (read, end) = comes(&bus, "get", "/tmp/was/file", swap).await;
        done(end);
        assert!(read == bytes, "{} bytes", read.len());
        // A folder is packed as it was found: what is a link by then is not entered.
        in_guest(&bus, "head -c 4000000 /dev/urandom > /tmp/pack/a; echo own > /tmp/pack/z/own").await;
        let swap = "mv /tmp/pack/z /tmp/z && ln -s /etc /tmp/pack/z";
        let (packed, end) = comes(&bus, "pack", "/tmp/pack", swap).await;
        done(end);
        let mut archive = tar::Archive::new(packed.as_slice());
        let names = archive.entries().unwrap().map(|entry| {
            String::from_utf8_lossy(&entry.unwrap().path_bytes()).trim_start_matches("./").to_owned()
        });
        let names: Vec<String> = names.filter(|name| !name.is_empty() && name != ".").collect();
        assert!(names.iter().any(|name| name == "a"), "{names:?}");
        assert!(names.iter().all(|name| ["a", "z", "z/", "z/own"].contains(&name.as_str())), "{names:?}");
        assert_eq!(in_guest(&bus, etc).await, before);

        // Ways out of a path, and links that the kernel makes up.
        for path in ["/tmp/../etc/passwd", "/tmp/was/..", "etc/passwd"] {
            for verb in ["stat", "rm", "mkdir"] {
                let ask = bus.ask(&format!("vm.web.guest.{verb}"), &json!({"path": path}));
                ask.id(drover_schemas::RequestId::generate()).refused(ErrorCode::InvalidArgument).await;
            }
        }
        for path in ["/proc/self/root/etc/passwd", "/proc/self/cwd/etc/passwd", "/proc/1/root/etc"] {
            let error =
                bus.ask("vm.web.guest.stat", &json!({"path": path})).get::<Value>().await.unwrap_err();
            println!("{path}: {error}");
            assert!(matches!(error, Failure::Coded(_)), "{path}: {error}");
        }
        let (version, end) = comes(&bus, "get", "/proc/version", "true").await;
        done(end);
        assert_eq!(String::from_utf8(version).unwrap().trim(), in_guest(&bus, "cat /proc/version").await);
        assert_eq!(in_guest(&bus, etc).await, before);
    });
}
