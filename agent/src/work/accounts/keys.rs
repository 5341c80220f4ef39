//! The text of `authorized_keys`: what is in it, and what becomes of it.

use drover_schemas::guest::{AuthorizedKey, KeysChangeRequest, KeysResult, MAX_ACCOUNTS, MAX_KEYS_CHANGED};
use drover_schemas::{ErrorBody, ErrorCode};

use super::MAX_SHOWN;
use super::key::{Key, Line};

/// What was asked for, understood before anything is looked at.
#[derive(Debug)]
pub(super) struct Change {
    add: Vec<Key>,
    remove: Vec<Which>,
    replace: bool,
    allow_options: bool,
}

#[derive(Debug)]
struct Which {
    fingerprint: String,
    said: String,
}

/// What becomes of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) text: Vec<u8>,
    pub(super) added: Vec<AuthorizedKey>,
    pub(super) removed: u32,
    pub(super) total: u32,
}

fn invalid(text: String, field: &str) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", field)
}

impl Change {
    /// # Errors
    /// `invalid_argument` for what is no key, or has options that nobody asked for.
    pub(super) fn parse(request: &KeysChangeRequest) -> Result<Self, ErrorBody> {
        let KeysChangeRequest { add, remove, replace, allow_options, .. } = request;
        if add.len() > MAX_KEYS_CHANGED || remove.len() > MAX_KEYS_CHANGED {
            let text = format!("more than {MAX_KEYS_CHANGED} keys at once; use several requests");
            return Err(invalid(text, "add"));
        }
        if *replace && !remove.is_empty() {
            let text = "replace removes every key that is not in add; leave remove out".to_owned();
            return Err(invalid(text, "remove"));
        }
        if add.is_empty() && remove.is_empty() && !replace {
            return Err(invalid("nothing is asked for: use add, remove or replace".to_owned(), "add"));
        }
        let mut keys: Vec<Key> = Vec::new();
        for line in add {
            let key = Key::given(line, "add")?;
            if !key.options.is_empty() && !allow_options {
                let text = format!(
                    "the key {} has options ({:?}); take them away, or set allow_options",
                    key.fingerprint(),
                    super::shorten(&key.options, 60)
                );
                return Err(invalid(text, "add"));
            }
            if !keys.iter().any(|known| known.blob == key.blob) {
                keys.push(key);
            }
        }
        let which = |said: &String| {
            let fingerprint = match said.trim() {
                print if print.starts_with("SHA256:") => print.trim_end_matches('=').to_owned(),
                line => Key::given(line, "remove")?.fingerprint(),
            };
            Ok(Which { said: super::shorten(said, 80), fingerprint })
        };
        let remove = remove.iter().map(which).collect::<Result<_, ErrorBody>>()?;
        Ok(Self { add: keys, remove, replace: *replace, allow_options: *allow_options })
    }

    /// What becomes of a file that is so now.
    ///
    /// # Errors
    /// `not_found` for a key to be removed that is not there, `conflict` for one with other options.
    pub(super) fn apply(&self, before: &[u8]) -> Result<Changed, ErrorBody> {
        let mut done = Changed::default();
        let mut left: Vec<&Key> = self.add.iter().collect();
        let mut gone: Vec<&Which> = self.remove.iter().collect();
        let mut lines: Vec<Vec<u8>> = before.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.pop_if(|last| last.is_empty());
        let mut kept = Vec::with_capacity(lines.len());
        for line in lines {
            let key = match Line::parse(&line) {
                Line::Key(key) => key,
                Line::Other if self.replace => {
                    done.removed += 1;
                    continue;
                }
                Line::Other | Line::Comment => {
                    kept.push(line);
                    continue;
                }
            };
            let fingerprint = key.fingerprint();
            let wanted = self.add.iter().find(|wanted| wanted.blob == key.blob);
            let is_to_go = self.remove.iter().any(|which| which.fingerprint == fingerprint);
            if is_to_go || (self.replace && wanted.is_none()) {
                gone.retain(|which| which.fingerprint != fingerprint);
                done.removed += 1;
                continue;
            }
            let Some(wanted) = wanted else {
                done.total += 1;
                kept.push(line);
                continue;
            };
            let is_first = left.iter().any(|key| key.blob == wanted.blob);
            left.retain(|key| key.blob != wanted.blob);
            if key.options == wanted.options {
                done.total += 1;
                kept.push(line);
            } else if !self.allow_options {
                let text = format!(
                    "the key {fingerprint} is there with options ({:?}); remove it first, or set allow_options",
                    super::shorten(&key.options, 60)
                );
                return Err(ErrorBody::new(ErrorCode::Conflict, text).with("cause", "other_options"));
            } else if is_first {
                done.total += 1;
                done.added.push(wanted.shown());
                kept.push(wanted.line().into_bytes());
            } else {
                // sshd takes the first line of a key; another one would say what no longer holds.
                done.removed += 1;
            }
        }
        if let Some(absent) = gone.first() {
            let text = format!("no key {} is there; nothing was changed", absent.said);
            return Err(ErrorBody::new(ErrorCode::NotFound, text).with("key", &absent.fingerprint));
        }
        for key in left {
            done.total += 1;
            done.added.push(key.shown());
            kept.push(key.line().into_bytes());
        }
        done.text = kept.iter().flat_map(|line| line.iter().copied().chain([b'\n'])).collect();
        Ok(done)
    }
}

/// What a file has.
pub(super) fn list(text: &[u8]) -> KeysResult {
    let mut result = KeysResult::default();
    let mut room = MAX_SHOWN;
    for line in text.split(|byte| *byte == b'\n') {
        match Line::parse(line) {
            Line::Comment => {}
            Line::Other => result.other_lines += 1,
            Line::Key(key) => {
                let shown = key.shown();
                let size = 120 + shown.comment.len() + shown.options.len();
                if result.keys.len() >= MAX_ACCOUNTS || size > room {
                    result.more = true;
                    continue;
                }
                room -= size;
                result.keys.push(shown);
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::accounts::key::tests::ed25519;

    fn change(add: &[String], remove: &[String], replace: bool, allow_options: bool) -> Change {
        let request = KeysChangeRequest {
            user: String::new(),
            add: add.to_vec(),
            remove: remove.to_vec(),
            replace,
            allow_options,
        };
        Change::parse(&request).unwrap()
    }

    fn text(changed: &Changed) -> &str {
        std::str::from_utf8(&changed.text).unwrap()
    }

    #[test]
    fn keys_come_and_go_and_the_rest_stays() {
        let [one, two, three] = [1, 2, 3].map(ed25519);
        let before = format!("# mine\r\n{one} me@here\n\nssh-dss AAAA old\n\tfrom=\"a b\" {two}");
        let add = change(&[format!("{one} other name"), format!("{three} x")], &[], false, false);
        let after = add.apply(before.as_bytes()).unwrap();
        assert_eq!(text(&after), format!("{before}\n{three} x\n"));
        assert_eq!((after.added.len(), after.removed, after.total), (1, 0, 3));
        let again = add.apply(&after.text).unwrap();
        assert_eq!((&again.text, again.added.len(), again.total), (&after.text, 0, 3));

        let print = after.added[0].fingerprint.clone();
        let remove = change(&[], &[print, format!("{one} whatever")], false, false);
        let less = remove.apply(&after.text).unwrap();
        assert_eq!(text(&less), format!("# mine\r\n\nssh-dss AAAA old\n\tfrom=\"a b\" {two}\n"));
        assert_eq!((less.removed, less.total), (2, 1));
        assert_eq!(remove.apply(&less.text).unwrap_err().code, ErrorCode::NotFound);

        let replace = change(std::slice::from_ref(&three), &[], true, false);
        let only = replace.apply(&less.text).unwrap();
        assert_eq!(text(&only), format!("# mine\r\n\n{three}\n"));
        assert_eq!((only.removed, only.total, only.added.len()), (2, 1, 1));
        let none = change(&[], &[], true, false).apply(&only.text).unwrap();
        assert_eq!((text(&none), none.total), ("# mine\r\n\n", 0));
    }

    #[test]
    fn options_are_changed_only_if_that_is_asked_for() {
        let key = ed25519(1);
        let (bound, wide) =
            (format!("restrict {key}\n"), change(std::slice::from_ref(&key), &[], false, false));
        let error = wide.apply(bound.as_bytes()).unwrap_err();
        assert_eq!((error.code, error.details["cause"].as_str()), (ErrorCode::Conflict, "other_options"));
        let request = KeysChangeRequest { add: vec![bound.trim().to_owned()], ..Default::default() };
        assert_eq!(Change::parse(&request).unwrap_err().code, ErrorCode::InvalidArgument);
        let change = change(std::slice::from_ref(&key), &[], false, true);
        let after = change.apply(format!("{bound}# between\nno-pty {key}\n").as_bytes()).unwrap();
        assert_eq!(text(&after), format!("{key}\n# between\n"));
        assert_eq!((after.added.len(), after.removed, after.total), (1, 1, 1));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let key = ed25519(1);
        let some = || vec![key.clone()];
        for request in [
            KeysChangeRequest::default(),
            KeysChangeRequest { replace: true, remove: some(), ..Default::default() },
            KeysChangeRequest { remove: vec!["md5:00".into()], ..Default::default() },
            KeysChangeRequest { add: vec![key.clone(); MAX_KEYS_CHANGED + 1], ..Default::default() },
        ] {
            assert_eq!(Change::parse(&request).unwrap_err().code, ErrorCode::InvalidArgument);
        }
        let listed = list(format!("{key} a\nrubbish\n# c\n").as_bytes());
        assert_eq!((listed.keys.len(), listed.other_lines, listed.more), (1, 1, false));
        let many = list(format!("{key}\n").repeat(MAX_ACCOUNTS + 1).as_bytes());
        assert!(many.more && !many.keys.is_empty() && many.keys.len() <= MAX_ACCOUNTS);
    }

    proptest::proptest! {
        #[test]
        fn any_file_keeps_what_is_not_asked_for(
            lines in proptest::collection::vec("[ -~\u{0}\u{ff}]{0,30}", 0..10), at in 0_usize..10,
        ) {
            let key = ed25519(9);
            let mut lines: Vec<String> = lines.into_iter().filter(|line| !line.contains('\n')).collect();
            let before = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            let add = change(std::slice::from_ref(&key), &[], false, false);
            let after = add.apply(before.as_bytes()).unwrap();
            assert_eq!(after.text, format!("{before}{key}\n").into_bytes());
            assert_eq!(change(&[], std::slice::from_ref(&key), false, false).apply(&after.text).unwrap().text, before.as_bytes());
            lines.insert(at.min(lines.len()), key.clone());
            let within = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            assert_eq!(add.apply(within.as_bytes()).unwrap().text, within.as_bytes());
        }
    }
}
