//! Disks that are full and descriptors that run out: a coded answer for what cannot be done, no harm to what
//! runs, and everything again when there is room.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::Write as _;
use std::path::{Path, PathBuf};

use drover_schemas::ErrorCode;
use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::status::VmStatus;
use drover_schemas::state::VmState;
use drover_tests::client::Failure;
use drover_tests::leak;
use drover_tests::wait::until;
use drover_tests::world::{Options, World, run};
use serde_json::json;

/// The daemon sees a file system of its own at `path`, and nobody else does.
async fn start_over(world: &mut World, path: &Path, options: &str) {
    let (path, script) = (path.display(), "exec \"$@\"");
    let script = format!("mkdir -p {path} && mount -t tmpfs -o {options},mode=755 none {path} && {script}");
    let launcher = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
    world.launcher = launcher.map(str::to_owned).to_vec();
    world.start_nats().await;
    world.start();
    world.ready().await;
}

/// `path` as the daemon sees it.
fn inside(world: &World, path: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{}/root", world.daemon_id().unwrap()));
    root.join(path.strip_prefix("/").unwrap())
}

/// Takes all the room that there is.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("fill");
    let mut file = std::fs::File::create(&path).unwrap();
    let mut piece = vec![7_u8; 1 << 16];
    while !piece.is_empty() {
        // Ever smaller pieces, to the last byte.
        while file.write_all(&piece).is_ok() {}
        piece.truncate(piece.len() / 2);
    }
    path
}

fn refused(result: Result<impl std::fmt::Debug, Failure>) -> drover_schemas::ErrorBody {
    let Err(Failure::Coded(error)) = result else { panic!("{result:?}") };
    assert!(!error.message.is_empty() && error.code != ErrorCode::Internal, "{error:?}");
    error
}

async fn works(world: &World, name: &str, vm: &VmStatus) {
    let tail = format!("vm.{name}.guest.exec");
    let done: ExecReply = world.bus.ask(&tail, &json!({"argv": ["true"]})).get().await.unwrap();
    assert!(matches!(&done, ExecReply::Result(result) if result.exit_code == Some(0)), "{done:?}");
    assert_eq!(world.vmms(vm.vm_id).len(), 1);
}

#[test]
fn a_full_disk_under_the_journal_refuses_what_is_new_and_ends_what_must_end() {
    let test = "a_full_disk_under_the_journal_refuses_what_is_new_and_ends_what_must_end";
    run(test, Options::down(), async |world| {
        let state = world.state_dir().to_owned();
        start_over(world, &state, "size=48m").await;
        let bus = world.bus.clone();
        let (a, b) = (bus.up("a").await, bus.up("b").await);
        let full = fill(&inside(world, &state));
        // What is new is refused sooner or later, in words; whatever was taken before that works.
        let mut error = None;
        for n in 0..400 {
            match bus.create(&format!("n{n}"), json!({})).await {
                Ok(_) => bus.change(&format!("n{n}"), "delete").await.map(drop).unwrap(),
                failed => {
                    error = Some(refused(failed));
                    break;
                }
            }
        }
        let error = error.expect("the journal has an end");
        assert!(matches!(error.code, ErrorCode::ResourceExhausted | ErrorCode::Unavailable), "{error:?}");
        works(world, "a", &a).await;
        // What gives room back goes on: there is space set aside for it.
        bus.change_with("b", "stop", json!({"force": true})).await.unwrap();
        bus.change("b", "delete").await.unwrap();
        assert_eq!(leak::anything(world, &b), Vec::<String>::new());
        std::fs::remove_file(full).unwrap();
        // The journal looks for room again every few seconds.
        until("room", async || bus.create("room", json!({"wait": "agent"})).await.ok()).await;
        let again = bus.up("again").await;
        works(world, "again", &again).await;
        works(world, "a", &a).await;
    });
}

#[test]
fn a_full_run_folder_fails_a_start_with_its_cause_and_harms_nobody() {
    run("a_full_run_folder_fails_a_start_with_its_cause_and_harms_nobody", Options::down(), async |world| {
        let run_dir = world.run_dir().to_owned();
        // The hypervisor's own files go elsewhere; records, rings and sockets of a few VMs fit.
        start_over(world, &run_dir, "size=8m").await;
        let bus = world.bus.clone();
        let a = bus.up("a").await;
        let full = fill(&inside(world, &run_dir));
        let error = refused(bus.create("b", json!({"wait": "running"})).await);
        assert_eq!(error.code, ErrorCode::ResourceExhausted, "{error:?}");
        let b = bus.until("b", "failed", |vm| vm.state == VmState::Failed).await;
        let cause = b.cause.clone().unwrap();
        assert!(cause.message.contains("No space left"), "{cause:?}");
        works(world, "a", &a).await;
        std::fs::remove_file(full).unwrap();
        bus.change_with("b", "start", json!({"wait": "agent"})).await.unwrap();
        works(world, "a", &a).await;
    });
}

#[test]
fn a_full_store_of_images_refuses_an_import_and_keeps_nothing_of_it() {
    run("a_full_store_of_images_refuses_an_import_and_keeps_nothing_of_it", Options::down(), async |world| {
        let store = world.state_dir().join("store");
        let dir = world.state_dir().parent().unwrap().join("in");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("data"), vec![7_u8; 8 << 20]).unwrap();
        world.configure_with(|config| config["images"] = json!({"import_dirs": [dir]}));
        start_over(world, &store, "size=48m,nr_inodes=12").await;
        let bus = world.bus.clone();
        let a = bus.up("a").await;
        let subject = "drover.v1.host.h1.image.import";
        let import = json!({"name": "data", "kind": "disk", "path": dir.join("data")});
        let inside = inside(world, &store);
        let held = || {
            std::fs::read_dir(inside.join("sha256"))
                .unwrap()
                .chain(std::fs::read_dir(inside.join("tmp")).unwrap())
        };
        // No room for the bytes: told before one is written.
        let full = fill(&inside);
        let error = bus.ask(subject, &import).refused(ErrorCode::ResourceExhausted).await;
        assert_eq!((error.details["needed"].as_str(), held().count()), ("8388608", 0), "{error:?}");
        std::fs::remove_file(full).unwrap();
        // No room for a file: told when it is written.
        let mut few = 0;
        while std::fs::File::create_new(inside.join(format!("few{few}"))).is_ok() {
            few += 1;
        }
        let error = bus.ask(subject, &import).refused(ErrorCode::ResourceExhausted).await;
        assert!(error.message.contains("No space left") && held().count() == 0, "{error:?}");
        works(world, "a", &a).await;
        for n in 0..few {
            std::fs::remove_file(inside.join(format!("few{n}"))).unwrap();
        }
        let _: drover_schemas::body::image::ImageImportReply = bus.ask(subject, &import).get().await.unwrap();
        assert_eq!(held().count(), 1);
        let spec = json!({"disks": [{"image": "drover-rootfs"}, {"image": "data"}]});
        let b = bus.create("b", json!({"spec": spec, "wait": "agent"})).await.unwrap().vm;
        works(world, "b", &b).await;
        works(world, "a", &a).await;
    });
}

#[test]
fn a_daemon_that_may_open_few_files_promises_no_more_than_it_can_keep() {
    run(
        "a_daemon_that_may_open_few_files_promises_no_more_than_it_can_keep",
        Options::down(),
        async |world| {
            world.launcher = ["prlimit", "--nofile=96"].map(str::to_owned).to_vec();
            world.start_nats().await;
            world.start();
            world.ready().await;
            let bus = world.bus.clone();
            let first = bus.up("first").await;
            let mut refusal = None;
            for n in 0..40 {
                match bus.create(&format!("n{n}"), json!({"wait": "agent"})).await {
                    Ok(_) => {}
                    failed => {
                        refusal = Some(refused(failed));
                        break;
                    }
                }
            }
            let error = refusal.expect("descriptors are counted");
            let resource = error.details.get("resource").map(String::as_str);
            assert_eq!(
                (error.code, resource),
                (ErrorCode::ResourceExhausted, Some("descriptors")),
                "{error:?}"
            );
            works(world, "first", &first).await;
            // One VM less, one VM more.
            bus.change("n0", "delete").await.unwrap();
            bus.up("another").await;
            assert!(!world.told().contains("Too many open files"));
        },
    );
}

#[test]
fn a_full_disk_under_the_disks_fails_a_boot_with_its_cause_and_harms_nobody() {
    let test = "a_full_disk_under_the_disks_fails_a_boot_with_its_cause_and_harms_nobody";
    run(test, Options::down(), async |world| {
        let disks = world.state_dir().join("disks");
        start_over(world, &disks, "size=100m").await;
        let bus = world.bus.clone();
        let body = json!({"wait": "agent", "spec": {"disks": [{"image": "drover-rootfs"}]}});
        let a = bus.create("a", body.clone()).await.unwrap().vm;
        let full = fill(&inside(world, &disks));
        let error = refused(bus.create("b", body).await);
        assert_eq!(error.details["cause"], "disk_refused", "{error:?}");
        let b = bus.until("b", "failed", |vm| vm.state == VmState::Failed).await;
        assert!(b.cause.clone().unwrap().message.contains("No space left"), "{:?}", b.cause);
        assert_eq!(leak::runtime(world, &b), Vec::<String>::new());
        works(world, "a", &a).await;
        // Nobody is given room that is promised already, whatever is free just now.
        let host = bus.host().await.unwrap().capacity;
        assert!(host.disk_used_bytes > 0 && host.disk_used_bytes <= host.disk_bytes, "{host:?}");
        // With room the same VM starts.
        std::fs::remove_file(full).unwrap();
        bus.change("a", "delete").await.unwrap();
        bus.change_with("b", "start", json!({"wait": "agent"})).await.unwrap();
        let b = bus.status("b").await.unwrap();
        works(world, "b", &b).await;
    });
}
