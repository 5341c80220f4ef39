//! The verb table: one row for each verb. Routing, roles, schemas and reference pages come from it.

mod roles;
mod streams;

pub use roles::Grants;
pub use streams::{STREAMS, StreamRow, stream};

/// How a verb is carried out and remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Changes nothing; no request id, no journal.
    Read,
    /// Changes a VM; the request id binds at the commit that accepts it and is kept for 24 h.
    Journalled,
    /// Runs in the guest; deduplicated by the agent within one boot, never written to the journal.
    Guest,
    /// As `Guest`, and answers with a stream.
    Stream,
    /// Gives a setting of a host a value; repeating it changes nothing more.
    Setting,
}

/// Who may use a verb. Roles are sets of subjects in the bus server's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Looks, and changes nothing.
    Reader,
    /// Creates, starts, stops and deletes VMs.
    Operator,
    /// Runs commands and moves files in guests.
    Guest,
    /// Operates hosts and the bus.
    Admin,
    /// Is a host: what hosts ask of each other.
    Host,
}

/// On which subjects a verb is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plane {
    /// `cmd.<ns>.vm.<verb>`
    Pool,
    /// `cmd.<ns>.vm.<name>.<verb>`
    Vm,
    /// `cmd.<ns>.vm.<name>.guest.<verb>`
    VmGuest,
    /// `cmd.<ns>.events.<verb>`
    Events,
    /// `cmd.<ns>.template.<verb>`
    Template,
    /// `cmd.<ns>.contract.<verb>`
    Contract,
    /// `host.<host>.<verb>`
    Host,
}

impl Plane {
    /// The subject of a verb after the root and the version, with placeholders in angle brackets.
    #[must_use]
    pub fn subject(self, verb: &str) -> String {
        match self {
            Self::Pool => format!("cmd.<ns>.vm.{verb}"),
            Self::Vm => format!("cmd.<ns>.vm.<name>.{verb}"),
            Self::VmGuest => format!("cmd.<ns>.vm.<name>.guest.{verb}"),
            Self::Events => format!("cmd.<ns>.events.{verb}"),
            Self::Template => format!("cmd.<ns>.template.{verb}"),
            Self::Contract => format!("cmd.<ns>.contract.{verb}"),
            Self::Host => format!("host.<host>.{verb}"),
        }
    }
}

impl Class {
    /// Its name in the published contract.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Journalled => "journalled",
            Self::Guest => "guest",
            Self::Stream => "stream",
            Self::Setting => "setting",
        }
    }
}

impl Role {
    /// Its name in the published contract and in the bus server's configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Guest => "guest",
            Self::Admin => "admin",
            Self::Host => "host",
        }
    }
}

/// One verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerbRow {
    /// Where it is asked for.
    pub plane: Plane,
    /// The last token or tokens of the subject.
    pub verb: &'static str,
    /// How it is carried out.
    pub class: Class,
    /// The least role that may use it.
    pub role: Role,
    /// Name of the request's type.
    pub request: &'static str,
    /// Name of the reply's type.
    pub reply: &'static str,
    /// One sentence for the reference page.
    pub doc: &'static str,
}

const fn row(
    plane: Plane,
    verb: &'static str,
    class: Class,
    role: Role,
    request: &'static str,
    reply: &'static str,
    doc: &'static str,
) -> VerbRow {
    VerbRow { plane, verb, class, role, request, reply, doc }
}

/// Every verb that is offered.
pub const VERBS: &[VerbRow] = &[
    row(
        Plane::Pool,
        "create",
        Class::Journalled,
        Role::Operator,
        "CreateRequest",
        "ChangeReply",
        "Creates a VM and starts it.",
    ),
    row(
        Plane::Pool,
        "list",
        Class::Read,
        Role::Reader,
        "ListRequest",
        "ListReply",
        "Lists the VMs of the namespace.",
    ),
    row(
        Plane::Pool,
        "lookup",
        Class::Read,
        Role::Reader,
        "LookupRequest",
        "LookupReply",
        "Says what became of a name.",
    ),
    row(
        Plane::Pool,
        "validate",
        Class::Read,
        Role::Reader,
        "ValidateRequest",
        "ValidateReply",
        "Checks a spec without effect and shows the VMM's configuration.",
    ),
    row(Plane::Vm, "get", Class::Read, Role::Reader, "Empty", "VmStatus", "Says how the VM is."),
    row(
        Plane::Vm,
        "start",
        Class::Journalled,
        Role::Operator,
        "ChangeRequest",
        "ChangeReply",
        "Starts a VM that is down.",
    ),
    row(
        Plane::Vm,
        "shutdown",
        Class::Journalled,
        Role::Operator,
        "ShutdownRequest",
        "ChangeReply",
        "Asks the guest to switch off: agent, then power button; never forces it.",
    ),
    row(
        Plane::Vm,
        "stop",
        Class::Journalled,
        Role::Operator,
        "StopRequest",
        "ChangeReply",
        "Stops the VM by the whole ladder, from asking to killing.",
    ),
    row(
        Plane::Vm,
        "reboot",
        Class::Journalled,
        Role::Operator,
        "ChangeRequest",
        "ChangeReply",
        "Reboots the guest in the same VMM.",
    ),
    row(
        Plane::Vm,
        "pause",
        Class::Journalled,
        Role::Operator,
        "ChangeRequest",
        "ChangeReply",
        "Freezes the guest in memory.",
    ),
    row(
        Plane::Vm,
        "resume",
        Class::Journalled,
        Role::Operator,
        "ChangeRequest",
        "ChangeReply",
        "Lets a paused guest go on.",
    ),
    row(
        Plane::Vm,
        "forward",
        Class::Journalled,
        Role::Operator,
        "ForwardRequest",
        "ChangeReply",
        "Leads other ports of the host to the guest, at once and from now on.",
    ),
    row(
        Plane::Vm,
        "egress",
        Class::Journalled,
        Role::Operator,
        "EgressRequest",
        "ChangeReply",
        "Changes what the guest may reach, at once and from now on.",
    ),
    row(
        Plane::Vm,
        "limit",
        Class::Journalled,
        Role::Operator,
        "LimitRequest",
        "ChangeReply",
        "Changes how fast the guest may send and receive, at once and from now on.",
    ),
    row(
        Plane::Vm,
        "stats",
        Class::Read,
        Role::Reader,
        "Empty",
        "StatsReply",
        "Traffic of the VM's interfaces as host and guest count it, and what was refused of it.",
    ),
    row(
        Plane::Vm,
        "grow",
        Class::Journalled,
        Role::Operator,
        "GrowRequest",
        "ChangeReply",
        "Makes a disk longer, at once if the guest runs and else from its next start on.",
    ),
    row(
        Plane::Vm,
        "delete",
        Class::Journalled,
        Role::Operator,
        "ChangeRequest",
        "ChangeReply",
        "Stops the VM at once and removes everything of it.",
    ),
    row(
        Plane::Vm,
        "logs",
        Class::Read,
        Role::Reader,
        "LogsRequest",
        "LogsReply",
        "Reads the end of a log, and follows the console.",
    ),
    row(
        Plane::Vm,
        "console",
        Class::Stream,
        Role::Guest,
        "ConsoleRequest",
        "ConsoleReply",
        "Opens the serial console, for one writer at a time.",
    ),
    row(
        Plane::Vm,
        "explain",
        Class::Read,
        Role::Reader,
        "Empty",
        "ExplainReply",
        "Says why the VM is as it is, with the VMM's configuration.",
    ),
    row(
        Plane::VmGuest,
        "ping",
        Class::Read,
        Role::Reader,
        "Empty",
        "PingReply",
        "Asks the agent for a sign of life.",
    ),
    row(
        Plane::VmGuest,
        "exec",
        Class::Stream,
        Role::Guest,
        "ExecRequest",
        "ExecReply",
        "Runs a program in the guest, at a terminal if wanted, or detached from everything.",
    ),
    row(
        Plane::VmGuest,
        "runs",
        Class::Read,
        Role::Guest,
        "RunsRequest",
        "RunsResult",
        "Lists the detached programs of the guest's boot, with their results.",
    ),
    row(
        Plane::VmGuest,
        "attach",
        Class::Stream,
        Role::Guest,
        "AttachRequest",
        "AttachReply",
        "Reads the output of a detached program from any offset that is kept, until it ends.",
    ),
    row(
        Plane::VmGuest,
        "kill",
        Class::Guest,
        Role::Guest,
        "KillRequest",
        "Empty",
        "Sends a signal to a detached program.",
    ),
    row(
        Plane::VmGuest,
        "put",
        Class::Stream,
        Role::Guest,
        "PutRequest",
        "StreamOpened",
        "Writes a file in the guest.",
    ),
    row(
        Plane::VmGuest,
        "get",
        Class::Stream,
        Role::Guest,
        "GetRequest",
        "StreamOpened",
        "Reads a file of the guest.",
    ),
    row(
        Plane::VmGuest,
        "stat",
        Class::Read,
        Role::Guest,
        "StatRequest",
        "FileStat",
        "Says what a name in the guest is, and which bytes of a file are not holes.",
    ),
    row(
        Plane::VmGuest,
        "ls",
        Class::Read,
        Role::Guest,
        "LsRequest",
        "LsReply",
        "Lists a folder of the guest, sorted, a page at a time.",
    ),
    row(
        Plane::VmGuest,
        "rm",
        Class::Guest,
        Role::Guest,
        "RmRequest",
        "Empty",
        "Removes a file, a link or a folder of the guest.",
    ),
    row(
        Plane::VmGuest,
        "mkdir",
        Class::Guest,
        Role::Guest,
        "MkdirRequest",
        "Empty",
        "Makes a folder in the guest.",
    ),
    row(
        Plane::VmGuest,
        "pack",
        Class::Stream,
        Role::Guest,
        "PackRequest",
        "PackReply",
        "Reads a folder of the guest, in the format of tar.",
    ),
    row(
        Plane::VmGuest,
        "unpack",
        Class::Stream,
        Role::Guest,
        "UnpackRequest",
        "StreamOpened",
        "Writes a folder in the guest, from the format of tar.",
    ),
    row(
        Plane::VmGuest,
        "info",
        Class::Read,
        Role::Reader,
        "Empty",
        "InfoResult",
        "Says what system the guest is.",
    ),
    row(
        Plane::VmGuest,
        "health",
        Class::Read,
        Role::Reader,
        "Empty",
        "HealthResult",
        "Says how the guest is doing: what it has left, and its failed services.",
    ),
    row(
        Plane::VmGuest,
        "processes",
        Class::Read,
        Role::Guest,
        "ProcessesRequest",
        "ProcessesResult",
        "Lists the guest's processes by CPU, memory or number.",
    ),
    row(
        Plane::VmGuest,
        "shutdown",
        Class::Guest,
        Role::Guest,
        "GuestShutdownRequest",
        "Empty",
        "Switches the guest off or reboots it from inside; the desired state stays.",
    ),
    row(
        Plane::VmGuest,
        "freeze",
        Class::Guest,
        Role::Guest,
        "FreezeRequest",
        "FreezeResult",
        "Lets the guest's file systems stand still for a copy of its disks; after a time they go on by themselves.",
    ),
    row(
        Plane::VmGuest,
        "thaw",
        Class::Guest,
        Role::Guest,
        "Empty",
        "ThawResult",
        "Lets file systems that were frozen go on, and says whether they stood still until now.",
    ),
    row(
        Plane::VmGuest,
        "frozen",
        Class::Read,
        Role::Reader,
        "Empty",
        "FrozenResult",
        "Says which file systems of the guest stand still.",
    ),
    row(
        Plane::VmGuest,
        "clock",
        Class::Guest,
        Role::Guest,
        "ClockRequest",
        "ClockReply",
        "Compares the guest's clock with the host's, and sets it if wanted.",
    ),
    row(
        Plane::VmGuest,
        "online",
        Class::Guest,
        Role::Guest,
        "OnlineRequest",
        "OnlineResult",
        "Brings CPUs and memory online that were added to the guest, and says what there is.",
    ),
    row(
        Plane::VmGuest,
        "trim",
        Class::Guest,
        Role::Guest,
        "TrimRequest",
        "TrimResult",
        "Tells the guest's disks which blocks of its file systems are unused.",
    ),
    row(
        Plane::VmGuest,
        "identity",
        Class::Guest,
        Role::Guest,
        "IdentityRequest",
        "IdentityResult",
        "Makes a guest that was cloned another one than its twin: random numbers, ids, name and keys.",
    ),
    row(
        Plane::VmGuest,
        "upgrade",
        Class::Stream,
        Role::Guest,
        "UpgradeRequest",
        "StreamOpened",
        "Puts another agent in the place of the guest's; what runs goes on.",
    ),
    row(
        Plane::VmGuest,
        "network",
        Class::Guest,
        Role::Guest,
        "NetworkRequest",
        "NetworkResult",
        "Looks at an interface of the guest, or sets its addresses, routes and servers of names.",
    ),
    row(
        Plane::VmGuest,
        "users",
        Class::Read,
        Role::Guest,
        "UsersRequest",
        "UsersResult",
        "Lists the guest's users.",
    ),
    row(
        Plane::VmGuest,
        "user_add",
        Class::Guest,
        Role::Guest,
        "UserAddRequest",
        "UserAddResult",
        "Makes a user of the guest, or brings it to what is asked.",
    ),
    row(
        Plane::VmGuest,
        "user_rm",
        Class::Guest,
        Role::Guest,
        "UserRmRequest",
        "UserRmResult",
        "Removes a user of the guest, with its folder if wanted.",
    ),
    row(
        Plane::VmGuest,
        "keys",
        Class::Read,
        Role::Guest,
        "KeysRequest",
        "KeysResult",
        "Lists the SSH keys that log in as a user of the guest.",
    ),
    row(
        Plane::VmGuest,
        "keys_change",
        Class::Guest,
        Role::Guest,
        "KeysChangeRequest",
        "KeysChangeResult",
        "Adds, removes or replaces the SSH keys that log in as a user of the guest.",
    ),
    row(
        Plane::Events,
        "read",
        Class::Read,
        Role::Reader,
        "EventsReadRequest",
        "EventsReadReply",
        "Reads the namespace's event log from a position or a time.",
    ),
    row(
        Plane::Events,
        "last",
        Class::Read,
        Role::Reader,
        "EventsLastRequest",
        "EventsLastReply",
        "Gives the last state of each VM, and where the log goes on from there.",
    ),
    row(
        Plane::Template,
        "list",
        Class::Read,
        Role::Reader,
        "Empty",
        "TemplateListReply",
        "Lists the templates that the namespace may use on the host that answers.",
    ),
    row(
        Plane::Template,
        "get",
        Class::Read,
        Role::Reader,
        "TemplateGetRequest",
        "TemplateReply",
        "Gives a template with what it is built on merged in, and where each value is set.",
    ),
    row(
        Plane::Contract,
        "read",
        Class::Read,
        Role::Reader,
        "Empty",
        "ContractReply",
        "Gives the published contract of the host that answers.",
    ),
    row(
        Plane::Host,
        "info",
        Class::Read,
        Role::Admin,
        "Empty",
        "HostInfo",
        "Says what the host has and what it has promised.",
    ),
    row(
        Plane::Host,
        "orphans",
        Class::Read,
        Role::Admin,
        "Empty",
        "OrphansReply",
        "Lists VMs that run on the machine and are in no row of the journal; none is touched.",
    ),
    row(
        Plane::Host,
        "orphans.remove",
        Class::Setting,
        Role::Admin,
        "OrphanRemoveRequest",
        "OrphansReply",
        "Ends one of the installation's own and removes everything of it; answers what is left.",
    ),
    row(
        Plane::Host,
        "backup",
        Class::Read,
        Role::Admin,
        "Empty",
        "BackupReply",
        "Copies the journal, as of one moment, into the folder of backups; the last eight are kept.",
    ),
    row(
        Plane::Host,
        "drain",
        Class::Setting,
        Role::Admin,
        "DrainRequest",
        "DrainReply",
        "Takes no new VMs from now on, or takes them again. VMs that are there stay, and can be started.",
    ),
    row(
        Plane::Host,
        "list",
        Class::Read,
        Role::Admin,
        "HostsRequest",
        "HostsReply",
        "Lists the hosts of the fleet as the host that answers sees them.",
    ),
    row(
        Plane::Host,
        "forget",
        Class::Setting,
        Role::Admin,
        "ForgetRequest",
        "ForgetReply",
        "Frees the names of another host that is gone for good; should it come back, it answers for none of them.",
    ),
    row(
        Plane::Host,
        "image.list",
        Class::Read,
        Role::Admin,
        "ImagesRequest",
        "ImagesReply",
        "Lists the host's images.",
    ),
    row(
        Plane::Host,
        "image.get",
        Class::Read,
        Role::Admin,
        "ImageGetRequest",
        "ImageGetReply",
        "Shows an image, other names of it, and the VMs that were created with it.",
    ),
    row(
        Plane::Host,
        "image.import",
        Class::Setting,
        Role::Admin,
        "ImageImportRequest",
        "ImageImportReply",
        "Takes a file of the host, or what a URL or a registry has, into its store of images. Repeating it waits for the one that is under way.",
    ),
    row(
        Plane::Host,
        "image.tag",
        Class::Setting,
        Role::Admin,
        "ImageTagRequest",
        "ImageTagReply",
        "Gives a content that the store has another name, or moves a name to it; VMs keep what they were created with.",
    ),
    row(
        Plane::Host,
        "image.verify",
        Class::Read,
        Role::Admin,
        "ImageNameRequest",
        "ImageVerifyReply",
        "Reads an image, or all that were imported, and compares them with their digests.",
    ),
    row(
        Plane::Host,
        "image.remove",
        Class::Setting,
        Role::Admin,
        "ImageNameRequest",
        "ImageGcReply",
        "Takes a name away, and the content if no other name and no VM needs it.",
    ),
    row(
        Plane::Host,
        "image.gc",
        Class::Setting,
        Role::Admin,
        "Empty",
        "ImageGcReply",
        "Removes what has no name and is used by no VM.",
    ),
    row(
        Plane::Host,
        "image.share",
        Class::Setting,
        Role::Admin,
        "ImageShareRequest",
        "ImageShareReply",
        "Gives an image of the host to the fleet. Repeating it waits for the one that is under way.",
    ),
    row(
        Plane::Host,
        "image.unshare",
        Class::Setting,
        Role::Admin,
        "ImageUnshareRequest",
        "ImageUnshareReply",
        "Takes a name of the fleet away, and the content if no other name means it; hosts keep what they have.",
    ),
    row(
        Plane::Host,
        "image.pull",
        Class::Setting,
        Role::Admin,
        "ImagePullRequest",
        "ImageImportReply",
        "Brings an image that the fleet shares into the host's store.",
    ),
    row(
        Plane::Host,
        "image.shared",
        Class::Read,
        Role::Admin,
        "ImagesRequest",
        "SharedImagesReply",
        "Lists what the fleet shares.",
    ),
    row(
        Plane::Host,
        "network.create",
        Class::Setting,
        Role::Admin,
        "NetworkCreateRequest",
        "NetworkCreateReply",
        "Makes a network of the host that VMs may have interfaces in, and that is there again after each start.",
    ),
    row(
        Plane::Host,
        "network.list",
        Class::Read,
        Role::Admin,
        "Empty",
        "NetworksReply",
        "Lists the networks of the host, from its configuration and made by verbs.",
    ),
    row(
        Plane::Host,
        "network.remove",
        Class::Setting,
        Role::Admin,
        "NetworkRemoveRequest",
        "Empty",
        "Removes a network that was made by a verb and that no VM has an interface in.",
    ),
    row(
        Plane::Host,
        "volume.create",
        Class::Setting,
        Role::Admin,
        "VolumeCreateRequest",
        "VolumeCreateReply",
        "Makes a disk that belongs to a namespace, and that its VMs may name.",
    ),
    row(
        Plane::Host,
        "volume.list",
        Class::Read,
        Role::Admin,
        "VolumesRequest",
        "VolumesReply",
        "Lists the volumes of a namespace on the host, and the VMs that name them.",
    ),
    row(
        Plane::Host,
        "volume.grow",
        Class::Setting,
        Role::Admin,
        "VolumeGrowRequest",
        "VolumeGrowReply",
        "Makes a volume longer, also under the VM that writes to it; says which VMs see it only with their next start.",
    ),
    row(
        Plane::Host,
        "volume.remove",
        Class::Setting,
        Role::Admin,
        "VolumeRemoveRequest",
        "Empty",
        "Removes a volume that no VM names.",
    ),
    row(
        Plane::Host,
        "placed",
        Class::Read,
        Role::Host,
        "PlacedRequest",
        "PlacedReply",
        "Says whether the host works on a create; asked by placers before its claim is taken over.",
    ),
    row(
        Plane::Host,
        "create",
        Class::Journalled,
        Role::Host,
        "CreateRequest",
        "ChangeReply",
        "The placed half of create; sent by placers.",
    ),
];

/// The row of a verb.
#[must_use]
pub fn find(plane: Plane, verb: &str) -> Option<&'static VerbRow> {
    VERBS.iter().find(|r| r.plane == plane && r.verb == verb)
}

/// The verbs of a plane, for error messages.
#[must_use]
pub fn names(plane: Plane) -> String {
    VERBS.iter().filter(|r| r.plane == plane).map(|r| r.verb).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_verb_stands_twice() {
        let mut seen = HashSet::new();
        for row in VERBS {
            assert!(seen.insert((row.plane, row.verb)), "{row:?}");
            assert!(row.doc.ends_with('.'));
        }
    }

    #[test]
    fn readers_change_nothing() {
        for row in VERBS {
            assert!(row.role != Role::Reader || row.class == Class::Read, "{row:?}");
        }
    }
}
