//! Faults on request: how this program can be told to fail the way a real one might.
//!
//! The grammar is [`HELP`]. Faults come from the command line or the environment, and from a file
//! that is read again at every step, so a test can change them while the program runs.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The grammar, shown by `--help`.
pub const HELP: &str = "\
FAULTS (SOFTVMM_MISBEHAVE, SOFTVMM_MISBEHAVE_FILE): a comma-separated list of
  die@STEP            end by SIGKILL, releasing nothing
  exit0@STEP          end with status 0, releasing nothing
  exit:CODE@STEP      the same with another status
  kill:SIGNAL@STEP    end by that signal (a name such as SEGV, or a number)
  hang@STEP[:MS]      do nothing, for ever or for that many milliseconds
  500@STEP            answer 500 instead of doing the step
  garbage@STEP        answer bytes that are not HTTP, and close
  lose-events[@NAME]  lose all events, or those of that name
  flood-events        write 20,000 events after a boot
  ignore-sigterm      do not react to SIGTERM and SIGINT

STEP is one of
  start               before the API socket exists
  api                 after it is bound
  CALL.before CALL.after   around the effect of an API call; CALL alone is CALL.before.
                      CALL: ping info counters create boot pause resume power-button shutdown
                      resize-disk reboot delete vmm-shutdown
  boot.mid            the guest has started, nobody has been told
  guest-off guest-reset    the guest has powered itself off, or reset itself; nobody has been told
  t+MS                that many milliseconds after a boot (die, exit0, exit, kill only)";

/// What to do at a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// End by a signal.
    Kill(i32),
    /// End with a status.
    Exit(i32),
    /// Stand still, for ever without a duration.
    Hang(Option<Duration>),
    /// Answer 500.
    Refuse,
    /// Answer something that is not HTTP.
    Garbage,
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// An action at a named step.
    At(String, Action),
    /// An action some time after a boot.
    After(Duration, Action),
    /// Events that are not written; `None` is all of them.
    LoseEvents(Option<String>),
    /// Very many events after a boot.
    FloodEvents,
    /// SIGTERM and SIGINT have no effect.
    IgnoreSigterm,
}

/// An entry that is not in the grammar.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FaultError {
    /// The fault has no such name, or lacks its step.
    #[error("unknown fault {0:?}")]
    Unknown(String),
    /// There is no such step.
    #[error("unknown step {0:?}")]
    Step(String),
    /// A number or a signal could not be read.
    #[error("bad value in fault {0:?}")]
    Value(String),
}

const CALLS: [&str; 13] = [
    "ping",
    "info",
    "counters",
    "create",
    "boot",
    "pause",
    "resume",
    "power-button",
    "resize-disk",
    "shutdown",
    "reboot",
    "delete",
    "vmm-shutdown",
];
const POINTS: [&str; 5] = ["start", "api", "boot.mid", "guest-off", "guest-reset"];

fn step(text: &str) -> Result<String, FaultError> {
    if POINTS.contains(&text) {
        return Ok(text.to_owned());
    }
    let (call, when) = text.split_once('.').unwrap_or((text, "before"));
    if CALLS.contains(&call) && (when == "before" || when == "after") {
        return Ok(format!("{call}.{when}"));
    }
    Err(FaultError::Step(text.to_owned()))
}

fn signal(text: &str) -> Option<i32> {
    let named = || Signal::from_str(&format!("SIG{}", text.trim_start_matches("SIG"))).ok();
    text.parse().ok().or_else(|| named().map(|s| s as i32))
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let bad = || FaultError::Value(text.to_owned());
        let (what, at) = match text.split_once('@') {
            Some((what, at)) => (what, Some(at)),
            None => (text, None),
        };
        let mut at = at;
        let action = match (what, what.split_once(':')) {
            ("lose-events", _) => return Ok(Self::LoseEvents(at.map(str::to_owned))),
            ("flood-events", _) => return Ok(Self::FloodEvents),
            ("ignore-sigterm", _) => return Ok(Self::IgnoreSigterm),
            ("die", _) => Action::Kill(libc::SIGKILL),
            ("exit0", _) => Action::Exit(0),
            ("500", _) => Action::Refuse,
            ("garbage", _) => Action::Garbage,
            ("hang", _) => match at.and_then(|at| at.split_once(':')) {
                Some((step, ms)) => {
                    at = Some(step);
                    Action::Hang(Some(Duration::from_millis(ms.parse().map_err(|_| bad())?)))
                }
                None => Action::Hang(None),
            },
            (_, Some(("exit", code))) => Action::Exit(code.parse().map_err(|_| bad())?),
            (_, Some(("kill", name))) => Action::Kill(signal(name).ok_or_else(bad)?),
            _ => return Err(FaultError::Unknown(text.to_owned())),
        };
        let at = at.ok_or_else(|| FaultError::Unknown(text.to_owned()))?;
        if let Some(ms) = at.strip_prefix("t+") {
            return Ok(Self::After(Duration::from_millis(ms.parse().map_err(|_| bad())?), action));
        }
        Ok(Self::At(step(at)?, action))
    }
}

/// Reads a list; blanks and line ends count as commas, so that a file reads well.
///
/// # Errors
/// The first entry that is not in the grammar.
pub fn parse(text: &str) -> Result<Vec<Fault>, FaultError> {
    text.split([',', '\n', ' ']).filter(|s| !s.is_empty()).map(str::parse).collect()
}

/// What the caller of a step has to do itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Proceed,
    /// Answer 500.
    Refuse,
    /// Answer garbage.
    Garbage,
}

/// The faults in force.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    fixed: Vec<Fault>,
    file: Option<PathBuf>,
}

impl Faults {
    /// Faults from a list and from a file that may change, or not exist yet.
    ///
    /// # Errors
    /// The list is not in the grammar. (Entries of the file that are not are passed over.)
    pub fn new(list: &str, file: Option<PathBuf>) -> Result<Self, FaultError> {
        Ok(Self { fixed: parse(list)?, file })
    }

    fn now(&self) -> Vec<Fault> {
        let text = self.file.as_ref().and_then(|f| std::fs::read_to_string(f).ok()).unwrap_or_default();
        let entries = text.split([',', '\n', ' ']).filter_map(|s| s.parse().ok());
        self.fixed.iter().cloned().chain(entries).collect()
    }

    /// Shows the fault of a step, if there is one.
    pub async fn at(&self, step: &str) -> Verdict {
        for fault in self.now() {
            match fault {
                Fault::At(at, action) if at == step => match action {
                    Action::Refuse => return Verdict::Refuse,
                    Action::Garbage => return Verdict::Garbage,
                    Action::Hang(Some(time)) => tokio::time::sleep(time).await,
                    Action::Hang(None) => std::future::pending().await,
                    Action::Kill(_) | Action::Exit(_) => end(&action),
                },
                _ => {}
            }
        }
        Verdict::Proceed
    }

    /// The first deadline after a boot, with what happens then.
    pub fn deadline(&self) -> Option<(Duration, Action)> {
        let timed = self.now().into_iter().filter_map(|fault| match fault {
            Fault::After(time, action) => Some((time, action)),
            _ => None,
        });
        timed.min_by_key(|(time, _)| *time)
    }

    /// Whether an event of this name is to be lost.
    pub fn loses(&self, event: &str) -> bool {
        self.now().iter().any(|fault| match fault {
            Fault::LoseEvents(None) => true,
            Fault::LoseEvents(Some(name)) => name == event,
            _ => false,
        })
    }

    /// Whether a boot is followed by a flood of events.
    pub fn floods(&self) -> bool {
        self.now().contains(&Fault::FloodEvents)
    }

    /// Whether SIGTERM and SIGINT are ignored.
    pub fn ignores_sigterm(&self) -> bool {
        self.now().contains(&Fault::IgnoreSigterm)
    }
}

/// Ends the process as an action says, releasing nothing; actions that do not end it do nothing.
pub fn end(action: &Action) {
    match action {
        Action::Kill(signal) => die_by(*signal),
        // SAFETY: `_exit` takes no pointers and does not return; skipping destructors is the point.
        Action::Exit(code) => unsafe { libc::_exit(*code) },
        _ => {}
    }
}

/// Ends this process by a signal, as if it had come from outside.
pub fn die_by(signal: i32) {
    // SAFETY: resetting a disposition to the default and unblocking it touch no memory of ours; the
    // process is about to end by it.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::raise(signal);
    }
    // Signals that do not end a process by default leave us here; SIGKILL always does.
    let _ = kill(Pid::this(), Signal::SIGKILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_grammar_is_read() {
        let read = |s: &str| s.parse::<Fault>();
        assert_eq!(read("die@boot.mid"), Ok(Fault::At("boot.mid".into(), Action::Kill(9))));
        assert_eq!(read("exit0@create"), Ok(Fault::At("create.before".into(), Action::Exit(0))));
        assert_eq!(read("exit:3@start"), Ok(Fault::At("start".into(), Action::Exit(3))));
        assert_eq!(read("kill:SEGV@api"), Ok(Fault::At("api".into(), Action::Kill(11))));
        assert_eq!(read("kill:6@t+250"), Ok(Fault::After(Duration::from_millis(250), Action::Kill(6))));
        assert_eq!(read("hang@info"), Ok(Fault::At("info.before".into(), Action::Hang(None))));
        let short = Action::Hang(Some(Duration::from_millis(40)));
        assert_eq!(read("hang@info.after:40"), Ok(Fault::At("info.after".into(), short)));
        assert_eq!(read("500@power-button"), Ok(Fault::At("power-button.before".into(), Action::Refuse)));
        assert_eq!(read("garbage@ping"), Ok(Fault::At("ping.before".into(), Action::Garbage)));
        assert_eq!(read("lose-events"), Ok(Fault::LoseEvents(None)));
        assert_eq!(read("lose-events@booted"), Ok(Fault::LoseEvents(Some("booted".into()))));
        assert_eq!(read("flood-events"), Ok(Fault::FloodEvents));
        assert_eq!(read("ignore-sigterm"), Ok(Fault::IgnoreSigterm));
    }

    #[test]
    fn what_is_not_in_the_grammar_is_an_error_that_quotes_it() {
        assert_eq!(parse("die@lunch"), Err(FaultError::Step("lunch".into())));
        assert_eq!(parse("die"), Err(FaultError::Unknown("die".into())));
        assert_eq!(parse("kill:NOPE@api"), Err(FaultError::Value("kill:NOPE@api".into())));
        assert_eq!(parse("sulk@boot"), Err(FaultError::Unknown("sulk@boot".into())));
    }

    #[test]
    fn a_list_may_stand_on_several_lines() {
        assert_eq!(parse("die@api,\n500@boot\nflood-events").map(|l| l.len()), Ok(3));
    }
}
