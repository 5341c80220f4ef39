//! Every frame and body of the guest protocol.

use drover_schemas::blob::Blob;
use drover_schemas::codec;
use drover_schemas::guest::*;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token};

fn host(name: &str, frame: &HostFrame) {
    super::check("guest", &format!("host-{name}"), frame, HostFrame::parse);
}

fn agent(name: &str, frame: &AgentFrame) {
    super::check("guest", &format!("agent-{name}"), frame, AgentFrame::parse);
}

fn body<T>(name: &str, value: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    super::check("guest", &format!("body-{name}"), value, codec::decode::<T>);
}

fn blob(bytes: &[u8]) -> Blob {
    Blob::from(bytes.to_vec())
}

fn data() -> Data {
    Data { stream: 7, ch: Channel::Data, off: 1 << 40, data: blob(&[0, 1, 0xff]), eof: false }
}

#[test]
fn frames_of_the_host() {
    host(
        "hello",
        &HostFrame::Hello(HostHello {
            proto_min: 1,
            proto_max: 1,
            version: "0.1.0".into(),
            features: vec!["attach".into()],
        }),
    );
    host(
        "req",
        &HostFrame::Req(Request {
            stream: 7,
            verb: verb::EXEC.into(),
            request_id: Some(RequestId::from_u128(1)),
            deadline_ms: Some(5_000),
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            caller: Some("acme/alice".into()),
            credit: 65_536,
            body: blob(&[0x80]),
        }),
    );
    host(
        "req-least",
        &HostFrame::Req(Request {
            stream: 1,
            verb: verb::PING.into(),
            request_id: None,
            deadline_ms: None,
            traceparent: None,
            caller: None,
            credit: 0,
            body: Blob::default(),
        }),
    );
    host("data", &HostFrame::Data(data()));
    host("credit", &HostFrame::Credit(Credit { stream: 7, ch: Channel::Stdout, limit: 262_144 }));
    host("cancel", &HostFrame::Cancel(Cancel { stream: 7 }));
    let size = Some(TermSize { rows: 50, cols: 132 });
    host("control", &HostFrame::Control(Control { stream: 7, size, signal: Some(2) }));
    host("ping", &HostFrame::Ping(Ping { nonce: 3 }));
    host("pong", &HostFrame::Pong(Pong { nonce: 4 }));
    host("event-ack", &HostFrame::EventAck(EventAck { log: "01M3QK0000000000000000000A".into(), n: 7 }));
    host("moved", &HostFrame::Moved(Moved {}));
    host("bye", &HostFrame::Bye(Bye { error: None }));
}

#[test]
fn frames_of_the_agent() {
    agent(
        "hello",
        &AgentFrame::Hello(AgentHello {
            proto: 1,
            version: "0.1.0".into(),
            boot_id: "5b4c0d34-3c4c-4c4e-9f6e-6a4ad6d6a4b5".into(),
            instance: "01J00000000000000000000000".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            kernel: "6.1.0".into(),
            hostname: "web-1".into(),
            capabilities: vec![verb::PING.into(), verb::EXEC.into()],
            allowed: Some(vec![verb::PING.into()]),
            guest: GuestKind::Vm,
            stream_credit: 65_536,
            max_streams: 64,
        }),
    );
    agent("head", &AgentFrame::Head(Head { stream: 7, body: blob(&[0x80]) }));
    agent("res", &AgentFrame::Res(Response { stream: 7, body: Some(blob(&[0x80])), error: None }));
    let error = ErrorBody::new(ErrorCode::NotFound, "there is no file /nope").with("path", "/nope");
    agent("res-error", &AgentFrame::Res(Response { stream: 7, body: None, error: Some(error.clone()) }));
    agent("data", &AgentFrame::Data(Data { ch: Channel::Stderr, eof: true, ..data() }));
    agent("data-eof", &AgentFrame::Data(Data { data: Blob::default(), eof: true, ..data() }));
    agent("credit", &AgentFrame::Credit(Credit { stream: 7, ch: Channel::Stdin, limit: 65_536 }));
    agent("ping", &AgentFrame::Ping(Ping { nonce: 3 }));
    agent("pong", &AgentFrame::Pong(Pong { nonce: 4 }));
    let event = Event {
        log: "01M3QK0000000000000000000A".into(),
        n: 7,
        time_unix_ms: 1_795_386_615_042,
        uid: 1000,
        gid: 100,
        pid: 4242,
        kind: "app.deployed".into(),
        body: blob(&[0x80]),
    };
    agent("event", &AgentFrame::Event(event));
    agent("moved", &AgentFrame::Moved(Moved {}));
    agent("bye", &AgentFrame::Bye(Bye { error: Some(error) }));
}

#[test]
fn bodies() {
    body(
        "exec",
        &ExecRequest {
            argv: vec!["sh".into(), "-c".into(), "true".into()],
            env: [("A".to_owned(), "1".to_owned())].into(),
            cwd: Some("/tmp".into()),
            user: Some("nobody:nogroup".into()),
            stdin: true,
            timeout_ms: Some(1_000),
            kill_grace_ms: Some(0),
            max_output_bytes: Some(1 << 20),
            ..Default::default()
        },
    );
    body(
        "exec-detached",
        &ExecRequest {
            argv: vec!["top".into()],
            groups: Some(vec!["adm".into(), "33".into()]),
            umask: Some(0o077),
            limits: vec![ResourceLimit { resource: Resource::Nofile, soft: Some(64), hard: Some(128) }],
            tty: true,
            size: Some(TermSize { rows: 50, cols: 132 }),
            detach: true,
            ring_bytes: Some(65_536),
            ..Default::default()
        },
    );
    body("exec-least", &ExecRequest { argv: vec!["true".into()], ..Default::default() });
    body(
        "exec-result",
        &ExecResult {
            exit_code: Some(3),
            started_unix_ms: 1_700_000_000_000,
            ended_unix_ms: 1_700_000_000_012,
            duration_ms: 12,
            user_ms: 1,
            max_rss_kib: 900,
            ..Default::default()
        },
    );
    body("exec-killed", &ExecResult { signal: Some(9), timed_out: true, ..Default::default() });
    let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned();
    body(
        "put",
        &PutRequest {
            path: "/etc/motd".into(),
            size: 0,
            mode: Some(0o600),
            sha256: Some(sha256.clone()),
            create_dirs: true,
            owner: Some("0:0".into()),
            ..Default::default()
        },
    );
    body("put-result", &PutResult { size: 0, sha256: sha256.clone() });
    let ranges = vec![FileRange { off: 10, len: 5 }];
    body(
        "put-rest",
        &PutRequest {
            path: "/etc/motd".into(),
            size: 15,
            mtime_ms: Some(-1),
            ranges: Some(ranges.clone()),
            partial: Some("3f".into()),
            ..Default::default()
        },
    );
    body("get", &GetRequest { path: "/etc/motd".into(), ranges: Some(ranges.clone()), max_size: Some(15) });
    let request = StatRequest { path: "/a".into(), follow: true, ranges: true, partial: Some("3f".into()) };
    body("stat", &request);
    let stat = FileStat {
        kind: FileKind::File,
        size_bytes: 15,
        allocated_bytes: 4096,
        mode: 0o644,
        uid: 0,
        gid: 4,
        mtime_ms: 1_700_000_000_000,
        target: None,
        ranges: Some(ranges),
    };
    body("stat-result", &stat);
    body("ls", &LsRequest { path: "/".into(), after: Some("bin".into()), limit: Some(1) });
    let link = FileStat {
        kind: FileKind::Symlink,
        target: Some("usr/lib".into()),
        mode: 0o777,
        ..Default::default()
    };
    let entries = vec![DirEntry { name: "lib".into(), stat: link }];
    body("ls-result", &LsReply { entries, more: true, unreadable: 0 });
    body("rm", &RmRequest { path: "/a".into(), recursive: true });
    body("mkdir", &MkdirRequest { path: "/a".into(), mode: Some(0o700), parents: true });
    body("pack", &PackRequest { path: "/a".into(), max_size_bytes: Some(1) });
    body("pack-head", &PackHead { entries: 3, size_bytes: 15 });
    let owner = Some("www:www".into());
    body(
        "unpack",
        &UnpackRequest { path: "/a".into(), size_bytes: 15, owner, create_dirs: true, replace: true },
    );
    let tree =
        TreeResult { entries: 3, size_bytes: 15, skipped: 1, stream_bytes: 4096, sha256: sha256.clone() };
    body("tree-result", &tree);
    let version = Some("0.2.0".into());
    body("upgrade", &UpgradeRequest { size_bytes: 15, sha256: sha256.clone(), version });
    let (before, path) = ("0.1.0".into(), "/usr/bin/drover-agent".into());
    body("upgrade-result", &UpgradeResult { before, version: "0.2.0".into(), path, going_on: 2 });
    body("get-head", &GetHead { size: 15, mode: 0o644, uid: 0, gid: 0, mtime_ms: 1_700_000_000_000 });
    body(
        "get-result",
        &GetResult { size: 0, sha256, mode: 0o644, uid: 0, gid: 0, mtime_ms: 1_700_000_000_000 },
    );
    body("ping-result", &PingResult { boot_id: "b".into(), unix_ms: 1_700_000_000_000, uptime_ms: 5 });
    body(
        "info-result",
        &InfoResult {
            agent_version: "0.1.0".into(),
            boot_id: "b".into(),
            os: "linux".into(),
            os_name: "Debian GNU/Linux 12 (bookworm)".into(),
            kernel: "6.1.0".into(),
            arch: "x86_64".into(),
            hostname: "web-1".into(),
            cpus: 2,
            memory_bytes: 1 << 29,
            uptime_ms: 5,
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            os_id: "debian".into(),
            os_version: "12".into(),
            cpus_possible: 4,
            cpu_model: "QEMU Virtual CPU version 2.5+".into(),
            disks: vec![DiskInfo {
                name: "vda".into(),
                size_bytes: 1 << 30,
                read_only: false,
                mounts: vec![MountInfo { device: "vda1".into(), mount: "/".into(), fs: "ext4".into() }],
            }],
            interfaces: vec![InterfaceInfo {
                name: "eth0".into(),
                mac: "52:54:00:12:34:56".into(),
                addresses: vec!["10.0.0.2/24".into()],
                up: true,
            }],
            allowed: None,
        },
    );
    body(
        "health-result",
        &HealthResult {
            status: HealthStatus::Warn,
            reasons: vec!["/ is 91 % full".into()],
            load: [0.5, 0.25, 0.0],
            cpu_busy_ms: 10,
            cpu_total_ms: 100,
            memory_total_bytes: 1 << 29,
            memory_available_bytes: 1 << 28,
            swap_total_bytes: 0,
            swap_free_bytes: 0,
            disks: vec![DiskUse { mount: "/".into(), total_bytes: 100, free_bytes: 9 }],
            uptime_ms: 5,
            services: Some("systemd".into()),
            failed_units: vec!["nginx.service".into()],
            checks: vec![check_state()],
            thresholds: vec![threshold_state()],
            refused_files: vec![RefusedFile { file: "/a".into(), reason: "it is no file".into() }],
        },
    );
    look();
    body("shutdown", &ShutdownRequest { mode: ShutdownMode::Reboot, delay_ms: Some(100) });
    body("shutdown-result", &ShutdownResult { method: "init".into() });
}

#[test]
fn bodies_of_runs() {
    let run = RequestId::from_u128(1);
    let result = RunResult {
        exit_code: Some(7),
        signal: None,
        timed_out: false,
        ended_unix_ms: 1_700_000_000_900,
        duration_ms: 900,
        user_ms: 20,
        sys_ms: 10,
        max_rss_kib: 900,
    };
    let info = RunInfo {
        run,
        argv: vec!["make".into()],
        user: "root".into(),
        tty: false,
        stdin: true,
        pid: 42,
        state: RunState::Ended,
        started_unix_ms: 1_700_000_000_000,
        stdout: Extent { start: 5, end: 1_048_581 },
        stderr: Extent { start: 0, end: 3 },
        result: Some(result),
    };
    body("runs", &RunsRequest { run: Some(run) });
    body("runs-result", &RunsResult { runs: vec![info.clone()] });
    body(
        "attach",
        &AttachRequest { run, stdout_off: Some(3), stderr_off: None, stdin: true, no_follow: true },
    );
    let stdout = AttachedAt { off: 5, lost_before: Some(5) };
    body("attach-head", &AttachHead { run: info, stdout, stderr: AttachedAt::default() });
    let (state, result) = (RunState::Ended, Some(result));
    body("attach-result", &AttachResult { state, result, stdout_off: 1_048_581, stderr_off: 3 });
    body("kill", &KillRequest { run, signal: Some(15) });
}

fn check_state() -> CheckState {
    CheckState {
        name: "web".into(),
        source: CheckSource::Guest,
        status: CheckStatus::Failing,
        since_unix_ms: 1_700_000_000_000,
        flapping: true,
        last_unix_ms: Some(1_700_000_001_000),
        last_ms: 12,
        failures: 3,
        reason: Some("there is no program".into()),
        code: Some(ErrorCode::NotFound),
        output: "oops".into(),
    }
}

fn threshold_state() -> ThresholdState {
    ThresholdState {
        name: "full".into(),
        of: Measure::Disk,
        mount: Some("/srv".into()),
        above: 90,
        status: ThresholdStatus::Exceeded,
        since_unix_ms: 1_700_000_000_000,
        flapping: true,
        value: Some(93),
        last_unix_ms: Some(1_700_000_001_000),
        code: Some(ErrorCode::PermissionDenied),
    }
}

fn look() {
    let check = CheckSpec {
        user: Some("www-data".into()),
        interval_ms: 10_000,
        timeout_ms: 1_000,
        grace_ms: 60_000,
        failures: 2,
        successes: 4,
        ..CheckSpec::new(Token::new("web").unwrap(), vec!["true".into()])
    };
    let threshold = ThresholdSpec {
        mount: Some("/srv".into()),
        below: Some(80),
        for_ms: 60_000,
        ..ThresholdSpec::new(Token::new("full").unwrap(), Measure::Disk, 90)
    };
    body("configure", &ConfigureRequest { checks: vec![check], thresholds: vec![threshold] });
    let sort = ProcessOrder::Memory;
    let request = ProcessesRequest { sample_ms: Some(1_000), args: true, sort, limit: Some(10) };
    body("processes", &request);
    let process = ProcessInfo {
        pid: 42,
        ppid: 1,
        uid: 33,
        user: Some("www-data".into()),
        state: "R".into(),
        started_unix_ms: 1_700_000_000_000,
        cpu_ms: 1_200,
        cpu_percent: 99.5,
        memory_bytes: 1 << 20,
        threads: 2,
        name: "a) R (b".into(),
        args: Some(vec!["sh".into(), "-c".into(), "true".into()]),
    };
    let processes = vec![process];
    let (unix_ms, sampled_ms) = (1_700_000_001_200, Some(1_000));
    body("processes-result", &ProcessesResult { unix_ms, total: 120, sampled_ms, processes });
    body(
        "sample-result",
        &SampleResult {
            load: [0.5, 0.25, 0.0],
            cpu_busy_ms: 10,
            cpu_total_ms: 100,
            memory_total_bytes: 1 << 29,
            memory_available_bytes: 1 << 28,
            swap_total_bytes: 0,
            swap_free_bytes: 0,
            disks: vec![DiskUse { mount: "/".into(), total_bytes: 100, free_bytes: 9 }],
            interfaces: vec![InterfaceUse { name: "eth0".into(), received_bytes: 5, sent_bytes: 6 }],
        },
    );
}
