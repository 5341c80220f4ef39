//! Vectors of bodies on the bus.

use std::collections::BTreeMap;

use drover_schemas::audit::{AuditAction, AuditEvent, AuditKind, Caller, GuestTarget};
use drover_schemas::blob::Blob;
use drover_schemas::body::guest::{
    AttachReply, ExecControl, ExecReply, ExecRequest, ExecResult, PackReply, PutRequest,
};
use drover_schemas::body::samples::NicSample;
use drover_schemas::body::spec::{
    AgentSpec, DiskFs, EgressDefault, EgressRule, ForwardSpec, NicLimits, NicSetup, NicSpec, Protocol,
    RestartSpec, VmSpec,
};
use drover_schemas::body::status::{
    AgentState, AgentStatus, Cause, CauseKind, DiskMade, DiskStatus, NicStatus, VmStatus,
};
use drover_schemas::body::vm::{
    ChangeReply, ChangeRequest, CreateRequest, EgressRequest, EgressRules, ForwardRef, ForwardRequest,
    GrowRequest, LimitRequest, LookupReply, StatsReply, StopRequest, Wait,
};
use drover_schemas::body::volume::{
    VolumeCreateRequest, VolumeGrowReply, VolumeGrowRequest, VolumeSeenLater,
};
use drover_schemas::codec::decode;
use drover_schemas::event::{
    AgentEvent, DroppedEvents, HostEvent, HostEventKind, RejectedEvent, VmEvent, VmEventKind,
};
use drover_schemas::guest::{
    AttachedAt, EventType, Extent, InterfaceUse, PackHead, Resource, ResourceLimit, RunInfo, RunState,
    TermSize,
};
use drover_schemas::secret::Secret;
use drover_schemas::size::ByteSize;
use drover_schemas::state::{Desired, VmState};
use drover_schemas::stream::{Channel, StreamEnd, StreamFrame, StreamOpened};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token, VmId};

use super::check;

fn token(text: &str) -> Token {
    Token::new(text).unwrap()
}

fn cause() -> Cause {
    Cause::new(CauseKind::VmmSignal, "the VMM was ended by signal 9").with("signal", 9)
}

fn forward() -> ForwardSpec {
    ForwardSpec {
        protocol: Protocol::Tcp,
        host_port: 20_022,
        host_address: Some("192.0.2.1".into()),
        guest_port: 22,
        sources: vec!["198.51.100.0/24".into()],
    }
}

fn status() -> VmStatus {
    VmStatus {
        namespace: token("acme"),
        name: token("web"),
        vm_id: VmId::from_u128(0x0192_0000_0000_0000_0000_0000_0000_0001),
        host: token("h1"),
        state: VmState::Failed,
        desired: Desired::Running,
        revision: 1,
        incarnation: 2,
        seq: 9,
        cpus: 1,
        memory_bytes: 268_435_456,
        created_unix_ms: 1_795_386_615_042,
        state_since_unix_ms: 1_795_386_616_000,
        operation: Some("release".into()),
        cause: Some(cause()),
        agent: AgentStatus {
            state: AgentState::Absent,
            version: None,
            boot_id: None,
            last_error: None,
            dropped_events: None,
            fault: None,
            unwatched: None,
        },
        nics: vec![NicStatus {
            network: token("default"),
            tap: "dr0123456789ab".into(),
            mac: "52:54:00:00:00:01".into(),
            ipv4: "10.77.0.2".into(),
            prefix_len: 20,
            gateway: "10.77.0.1".into(),
            ipv6: None,
            ipv6_prefix_len: None,
            ipv6_gateway: None,
            forwards: Vec::new(),
            egress: None,
            limits: None,
        }],
        disks: vec![DiskStatus { name: "disk0".into(), size_bytes: 64 << 20, made: DiskMade::Reflink }],
        vmm_pid: Some(42),
        restarts: 0,
        spec: None,
    }
}

fn request_id() -> RequestId {
    RequestId::from_u128(0x0192_0000_0000_0000_0000_0000_0000_0002)
}

#[test]
fn requests_are_pinned() {
    check(
        "bus",
        "create-minimal",
        &CreateRequest { name: token("web"), spec: VmSpec::default(), wait: None },
        decode,
    );
    let nic = NicSpec {
        network: token("default"),
        forwards: vec![forward()],
        egress: None,
        limits: None,
        setup: NicSetup::Agent,
        ipv4: None,
        queues: 1,
    };
    let spec = VmSpec { nics: Some(vec![nic.clone()]), ..VmSpec::default() };
    check("bus", "create-forwards", &CreateRequest { name: token("web"), spec, wait: None }, decode);
    let nic = NicSpec { forwards: Vec::new(), queues: 2, ..nic };
    let spec = VmSpec { nics: Some(vec![nic.clone()]), ..VmSpec::default() };
    check("bus", "create-queues", &CreateRequest { name: token("web"), spec, wait: None }, decode);
    let nic = NicSpec { ipv4: Some("10.77.3.4".to_owned()), queues: 1, ..nic };
    let spec = VmSpec { nics: Some(vec![nic]), ..VmSpec::default() };
    check("bus", "create-address", &CreateRequest { name: token("web"), spec, wait: None }, decode);
    let spec = VmSpec {
        template: Some(token("linux-microvm")),
        cpus: Some(2),
        memory: Some(ByteSize::mib(512)),
        nics: Some(vec![NicSpec {
            network: token("default"),
            forwards: Vec::new(),
            egress: None,
            limits: None,
            setup: NicSetup::Kernel,
            ipv4: None,
            queues: 1,
        }]),
        restart: Some(RestartSpec::default()),
        agent: Some(AgentSpec::default()),
        labels: BTreeMap::from([("team".into(), "a".into())]),
        user_data: Some(Secret::new("#cloud-config")),
        ..VmSpec::default()
    };
    check("bus", "create-full", &CreateRequest { name: token("web"), spec, wait: Some(Wait::Agent) }, decode);
    let change =
        ChangeRequest { if_vm_id: Some(status().vm_id), if_revision: Some(1), wait: Some(Wait::Running) };
    check("bus", "change", &change, decode);
    let remove = vec![ForwardRef { protocol: Protocol::Udp, host_port: 20_053, host_address: None }];
    let spec = ForwardSpec {
        protocol: Protocol::Tcp,
        host_port: 20_022,
        host_address: Some("192.0.2.1".into()),
        guest_port: 22,
        sources: vec!["198.51.100.0/24".into()],
    };
    let forward = ForwardRequest { nic: 1, remove, add: vec![spec], ..ForwardRequest::default() };
    check("bus", "forward", &forward, decode);
    let rule =
        |to: &str| EgressRule { to: to.into(), protocol: Some(Protocol::Tcp), ports: vec!["443".into()] };
    let egress = EgressRequest {
        replace: true,
        default: Some(EgressDefault::Deny),
        remove: EgressRules { allow: vec![rule("all")], deny: Vec::new() },
        add: EgressRules { allow: vec![rule("192.0.2.0/24")], deny: vec![rule("metadata")] },
        ..EgressRequest::default()
    };
    check("bus", "egress", &egress, decode);
    let limits = NicLimits { send_bits_per_second: Some(10_000_000), receive_bits_per_second: None };
    check("bus", "limit", &LimitRequest { nic: 1, limits, ..LimitRequest::default() }, decode);
    let nic = NicSample {
        network: token("default"),
        tap: "dr0123456789ab".into(),
        sent_bytes: 1,
        sent_packets: 2,
        sent_dropped: 3,
        received_bytes: 4,
        received_packets: 5,
        received_dropped: 6,
        refused_packets: 7,
        egress_refused_packets: 8,
        over_send_packets: Some(9),
        over_receive_packets: None,
    };
    let stats = StatsReply {
        vm_id: status().vm_id,
        time_unix_ms: 1_700_000_000_000,
        nics: vec![nic],
        guest: vec![InterfaceUse { name: "eth0".into(), received_bytes: 4, sent_bytes: 1 }],
        guest_silent: None,
    };
    check("bus", "stats", &stats, decode);
    let grow = GrowRequest {
        if_vm_id: None,
        if_revision: Some(3),
        disk: token("data"),
        size_bytes: ByteSize::mib(1024),
    };
    check("bus", "grow", &grow, decode);
    let volume = VolumeCreateRequest {
        namespace: token("acme"),
        name: token("data"),
        size_bytes: ByteSize::mib(1024),
        fs: DiskFs::Ext4,
        label: Some("data".into()),
    };
    check("bus", "volume-create", &volume, decode);
    let volume =
        VolumeGrowRequest { namespace: token("acme"), name: token("data"), size_bytes: ByteSize::mib(2048) };
    check("bus", "volume-grow", &volume, decode);
    let later = VolumeSeenLater { name: token("web"), reason: "it is paused".into() };
    check("bus", "volume-grow-reply", &VolumeGrowReply { already: false, later: vec![later] }, decode);
    check(
        "bus",
        "stop",
        &StopRequest { grace_ms: Some(5_000), force: true, ..StopRequest::default() },
        decode,
    );
    let exec = ExecRequest {
        argv: vec!["sh".into(), "-c".into(), "cat".into()],
        env: BTreeMap::from([("A".into(), Secret::new("b"))]),
        cwd: Some("/tmp".into()),
        user: Some("nobody".into()),
        timeout_ms: Some(1_000),
        stdin: Some(Blob::from(vec![0, 255])),
        ..ExecRequest::default()
    };
    check("bus", "exec", &exec, decode);
    let exec = ExecRequest {
        argv: vec!["top".into()],
        groups: Some(vec!["adm".into()]),
        umask: Some(0o077),
        limits: vec![ResourceLimit { resource: Resource::Nofile, soft: Some(64), hard: None }],
        tty: true,
        size: Some(TermSize { rows: 50, cols: 132 }),
        detach: true,
        interactive: true,
        ring_bytes: Some(65_536),
        ..ExecRequest::default()
    };
    check("bus", "exec-detached", &exec, decode);
    let control = ExecControl { size: Some(TermSize { rows: 50, cols: 132 }), signal: Some(2) };
    check("bus", "exec-control", &control, decode);
    let put = PutRequest {
        path: "/tmp/x".into(),
        size_bytes: 3,
        mode: Some(0o600),
        sha256: None,
        create_dirs: true,
        ..PutRequest::default()
    };
    check("bus", "put", &put, decode);
}

#[test]
fn replies_are_pinned() {
    check("bus", "status", &status(), decode);
    let reply = ChangeReply {
        vm: status(),
        already: false,
        request_id: request_id(),
        replay_until_unix_ms: 1_795_473_015_042,
    };
    check("bus", "change-reply", &reply, decode);
    let gone = LookupReply::Gone {
        vm_id: status().vm_id,
        host: token("h1"),
        deleted_unix_ms: 1,
        request_id: request_id(),
        reply: Some(Box::new(reply)),
    };
    check("bus", "lookup-gone", &gone, decode);
    check("bus", "lookup-not-found", &LookupReply::NotFound {}, decode);
    let result = ExecResult {
        exit_code: Some(0),
        duration_ms: 3,
        stdout: Some(Blob::from(vec![104, 105, 10])),
        stderr: Some(Blob::default()),
        ..ExecResult::default()
    };
    check("bus", "exec-reply", &ExecReply::Result(result), decode);
    let run = RunInfo {
        run: request_id(),
        argv: vec!["make".into()],
        user: "root".into(),
        tty: false,
        stdin: false,
        pid: 42,
        state: RunState::Running,
        started_unix_ms: 1_795_386_615_042,
        stdout: Extent { start: 5, end: 1_048_581 },
        stderr: Extent::default(),
        result: None,
    };
    check("bus", "exec-run", &ExecReply::Run(run.clone()), decode);
    let stream = StreamOpened { io_subject: "drover.v1.io.acme.ab".into(), window: 524_288 };
    let (stdout, stderr) = (AttachedAt { off: 5, lost_before: Some(5) }, AttachedAt::default());
    check("bus", "attach-reply", &AttachReply { run, stdout, stderr, stream }, decode);
    let stream = StreamOpened { io_subject: "drover.v1.io.acme.ab".into(), window: 524_288 };
    let folder = PackHead { entries: 3, size_bytes: 15 };
    check("bus", "pack-reply", &PackReply { folder, stream }, decode);
    let error = ErrorBody::new(ErrorCode::InvalidState, "a VM that is stopped cannot do pause")
        .with("state", "stopped");
    check("bus", "error", &error, decode);
}

#[test]
fn events_and_frames_are_pinned() {
    let event = VmEvent {
        namespace: token("acme"),
        name: token("web"),
        vm_id: status().vm_id,
        seq: 9,
        time_unix_ms: 1_795_386_615_042,
        kind: VmEventKind::State,
        incarnation: 2,
        revision: 1,
        request_id: Some(request_id()),
        previous: Some(VmState::Running),
        state: VmState::Failed,
        last: false,
        step: None,
        cause: Some(cause()),
        agent_event: None,
        dropped: None,
    };
    check("bus", "event", &event, decode);
    let said = AgentEvent {
        kind: EventType::new("app.deployed").unwrap(),
        uid: 1000,
        gid: 100,
        pid: 4242,
        time_unix_ms: 1_795_386_615_040,
        data: serde_json::from_value(serde_json::json!({"build": 7, "tags": ["a", null]})).unwrap(),
    };
    let quiet = VmEvent { state: VmState::Running, cause: None, request_id: None, ..event };
    let kind = VmEventKind::Agent;
    check("bus", "event-agent", &VmEvent { kind, agent_event: Some(said), ..quiet.clone() }, decode);
    let dropped = DroppedEvents { count: 12, quota: 10, guest: 2, ..DroppedEvents::default() };
    let kind = VmEventKind::AgentDropped;
    check("bus", "event-agent-dropped", &VmEvent { kind, dropped: Some(dropped), ..quiet }, decode);
    let alarm = HostEvent {
        host: token("h1"),
        seq: 3,
        time_unix_ms: 1_795_386_615_042,
        kind: HostEventKind::Alarm,
        message: "the stream of events was made anew".into(),
        details: [("alarm".to_owned(), "stream_replaced".to_owned())].into(),
    };
    check("bus", "host-event", &alarm, decode);
    let rejected = RejectedEvent {
        host: token("h1"),
        request_id: request_id(),
        subject: "drover.v1.cmd.acme.vm.create".into(),
        error: ErrorBody::new(ErrorCode::InvalidArgument, "unknown field `memroy`"),
        time_unix_ms: 1_795_386_615_042,
        suppressed: 2,
    };
    check("bus", "rejected", &rejected, decode);
    let refused = AuditEvent {
        reporter: token("h1"),
        seq: 7,
        kind: AuditKind::Refused,
        time_unix_ms: 1_795_386_615_042,
        action: AuditAction::Request,
        caller: Caller {
            verified: true,
            account: Some("acme".into()),
            user: Some("alice".into()),
            address: Some("10.0.0.7".into()),
            server: Some("n1".into()),
            connection: Some(9),
            program: Some("deploy".into()),
        },
        subject: "drover.v1.cmd.acme.vm.web.stop".into(),
        namespace: Some(token("acme")),
        vm: Some(token("web")),
        verb: Some("stop".into()),
        target: None,
        request_id: Some(request_id()),
        error: Some(ErrorCode::InvalidState),
        count: 1,
    };
    check("bus", "audit", &refused, decode);
    let command = GuestTarget {
        program: Some("backup".into()),
        user: Some("app".into()),
        run: None,
        path: None,
        sha256: None,
    };
    let done = AuditEvent {
        kind: AuditKind::Done,
        subject: "drover.v1.cmd.acme.vm.web.guest.exec".into(),
        verb: Some("exec".into()),
        target: Some(command),
        error: None,
        ..refused
    };
    check("bus", "audit-guest", &done, decode);
    check(
        "bus",
        "stream-opened",
        &StreamOpened { io_subject: "drover.v1.io.acme.0".into(), window: 524_288 },
        decode,
    );
    let data = StreamFrame {
        ch: Some(Channel::Stdout),
        off: Some(65_536),
        data: Some(Blob::from(vec![1, 2])),
        eof: true,
        ..StreamFrame::default()
    };
    check("bus", "frame-data", &data, decode);
    let ack = StreamFrame {
        ch: Some(Channel::Data),
        acked_off: Some(7),
        window: Some(9),
        ..StreamFrame::default()
    };
    check("bus", "frame-ack", &ack, decode);
    let end = StreamFrame { end: Some(StreamEnd::Result(Blob::from(vec![0x80]))), ..StreamFrame::default() };
    check("bus", "frame-end", &end, decode);
}
