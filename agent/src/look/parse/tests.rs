use proptest::prelude::*;

use super::*;

const STAT: &str = include_str!("../fixtures/stat.txt");
const MEMINFO: &str = include_str!("../fixtures/meminfo.txt");
const OS_RELEASE: &str = include_str!("../fixtures/os-release.txt");
const NET_DEV: &str = include_str!("../fixtures/net-dev.txt");
const FAILED: &str = include_str!("../fixtures/systemctl-failed.txt");

#[test]
fn texts_of_a_real_kernel_are_read() {
    let (busy, total) = cpu(STAT);
    assert!(busy > 0 && total > busy && total % TICK_MS == 0);
    assert!(boot_unix_ms(STAT) > 1_700_000_000_000);
    let memory = meminfo(MEMINFO);
    assert_eq!((memory.total, memory.swap_total), (24_684_092 * 1024, 0));
    assert!(memory.available > 0 && memory.available <= memory.total);
    let release = os_release(OS_RELEASE);
    assert_eq!((release.id.as_str(), release.version.as_str()), ("debian", "12"));
    assert_eq!(release.name, "Debian GNU/Linux 12 (bookworm)");
    let eth0 = interfaces(NET_DEV, 16).pop().unwrap();
    assert_eq!(eth0.name, "eth0");
    assert!(eth0.received_bytes > eth0.sent_bytes && eth0.sent_bytes > 0);
    assert!(interfaces(NET_DEV, 16).iter().all(|i| i.name != "lo"));
    assert_eq!(interfaces(NET_DEV, 1).len(), 1);
}

#[test]
fn names_of_processes_cannot_lie() {
    let rest = "S 1 2 2 0 -1 4194560 9 8 7 6 150 50 3 1 20 0 4 0 777 10000 33 18446744073709551615 1 1";
    for name in ["sh", "a) R (b", "a) R 1 2 3", "((", "", ") S 9 9"] {
        let stat = stat(&format!("42 ({name}) {rest}")).unwrap();
        assert_eq!(stat.name, name);
        assert_eq!((stat.state, stat.ppid, stat.ticks, stat.threads), ('S', 1, 200, 4));
        assert_eq!((stat.started, stat.pages), (777, 33));
    }
    assert_eq!(stat("42 (a\nb) R"), None);
    let mine = stat(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
    assert_eq!(mine.ppid, nix::unistd::getppid().as_raw() as u32);
    assert_eq!(uid("Name:\tUid:\nUid:\t33\t0\t0\t0\n"), Some(33));
}

#[test]
fn failed_services_are_named() {
    let expected = ["nginx.service", "srv-my\\x20data.mount", "user@1000.service"];
    assert_eq!(failed_units(FAILED, 16), expected);
    assert_eq!(failed_units(FAILED, 2), expected[..2]);
    assert_eq!(failed_units("", 16), [""; 0]);
    assert_eq!(crashed_services("sshd\ncron\n\n", 16), ["sshd", "cron"]);
    assert_eq!(crashed_services(" * Caching service dependencies ...\n", 16), [""; 0]);
}

#[test]
fn small_texts_are_read() {
    assert_eq!(cpu("cpu  10 0 5 80 5 0 0 0 0 0\ncpu0 1"), (150, 1000));
    assert_eq!(cpu(""), (0, 0));
    assert_eq!(load("0.5 0.25 x 1/2 3"), [0.5, 0.25, 0.0]);
    assert_eq!(load("nan -1 inf"), [0.0; 3]);
    assert_eq!(count("0-3,8\n"), 5);
    assert_eq!(count("3-0,x,0-4294967295"), 0);
    assert_eq!(cpu_model("processor : 0\nmodel name\t: AMD EPYC\nmodel name : b"), "AMD EPYC");
    assert_eq!(
        os_release("ID='a\\b'\nPRETTY_NAME=\"a\\\"b\\\\\"\nVERSION_ID="),
        Release { id: "a\\b".into(), version: String::new(), name: "a\"b\\".into() }
    );
    assert_eq!(os_release("").name, "Linux");
    assert_eq!(arguments(b"sh\0-c\0a b\0", 100), ["sh", "-c", "a b"]);
    assert_eq!(arguments(b"sh\0-c\0a b\0", 5), ["sh", "-c"]);
    assert_eq!(arguments(b"", 5), [""; 0]);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = meminfo(&text);
        let _ = load(&text);
        let _ = cpu(&text);
        let _ = boot_unix_ms(&text);
        let _ = os_release(&text);
        let _ = cpu_model(&text);
        let _ = count(&text);
        let _ = stat(&text);
        let _ = uid(&text);
        prop_assert!(interfaces(&text, 3).len() <= 3);
        prop_assert!(failed_units(&text, 3).len() <= 3);
        prop_assert!(crashed_services(&text, 3).len() <= 3);
        let kept: usize = arguments(&bytes, 40).iter().map(String::len).sum();
        // What is no UTF-8 becomes three bytes.
        prop_assert!(kept <= 120);
    }

    #[test]
    fn likely_bytes_are_survived(text in "(cpu |Uid:|btime |ID=|eth0: )?[0-9 ():\\-,\\\\'\"=\n]{0,200}") {
        let _ = cpu(&text);
        let _ = boot_unix_ms(&text);
        let _ = count(&text);
        let _ = stat(&text);
        let _ = uid(&text);
        let _ = os_release(&text);
        let _ = interfaces(&text, 3);
    }

    #[test]
    fn any_name_of_a_process_is_kept_apart(name in "[ -~]{0,15}") {
        let text = format!("42 ({name}) S 1 2 2 0 -1 0 9 8 7 6 150 50 3 1 20 0 4 0 777 10000 33 1 1");
        let found = stat(&text).unwrap();
        prop_assert_eq!((found.name, found.ppid, found.started), (name, 1, 777));
    }
}
