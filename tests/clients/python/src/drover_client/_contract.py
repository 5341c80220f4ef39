"""Made from the published contract by `generate.py`; do not edit."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, NotRequired, TypedDict


class Stream(NamedTuple):
    """The channels of a stream."""

    client: tuple[str, ...]
    host: tuple[str, ...]


class Verb(NamedTuple):
    """Where a verb is asked for, without the root; whether it carries a request id; its stream."""

    address: str
    has_id: bool
    stream: Stream | None


VERBS: dict[str, Verb] = {
    "contract.read": Verb("cmd.{ns}.contract.read", False, None),
    "events.last": Verb("cmd.{ns}.events.last", False, None),
    "events.read": Verb("cmd.{ns}.events.read", False, None),
    "guest.attach": Verb("cmd.{ns}.vm.{name}.guest.attach", True, Stream(("stdin", "ctl",), ("stdout", "stderr",))),
    "guest.clock": Verb("cmd.{ns}.vm.{name}.guest.clock", True, None),
    "guest.exec": Verb("cmd.{ns}.vm.{name}.guest.exec", True, Stream(("stdin", "ctl",), ("stdout", "stderr",))),
    "guest.freeze": Verb("cmd.{ns}.vm.{name}.guest.freeze", True, None),
    "guest.frozen": Verb("cmd.{ns}.vm.{name}.guest.frozen", False, None),
    "guest.get": Verb("cmd.{ns}.vm.{name}.guest.get", True, Stream((), ("data",))),
    "guest.health": Verb("cmd.{ns}.vm.{name}.guest.health", False, None),
    "guest.identity": Verb("cmd.{ns}.vm.{name}.guest.identity", True, None),
    "guest.info": Verb("cmd.{ns}.vm.{name}.guest.info", False, None),
    "guest.keys": Verb("cmd.{ns}.vm.{name}.guest.keys", False, None),
    "guest.keys_change": Verb("cmd.{ns}.vm.{name}.guest.keys_change", True, None),
    "guest.kill": Verb("cmd.{ns}.vm.{name}.guest.kill", True, None),
    "guest.ls": Verb("cmd.{ns}.vm.{name}.guest.ls", False, None),
    "guest.mkdir": Verb("cmd.{ns}.vm.{name}.guest.mkdir", True, None),
    "guest.network": Verb("cmd.{ns}.vm.{name}.guest.network", True, None),
    "guest.online": Verb("cmd.{ns}.vm.{name}.guest.online", True, None),
    "guest.pack": Verb("cmd.{ns}.vm.{name}.guest.pack", True, Stream((), ("data",))),
    "guest.ping": Verb("cmd.{ns}.vm.{name}.guest.ping", False, None),
    "guest.processes": Verb("cmd.{ns}.vm.{name}.guest.processes", False, None),
    "guest.put": Verb("cmd.{ns}.vm.{name}.guest.put", True, Stream(("data",), ())),
    "guest.rm": Verb("cmd.{ns}.vm.{name}.guest.rm", True, None),
    "guest.runs": Verb("cmd.{ns}.vm.{name}.guest.runs", False, None),
    "guest.shutdown": Verb("cmd.{ns}.vm.{name}.guest.shutdown", True, None),
    "guest.stat": Verb("cmd.{ns}.vm.{name}.guest.stat", False, None),
    "guest.thaw": Verb("cmd.{ns}.vm.{name}.guest.thaw", True, None),
    "guest.trim": Verb("cmd.{ns}.vm.{name}.guest.trim", True, None),
    "guest.unpack": Verb("cmd.{ns}.vm.{name}.guest.unpack", True, Stream(("data",), ())),
    "guest.upgrade": Verb("cmd.{ns}.vm.{name}.guest.upgrade", True, Stream(("data",), ())),
    "guest.user_add": Verb("cmd.{ns}.vm.{name}.guest.user_add", True, None),
    "guest.user_rm": Verb("cmd.{ns}.vm.{name}.guest.user_rm", True, None),
    "guest.users": Verb("cmd.{ns}.vm.{name}.guest.users", False, None),
    "host.backup": Verb("host.{host}.backup", False, None),
    "host.create": Verb("host.{host}.create", True, None),
    "host.drain": Verb("host.{host}.drain", False, None),
    "host.forget": Verb("host.{host}.forget", False, None),
    "host.image.gc": Verb("host.{host}.image.gc", False, None),
    "host.image.get": Verb("host.{host}.image.get", False, None),
    "host.image.import": Verb("host.{host}.image.import", False, None),
    "host.image.list": Verb("host.{host}.image.list", False, None),
    "host.image.pull": Verb("host.{host}.image.pull", False, None),
    "host.image.remove": Verb("host.{host}.image.remove", False, None),
    "host.image.share": Verb("host.{host}.image.share", False, None),
    "host.image.shared": Verb("host.{host}.image.shared", False, None),
    "host.image.tag": Verb("host.{host}.image.tag", False, None),
    "host.image.unshare": Verb("host.{host}.image.unshare", False, None),
    "host.image.verify": Verb("host.{host}.image.verify", False, None),
    "host.info": Verb("host.{host}.info", False, None),
    "host.list": Verb("host.{host}.list", False, None),
    "host.network.create": Verb("host.{host}.network.create", False, None),
    "host.network.list": Verb("host.{host}.network.list", False, None),
    "host.network.remove": Verb("host.{host}.network.remove", False, None),
    "host.orphans": Verb("host.{host}.orphans", False, None),
    "host.orphans.remove": Verb("host.{host}.orphans.remove", False, None),
    "host.placed": Verb("host.{host}.placed", False, None),
    "host.volume.create": Verb("host.{host}.volume.create", False, None),
    "host.volume.grow": Verb("host.{host}.volume.grow", False, None),
    "host.volume.list": Verb("host.{host}.volume.list", False, None),
    "host.volume.remove": Verb("host.{host}.volume.remove", False, None),
    "pool.create": Verb("cmd.{ns}.vm.create", True, None),
    "pool.list": Verb("cmd.{ns}.vm.list", False, None),
    "pool.lookup": Verb("cmd.{ns}.vm.lookup", False, None),
    "pool.validate": Verb("cmd.{ns}.vm.validate", False, None),
    "template.get": Verb("cmd.{ns}.template.get", False, None),
    "template.list": Verb("cmd.{ns}.template.list", False, None),
    "vm.console": Verb("cmd.{ns}.vm.{name}.console", True, Stream(("stdin",), ("stdout",))),
    "vm.delete": Verb("cmd.{ns}.vm.{name}.delete", True, None),
    "vm.egress": Verb("cmd.{ns}.vm.{name}.egress", True, None),
    "vm.explain": Verb("cmd.{ns}.vm.{name}.explain", False, None),
    "vm.forward": Verb("cmd.{ns}.vm.{name}.forward", True, None),
    "vm.get": Verb("cmd.{ns}.vm.{name}.get", False, None),
    "vm.grow": Verb("cmd.{ns}.vm.{name}.grow", True, None),
    "vm.limit": Verb("cmd.{ns}.vm.{name}.limit", True, None),
    "vm.logs": Verb("cmd.{ns}.vm.{name}.logs", False, Stream((), ("stdout",))),
    "vm.pause": Verb("cmd.{ns}.vm.{name}.pause", True, None),
    "vm.reboot": Verb("cmd.{ns}.vm.{name}.reboot", True, None),
    "vm.resume": Verb("cmd.{ns}.vm.{name}.resume", True, None),
    "vm.shutdown": Verb("cmd.{ns}.vm.{name}.shutdown", True, None),
    "vm.start": Verb("cmd.{ns}.vm.{name}.start", True, None),
    "vm.stats": Verb("cmd.{ns}.vm.{name}.stats", False, None),
    "vm.stop": Verb("cmd.{ns}.vm.{name}.stop", True, None),
}


class AgentEvent(TypedDict):
    """An event from inside a guest. The guest says all of it: who it is of is as true as its kernel."""
    # What the publisher says about it.
    data: NotRequired[EventData]
    # Its group.
    gid: int
    # Its process id.
    pid: int
    # When, by the guest's clock.
    time_unix_ms: int
    # What happened; what begins with `drover.` is said by the agent itself.
    type: EventType
    # User of the process that published it.
    uid: int


class AgentEventsSpec(TypedDict):
    """How many events the programs of a guest may publish. What is left out, and what is more, is bounded by the host (`agent_events` in its configuration); what is dropped is counted and told."""
    # How many at once.
    burst: NotRequired[int | None]
    # Bytes of their data each second, in the long run; ten times as many at once.
    bytes_per_second: NotRequired[int | None]
    # Each second, in the long run; 0 and no `burst` lets none through.
    per_second: NotRequired[int | None]


class AgentFault(TypedDict):
    """What the agent of a VM did wrong last, since the VM was started."""
    # When it was noticed.
    at_unix_ms: int
    # How often it broke a rule of the protocol lately; each time it is left alone for longer.
    breaches: NotRequired[int]
    # What.
    code: AgentFaultCode
    # The same for a person.
    message: str
    # Until when it is left alone, if it is.
    retry_unix_ms: NotRequired[int | None]


class AgentSpec(TypedDict):
    """The guest agent: whether there is one, how long drover waits for it, what it may be asked for, and what it watches."""
    # Verbs of the guest that are carried out; all of them if left out. A request narrows its template's list and cannot widen it.
    allow: NotRequired[list[str] | None]
    # Programs that the agent runs again and again to see whether all is well. Those of the request and of its template go together; one of the same name takes the place of the template's.
    checks: NotRequired[list[CheckSpec]]
    # Verbs of the guest that are refused, whatever `allow` says; those of the template too.
    deny: NotRequired[list[str]]
    # The guest has an agent.
    enabled: NotRequired[bool]
    # How many events the programs of the guest may publish.
    events: NotRequired[AgentEventsSpec]
    # From one sample of the guest's figures to the next, in milliseconds, 1,000 at least; none are taken if left out. 30,000 costs the guest nothing: the sample takes the place of the link's heartbeat.
    metrics_interval_ms: NotRequired[int | None]
    # After a boot, how long until a silent agent is reported, in milliseconds.
    ready_timeout_ms: NotRequired[int]
    # Values of the guest that are watched. They go together with the template's as checks do.
    thresholds: NotRequired[list[ThresholdSpec]]


class AgentStatus(TypedDict):
    """The guest agent of a VM."""
    # Boot id of the guest.
    boot_id: NotRequired[str | None]
    # Events of the guest that were dropped since the VM was created, if any were.
    dropped_events: NotRequired[DroppedEvents | None]
    # What it did wrong last, since the VM was started, if it did.
    fault: NotRequired[AgentFault | None]
    # While it is looked for: why the last try to reach it failed, or why the link ended.
    last_error: NotRequired[str | None]
    # How the link stands.
    state: AgentState
    # Why what the spec wants watched in the guest is not watched, if it is not.
    unwatched: NotRequired[str | None]
    # Version of the agent.
    version: NotRequired[str | None]


class Alarm(TypedDict):
    """Something that an operator should look at, for as long as it is so. Its begin and its end are events."""
    # What a rule can match: `slow_consumer`, `outbox_filling`, `clock_offset`, `events_compressed`.
    alarm: str
    # One sentence for a person.
    message: str
    # Since when.
    since_unix_ms: int


class AttachReply(TypedDict):
    """Reply of `guest.attach`; the stream's offsets count from `off` of each channel."""
    # The run.
    run: RunInfo
    # Where its error output begins.
    stderr: AttachedAt
    # Where its output begins.
    stdout: AttachedAt
    # The stream. Its result is an [`AttachResult`](crate::guest::AttachResult).
    stream: StreamOpened


class AttachRequest(TypedDict):
    """Reads the output of a run, from where the reader is on."""
    # End with what is there, rather than with the command.
    no_follow: NotRequired[bool]
    # Which run.
    run: RequestId
    # The same for its error output.
    stderr_off: NotRequired[int | None]
    # Whether input will be sent. It goes to the command beside that of others who are attached.
    stdin: NotRequired[bool]
    # The first byte of its output that is wanted; the oldest that is kept if left out.
    stdout_off: NotRequired[int | None]


class AttachResult(TypedDict):
    """Everything that was asked for was sent. A reader so slow that the ring has moved on below it gets `conflict{cause: output_lost, channel, off, lost_before}` in place of this, and may attach again from there."""
    # How it ended, if it has.
    result: NotRequired[RunResult | None]
    # How the run is.
    state: RunState
    # The same for its error output.
    stderr_off: int
    # Absolute offset after the last byte of its output that was sent.
    stdout_off: int


class AttachedAt(TypedDict):
    """Where the bytes of one channel begin that are coming."""
    # Bytes before this offset that were asked for are not kept any more.
    lost_before: NotRequired[int | None]
    # Absolute offset of the stream's first byte.
    off: int


class AuditEvent(TypedDict):
    """The body of an audit event."""
    # What was tried.
    action: AuditAction
    # Who tried it.
    caller: Caller
    # How many events this one stands for; more than one only if they were suppressed.
    count: int
    # Why it was refused.
    error: NotRequired[ErrorCode | None]
    # What kind of event.
    kind: AuditKind
    # The namespace, as far as the subject names one.
    namespace: NotRequired[Token | None]
    # The host, or the server of the bus, that tells of it.
    reporter: Token
    # Id of the request.
    request_id: NotRequired[RequestId | None]
    # Position in the reporter's audit, from 1 without gaps: a number that is missing was taken out. That of a bus server begins again at 1 when the stream keeps none of its events any more.
    seq: int
    # The subject that was asked or tried; at most 256 bytes of it.
    subject: str
    # What of the guest it was about.
    target: NotRequired[GuestTarget | None]
    # When, by the reporter's clock.
    time_unix_ms: int
    # The verb, if it is one of the contract's.
    verb: NotRequired[str | None]
    # The VM's name.
    vm: NotRequired[Token | None]


class AuthorizedKey(TypedDict):
    """An SSH key that logs in."""
    # How long it is, in bits.
    bits: int
    # What its owner calls it, at most 200 bytes.
    comment: NotRequired[str]
    # `SHA256:` and what `ssh-keygen -l` shows.
    fingerprint: str
    # What is said of its use, at most 500 bytes.
    options: NotRequired[str]
    # Its type, such as `ssh-ed25519`.
    type: str


class BackupReply(TypedDict):
    """Reply of `host.<host>.backup`."""
    # Where the backup is on the host.
    path: str
    # Its length in bytes.
    size_bytes: int
    # VMs in it.
    vms: int


class BootSpec(TypedDict):
    """Names of the parts that a guest boots from: image names or digests, never paths."""
    # Kernel command line; drover appends the network and the host name.
    cmdline: NotRequired[str | None]
    # Image of kind `firmware`; excludes `kernel`.
    firmware: NotRequired[str | None]
    # Image of kind `initramfs`.
    initramfs: NotRequired[str | None]
    # Image of kind `kernel`.
    kernel: NotRequired[str | None]


class Caller(TypedDict):
    """Who asked."""
    # The account at the bus server.
    account: NotRequired[str | None]
    # Where the connection came from.
    address: NotRequired[str | None]
    # That server's number of the connection.
    connection: NotRequired[int | None]
    # What the client program calls itself; always its own choice.
    program: NotRequired[str | None]
    # The server that the caller is connected to.
    server: NotRequired[str | None]
    # The user, or the public nkey.
    user: NotRequired[str | None]
    # A server of the bus says so, in a way that no client can forge: account, user, address and connection are then what it knows. If not, `user` is only what the caller's inbox says, or what a request without a reply subject says of itself; a liar may choose either, but does not get a reply in the inbox of somebody else. Between users of one account no server says anything: there nothing of a host's events is verified.
    verified: bool


class Capacity(TypedDict):
    """What a host has and what it has promised."""
    # Addresses of the default network.
    addresses: int
    # Of these, leased or in quarantine.
    addresses_used: int
    # Virtual CPUs that may be promised.
    cpus: int
    # Of these, promised.
    cpus_used: int
    # Room for the disks of VMs: what there is times `capacity.disk_ratio`.
    disk_bytes: NotRequired[int]
    # Of this, promised: disks that VMs may write to, at their full length.
    disk_used_bytes: NotRequired[int]
    # Memory that may be promised.
    memory_bytes: int
    # Of this, promised, overhead included.
    memory_used_bytes: int
    # Interfaces that the bridges of all networks take.
    ports: NotRequired[int]
    # Of these, held by VMs that run or have been promised to.
    ports_used: NotRequired[int]
    # VMs that run or have been promised to.
    running: NotRequired[int]
    # VMs that may run at once before the daemon runs out of descriptors.
    running_limit: NotRequired[int]
    # Unix users for VMs.
    users: NotRequired[int]
    # Of these, leased or in quarantine.
    users_used: NotRequired[int]
    # VMs of any state.
    vms: int


class Cause(TypedDict):
    """A cause with its evidence."""
    # Facts by name: `exit_code`, `signal`, `vmm_error`, `console_tail`, `stderr_tail`, `step` …
    evidence: NotRequired[dict[str, str]]
    # What kind.
    kind: CauseKind
    # One sentence for a person.
    message: str


class ChangeReply(TypedDict):
    """Reply of the verbs that change a VM."""
    # It was so already, and nothing was done.
    already: NotRequired[bool]
    # Until when the same request id gives the same reply.
    replay_until_unix_ms: int
    # Id of the request, also where the host made it.
    request_id: RequestId
    # The VM when the reply was made.
    vm: VmStatus


class ChangeRequest(TypedDict):
    """Preconditions and waiting, common to every verb that changes a VM."""
    # Refuse with `conflict` unless the spec has this revision.
    if_revision: NotRequired[int | None]
    # Refuse with `conflict` unless the VM has this id.
    if_vm_id: NotRequired[VmId | None]
    # Delays the reply to the outcome.
    wait: NotRequired[Wait | None]


class CheckSpec(TypedDict):
    """A program that the agent runs again and again: all is well if it exits with 0."""
    # Program and arguments: 64 words and 1,024 bytes at most. What it leaves running is ended.
    argv: list[str]
    # So many failures in a row make it failing, 1 to 100.
    failures: NotRequired[int]
    # For so many milliseconds from the start of the agent failures do not count, until the first success.
    grace_ms: NotRequired[int]
    # From the start of one run to the next, in milliseconds, 1,000 at least; a run that takes longer is waited for.
    interval_ms: NotRequired[int]
    # Its name.
    name: Token
    # So many successes in a row make it well, 1 to 100.
    successes: NotRequired[int]
    # After so many milliseconds a run has failed, and all that it started is killed.
    timeout_ms: NotRequired[int]
    # As whom it runs: `name`, `uid`, `name:group` or `uid:gid` by the guest's own files; as root if left out.
    user: NotRequired[str | None]


class CheckState(TypedDict):
    """A check, and how its last run ended."""
    # Why it could not be run at all, such as `permission_denied` or `not_found`.
    code: NotRequired[ErrorCode | None]
    # How many runs in a row have failed and count.
    failures: NotRequired[int]
    # It changes so often that changes are not told one by one.
    flapping: NotRequired[bool]
    # How long it took, in milliseconds.
    last_ms: NotRequired[int]
    # When the last run ended, by the guest's clock; absent before the first.
    last_unix_ms: NotRequired[int | None]
    # Its name; one of the spec and one of the guest may have the same.
    name: str
    # The end of what the last run complained of, or else of what it printed: 1,024 characters at most.
    output: NotRequired[str]
    # Why the last run failed; absent if it was well.
    reason: NotRequired[str | None]
    # Since when, by the guest's clock: milliseconds since the Unix epoch.
    since_unix_ms: int
    # Who declares it.
    source: NotRequired[CheckSource]
    # How it is.
    status: CheckStatus


class ClockReply(TypedDict):
    """Reply of `guest.clock`."""
    # How far the guest's clock was ahead of the host's, in microseconds.
    ahead_us: int
    # What was done.
    change: ClockChange
    # How far off this may be: half of the round trip, in microseconds.
    error_us: int


class ClockRequest(TypedDict):
    """Request of `guest.clock`."""
    # Set it by the host's clock; else it is only looked at.
    set: NotRequired[bool]
    # How far it may be off to be set by running a little faster or slower, in milliseconds; 500 if left out. Beyond that it jumps.
    slew_ms: NotRequired[int | None]


class ConsoleReply(TypedDict):
    """Reply of `console`."""
    # Offset of the stream's first byte in everything that the console ever wrote.
    offset: int
    # The stream. Its result is a `ConsoleResult`.
    stream: StreamOpened


class ConsoleRequest(TypedDict):
    """Request of `console`: the serial console as a stream with the channels `stdin` and `stdout`, for one writer at a time."""
    # Begins with this many of the last bytes; 4 KiB if left out, 256 KiB at most.
    tail_bytes: NotRequired[int | None]
    # Takes the console from whoever writes to it; else that is `busy`.
    take: NotRequired[bool]


class ConsoleResult(TypedDict):
    """How a stream of the console ended: `stdin` was closed, or the VM was deleted."""
    # Bytes that were overwritten before this reader came to them; a line in the stream says where.
    lost_bytes: int
    # Offset behind the last byte that was sent.
    offset: int


class ContractReply(TypedDict):
    """Reply of `contract.read`."""
    # An AsyncAPI 3 document, as JSON text. Its addresses begin with `drover`, whatever the root of this bus is.
    asyncapi: str
    # Version of the host that answers.
    version: str


class CpuTopology(TypedDict):
    """How a guest's CPUs are laid out, as its kernel sees them; all multiplied are the number of CPUs."""
    # Cores of a die.
    cores_per_die: NotRequired[int]
    # Dies of a socket.
    dies_per_package: NotRequired[int]
    # Sockets.
    packages: NotRequired[int]
    # Threads of a core.
    threads_per_core: NotRequired[int]


class CreateRequest(TypedDict):
    """Request of `vm.create`."""
    # Name of the VM within the namespace of the subject.
    name: Token
    # What it shall be; all of it may come from the template.
    spec: NotRequired[VmSpec]
    # Delays the reply to the outcome; without it the reply comes when the create is durable.
    wait: NotRequired[Wait | None]


class DamagedImage(TypedDict):
    """A content that is not what its digest says."""
    # What was found: another digest, or why it cannot be read.
    found: str
    # Names that mean it.
    names: list[str]
    # The digest that it should have.
    sha256: str


class DirEntry(TypedDict):
    """A name in a folder."""
    # Its name, without a slash.
    name: str
    # What it is; a link is not followed.
    stat: FileStat


class DiskInfo(TypedDict):
    """A block device of the guest."""
    # The file systems of it and of its partitions that are mounted.
    mounts: NotRequired[list[MountInfo]]
    # Its name below `/dev`.
    name: str
    # Whether it cannot be written.
    read_only: NotRequired[bool]
    # Its size in bytes.
    size_bytes: int


class DiskLimits(TypedDict):
    """How fast a guest may use a disk, reads and writes together. Who has rested for a second may use a second's worth at once."""
    # Bytes beyond that limit which pass as fast as the host can, once after each start: a guest boots quickly.
    burst_bytes: NotRequired[ByteSize | None]
    # Requests beyond that limit, once after each start.
    burst_ops: NotRequired[int | None]
    # Bytes each second, 64 KiB at least.
    bytes_per_second: NotRequired[ByteSize | None]
    # Requests each second, 10 at least.
    ops_per_second: NotRequired[int | None]


class DiskSpec(TypedDict):
    """One disk of a VM: a copy of an image, or a blank one of a size. Each VM has its own; it is made when the VM is created and goes with it. Or it is a volume, which stays."""
    # Whether the host gets back what the guest frees (its `fstrim`, or a file system with `discard`); it does if left out. `false` keeps what was ever written allocated: a full host then stops no write to a place that had one.
    discard: NotRequired[bool | None]
    # What a blank disk is formatted with; `none` if left out.
    fs: NotRequired[DiskFs | None]
    # The image that the disk starts as. Without it the disk is blank, and has a `size`.
    image: NotRequired[str | None]
    # The label of that file system: 1 to 16 characters of `A-Za-z0-9._-`. Linux has it as `/dev/disk/by-label/LABEL`.
    label: NotRequired[str | None]
    # How fast the guest may read and write it; as fast as the host can if left out.
    limits: NotRequired[DiskLimits | None]
    # How the guest finds it, whatever the order of its disks: the serial number of the device, so that Linux has it as `/dev/disk/by-id/virtio-NAME`. At most 20 characters, another for each disk; `disk0`, `disk1` and so on if left out.
    name: NotRequired[Token | None]
    # The guest cannot write to it.
    readonly: NotRequired[bool]
    # Its length, a multiple of 1 MiB. That of a copy is its image's if left out, and never less. Only what is written to takes room of the host.
    size: NotRequired[ByteSize | None]
    # Its length, a multiple of 1 MiB. That of a copy is its image's if left out, and never less. Only what is written to takes room of the host.
    size_bytes: NotRequired[ByteSize | None]
    # In its place: a volume of the namespace, which was there before the VM and stays when that is deleted. One VM may write to it, or many read it (`readonly`). The VM goes to the host that has it.
    volume: NotRequired[Token | None]


class DiskStatus(TypedDict):
    """One disk of a VM as the host made it."""
    # How it was made.
    made: DiskMade
    # How the guest finds it: the serial number of the device.
    name: str
    # Its length.
    size_bytes: int


class DiskUse(TypedDict):
    """How full a mounted file system is."""
    # Bytes that an ordinary user may still write.
    free_bytes: int
    # Where it is mounted.
    mount: str
    # Its size in bytes.
    total_bytes: int


class DrainReply(TypedDict):
    """Reply of `host.<host>.drain`."""
    # Whether the host takes new VMs.
    accepting: bool
    # VMs that it still has.
    vms: int


class DrainRequest(TypedDict):
    """Request of `host.<host>.drain`. Repeating it changes nothing more."""
    # Take no new VMs from now on, over restarts of the daemon too; `false` takes them again.
    on: bool


class DroppedEvents(TypedDict):
    """Events of a guest that were dropped, by the reason."""
    # All of them.
    count: NotRequired[int]
    # Refused by the agent in the guest, beyond its quota for a user or for all, or as too many waited for the host.
    guest: NotRequired[int]
    # What cannot be read: a type that is none, data that is none or too long.
    malformed: NotRequired[int]
    # More or larger ones than the quota of the VM allows.
    quota: NotRequired[int]
    # More at once than an agent may send before they are acknowledged: not one of ours does so.
    window: NotRequired[int]


class EgressRequest(TypedDict):
    """Request of `egress`: what the guest may reach by an interface from now on. Either all of it is done or nothing; what is so already stays. What is refused from now on ends at once, also in the midst of a connection."""
    # Rules that come.
    add: NotRequired[EgressRules]
    # What becomes of all that is not named; as it is if left out.
    default: NotRequired[EgressDefault | None]
    # Refuse with `conflict` unless the spec has this revision.
    if_revision: NotRequired[int | None]
    # Refuse with `conflict` unless the VM has this id.
    if_vm_id: NotRequired[VmId | None]
    # Which of the VM's interfaces, by its place in `spec.nics`; the first if left out.
    nic: NotRequired[int]
    # Rules that go, before others come; each as it stands in the spec.
    remove: NotRequired[EgressRules]
    # Everything that was said of the interface goes first; with nothing else beside it, its guest reaches what the host's network lets through.
    replace: NotRequired[bool]


class EgressRule(TypedDict):
    """Where to, by what protocol and to which ports."""
    # Ports such as `443` and ranges such as `8000-8099`, at most 16; all if there are none.
    ports: NotRequired[list[str]]
    # TCP or UDP only; with neither this nor `ports` all that there is of IP.
    protocol: NotRequired[Protocol | None]
    # An address or prefix such as `192.0.2.0/24` or `2001:db8::/32`; `all`; `private` for addresses that are not of the public internet; `metadata` for the link-local ones, and others, where clouds answer what is for the machine itself. These words mean IPv4 and IPv6.
    to: str


class EgressRules(TypedDict):
    """Rules of egress."""
    # Of what passes.
    allow: NotRequired[list[EgressRule]]
    # Of what is refused.
    deny: NotRequired[list[EgressRule]]


class EgressSpec(TypedDict):
    """What a guest may reach by an interface. Answers to who reached it first pass, and its network must keep its guests apart (`isolate`). What `deny` names is refused, then what `allow` names passes, then `default` decides."""
    # What passes though the default is `deny`; at most 64 rules with those of `deny`.
    allow: NotRequired[list[EgressRule]]
    # What becomes of all that is not named; `allow` if left out.
    default: NotRequired[EgressDefault]
    # What is refused.
    deny: NotRequired[list[EgressRule]]


class Empty(TypedDict):
    """An empty request or reply."""


class ErrorBody(TypedDict):
    """The body of every error reply."""
    # What kind of failure.
    code: ErrorCode
    # Facts by name (state, operation, cause, limit …).
    details: NotRequired[dict[str, str]]
    # Names this error in the host's log; empty where it was made by a library.
    error_id: NotRequired[str]
    # One or two sentences for a person: what is wrong and what to do.
    message: str
    # Whether the same request, with the same request id, may succeed later.
    retryable: bool


class EventLog(TypedDict):
    """How the stream of events stands and how long it keeps them."""
    # How much they are.
    bytes: int
    # How many are kept now, of all hosts and namespaces.
    events: int
    # Position of the oldest.
    first_cursor: int
    # Position of the newest.
    last_cursor: int
    # How long events are kept; absent for ever.
    max_age_ms: NotRequired[int | None]
    # How much of them is kept; absent for all.
    max_bytes: NotRequired[int | None]
    # When the oldest was stored.
    oldest_unix_ms: NotRequired[int | None]
    # Readers that the stream knows by name (durable consumers) and that have not read everything.
    readers_behind: int
    # When all this was seen, by the host's clock.
    seen_unix_ms: int
    # Name of the stream.
    stream: str


class EventsLastReply(TypedDict):
    """Reply of `events.last`: where the VMs of the namespace are, and where their log goes on. Whoever reads all pages and then `events.read` from `after` on misses nothing: an event whose `seq` is not above that of the VM's here is known already. A VM that has not changed for as long as events are kept is not here; `vm.list` has it."""
    # Pass it to `events.read` when all pages are read; the same on every page.
    after: int
    # The last event of kind `state` of each VM that is not deleted, by the time of its change. A VM that changes while pages are read comes again on a later one.
    events: list[StoredEvent]
    # Where the next page begins; absent on the last.
    next_cursor: NotRequired[str | None]


class EventsLastRequest(TypedDict):
    """Request of `events.last`."""
    # `next_cursor` of the page before.
    cursor: NotRequired[str | None]
    # At most this many VMs; 100 if left out, 500 at most.
    limit: NotRequired[int | None]


class EventsReadReply(TypedDict):
    """Reply of `events.read`. A page may be empty although there is more: the host looks at a few thousand events for each. Go on until `end`."""
    # No event was stored after these when the page was read.
    end: bool
    # Events in order.
    events: list[StoredEvent]
    # Pass it as `after` to go on.
    next_cursor: int
    # Rejections among them; none if the events of one VM or of some kinds were asked for.
    rejections: NotRequired[list[StoredRejection]]
    # Events behind `after` are not kept any more: some may have been missed.
    trimmed: NotRequired[bool]


class EventsReadRequest(TypedDict):
    """Request of `events.read`. Without filters it reads every event of the namespace."""
    # Only events after this position of the stream (`next_cursor` of the page before).
    after: NotRequired[int | None]
    # Only events of these kinds; all if left out.
    kinds: NotRequired[list[VmEventKind]]
    # At most this many; 100 if left out, 500 at most.
    limit: NotRequired[int | None]
    # Only events that this request led to, its rejection among them. Without `after` and `since_unix_ms` the log is read from an hour before the id was made.
    request_id: NotRequired[RequestId | None]
    # Only events at or after this time; `after` goes before it.
    since_unix_ms: NotRequired[int | None]
    # Only events of this VM name.
    vm: NotRequired[Token | None]


class ExecControl(TypedDict):
    """A message of the channel `ctl`, for a command at a terminal. A frame of the channel holds whole ones, one after the other."""
    # The command's process group gets the signal of this number.
    signal: NotRequired[int | None]
    # The terminal has this size now.
    size: NotRequired[TermSize | None]


class ExecReply1(TypedDict):
    """It has ended."""
    result: ExecResult


class ExecReply2(TypedDict):
    """It runs; frames follow. The stream's result is an [`ExecResult`]."""
    stream: StreamOpened


class ExecReply3(TypedDict):
    """It runs by itself."""
    run: RunInfo


class ExecRequest(TypedDict):
    """Request of `guest.exec`."""
    # Program and arguments; no shell is added.
    argv: list[str]
    # Directory to run in; the user's home if left out.
    cwd: NotRequired[str | None]
    # Start it, answer with the run, and let it go on by itself; `guest.attach` reads its output.
    detach: NotRequired[bool]
    # Added to a plain environment.
    env: NotRequired[dict[str, Secret]]
    # Groups, by name or number, in place of those that the guest gives the user.
    groups: NotRequired[list[str] | None]
    # Let those who attach write to it; only with `detach`.
    interactive: NotRequired[bool]
    # Limits of its processes.
    limits: NotRequired[list[ResourceLimit]]
    # How much of each output channel the guest keeps of it, in bytes; only with `detach`. 1 MiB if left out, 8 MiB at most.
    ring_bytes: NotRequired[int | None]
    # The terminal's size at the start; 24 lines of 80 columns if left out.
    size: NotRequired[TermSize | None]
    # Fed to the program; only where `stream` is false. At most 48 KiB.
    stdin: NotRequired[Blob | None]
    # Answer with a stream; else output is collected, up to 128 KiB each for stdout and stderr.
    stream: NotRequired[bool]
    # The guest ends the command and everything that it started after this time, in milliseconds; 30,000 if left out and neither streamed nor detached.
    timeout_ms: NotRequired[int | None]
    # At a terminal of its own; its output comes on `stdout` alone. Sizes and signals go over the stream's channel `ctl`.
    tty: NotRequired[bool]
    # The mask of new files' permissions; 0o022 (18) if left out.
    umask: NotRequired[int | None]
    # `name`, `uid`, `name:group` or `uid:gid` by the guest's own files; root if left out.
    user: NotRequired[str | None]


class ExecResult(TypedDict):
    """Result of a program."""
    # How long it ran, in milliseconds.
    duration_ms: int
    # When it ended, likewise.
    ended_unix_ms: NotRequired[int]
    # Its exit code, if it exited.
    exit_code: NotRequired[int | None]
    # The most memory that the largest of these processes had resident, in KiB.
    max_rss_kib: NotRequired[int]
    # The signal that ended it, otherwise.
    signal: NotRequired[int | None]
    # When it was started, by the guest's clock: milliseconds since the Unix epoch.
    started_unix_ms: NotRequired[int]
    # Error output, where it was not streamed.
    stderr: NotRequired[Blob | None]
    # Output, where it was not streamed.
    stdout: NotRequired[Blob | None]
    # CPU time in the kernel, likewise.
    sys_ms: NotRequired[int]
    # Its time was over.
    timed_out: NotRequired[bool]
    # More was written than is here: too much for a reply (use a stream), or the request was a repeated one, whose result is remembered without its output.
    truncated: NotRequired[bool]
    # CPU time in user mode, of it and of the processes that it waited for, in milliseconds.
    user_ms: NotRequired[int]


class ExplainReply(TypedDict):
    """Reply of `explain`: why a VM is as it is."""
    # What to make of it, sentence by sentence.
    findings: list[str]
    # Its last events, oldest first, as sentences.
    history: list[str]
    # The values of its spec, and where each comes from; empty where that is not known, as of an earlier version's VM.
    values: NotRequired[list[SpecValue]]
    # The VM.
    vm: VmStatus
    # The VMM's command line.
    vmm_command: list[str]
    # The VMM's configuration, as JSON text.
    vmm_config: str


class Extent(TypedDict):
    """Which bytes of a channel are kept."""
    # Offset of the next byte that the command will write.
    end: int
    # Offset of the oldest byte that is kept; what was before is lost.
    start: int


class FileRange(TypedDict):
    """Bytes of a file."""
    # How many there are: at least one.
    len: int
    # Where they begin, in bytes.
    off: int


class FileResult(TypedDict):
    """Result of a transfer; compare the digest with your own."""
    # Group of a file that was read.
    gid: NotRequired[int | None]
    # Permissions.
    mode: int
    # When a file that was read was last written: milliseconds since the Unix epoch.
    mtime_ms: NotRequired[int | None]
    # SHA-256 in hexadecimal, by the guest.
    sha256: str
    # Length of the file.
    size_bytes: int
    # Owner of a file that was read.
    uid: NotRequired[int | None]


class FileStat(TypedDict):
    """What is known of a file without reading it."""
    # What it takes on its disk: less than its size where it has holes.
    allocated_bytes: NotRequired[int]
    # Group.
    gid: int
    # What it is.
    kind: FileKind
    # Permission bits.
    mode: int
    # When it was last written: milliseconds since the Unix epoch.
    mtime_ms: int
    # The bytes of a file that are not holes, where they were asked for.
    ranges: NotRequired[list[FileRange] | None]
    # Its size.
    size_bytes: int
    # What a symbolic link names.
    target: NotRequired[str | None]
    # Owner.
    uid: int


class ForgetReply(TypedDict):
    """Reply of `host.<host>.forget`. Repeating the request frees what is left."""
    # How many names of VMs were freed.
    freed: int
    # The host.
    host: Token
    # The first hundred of them.
    vms: list[ForgottenVm]


class ForgetRequest(TypedDict):
    """Request of `host.<host>.forget`."""
    # Forget it though it is alive: its VMs run on, and nobody answers for them any more.
    force: NotRequired[bool]
    # The host to forget: another one than the host that is asked.
    host: Token


class ForgottenVm(TypedDict):
    """A VM whose name was freed with its host."""
    # Its name.
    name: Token
    # Its namespace.
    namespace: Token
    # Its identity.
    vm_id: VmId


class ForwardRef(TypedDict):
    """A forward by where the host takes it in."""
    # The host's address as the forward has it; left out for one of all addresses.
    host_address: NotRequired[str | None]
    # The host's port.
    host_port: int
    # What is forwarded; TCP if left out.
    protocol: NotRequired[Protocol]


class ForwardRequest(TypedDict):
    """Request of `forward`: ports of the host that shall lead to the guest, or not any more. Either all of it is done or nothing; what is so already stays. Connections through a forward that is removed are cut, unless another one leads from there to the same port of the guest."""
    # Forwards that come.
    add: NotRequired[list[ForwardSpec]]
    # Refuse with `conflict` unless the spec has this revision.
    if_revision: NotRequired[int | None]
    # Refuse with `conflict` unless the VM has this id.
    if_vm_id: NotRequired[VmId | None]
    # Which of the VM's interfaces, by its place in `spec.nics`; the first if left out.
    nic: NotRequired[int]
    # Forwards of it that go, before others come.
    remove: NotRequired[list[ForwardRef]]


class ForwardSpec(TypedDict):
    """A port of the host that leads to one of the guest: by IPv4, and by IPv6 too if the interface has an address of it."""
    # The guest's port.
    guest_port: int
    # The host's address, which means that kind of addresses only; all of them if left out.
    host_address: NotRequired[str | None]
    # The host's port; a host forwards those of its range `forwards.ports` only.
    host_port: int
    # What is forwarded; TCP if left out.
    protocol: NotRequired[Protocol]
    # From where alone it may be used, as prefixes such as `192.0.2.0/24` or `2001:db8::/32`; from everywhere if there are none. At most 16.
    sources: NotRequired[list[str]]


class FreezeRequest(TypedDict):
    """Freezes the guest's local file systems that can be written."""
    # Only those that are mounted at these places; all if left out.
    mounts: NotRequired[list[str] | None]
    # They are thawed after this time, whatever becomes of the host and of the agent, in milliseconds; 30,000 if left out, 300,000 at most.
    timeout_ms: NotRequired[int | None]


class FreezeResult(TypedDict):
    """The file systems stand still."""
    # What is frozen, in the order in which it was done.
    frozen: list[FrozenMount]
    # Programs of `/etc/drover-agent/freeze.d` that ran before.
    hooks: NotRequired[list[str]]
    # What one would expect to be frozen and is not.
    skipped: NotRequired[list[SkippedMount]]
    # In how many milliseconds they are thawed if nobody asks for it.
    thaws_in_ms: int
    # How long it took, in milliseconds.
    took_ms: int


class FrozenMount(TypedDict):
    """A file system that stands still."""
    # What it lies on.
    device: str
    # Its type (`ext4`, `xfs`).
    fs_type: str
    # Where it is mounted.
    mount: str


class FrozenResult(TypedDict):
    """What is frozen."""
    # Those that stand still.
    frozen: NotRequired[list[FrozenMount]]
    # How the last freeze that this agent knows of ended.
    last: NotRequired[ThawResult | None]
    # How they are.
    state: FreezeState
    # In how many milliseconds they are thawed if nobody asks for it.
    thaws_in_ms: NotRequired[int | None]


class GetRequest(TypedDict):
    """Request of `guest.get`; the data comes on channel `data` of the stream."""
    # Refuse a file larger than this, in bytes.
    max_size_bytes: NotRequired[int | None]
    # Absolute path in the guest.
    path: str
    # The bytes that are wanted, in order and at most 1,024 ranges; all of them if left out. The digest is over the whole file all the same.
    ranges: NotRequired[list[FileRange] | None]


class GrowRequest(TypedDict):
    """Request of `grow`: a disk of the VM becomes longer, and never shorter. A guest that runs sees it at once; its file systems grow when it makes them (`resize2fs`). A paused guest cannot be told."""
    # The disk, by its name.
    disk: Token
    # Refuse with `conflict` unless the spec has this revision.
    if_revision: NotRequired[int | None]
    # Refuse with `conflict` unless the VM has this id.
    if_vm_id: NotRequired[VmId | None]
    # How long it shall be, a multiple of 1 MiB.
    size_bytes: ByteSize


class GuestSample(TypedDict):
    """What a guest says of itself, where its spec has `agent.metrics_interval_ms`. Gone with the link to its agent."""
    # Time that the guest's CPUs were busy since the sample before, in percent of all; absent in the first.
    cpu_percent: NotRequired[float | None]
    # File systems on block devices, and the root; at most 16.
    disks: list[DiskUse]
    # Interfaces, without loopback; at most 16.
    interfaces: list[InterfaceUse]
    # Load averages of 1, 5 and 15 minutes.
    load: list[float]
    # Memory that programs can still have, in bytes.
    memory_available_bytes: int
    # Memory in bytes.
    memory_total_bytes: int
    # Swap that is unused, in bytes.
    swap_free_bytes: int
    # Swap in bytes.
    swap_total_bytes: int
    # When it was taken, by the host's clock.
    time_unix_ms: int


class GuestShutdownRequest(TypedDict):
    """Request of `guest.shutdown`."""
    # How.
    mode: NotRequired[ShutdownMode]


class GuestTarget(TypedDict):
    """What of a guest a request was about. A program's further arguments, its environment and its input are never told."""
    # The file or folder.
    path: NotRequired[str | None]
    # The program.
    program: NotRequired[str | None]
    # The detached program.
    run: NotRequired[str | None]
    # The SHA-256 of a new agent.
    sha256: NotRequired[str | None]
    # As whom, if it was said: a user, or the owner of a file.
    user: NotRequired[str | None]


class HealthResult(TypedDict):
    """How the guest is."""
    # Checks, those of the spec first.
    checks: NotRequired[list[CheckState]]
    # CPU time used since boot by everything, in milliseconds.
    cpu_busy_ms: int
    # CPU time since boot, used or not, in milliseconds.
    cpu_total_ms: int
    # File systems on block devices, and the root.
    disks: NotRequired[list[DiskUse]]
    # Services that have failed or crashed.
    failed_units: NotRequired[list[str]]
    # Load averages of 1, 5 and 15 minutes.
    load: list[float]
    # Memory that programs can still have, in bytes.
    memory_available_bytes: int
    # Memory in bytes.
    memory_total_bytes: int
    # Why it is not `ok`, one sentence each.
    reasons: NotRequired[list[str]]
    # Files of the guest's owner that should declare checks and do not.
    refused_files: NotRequired[list[RefusedFile]]
    # What keeps the guest's services: `systemd` or `openrc`; absent if neither is there.
    services: NotRequired[str | None]
    # The worst of all.
    status: HealthStatus
    # Swap that is unused, in bytes.
    swap_free_bytes: NotRequired[int]
    # Swap in bytes.
    swap_total_bytes: NotRequired[int]
    # Thresholds of the spec.
    thresholds: NotRequired[list[ThresholdState]]
    # Milliseconds since boot.
    uptime_ms: int


class HostClaim(TypedDict):
    """Whose a host's name is. It stays when the host is silent, until an operator has the host forgotten."""
    # When an operator had the host forgotten: VMs that it has from before are not its own any more.
    forgotten_unix_ms: NotRequired[int | None]
    # The installation has not been heard since it was forgotten: the name is free.
    free: NotRequired[bool]
    # The installation that has the name.
    installation: InstallationId
    # When it said so last, by its own clock; every few minutes.
    seen_unix_ms: int
    # The subnets that its networks have out of pools of the fleet, by the names of the networks. No other host takes them, until this one is forgotten.
    subnets: NotRequired[HostClaimSubnets]


class HostClaimSubnets(TypedDict):
    """The subnets that its networks have out of pools of the fleet, by the names of the networks. No other host takes them, until this one is forgotten."""


class HostEntry(TypedDict):
    """A host of the fleet, as the host that answers sees it."""
    # Whose its name is.
    claim: NotRequired[HostClaim | None]
    # The host.
    host: Token
    # When it was heard last, by its own clock; absent if that is not known any more.
    last_seen_unix_ms: NotRequired[int | None]
    # It has been heard within its lease.
    online: bool
    # What it says of itself, without its images.
    record: NotRequired[HostRecord | None]


class HostEvent(TypedDict):
    """The body of a host event."""
    # Facts by name.
    details: NotRequired[dict[str, str]]
    # The host.
    host: Token
    # What kind of event; the last token of the subject.
    kind: HostEventKind
    # One sentence for a person.
    message: str
    # Position in the host's log.
    seq: int
    # When it happened, by the host's clock.
    time_unix_ms: int


class HostImage(TypedDict):
    """An image that a host has."""
    # Its name there.
    name: str
    # SHA-256 of the content, 64 lower-case hexadecimal digits.
    sha256: str
    # Its length.
    size_bytes: int


class HostInfo(TypedDict):
    """Reply of `host.<host>.info`."""
    # What is wrong now.
    alarms: NotRequired[list[Alarm]]
    # Capacity and promises.
    capacity: Capacity
    # How far the host's clock is ahead of the bus server's, to within half of a round trip.
    clock_offset_ms: NotRequired[int | None]
    # How VMs are confined and limited here, in words.
    confinement: NotRequired[dict[str, str]]
    # How the stream of events stands and how long it keeps them; absent until it was seen.
    events: NotRequired[EventLog | None]
    # Features that this version offers, for peers of other versions.
    features: list[str]
    # Name of the host.
    host: Token
    # The installation.
    installation: InstallationId
    # Operating system kernel.
    kernel: str
    # Labels for placement.
    labels: NotRequired[dict[str, str]]
    # What namespaces use, by name; the first 500 that use anything.
    namespaces: NotRequired[list[NamespaceUse]]
    # Events that wait to be stored by the bus.
    outbox: int
    # How full the space for them is; above 95 verbs that change a VM are refused.
    outbox_percent: NotRequired[int]
    # `adopting`, `connecting` (the stream or a bucket of the bus is not there yet), `ready` or `draining`.
    phase: str
    # Process id of the daemon, by its own account.
    pid: NotRequired[int | None]
    # When the daemon started.
    started_unix_ms: int
    # How many VMs are in each state.
    states: dict[str, int]
    # Version of drover.
    version: str
    # The hypervisor.
    vmm: VmmInfo


class HostNotSeen(TypedDict):
    """A host that is not heard."""
    # The host.
    host: Token
    # When it was heard last, by its own clock; absent if that is not known any more.
    last_seen_unix_ms: NotRequired[int | None]


class HostRecord(TypedDict):
    """What a host writes about itself to the bucket of hosts: its row in the inventory, which goes 90 s after it was written last."""
    # It takes new VMs.
    accepting: bool
    # Capacity and promises.
    capacity: Capacity
    # Features that it offers; placers choose by them.
    features: list[str]
    # The host.
    host: Token
    # Images; absent where the host does not say, such as for being too many.
    images: NotRequired[list[HostImage] | None]
    # Its installation; a host of the same name with another id refuses to start.
    installation: InstallationId
    # Labels for placement.
    labels: dict[str, str]
    # Processes that wanted a core in the last minute, for each 100 cores.
    load_percent: NotRequired[int]
    # Free addresses of each network; absent where the host does not say.
    networks: NotRequired[HostRecordNetworks | None]
    # Memory of a VMM beside its guest's, in bytes.
    overhead_bytes: NotRequired[int]
    # Beside these, the templates of single namespaces.
    own_templates: NotRequired[HostRecordOwnTemplates]
    # As in `info`: `ready`, `draining` and so on.
    phase: NotRequired[str]
    # The subnet of each network; a network that is not among them is of a host that does not say.
    subnets: NotRequired[HostRecordSubnets]
    # Templates by name; absent where the host does not say.
    templates: NotRequired[list[Token] | None]
    # Version of drover.
    version: str
    # What the hypervisor says of its version.
    vmm_version: NotRequired[str]
    # Volumes of each namespace.
    volumes: NotRequired[HostRecordVolumes]
    # When it was written, by the host's clock.
    written_unix_ms: int


class HostRecordNetworks(TypedDict):
    """Free addresses of each network; absent where the host does not say."""


class HostRecordOwnTemplates(TypedDict):
    """Beside these, the templates of single namespaces."""


class HostRecordSubnets(TypedDict):
    """The subnet of each network; a network that is not among them is of a host that does not say."""


class HostRecordVolumes(TypedDict):
    """Volumes of each namespace."""


class HostSample(TypedDict):
    """The body of `metric.host.<host>`."""
    # Capacity and promises.
    capacity: Capacity
    # The host.
    host: Token
    # Events that wait to be stored by the bus.
    outbox: int
    # When it was taken, by the host's clock.
    time_unix_ms: int


class HostsReply(TypedDict):
    """Reply of `host.<host>.list`."""
    # Hosts by name.
    hosts: list[HostEntry]
    # Where the next page begins; absent on the last.
    next_cursor: NotRequired[Token | None]


class HostsRequest(TypedDict):
    """Request of `host.<host>.list`."""
    # `next_cursor` of the page before.
    cursor: NotRequired[Token | None]
    # At most this many; 100 if left out, 200 at most.
    limit: NotRequired[int | None]


class IdentityRequest(TypedDict):
    """Makes a guest that was cloned another one than its twin."""
    # Its name from now on; as it was if left out.
    hostname: NotRequired[str | None]
    # What stays as it is.
    keep: NotRequired[list[IdentityPart]]


class IdentityResult(TypedDict):
    """What became of each part. One that fails holds up none of the others; it makes the whole a `guest_error` whose details have each part by its name."""
    # In the order in which they were done.
    parts: list[PartResult]


class ImageGcReply(TypedDict):
    """Reply of `image.remove` and `image.gc`."""
    # What they took, in bytes.
    freed_bytes: int
    # SHA-256 of each content without a name that VMs still use.
    in_use: list[str]
    # SHA-256 of each content that was removed.
    removed: list[str]


class ImageGetReply(TypedDict):
    """Reply of `image.get`."""
    # Other names of the host that mean the same content.
    also: list[str]
    # The image.
    image: ImageInfo
    # VMs that were created with the content, the first 100.
    used_by: list[ImageUser]


class ImageGetRequest(TypedDict):
    """Request of `image.get`."""
    # The image, by its name or as `sha256:` and its digest.
    image: str


class ImageImportReply(TypedDict):
    """Reply of `image.import`."""
    # The image.
    image: ImageInfo
    # Of an image from a registry: the digest of what the reference meant, by which the same is asked for again.
    manifest: NotRequired[str | None]


class ImageImportRequest(TypedDict):
    """Request of `image.import`."""
    # What it is good for; the file's head is checked against it.
    kind: ImageKind
    # The name that specs use.
    name: Token
    # In their place: an image of an OCI registry that is one of `images.urls.hosts`, as `registry.example/owner/name:tag`, `registry.example/owner/name@sha256:…` or both, then the digest counts. It is an artifact of one layer, which is the file, or a container disk: layers with one file below `disk/`.
    oci: NotRequired[str | None]
    # A file on the host, below one of its `images.import_dirs`. Links are not followed.
    path: NotRequired[str | None]
    # Let the name mean this content from now on though it means another. VMs keep what they were created with.
    replace: NotRequired[bool]
    # The SHA-256 that the content must have, 64 lower-case hexadecimal digits; a URL needs it. Of an image in a registry it is that of the file, and not of its manifest.
    sha256: NotRequired[str | None]
    # The signature of the content, as `minisign` writes it into a `.minisig` file. A host with `images.signers` takes nothing without one by one of these keys; others keep it, and share it with the image.
    signature: NotRequired[str | None]
    # In its place: where to fetch the content, with `https`, from one of the host's `images.urls.hosts`.
    url: NotRequired[str | None]


class ImageInfo(TypedDict):
    """An image of a host."""
    # It came with the host's configuration and cannot be removed over the bus.
    built_in: bool
    # Its format.
    format: NotRequired[ImageFormat]
    # It came from the fleet.
    from_fleet: NotRequired[bool]
    # When it was imported.
    imported_unix_ms: NotRequired[int | None]
    # What it is good for.
    kind: ImageKind
    # Its name.
    name: str
    # SHA-256 of the content.
    sha256: str
    # The key whose signature of it the host has checked, by its number.
    signer: NotRequired[str | None]
    # Its length.
    size_bytes: int
    # The length of the disk that a guest sees, where its format says another than the file's.
    virtual_bytes: NotRequired[int | None]
    # How many VMs of the host were created with it.
    vms: int


class ImageNameRequest(TypedDict):
    """Request of `image.remove` and, of all where it has no name, of `image.verify`."""
    # The image.
    name: NotRequired[Token | None]


class ImagePullRequest(TypedDict):
    """Request of `image.pull`."""
    # The name in the fleet, and then on this host.
    name: Token
    # Let the name mean this content on this host though it means another. VMs keep what they were created with.
    replace: NotRequired[bool]


class ImageShareReply(TypedDict):
    """Reply of `image.share`."""
    # What the fleet knows.
    image: SharedImage
    # What was sent to the bus; nothing if the content was there.
    uploaded_bytes: int


class ImageShareRequest(TypedDict):
    """Request of `image.share`."""
    # The image of this host; the fleet means it by the same name.
    name: Token
    # Let the fleet mean this content by the name though it means another.
    replace: NotRequired[bool]


class ImageTagReply(TypedDict):
    """Reply of `image.tag`."""
    # The name meant it already, and nothing was done.
    already: NotRequired[bool]
    # The image by its new name.
    image: ImageInfo


class ImageTagRequest(TypedDict):
    """Request of `image.tag`."""
    # The image of this host, by its name or as `sha256:` and the digest of a content that its store has.
    image: str
    # The name that means it from now on, beside those that do already.
    name: Token
    # Let the name mean this image from now on though it means another. VMs keep what they were created with.
    replace: NotRequired[bool]


class ImageUnshareReply(TypedDict):
    """Reply of `image.unshare`."""
    # What went from the bus; nothing while another name means the content.
    freed_bytes: int


class ImageUnshareRequest(TypedDict):
    """Request of `image.unshare`."""
    # The name in the fleet.
    name: Token


class ImageUser(TypedDict):
    """A VM of the host that was created with an image."""
    # Its name.
    name: Token
    # Its namespace.
    namespace: Token


class ImageVerifyReply(TypedDict):
    """Reply of `image.verify`."""
    # How many contents were read.
    checked: int
    # Those that are damaged: import them again with `replace`.
    damaged: list[DamagedImage]


class ImagesReply(TypedDict):
    """Reply of `image.list`."""
    # Room that is left in its file system, in bytes.
    free_bytes: int
    # By name.
    images: list[ImageInfo]
    # Where to go on; absent on the last page.
    next_cursor: NotRequired[str | None]
    # What the store holds, named or not, in bytes.
    store_bytes: int


class ImagesRequest(TypedDict):
    """Request of `image.list` and `image.shared`."""
    # Begin after this name; `next_cursor` of the page before.
    cursor: NotRequired[str | None]
    # Images of a page; 100 if left out, 500 at the most.
    limit: NotRequired[int | None]


class InfoResult(TypedDict):
    """What the guest is."""
    # The version of the agent.
    agent_version: str
    # The verbs that the owner of the guest allows, where the guest has a policy.
    allowed: NotRequired[list[str] | None]
    # The machine (`x86_64`, `aarch64`).
    arch: str
    # Changes with every boot.
    boot_id: str
    # What the first CPU calls itself.
    cpu_model: NotRequired[str]
    # CPUs that are online.
    cpus: int
    # CPUs that the kernel could bring online; 0 if it does not say.
    cpus_possible: NotRequired[int]
    # Block devices.
    disks: NotRequired[list[DiskInfo]]
    # The host name.
    hostname: str
    # Network interfaces, without loopback.
    interfaces: NotRequired[list[InterfaceInfo]]
    # The kernel's release.
    kernel: str
    # The same over boots, and of this guest alone if it was set up well; empty where there is none.
    machine_id: NotRequired[str]
    # Memory of the guest, in bytes.
    memory_bytes: int
    # `linux` or `windows`.
    os: str
    # The distribution's short name for itself, such as `debian`.
    os_id: NotRequired[str]
    # The distribution's own name for itself.
    os_name: NotRequired[str]
    # The distribution's version, such as `12`.
    os_version: NotRequired[str]
    # Milliseconds since boot.
    uptime_ms: int


class InterfaceInfo(TypedDict):
    """A network interface of the guest."""
    # Its addresses with prefix length (`10.0.0.2/24`).
    addresses: NotRequired[list[str]]
    # Its hardware address, `aa:bb:cc:dd:ee:ff`.
    mac: NotRequired[str]
    # Its name.
    name: str
    # Whether it is up.
    up: NotRequired[bool]


class InterfaceUse(TypedDict):
    """Bytes that went through an interface since it was made."""
    # Its name.
    name: str
    # Received.
    received_bytes: int
    # Sent.
    sent_bytes: int


class KeysChangeRequest(TypedDict):
    """Changes the SSH keys that log in as a user."""
    # Keys to add, each a line as in `id_ed25519.pub`. One that is there stays as it is.
    add: NotRequired[list[str]]
    # Take keys with options (`from="…" ssh-ed25519 …`), also in the place of those with other options.
    allow_options: NotRequired[bool]
    # Keys to remove: fingerprints (`SHA256:…`) or lines. One that is not there is `not_found`.
    remove: NotRequired[list[str]]
    # Remove every key that is not in `add`, and lines that are none; comments stay.
    replace: NotRequired[bool]
    # The user, by name.
    user: str


class KeysChangeResult(TypedDict):
    """What became of the keys."""
    # Those that are new, or have other options.
    added: NotRequired[list[AuthorizedKey]]
    # The file.
    path: str
    # How many keys and other lines were removed.
    removed: NotRequired[int]
    # How many keys there are now.
    total: int
    # Why the SSH server may not take them, as far as is seen.
    warnings: NotRequired[list[str]]


class KeysRequest(TypedDict):
    """Lists the SSH keys that log in as a user."""
    # The user, by name.
    user: str


class KeysResult(TypedDict):
    """The SSH keys that log in as a user, from `.ssh/authorized_keys` of its folder."""
    # In the order of the file.
    keys: list[AuthorizedKey]
    # There are more keys than these.
    more: NotRequired[bool]
    # Lines that are neither keys that the agent knows, nor comments.
    other_lines: NotRequired[int]
    # The file; it need not be there.
    path: str
    # Why the SSH server may not take them, as far as is seen.
    warnings: NotRequired[list[str]]


class KillRequest(TypedDict):
    """Sends a signal to a run."""
    # Which run.
    run: RequestId
    # The signal's number; SIGTERM (15) if left out. SIGKILL (9) ends everything that the command started, others go to its process group.
    signal: NotRequired[int | None]


class LimitRequest(TypedDict):
    """Request of `limit`: how fast the guest may be by an interface from now on, in the place of what was said before."""
    # Refuse with `conflict` unless the spec has this revision.
    if_revision: NotRequired[int | None]
    # Refuse with `conflict` unless the VM has this id.
    if_vm_id: NotRequired[VmId | None]
    # The limits; a direction that is left out has none.
    limits: NotRequired[NicLimits]
    # Which of the VM's interfaces, by its place in `spec.nics`; the first if left out.
    nic: NotRequired[int]


class ListReply(TypedDict):
    """Reply of `list`."""
    # Hosts of VMs in this page that are not heard now: how those VMs are is what was known last.
    hosts_not_seen: NotRequired[list[HostNotSeen]]
    # Where the next page begins; absent on the last.
    next_cursor: NotRequired[str | None]
    # VMs by name, without their specs. Those of other hosts than the one that answers are as their last acknowledged event left them.
    vms: list[VmStatus]


class ListRequest(TypedDict):
    """Request of `list`."""
    # `next_cursor` of the page before.
    cursor: NotRequired[str | None]
    # At most this many; 100 if left out, 500 at most.
    limit: NotRequired[int | None]


class LogsReply(TypedDict):
    """Reply of `logs`."""
    # The bytes; none if they come in the stream.
    data: Blob
    # Offset of the first byte, here or in the stream, in everything that was ever written.
    offset: int
    # The stream, if the log is followed. Its result is a `ConsoleResult`.
    stream: NotRequired[StreamOpened | None]


class LogsRequest(TypedDict):
    """Request of `logs`."""
    # Goes on with what comes, as a stream with the channel `stdout`, until the VM is deleted. Of the console only. The request needs a reply subject of its own for the frames.
    follow: NotRequired[bool]
    # Which log; `console` if left out.
    source: NotRequired[LogSource]
    # At most this many bytes from the end; 64 KiB if left out, 256 KiB at most.
    tail_bytes: NotRequired[int | None]


class LookupReply1(TypedDict):
    """No VM has this name, and none had it in the last 24 hours."""
    found: Literal["not_found"]


class LookupReply2(TypedDict):
    """A create is deciding where it goes."""
    found: Literal["placing"]
    # The host that was chosen.
    host: Token
    # The request that creates it.
    request_id: RequestId
    # Identity of the VM to be.
    vm_id: VmId


class LookupReply3(TypedDict):
    """A host owns it. Whether the host is online shows when it is asked."""
    found: Literal["owned"]
    # Its owner.
    host: Token
    # When the owner last said anything to the bus; absent if never.
    last_seen_unix_ms: NotRequired[int | None]
    # The owner has been heard within its lease.
    online: bool
    # Identity of the VM.
    vm_id: VmId


class LookupReply4(TypedDict):
    """It was deleted in the last 24 hours."""
    # When its delete was complete.
    deleted_unix_ms: int
    found: Literal["gone"]
    # Its last owner.
    host: Token
    # The reply of that request; absent where the VM was not deleted but forgotten with its host.
    reply: NotRequired[ChangeReply | None]
    # The request that deleted it.
    request_id: RequestId
    # Identity of the VM that was.
    vm_id: VmId


class LookupRequest(TypedDict):
    """Request of `lookup`."""
    # Name of the VM.
    name: Token


class LsReply(TypedDict):
    """The names in a folder, sorted byte by byte."""
    # The names.
    entries: list[DirEntry]
    # There are further ones: ask again with `after`.
    more: NotRequired[bool]
    # How many names of the folder are not UTF-8, and so in no answer.
    unreadable: NotRequired[int]


class LsRequest(TypedDict):
    """Asks for the names in a folder."""
    # Only names that come after this one, byte by byte: the last of the answer before.
    after: NotRequired[str | None]
    # At most so many names; 256 if left out, which is the most.
    limit: NotRequired[int | None]
    # Absolute path in the guest.
    path: str


class MkdirRequest(TypedDict):
    """Makes a folder."""
    # Permission bits (default 0o755 = 493).
    mode: NotRequired[int | None]
    # Makes missing folders above it too, mode 0o755, and is content with one that is there.
    parents: NotRequired[bool]
    # Absolute path in the guest.
    path: str


class MountInfo(TypedDict):
    """A file system on a block device."""
    # The disk or its partition, by its name below `/dev`.
    device: str
    # Its kind, such as `ext4`.
    fs: str
    # Where it is mounted.
    mount: str


class NamespaceSample(TypedDict):
    """The body of `metric.ns.<ns>.host.<host>`: the host's running VMs of one namespace."""
    # The host.
    host: Token
    # When it was taken, by the host's clock.
    time_unix_ms: int
    # VMs by name; a namespace with many is told in several messages.
    vms: list[VmSample]


class NamespaceUse(TypedDict):
    """What a namespace uses of a host, and the most that it may."""
    # Virtual CPUs of VMs that run or have been promised to.
    cpus: QuotaUse
    # Disks that VMs of any state may write to, at their full length.
    disk_bytes: QuotaUse
    # Events of the last hour, by a bucket that empties evenly; counted where there is a limit.
    events_per_hour: QuotaUse
    # Memory of their guests.
    memory_bytes: QuotaUse
    # The namespace.
    namespace: Token
    # Requests in flight.
    requests: QuotaUse
    # Streams that are open.
    streams: QuotaUse
    # VMs of any state.
    vms: QuotaUse


class NetworkCreateReply(TypedDict):
    """Reply of `network.create`."""
    # It was there already as it was asked for, and nothing was done.
    already: NotRequired[bool]
    # The network.
    network: NetworkInfo


class NetworkCreateRequest(TypedDict):
    """Request of `network.create`."""
    # Guests that ask by DHCP get their addresses; so if left out.
    dhcp: NotRequired[bool | None]
    # Names that guests ask the gateway for.
    dns: NotRequired[NetworkDns | None]
    # Where guests may not go, as prefixes; the ranges of clouds' metadata services if left out.
    egress_deny: NotRequired[list[str] | None]
    # Its addresses of IPv6, with the same places in it; no IPv6 if left out.
    ipv6: NotRequired[str | None]
    # Guests cannot reach each other; so if left out.
    isolate: NotRequired[bool | None]
    # The longest packet of its guests, in bytes from 1,280 to 9,216; 1,500 if left out.
    mtu: NotRequired[int | None]
    # The name that specs use.
    name: Token
    # Its addresses, as `10.78.0.0/20`; the first is the gateway's. This or `subnet_from` has to be said.
    subnet: NotRequired[str | None]
    # In its place: a subnet that no other host of the fleet has, out of a pool that all know.
    subnet_from: NotRequired[NetworkPool | None]


class NetworkDns(TypedDict):
    """Names of a network."""
    # The gateway answers, and guests are told to ask there; so if left out.
    serve: NotRequired[bool | None]
    # What follows the name of a VM; `vm.drover.internal` if left out.
    suffix: NotRequired[str | None]
    # Who is asked for other names, as `192.0.2.53` or `192.0.2.53:5353`; nobody if left out.
    upstreams: NotRequired[list[str] | None]


class NetworkInfo(TypedDict):
    """A network of a host."""
    # Addresses that guests can have in all.
    addresses: int
    # How many VMs have, or had until a moment ago.
    addresses_used: int
    # Linux bridges that it is made of.
    bridges: int
    # It is of the host's configuration, which alone can remove it; others were made by `network.create`.
    configured: bool
    # Guests that ask by DHCP get their addresses.
    dhcp: bool
    # Where guests may not go.
    egress_deny: list[str]
    # The gateway of its guests.
    gateway: str
    # Its addresses of IPv6.
    ipv6: NotRequired[str | None]
    # Guests cannot reach each other.
    isolate: bool
    # The longest packet of its guests, in bytes.
    mtu: int
    # Its name.
    name: Token
    # The pool that these are out of, if they are out of one.
    pool: NotRequired[str | None]
    # Its addresses.
    subnet: str
    # What follows the name of a VM, if the gateway answers.
    suffix: NotRequired[str | None]


class NetworkPool(TypedDict):
    """A pool of subnets."""
    # All of them together, the same on each host, as `10.64.0.0/12`.
    pool: str
    # How long the prefix of one is; 20 if left out.
    prefix: NotRequired[int | None]


class NetworkRemoveRequest(TypedDict):
    """Request of `network.remove`."""
    # Its name.
    name: Token


class NetworkRequest(TypedDict):
    """Looks at an interface of the guest, or sets it up. What is left out stays as it is; nothing but the servers of names outlives the guest's boot."""
    # All its addresses with their prefix lengths (`10.0.0.2/24`, `fd00::2/64`); others are taken away, of the kinds that are named here: a list with addresses of IPv6 only leaves those of IPv4 alone, and the other way round. An empty one takes those of IPv4 away. What a kernel gives an interface for its link (`fe80::`) is left alone.
    addresses: NotRequired[list[str] | None]
    # All servers that names are asked of, by their addresses.
    dns: NotRequired[list[str] | None]
    # The default gateway, by this interface.
    gateway: NotRequired[str | None]
    # The same of IPv6.
    gateway6: NotRequired[str | None]
    # Only if the interface has no address, of the kinds that `addresses` names: else nothing is changed.
    if_unset: NotRequired[bool]
    # Which interface, by its hardware address (`aa:bb:cc:dd:ee:ff`).
    mac: str
    # The longest packet, in bytes.
    mtu: NotRequired[int | None]
    # Further routes by this interface; those that are there stay.
    routes: NotRequired[list[NetworkRoute]]


class NetworkResult(TypedDict):
    """What was, and what is."""
    # As it is.
    after: NetworkState
    # As it was.
    before: NetworkState
    # Something was changed.
    changed: NotRequired[bool]
    # The interface's name in the guest.
    interface: str


class NetworkRoute(TypedDict):
    """A route of the guest's."""
    # Where to, as a prefix (`10.0.0.0/8`).
    to: str
    # By which router, an address.
    via: str


class NetworkState(TypedDict):
    """How an interface is set up."""
    # Its addresses with their prefix lengths, sorted, those of IPv4 first; without those of the link (`fe80::`).
    addresses: NotRequired[list[str]]
    # Servers that names are asked of, as far as `/etc/resolv.conf` tells.
    dns: NotRequired[list[str]]
    # The default gateway by this interface.
    gateway: NotRequired[str | None]
    # The same of IPv6.
    gateway6: NotRequired[str | None]
    # The longest packet, in bytes.
    mtu: int
    # Further routes by routers of this interface, sorted; at most 64.
    routes: NotRequired[list[NetworkRoute]]
    # Whether it is up.
    up: NotRequired[bool]


class NetworksReply(TypedDict):
    """Reply of `network.list`."""
    # Networks by name.
    networks: list[NetworkInfo]


class NicLimits(TypedDict):
    """How fast a guest may be by an interface. What comes faster is dropped on the host, so that connections settle at the limit; what a second of silence left over may be made up for."""
    # How fast it may receive.
    receive_bits_per_second: NotRequired[int | None]
    # How fast it may send, in bits a second, from 100,000 to 100,000,000,000; frames count with their headers.
    send_bits_per_second: NotRequired[int | None]


class NicSample(TypedDict):
    """Traffic of one interface as its host counts it, since the interface was made. Named as the guest sees it."""
    # Packets that the guest sent and that were refused where they were to go.
    egress_refused_packets: int
    # The host's network.
    network: Token
    # Frames that were dropped because they came to the guest faster than they may, where there is a limit.
    over_receive_packets: NotRequired[int | None]
    # Frames that were dropped because the guest sent faster than it may, where there is a limit.
    over_send_packets: NotRequired[int | None]
    # Bytes that were handed to the guest.
    received_bytes: int
    # Frames for the guest that it did not take in time.
    received_dropped: int
    # Frames that were handed to the guest.
    received_packets: int
    # Frames that the guest sent and that were refused: under a false address, or of a protocol that no guest has.
    refused_packets: int
    # Bytes that the guest sent.
    sent_bytes: int
    # Frames that the guest sent and the host's kernel could not take.
    sent_dropped: int
    # Frames that the guest sent.
    sent_packets: int
    # The TAP.
    tap: str


class NicSpec(TypedDict):
    """One network interface of a VM."""
    # What the guest may reach by it; everything that the host's network lets through if left out.
    egress: NotRequired[EgressSpec | None]
    # Ports of the host that lead to this interface; at most 64 of a VM.
    forwards: NotRequired[list[ForwardSpec]]
    # The address of IPv4 that it has, one of the host's network that no other VM has; the next that is free if left out. Its place in the network's subnet is that of its address of IPv6 too.
    ipv4: NotRequired[str | None]
    # How fast the guest may be by it; as fast as it can if left out.
    limits: NotRequired[NicLimits | None]
    # The host's network to join.
    network: NotRequired[Token]
    # Pairs of queues, from 1 to the VM's CPUs and no more than 64: as many CPUs send and receive by it at once, each served by a thread of the host. 1 if left out.
    queues: NotRequired[int]
    # Who gives the guest the interface's address.
    setup: NotRequired[NicSetup]


class NicStatus(TypedDict):
    """One interface of a VM as the host made it."""
    # What the guest may reach by it, if its spec says so.
    egress: NotRequired[EgressSpec | None]
    # Ports of the host that lead to it.
    forwards: NotRequired[list[ForwardSpec]]
    # The network's gateway: the host's bridge.
    gateway: str
    # IPv4 address of the guest.
    ipv4: str
    # IPv6 address of the guest, if its network has IPv6.
    ipv6: NotRequired[str | None]
    # The network's gateway of IPv6: the host's bridge.
    ipv6_gateway: NotRequired[str | None]
    # Length of that network's prefix.
    ipv6_prefix_len: NotRequired[int | None]
    # How fast the guest may be by it, if its spec says so.
    limits: NotRequired[NicLimits | None]
    # MAC address.
    mac: str
    # The host's network.
    network: Token
    # Length of the network's prefix.
    prefix_len: int
    # Name of the TAP device on the host.
    tap: str


class OnlineResult(TypedDict):
    """What is online."""
    # How many CPUs.
    cpus: int
    # The numbers of those that were brought online now.
    cpus_added: NotRequired[list[int]]
    # What could not be brought online, and why; at most 64.
    failed: NotRequired[list[str]]
    # How much of it was brought online now, in bytes.
    memory_added_bytes: NotRequired[int]
    # How much memory, in bytes, where the kernel tells it by blocks; else what it uses.
    memory_bytes: int


class Orphan(TypedDict):
    """A VM with processes on the machine that the host does not know."""
    # The installation that started it.
    installation: InstallationId
    # Its name.
    name: NotRequired[Token | None]
    # Its namespace, where its launch record is at hand.
    namespace: NotRequired[Token | None]
    # It is of this installation: its row was lost, as by a restore from an older backup.
    ours: bool
    # Its processes.
    pids: list[int]
    # Why one of this installation was not taken back into the journal.
    reason: NotRequired[str | None]
    # Where its console and other evidence are.
    run_dir: NotRequired[str | None]
    # The VM, by the marks of its processes.
    vm_id: VmId


class OrphanRemoveRequest(TypedDict):
    """Request of `host.<host>.orphans.remove`."""
    # The VM.
    vm_id: VmId


class OrphansReply(TypedDict):
    """Reply of `host.<host>.orphans`."""
    # Of this installation and of others, by installation and VM.
    orphans: list[Orphan]


class PackHead(TypedDict):
    """What is coming, as the folder was when it was counted."""
    # Folders, files and links in it.
    entries: int
    # What is in its files.
    size_bytes: int


class PackReply(TypedDict):
    """Reply of `guest.pack`; the folder comes on channel `data` of the stream."""
    # What is coming.
    folder: PackHead
    # The stream. Its result is a [`TreeResult`](crate::guest::TreeResult).
    stream: StreamOpened


class PackRequest(TypedDict):
    """Reads a folder."""
    # Refuses a folder whose files have more bytes.
    max_size_bytes: NotRequired[int | None]
    # Absolute path of a folder in the guest.
    path: str


class PartResult(TypedDict):
    """What became of a part."""
    # What it is now.
    detail: NotRequired[str]
    # What.
    outcome: PartOutcome
    # Which.
    part: IdentityPart


class PingReply(TypedDict):
    """Reply of `guest.ping`."""
    # Version of the agent.
    agent_version: str
    # Boot id of the guest.
    boot_id: str
    # Round trip between daemon and agent, in microseconds.
    round_trip_us: int


class PlacedReply(TypedDict):
    """Reply of `host.<host>.placed`."""
    # The host works on it, or has it.
    known: bool


class PlacedRequest(TypedDict):
    """Request of `host.<host>.placed`."""
    # Its name.
    name: Token
    # Namespace of the VM.
    namespace: Token
    # Its identity, by the claim.
    vm_id: VmId


class PlacementSpec(TypedDict):
    """Where a VM may be placed."""
    # Only hosts that announce all of these features, beside those that the spec itself needs.
    features: NotRequired[list[str]]
    # Only this host.
    host: NotRequired[Token | None]
    # Only hosts with all of these labels.
    labels: NotRequired[dict[str, str]]


class ProcessInfo(TypedDict):
    """A process of the guest."""
    # Program and arguments, at most 1,024 bytes in all, if they were asked for; empty for a thread of the kernel.
    args: NotRequired[list[str] | None]
    # CPU time since then, in milliseconds.
    cpu_ms: int
    # Its share of one CPU in percent, over the request's window or since it began; above 100 if it keeps several busy.
    cpu_percent: float
    # Resident memory, in bytes.
    memory_bytes: int
    # The program's name, as the kernel has it: at most 15 bytes, which the process may have chosen.
    name: str
    # Its number.
    pid: int
    # Its parent's number; 0 if it has none.
    ppid: int
    # When it began, by the guest's clock: milliseconds since the Unix epoch.
    started_unix_ms: int
    # The kernel's letter: `R` runs, `S` sleeps, `D` waits for a device, `Z` is dead and not reaped, `T` is stopped, `I` is an idle thread of the kernel.
    state: str
    # Its threads.
    threads: int
    # Its user's number.
    uid: int
    # Its user by the guest's `/etc/passwd`; absent if that has no name.
    user: NotRequired[str | None]


class ProcessesRequest(TypedDict):
    """Lists processes."""
    # With their arguments, which may hold secrets.
    args: NotRequired[bool]
    # At most so many; 100 if left out, 500 at most.
    limit: NotRequired[int | None]
    # Measure CPU shares over so many milliseconds, 5,000 at most; since each process began if left out.
    sample_ms: NotRequired[int | None]
    # What comes first, and so what is left out when there are more than `limit`.
    sort: NotRequired[ProcessOrder]


class ProcessesResult(TypedDict):
    """The processes of the guest."""
    # In the order that was asked for. Fewer than `limit` if their arguments are too much for a reply.
    processes: list[ProcessInfo]
    # The window of the CPU shares, in milliseconds; absent if they are since each began.
    sampled_ms: NotRequired[int | None]
    # How many there are, listed or not.
    total: int
    # When, by the guest's clock: milliseconds since the Unix epoch.
    unix_ms: int


class PutRequest(TypedDict):
    """Request of `guest.put`; the data follows on channel `data` of the stream."""
    # Make missing directories.
    create_dirs: NotRequired[bool]
    # Permissions; 0644 if left out.
    mode: NotRequired[int | None]
    # When it was last written, in milliseconds since the Unix epoch; now if left out.
    mtime_ms: NotRequired[int | None]
    # `name`, `uid`, `name:group` or `uid:gid` of the guest; the agent's user if left out.
    owner: NotRequired[str | None]
    # Keeps what came of a transfer that breaks, under this name of at most 64 letters, digits, `-` and `_`. `guest.stat` with it says how much that is; a put with it goes on with `ranges` from there, and takes the place of one that still runs.
    partial: NotRequired[str | None]
    # Absolute path in the guest.
    path: str
    # The bytes that will follow, in order and at most 1,024 ranges; all of them if left out. Elsewhere the file is zero and takes no room, or has what an earlier transfer with the same `partial` brought.
    ranges: NotRequired[list[FileRange] | None]
    # SHA-256 of the data in hexadecimal, if it is known beforehand.
    sha256: NotRequired[str | None]
    # The file's size.
    size_bytes: int


class QuotaUse(TypedDict):
    """How much of a quota is used."""
    # The most that may be; absent where the host's own limits are the only ones.
    limit: NotRequired[int | None]
    # Used now.
    used: int


class RefusedFile(TypedDict):
    """A file of the guest's owner that declares nothing."""
    # Its path.
    file: str
    # Why, and what to do.
    reason: str


class RejectedEvent(TypedDict):
    """The body of `request.rejected`: a request without a reply subject that had no effect. At most a few each second are published for a namespace; the rest is counted in `suppressed`."""
    # Why.
    error: ErrorBody
    # The host that refused it.
    host: Token
    # Id of the request.
    request_id: RequestId
    # The subject it was sent to.
    subject: str
    # How many rejections of the namespace were not published since the last one.
    suppressed: NotRequired[int]
    # When, by the host's clock.
    time_unix_ms: int


class ResolvedBoot(TypedDict):
    """What a resolved VM boots."""
    # The command line before drover's own additions.
    cmdline: str
    # The firmware, otherwise.
    firmware: NotRequired[ResolvedImage | None]
    # The initramfs, for a direct boot.
    initramfs: NotRequired[ResolvedImage | None]
    # The kernel, for a direct boot.
    kernel: NotRequired[ResolvedImage | None]


class ResolvedDisk(TypedDict):
    """A resolved disk."""
    # Whether the host gets back what the guest frees; it does if that is not said.
    discard: NotRequired[bool | None]
    # What a blank disk is formatted with.
    fs: NotRequired[DiskFs | None]
    # What it starts as; a blank disk has none.
    image: NotRequired[ResolvedImage | None]
    # The label of that file system.
    label: NotRequired[str | None]
    # How fast the guest may read and write it.
    limits: NotRequired[DiskLimits | None]
    # What the guest finds it by; of VMs that an earlier version made there is none.
    name: NotRequired[Token | None]
    # The guest cannot write to it; it is then shared, not copied.
    readonly: bool
    # Its length, if that is not its image's.
    size_bytes: NotRequired[int | None]
    # The volume that it is.
    volume: NotRequired[Token | None]


class ResolvedImage(TypedDict):
    """An image as it was when the VM was resolved."""
    # Its format.
    format: NotRequired[ImageFormat]
    # What it is good for.
    kind: ImageKind
    # The name that the spec used.
    name: str
    # SHA-256 of the content, 64 lower-case hexadecimal digits.
    sha256: str
    # Its length.
    size_bytes: int
    # The length of the disk that a guest sees, where its format says another than the file's.
    virtual_bytes: NotRequired[int | None]


class ResolvedSpec(TypedDict):
    """A spec with nothing left open: what is stored, booted and shown."""
    # The guest agent.
    agent: AgentSpec
    # What the guest boots.
    boot: ResolvedBoot
    # How they are laid out, if that is said.
    cpu_topology: NotRequired[CpuTopology | None]
    # Virtual CPUs.
    cpus: int
    # Disks in order.
    disks: list[ResolvedDisk]
    # The huge pages that it is of.
    hugepages: NotRequired[HugePages | None]
    # The caller's labels.
    labels: dict[str, str]
    # Guest memory.
    memory_bytes: int
    # Interfaces in order.
    nics: list[NicSpec]
    # Family of the guest.
    os: Os
    # Where it may run.
    placement: NotRequired[PlacementSpec]
    # What happens after an end.
    restart: RestartSpec
    # What of the processor it is given, if that is said.
    security: NotRequired[SecuritySpec | None]
    # The seed disk, if there is one.
    seed: NotRequired[SeedSpec | None]
    # The template that it came from.
    template: Token


class ResourceLimit(TypedDict):
    """A limit of a command's processes."""
    # How far the command may raise it; unlimited if left out.
    hard: NotRequired[int | None]
    # Of what.
    resource: Resource
    # What is enforced; unlimited if left out.
    soft: NotRequired[int | None]


class RestartSpec(TypedDict):
    """Restart policy with its limits."""
    # Longest pause, in milliseconds.
    backoff_max_ms: NotRequired[int]
    # First pause before a restart, in milliseconds; doubles with each restart in the window.
    backoff_ms: NotRequired[int]
    # Restarts within `window_ms` after which the VM is `failed`.
    limit: NotRequired[int]
    # When to start again.
    policy: NotRequired[RestartPolicy]
    # Length of the window, in milliseconds.
    window_ms: NotRequired[int]


class RmRequest(TypedDict):
    """Removes a name."""
    # Absolute path in the guest.
    path: str
    # Removes a folder with everything in it; else a folder must be empty. Links are removed, never followed.
    recursive: NotRequired[bool]


class RunInfo(TypedDict):
    """A detached command."""
    # The program and its arguments, cut to 1 KiB in all.
    argv: list[str]
    # Its process id in the guest.
    pid: int
    # How it ended, if it has.
    result: NotRequired[RunResult | None]
    # Its name: the id of the request that started it.
    run: RequestId
    # When it was started, by the guest's clock: milliseconds since the Unix epoch.
    started_unix_ms: int
    # How it is.
    state: RunState
    # Its error output.
    stderr: Extent
    # Whether whoever attaches can write to it.
    stdin: NotRequired[bool]
    # Its output.
    stdout: Extent
    # Whether it is at a terminal.
    tty: NotRequired[bool]
    # As whom it runs.
    user: NotRequired[str]


class RunResult(TypedDict):
    """How a detached command ended."""
    # Wall time, in milliseconds.
    duration_ms: int
    # When it ended, by the guest's clock: milliseconds since the Unix epoch.
    ended_unix_ms: int
    # Its exit code, if it exited.
    exit_code: NotRequired[int | None]
    # The most memory that the largest of its processes had resident, in KiB.
    max_rss_kib: NotRequired[int]
    # The number of the signal that killed it, if one did.
    signal: NotRequired[int | None]
    # CPU time in the kernel, in milliseconds.
    sys_ms: NotRequired[int]
    # Whether its time was over.
    timed_out: NotRequired[bool]
    # CPU time in user mode, in milliseconds.
    user_ms: NotRequired[int]


class RunsRequest(TypedDict):
    """Lists the runs of this boot, oldest first."""
    # This one only.
    run: NotRequired[RequestId | None]


class RunsResult(TypedDict):
    """The runs of this boot."""
    # Oldest first.
    runs: list[RunInfo]


class SecuritySpec(TypedDict):
    """What of the processor a guest is given, where that is a matter of who may find out about whom. A request closes what its template leaves open, and opens nothing that the template has closed."""
    # Whose vCPUs share a core; `vm` if left out. `vcpu` goes only to hosts that can keep them apart.
    core_scheduling: NotRequired[CoreScheduling | None]
    # The guest may run VMs of its own, by virtualisation of the processor: more of the host's kernel is then within its reach. Only on hosts whose operator allows it; off if left out.
    nested: NotRequired[bool | None]


class SeedSpec(TypedDict):
    """A small read-only disk behind the others, labelled `CIDATA`, from which cloud-init in the guest (its source NoCloud) learns the VM's id, its name, the addresses of its interfaces, its keys and its user-data. It is made anew at each start."""
    # The guest gets drover's agent from it at its first boot, by a boothook of its vendor-data, unless it has one.
    agent: NotRequired[bool]
    # There is one; `false` takes away the template's.
    enabled: NotRequired[bool]
    # Public SSH keys that log in as the user of the guest's image, as they stand in `authorized_keys`; at most 32.
    ssh_keys: NotRequired[list[str]]


class SharedImage(TypedDict):
    """What a name means in the fleet."""
    # The host that shared it.
    host: Token
    # What it is good for.
    kind: ImageKind
    # The name.
    name: Token
    # SHA-256 of the content.
    sha256: str
    # When it did.
    shared_unix_ms: int
    # The signature of the content, as `minisign` writes it.
    signature: NotRequired[str | None]
    # Its length.
    size_bytes: int


class SharedImagesReply(TypedDict):
    """Reply of `image.shared`."""
    # By name.
    images: list[SharedImage]
    # Where to go on; absent on the last page.
    next_cursor: NotRequired[str | None]


class ShutdownRequest(TypedDict):
    """Request of `shutdown`: the guest is asked (agent, then power button), never forced."""
    # Refuse with `conflict` unless the spec has this revision.
    if_revision: NotRequired[int | None]
    # Refuse with `conflict` unless the VM has this id.
    if_vm_id: NotRequired[VmId | None]
    # How long the guest may take, in milliseconds; 60,000 if left out, 90,000 at most.
    timeout_ms: NotRequired[int | None]


class SkippedMount(TypedDict):
    """A file system that was passed over, and why."""
    # Where it is mounted.
    mount: str
    # Why.
    reason: str


class SpecValue(TypedDict):
    """One value of a spec and where it comes from."""
    # The field, with its parents, as in `boot.cmdline`.
    field: str
    # `request`, `default`, the verb that changed it since, or the file and the line in it: `built-in:NAME.yaml:3`, `host:NAME.yaml:3` or `namespace:NS/NAME.yaml:3`.
    origin: str
    # The value as JSON text; an image by its name, with the start of its digest once it is known.
    value: str


class StatRequest(TypedDict):
    """Asks what a name is."""
    # Looks at what a symbolic link names, and not at the link.
    follow: NotRequired[bool]
    # Looks at what a broken `put` to this path with the same `partial` has left.
    partial: NotRequired[str | None]
    # Absolute path in the guest.
    path: str
    # Says which bytes of a file are not holes.
    ranges: NotRequired[bool]


class StatsReply(TypedDict):
    """Reply of `stats`."""
    # The same as the guest counts them, if its agent answers at once.
    guest: NotRequired[list[InterfaceUse]]
    # Why the guest says nothing, if it does not.
    guest_silent: NotRequired[str | None]
    # Its interfaces as the host counts them since they were made; none while the VM is down.
    nics: NotRequired[list[NicSample]]
    # When the host looked, by its clock.
    time_unix_ms: int
    # The VM.
    vm_id: VmId


class StopRequest(TypedDict):
    """Request of `stop`: the whole ladder from the agent to a kill."""
    # Do not ask the guest; also ends an operation that is in the way.
    force: NotRequired[bool]
    # How long the guest may take before it is forced, in milliseconds; 10,000 if left out, 60,000 at most.
    grace_ms: NotRequired[int | None]
    # Refuse with `conflict` unless the spec has this revision.
    if_revision: NotRequired[int | None]
    # Refuse with `conflict` unless the VM has this id.
    if_vm_id: NotRequired[VmId | None]


class StoredEvent(TypedDict):
    """One event with its place in the stream."""
    # Position in the stream; grows, with gaps.
    cursor: int
    # The event.
    event: VmEvent


class StoredRejection(TypedDict):
    """A request that was refused and that nobody waited for, with its place in the stream."""
    # Position in the stream.
    cursor: int
    # The event.
    event: RejectedEvent


class StreamEnd1(TypedDict):
    """The verb's result, as MessagePack."""
    result: Blob


class StreamEnd2(TypedDict):
    """Why there is none."""
    error: ErrorBody


class StreamFrame(TypedDict):
    """One frame of a stream, either way. Exactly one of the groups is used."""
    # Everything below this offset has arrived.
    acked_off: NotRequired[int | None]
    # The client gives up; the host ends what runs.
    cancel: NotRequired[bool]
    # The channel of data or of an acknowledgement.
    ch: NotRequired[Channel | None]
    # Bytes of the channel.
    data: NotRequired[Blob | None]
    # The client has the last frame; until it says so, the host repeats it for a minute.
    done: NotRequired[bool]
    # The last frame: the outcome of the whole stream.
    end: NotRequired[StreamEnd | None]
    # The channel ends after `data`.
    eof: NotRequired[bool]
    # A keep-alive.
    keep_alive: NotRequired[bool]
    # Offset of the first byte of `data`.
    off: NotRequired[int | None]
    # The peer may send below `acked_off + window`.
    window: NotRequired[int | None]


class StreamOpened(TypedDict):
    """Reply of a verb that opened a stream."""
    # Where the client publishes its frames.
    io_subject: str
    # How much the host takes of each channel before the first acknowledgement, in bytes.
    window: int


class TemplateGetRequest(TypedDict):
    """Asks for one template."""
    # Its name.
    name: Token


class TemplateListReply(TypedDict):
    """The templates that a namespace may use on the host that answers."""
    # The host.
    host: Token
    # Its templates, by name.
    templates: list[TemplateSummary]


class TemplateReply(TypedDict):
    """One template as a spec, with what it is built on merged in."""
    # The host that answers.
    host: Token
    # The spec that a request is put over. Its user-data is not shown.
    spec: VmSpec
    # What the list says of it.
    template: TemplateSummary
    # Each value that it sets, and where.
    values: list[SpecValue]


class TemplateSummary(TypedDict):
    """One template of a list."""
    # Virtual CPUs, if it says.
    cpus: NotRequired[int | None]
    # The files that it is made of, the first one goes before the others.
    files: list[str]
    # Whose it is.
    layer: TemplateLayer
    # Guest memory, if it says.
    memory_bytes: NotRequired[int | None]
    # Its name.
    name: Token
    # Family of the guest, if it says.
    os: NotRequired[Os | None]


class TermSize(TypedDict):
    """The size of a terminal, in characters."""
    # Columns.
    cols: int
    # Lines.
    rows: int


class ThawResult(TypedDict):
    """The file systems go on."""
    # Why.
    by: ThawedBy
    # When, by the guest's clock: milliseconds since the Unix epoch.
    ended_unix_ms: int
    # What did not stand still until then: something else in the guest had thawed it. What was copied of it may be torn.
    failed: NotRequired[list[SkippedMount]]
    # How long all of them stood still, in milliseconds.
    frozen_ms: int
    # Programs of `/etc/drover-agent/freeze.d` that failed afterwards, with what they said.
    hooks_failed: NotRequired[list[str]]
    # Where those are mounted that were thawed.
    thawed: list[str]


class ThresholdSpec(TypedDict):
    """A limit that is watched. The agent looks twice in `for_ms`, each second at the most and each ten seconds at the least."""
    # It is exceeded from this value on, in percent.
    above: int
    # It is over below this value; 5 less than `above` if left out.
    below: NotRequired[int | None]
    # How long every look must find it so, in either direction, in milliseconds; 0: one look is enough.
    for_ms: NotRequired[int]
    # For `disk`: where the file system is mounted; `/` if left out.
    mount: NotRequired[str | None]
    # Its name.
    name: Token
    # Of what.
    of: Measure


class ThresholdState(TypedDict):
    """A threshold and its last value."""
    # From where on it is exceeded, in percent.
    above: int
    # Why nobody looks: `permission_denied`.
    code: NotRequired[ErrorCode | None]
    # It changes so often that changes are not told one by one.
    flapping: NotRequired[bool]
    # When that was, by the guest's clock; absent before the first look.
    last_unix_ms: NotRequired[int | None]
    # For `disk`: where the file system is mounted.
    mount: NotRequired[str | None]
    # Its name.
    name: str
    # Of what.
    of: Measure
    # Since when, by the guest's clock: milliseconds since the Unix epoch.
    since_unix_ms: int
    # How it is.
    status: ThresholdStatus
    # The last value, in percent; absent if there is none, as of a file system that is not mounted.
    value: NotRequired[int | None]


class TreeResult(TypedDict):
    """The folder has travelled. Compare the digest with your own of the stream."""
    # Folders, files and links, without the folder itself.
    entries: int
    # SHA-256 of the stream, lower-case hex.
    sha256: str
    # What is in the files.
    size_bytes: int
    # What was there and does not travel.
    skipped: int
    # The length of the stream.
    stream_bytes: int


class TrimRequest(TypedDict):
    """Tells the disks which blocks of the guest's file systems are unused."""
    # Only those that are mounted at these places; all local ones that can be written if left out.
    mounts: NotRequired[list[str] | None]


class TrimResult(TypedDict):
    """What the file systems gave back."""
    # Those that cannot, and why.
    skipped: NotRequired[list[SkippedMount]]
    # Each of them.
    trimmed: list[TrimmedMount]


class TrimmedMount(TypedDict):
    """What a file system gave back."""
    # Where it is mounted.
    mount: str
    # How much it has told the disk, in bytes. Some tell the same again, others only what is new.
    trimmed_bytes: int


class UnpackRequest(TypedDict):
    """Writes a folder: beside its path, checked, then renamed, so that a reader sees the whole folder or nothing of it."""
    # Makes missing parent directories, mode 0o755.
    create_dirs: NotRequired[bool]
    # `name`, `uid`, `name:group` or `uid:gid` that everything will belong to; else the agent's user.
    owner: NotRequired[str | None]
    # Absolute path in the guest.
    path: str
    # Takes the place of what has the path now, which is removed afterwards; else that is refused.
    replace: NotRequired[bool]
    # What the folder's files have in all; more is refused, and so is a disk without room for it.
    size_bytes: int


class UpgradeRequest(TypedDict):
    """Replaces the agent's program in the guest and starts it."""
    # SHA-256 of the program, 64 lower-case hex digits.
    sha256: str
    # Length of the program.
    size_bytes: int
    # The version that the program must say it is; else any is taken.
    version: NotRequired[str | None]


class UpgradeResult(TypedDict):
    """The new agent serves."""
    # The version that served before.
    before: str
    # Requests that go on under the old agent.
    going_on: int
    # Where its program lies in the guest.
    path: str
    # The version that serves now.
    version: str


class UserAddRequest(TypedDict):
    """Makes a user, or brings the one of that name to what is asked. What is left out stays as it is."""
    # The full name, or what else is said of it.
    gecos: NotRequired[str | None]
    # All groups that it is in beside its own; they must be there.
    groups: NotRequired[list[str] | None]
    # Its folder, which is made if it is not there; `/home/` and its name if left out. Another than it has is a `conflict`.
    home: NotRequired[str | None]
    # It has no password that fits, and logs in with keys alone; a new user is so unless it gets one.
    no_password: NotRequired[bool]
    # Its password as crypt(5) has it, such as `$6$…` or `$y$…` (made by `openssl passwd -6` or `mkpasswd`).
    password_hash: NotRequired[Secret | None]
    # Its own group, which must be there; one of its name if left out, which is made. Another than it has is a `conflict`.
    primary_group: NotRequired[str | None]
    # What it gets when it logs in, which must be there.
    shell: NotRequired[str | None]
    # Whether it may act as root by `sudo`, without a password.
    sudo: NotRequired[bool | None]
    # Its number; the next free one of people if left out. Another than it has is a `conflict`.
    uid: NotRequired[int | None]
    # Its name: small letters, digits, `-`, `_` and `.`, at most 32.
    user: str


class UserAddResult(TypedDict):
    """A user as it is now."""
    # What was done.
    change: AccountChange
    # Its folder was made.
    home_made: NotRequired[bool]
    # How it is.
    user: UserInfo


class UserInfo(TypedDict):
    """A user of the guest."""
    # The full name, or what else is said of it.
    gecos: NotRequired[str]
    # The number of its own group.
    gid: int
    # The groups that it is in beside its own, sorted; at most 64.
    groups: NotRequired[list[str]]
    # Its folder.
    home: str
    # Its name.
    name: str
    # What its password can do.
    password: PasswordState
    # What it gets when it logs in.
    shell: str
    # Its number.
    uid: int


class UserRmRequest(TypedDict):
    """Removes a user, its own group if nobody else is in that, and what gives it `sudo`. Never root's or the system's."""
    # Kill its processes; else it is `conflict` while there are some.
    force: NotRequired[bool]
    # Its folder too, with all that is in it.
    remove_home: NotRequired[bool]
    # Its name.
    user: str


class UserRmResult(TypedDict):
    """What was removed."""
    # Its folder, if that was removed.
    home: NotRequired[str | None]
    # How many processes were killed.
    killed: NotRequired[int]
    # The number that it had.
    uid: int


class UsersRequest(TypedDict):
    """Lists the guest's users."""
    # Only those after this one, in the order of names.
    after: NotRequired[str | None]
    # Those of the system too; else root and people.
    all: NotRequired[bool]


class UsersResult(TypedDict):
    """The guest's users."""
    # There are more, after the last of these.
    more: NotRequired[bool]
    # In the order of names.
    users: list[UserInfo]


class ValidateReply(TypedDict):
    """Reply of `validate`."""
    # The spec with nothing left open.
    spec: ResolvedSpec
    # The values of the spec, and where each comes from; empty from a host of an earlier version.
    values: NotRequired[list[SpecValue]]
    # The VMM's configuration, as JSON text; paths are placeholders.
    vmm_config: str


class ValidateRequest(TypedDict):
    """Request of `validate`: as `create`, without effect."""
    # Name of the VM to be; `example` if left out.
    name: NotRequired[Token | None]
    # The spec to check.
    spec: NotRequired[VmSpec]


class VmEvent(TypedDict):
    """The body of a VM event."""
    # What a program of the guest, or its agent, has published, for `agent`.
    agent_event: NotRequired[AgentEvent | None]
    # Why.
    cause: NotRequired[Cause | None]
    # What was dropped since the last event of its kind, for `agent-dropped`.
    dropped: NotRequired[DroppedEvents | None]
    # VMM process it is about; 0 before the first.
    incarnation: int
    # What kind of event.
    kind: VmEventKind
    # The VM is gone with this event; it is the last of its log.
    last: NotRequired[bool]
    # Its name.
    name: Token
    # Namespace of the VM.
    namespace: Token
    # State before; absent for the first event.
    previous: NotRequired[VmState | None]
    # The request that led to it.
    request_id: NotRequired[RequestId | None]
    # Revision of the spec.
    revision: int
    # Position in the VM's log, from 1, without gaps.
    seq: int
    # State after.
    state: VmState
    # What made a step, for `progress`: `disks`, `network`, `vmm`, `boot` …
    step: NotRequired[str | None]
    # When it happened, by the host's clock.
    time_unix_ms: int
    # Its identity.
    vm_id: VmId


class VmSample(TypedDict):
    """Numbers of one VM. By itself the body of `metric.ns.<ns>.vm.<name>`: a guest's figures that differ from those that were told last."""
    # The last that its guest said of itself.
    guest: NotRequired[GuestSample | None]
    # Memory of everything that belongs to it on the host, where the host counts it.
    memory_bytes: NotRequired[int | None]
    # Name of the VM.
    name: Token
    # Its interfaces; in the samples of its host only, not in those by itself.
    nics: NotRequired[list[NicSample]]
    # What it is.
    state: VmState
    # Its identity.
    vm_id: VmId


class VmSpec(TypedDict):
    """What a caller (or a template) says about a VM. Everything left out comes from the template."""
    # The guest agent.
    agent: NotRequired[AgentSpec | None]
    # What the guest boots.
    boot: NotRequired[BootSpec | None]
    # How the CPUs are laid out; if left out, one socket for each.
    cpu_topology: NotRequired[CpuTopology | None]
    # Virtual CPUs at boot, 1 to 255.
    cpus: NotRequired[int | None]
    # Disks in the order in which the guest sees them; replaces the template's.
    disks: NotRequired[list[DiskSpec] | None]
    # Memory of huge pages, which are reserved on the host: faster for guests with much of it.
    hugepages: NotRequired[HugePages | None]
    # Free text by name, for the caller's own use: at most 64 labels of 256 bytes.
    labels: NotRequired[dict[str, str]]
    # Guest memory; a multiple of 1 MiB, 64 MiB at the least.
    memory: NotRequired[ByteSize | None]
    # Guest memory; a multiple of 1 MiB, 64 MiB at the least.
    memory_bytes: NotRequired[ByteSize | None]
    # Interfaces; replaces the template's. An empty list makes a VM without a network.
    nics: NotRequired[list[NicSpec] | None]
    # Family of the guest.
    os: NotRequired[Os | None]
    # Where it may run.
    placement: NotRequired[PlacementSpec | None]
    # What happens after an end.
    restart: NotRequired[RestartSpec | None]
    # What of the processor it is given beside its CPUs.
    security: NotRequired[SecuritySpec | None]
    # The seed disk; there is one too if there is `user_data`.
    seed: NotRequired[SeedSpec | None]
    # The template to start from; `linux-default` if left out.
    template: NotRequired[Token | None]
    # For cloud-init in the guest, by the seed disk: a `#cloud-config`, a script, or what else it takes; at most 16 KiB. Never shown.
    user_data: NotRequired[Secret | None]


class VmStatus(TypedDict):
    """The status of a VM."""
    # The guest agent.
    agent: AgentStatus
    # Why it is in this state.
    cause: NotRequired[Cause | None]
    # Virtual CPUs of the spec.
    cpus: NotRequired[int]
    # When it was created.
    created_unix_ms: int
    # What it shall be.
    desired: Desired
    # Disks, once they are made; left out of lists.
    disks: NotRequired[list[DiskStatus]]
    # The host that owns it.
    host: Token
    # Counts VMM processes, from 1; 0 before the first.
    incarnation: int
    # Memory of the spec, in bytes.
    memory_bytes: NotRequired[int]
    # Name within the namespace.
    name: Token
    # Namespace.
    namespace: Token
    # Interfaces.
    nics: list[NicStatus]
    # The operation under way.
    operation: NotRequired[str | None]
    # Restarts by policy within the window.
    restarts: NotRequired[int]
    # Counts changes of the spec, from 1.
    revision: int
    # Sequence of its last event.
    seq: int
    # The spec with nothing left open; left out of lists.
    spec: NotRequired[ResolvedSpec | None]
    # What it is.
    state: VmState
    # When `state` was entered.
    state_since_unix_ms: int
    # Immutable identity.
    vm_id: VmId
    # Process id of the VMM on its host.
    vmm_pid: NotRequired[int | None]


class VmmInfo(TypedDict):
    """The hypervisor of a host."""
    # It is the software emulation, not the real hypervisor.
    emulated: bool
    # Path of the binary.
    path: str
    # What it says of its version.
    version: str


class VolumeCreateReply(TypedDict):
    """Reply of `volume.create`."""
    # It was there already, and nothing was done.
    already: NotRequired[bool]


class VolumeCreateRequest(TypedDict):
    """Request of `volume.create`."""
    # What it is formatted with; `none` if left out.
    fs: NotRequired[DiskFs]
    # The label of that file system.
    label: NotRequired[str | None]
    # The name that specs use.
    name: Token
    # Whose it is.
    namespace: Token
    # Its length, a multiple of 1 MiB; only what is written takes room of the host.
    size_bytes: ByteSize


class VolumeGrowReply(TypedDict):
    """Reply of `volume.grow`."""
    # It was that long already; VMs were told once more.
    already: NotRequired[bool]
    # VMs that are up and do not see it yet, the first 100. The VM that writes to it sees it while it runs.
    later: list[VolumeSeenLater]


class VolumeGrowRequest(TypedDict):
    """Request of `volume.grow`."""
    # Its name.
    name: Token
    # Whose it is.
    namespace: Token
    # Its new length, a multiple of 1 MiB and never less than it has: what is at its end may be in use. A file system on it stays as long as it is until somebody in the guest makes it longer (`resize2fs`).
    size_bytes: ByteSize


class VolumeInfo(TypedDict):
    """A volume of a host."""
    # Its name.
    name: Token
    # Its length.
    size_bytes: int
    # VMs of any state that name it, the first 100.
    used_by: list[Token]
    # What it takes of the host.
    written_bytes: int


class VolumeRemoveRequest(TypedDict):
    """Request of `volume.remove`."""
    # Its name.
    name: Token
    # Whose it is.
    namespace: Token


class VolumeSeenLater(TypedDict):
    """A VM that is up and does not see yet that a volume is longer."""
    # Its name.
    name: Token
    # Why; with its next start it does.
    reason: str


class VolumesReply(TypedDict):
    """Reply of `volume.list`."""
    # Where the next page begins; absent on the last.
    next_cursor: NotRequired[str | None]
    # Volumes by name.
    volumes: list[VolumeInfo]


class VolumesRequest(TypedDict):
    """Request of `volume.list`."""
    # `next_cursor` of the page before.
    cursor: NotRequired[str | None]
    # At most this many; 100 if left out, 500 at most.
    limit: NotRequired[int | None]
    # Whose they are.
    namespace: Token


# What became of a user.
AccountChange = str

# What a guest agent did wrong.
AgentFaultCode = str

# How the link to the guest agent stands.
AgentState = str

# What was tried.
AuditAction = str

# Kinds of audit events; the last token of the subject.
AuditKind = str

Blob = bytes

ByteSize = int | str

# Why a VM ended, did not boot, or changed.
CauseKind = str

# A channel of a stream.
Channel = Literal["stdin", "stdout", "stderr", "data", "ctl"]

# Who declares a check.
CheckSource = str

# How a check is.
CheckStatus = str

# What was done about a guest's clock.
ClockChange = str

# Whether the vCPUs of a guest run beside others on a core that has several threads.
CoreScheduling = Literal["vm", "vcpu"]

# What a VM shall be.
Desired = str

# What a blank disk is formatted with.
DiskFs = Literal["none", "ext4"]

# How a disk of a VM was made.
DiskMade = str

# What becomes of that which no rule names.
EgressDefault = Literal["allow", "deny"]

# What kind of failure it was. Stable; clients match on it.
ErrorCode = str

# What the publisher says about it: drover does not look at it.
EventData = dict[str, Any]

# What happened, as a name; what begins with `drover.` is said by the agent itself.
EventType = str

# Reply of `guest.exec`: a result, or where its stream is.
ExecReply = ExecReply1 | ExecReply2 | ExecReply3

# What a name is.
FileKind = str

# What becomes of the file systems.
FreezeState = str

# How much attention the guest needs.
HealthStatus = str

# Kinds of host events; the last token of the subject.
HostEventKind = str

# The pages of the host that a guest's memory is of.
HugePages = Literal["none", "2MiB", "1GiB"]

# A part of what makes a guest itself.
IdentityPart = str

# How an image says what stands where.
ImageFormat = Literal["raw", "qcow2"]

# What an image is good for.
ImageKind = str

InstallationId = str

# A log of a VM.
LogSource = Literal["console", "vmm"]

# What became of a name.
LookupReply = LookupReply1 | LookupReply2 | LookupReply3 | LookupReply4

# What a threshold is of.
Measure = str

# Who gives a guest the address of an interface.
NicSetup = Literal["kernel", "agent", "dhcp"]

# Brings what was added to the guest online.
OnlineRequest = dict[str, Any]

# The family of the guest's operating system.
Os = Literal["linux", "windows"]

# What became of a part.
PartOutcome = str

# What a password can do.
PasswordState = str

# What processes are ordered by.
ProcessOrder = Literal["cpu", "memory", "pid"]

# A protocol with ports.
Protocol = Literal["tcp", "udp"]

RequestId = str

# What `setrlimit` of the guest limits.
Resource = Literal["as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "stack"]

# What happens after a VM ends on its own.
RestartPolicy = Literal["never", "on_failure", "always"]

# How a run is.
RunState = str

# A text that prints as `***`. It is written out only by [`Secret::reveal`], and by serde for the wire and the journal (whose file is 0600); events and explanations are built from types that have no `Secret` in them.
Secret = str

# How `guest.shutdown` ends the guest.
ShutdownMode = Literal["power_off", "reboot"]

# The outcome of a stream.
StreamEnd = StreamEnd1 | StreamEnd2

# Whose a template is. A later one goes before an earlier one of the same name.
TemplateLayer = str

# Why file systems were thawed.
ThawedBy = str

# How a value is, beside its threshold.
ThresholdStatus = str

Token = str

# Kinds of VM events; the last token of the subject.
VmEventKind = str

VmId = str

# What a VM is.
VmState = str

# How long a reply waits.
Wait = Literal["running", "agent"]
