//! Checks of the guest's owner: a folder with one file for each, whose name is the check's.
//!
//! ```text
//! # /etc/drover-agent/checks.d/web
//! run       curl -fsS -o /dev/null http://127.0.0.1/
//! user      nobody        # root if left out
//! interval  30s           # from one run to the next
//! timeout   5s
//! grace     2m            # after the agent's start failures do not count
//! failures  3             # in a row
//! successes 1
//! ```
//!
//! Only `run` is needed: words between spaces, so what needs quotes stands in a script. A file counts only if it and its
//! folder belong to root and nobody else may write them; what does not count is told by `health`, with the reason.
//! Names that begin with a dot or end in `~` are left alone.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use drover_schemas::Token;
use drover_schemas::guest::{CheckSpec, MAX_CHECKS, RefusedFile};

use crate::account;

/// The longest file, in bytes.
const MAX_FILE: u64 = 8 * 1024;
/// How many names of the folder are looked at.
const MAX_NAMES: usize = 256;
/// How many files are told of that do not count.
const MAX_REFUSED: usize = 16;
/// How many characters of a path are told.
const MAX_PATH: usize = 300;

/// What a folder declares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Files {
    /// In order of their names.
    pub(super) checks: Vec<CheckSpec>,
    /// What does not count, and why.
    pub(super) refused: Vec<RefusedFile>,
}

/// Reads a folder; one that is not there declares nothing.
pub(super) fn read(folder: &Path) -> Files {
    let mut files = Files::default();
    let mut refuse = |path: &Path, reason: String| {
        if files.refused.len() < MAX_REFUSED {
            let file = path.to_string_lossy().chars().take(MAX_PATH).collect();
            files.refused.push(RefusedFile { file, reason });
        }
    };
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == ErrorKind::NotFound => return files,
        Err(error) => {
            refuse(folder, format!("it cannot be listed: {error}"));
            return files;
        }
    };
    if let Err(reason) = fs::metadata(folder).map_err(|e| e.to_string()).and_then(|facts| owned(&facts)) {
        refuse(folder, reason);
        return files;
    }
    let mut paths: Vec<_> = listed.take(MAX_NAMES).flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        match read_one(&path, &name) {
            Ok(check) if files.checks.len() < MAX_CHECKS => files.checks.push(check),
            Ok(_) => refuse(&path, format!("{MAX_CHECKS} files count at most; remove some")),
            Err(reason) => refuse(&path, reason),
        }
    }
    files
}

fn owned(facts: &fs::Metadata) -> Result<(), String> {
    if account::is_theirs_alone(facts, &[0, nix::unistd::geteuid().as_raw()]) {
        return Ok(());
    }
    Err("it must belong to root and be writable by nobody else: chown and chmod it".to_owned())
}

fn read_one(path: &Path, name: &str) -> Result<CheckSpec, String> {
    let name = Token::new(name).map_err(|e| format!("its name is none of a check: {e}"))?;
    // Without waiting: what is there in the place of a file may be a pipe.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(|e| format!("it cannot be opened: {e}"))?;
    let facts = file.metadata().map_err(|e| format!("it cannot be looked at: {e}"))?;
    owned(&facts)?;
    if !facts.is_file() || facts.len() > MAX_FILE {
        return Err(format!("it is no file of at most {MAX_FILE} bytes"));
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|e| format!("it cannot be read: {e}"))?;
    parse(name, &text)
}

/// What the text of a file declares.
fn parse(name: Token, text: &str) -> Result<CheckSpec, String> {
    let mut check = CheckSpec::new(name, Vec::new());
    let mut said = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut words = line.split_ascii_whitespace().take_while(|word| !word.starts_with('#'));
        let Some(key) = words.next() else { continue };
        let values: Vec<&str> = words.collect();
        let wrong = |what: &str| format!("line {number}: {key} {what}");
        if said.contains(&key) {
            return Err(wrong("is said twice"));
        }
        said.push(key);
        if key == "run" {
            check.argv = values.iter().map(|word| (*word).to_owned()).collect();
            continue;
        }
        let [value] = values[..] else { return Err(wrong("takes one word")) };
        let time = || duration_ms(value).ok_or_else(|| wrong("takes a time such as 500ms, 30s, 5m or 1h"));
        let count = || value.parse().map_err(|_| wrong("takes a number"));
        match key {
            "user" => check.user = Some(value.to_owned()),
            "interval" => check.interval_ms = time()?,
            "timeout" => check.timeout_ms = time()?,
            "grace" => check.grace_ms = time()?,
            "failures" => check.failures = count()?,
            "successes" => check.successes = count()?,
            _ => {
                return Err(wrong(
                    "is not known: use run, user, interval, timeout, grace, failures or successes",
                ));
            }
        }
    }
    if check.argv.is_empty() {
        return Err("no line says what to run: run PROGRAM ARGUMENT…".to_owned());
    }
    check.check().map_err(|e| e.to_string())?;
    Ok(check)
}

fn duration_ms(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Result<CheckSpec, String> {
        parse(Token::new("web").unwrap(), text)
    }

    fn put(folder: &Path, name: &str, text: &str, mode: u32) {
        fs::write(folder.join(name), text).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_says_what_the_spec_can_say() {
        let usual = of("run true").unwrap();
        assert_eq!(usual, CheckSpec::new(Token::new("web").unwrap(), vec!["true".into()]));
        let text = "# of web\n\n run  curl -f http://a/#top # up?\nuser www:adm\ninterval 1m\ntimeout 500ms\n\
                    grace 1h\nfailures 2\nsuccesses 4\n";
        let full = of(text).unwrap();
        assert_eq!(full.argv, ["curl", "-f", "http://a/#top"]);
        assert_eq!((full.user.as_deref(), full.interval_ms, full.timeout_ms), (Some("www:adm"), 60_000, 500));
        assert_eq!((full.grace_ms, full.failures, full.successes), (3_600_000, 2, 4));
        for (wrong, word) in [
            ("", "run PROGRAM"),
            ("run", "run PROGRAM"),
            ("run true\nrun true", "twice"),
            ("run true\ninterval 30", "30s"),
            ("run true\ninterval s", "30s"),
            ("run true\ntimeout 99999999999999999999s", "30s"),
            ("run true\ntimeout 9999999999999999999h", "30s"),
            ("run true\nuser a b", "one word"),
            ("run true\nfailures many", "number"),
            ("run true\nfailures 0", "failures: 0"),
            ("run true\ninterval 10ms", "interval_ms"),
            ("argv true", "not known"),
        ] {
            assert!(of(wrong).unwrap_err().contains(word), "{wrong:?}: {:?}", of(wrong));
        }
    }

    #[test]
    fn what_others_could_write_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        put(folder, "a", "run true", 0o644);
        put(folder, "b", "run true", 0o664);
        put(folder, "c", "run true", 0o602);
        put(folder, "d", "run", 0o600);
        put(folder, "e", &" ".repeat(9_000), 0o600);
        put(folder, "f.txt", "run true", 0o600);
        put(folder, ".g", "run true", 0o666);
        put(folder, "h~", "run true", 0o666);
        put(folder, "i", "run \u{fffd}", 0o600);
        fs::write(folder.join("j"), b"run \xff").unwrap();
        symlink(folder.join("a"), folder.join("k")).unwrap();
        symlink(folder.join("b"), folder.join("l")).unwrap();
        fs::create_dir(folder.join("m")).unwrap();
        nix::unistd::mkfifo(&folder.join("n"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let files = read(folder);
        let names: Vec<_> = files.checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names, ["a", "i", "k"], "a link counts as what it leads to");
        let reasons: Vec<_> = files.refused.iter().map(|refused| refused.reason.as_str()).collect();
        let words = [
            "nobody else",
            "nobody else",
            "run PROGRAM",
            "8192",
            "name",
            "cannot be read",
            "nobody else",
            "no file",
        ];
        for (reason, word) in reasons.iter().zip(words) {
            assert!(reason.contains(word), "{reason:?} has no {word:?}");
        }
        assert!(reasons.len() == words.len() + 1 && reasons[words.len()].contains("no file"), "{reasons:?}");

        fs::set_permissions(folder, fs::Permissions::from_mode(0o775)).unwrap();
        let files = read(folder);
        assert_eq!((files.checks.len(), files.refused.len()), (0, 1));
        assert_eq!(read(&folder.join("none")), Files::default());
        assert_eq!(read(&folder.join("a")).refused.len(), 1, "no folder");
    }

    #[test]
    fn a_file_of_another_user_does_not_count_and_there_is_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        (0..MAX_CHECKS + 3).for_each(|n| put(folder, &format!("{n:03}"), "run true", 0o600));
        let files = read(folder);
        assert_eq!((files.checks.len(), files.refused.len()), (MAX_CHECKS, 3));
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(folder.join("000"), Some(12_345), None).unwrap();
            assert!(read(folder).refused[0].file.ends_with("000"));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(run|user|interval|failures|#|[ \\n]|.){0,80}") {
            if let Ok(check) = of(&text) {
                prop_assert_eq!(check.check(), Ok(()));
            }
        }
    }
}
