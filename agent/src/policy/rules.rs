//! The text of a policy.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use drover_schemas::guest::verb;

/// Verbs of which a policy may allow a part by folders.
const OF_FILES: &[&str] =
    &[verb::GET, verb::PUT, verb::STAT, verb::LS, verb::RM, verb::MKDIR, verb::PACK, verb::UNPACK];

/// Verbs of which a policy may allow a part by users.
const OF_USERS: &[&str] = &[verb::EXEC, verb::KEYS, verb::KEYS_CHANGE, verb::USER_ADD, verb::USER_RM];

/// What of a verb is allowed; without conditions all of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) users: Option<Vec<String>>,
    pub(super) folders: Option<Vec<PathBuf>>,
}

/// A policy that was understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rules(BTreeMap<String, Rule>);

/// Always allowed, without conditions: what the spec wants watched is looked at when it is to be done.
pub(super) fn is_always_allowed(wanted: &str) -> bool {
    matches!(wanted, verb::PING | verb::CONFIGURE)
}

static ALL: Rule = Rule { users: None, folders: None };

impl Rules {
    /// What is wrong with the text, to stand after its name.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut rules: BTreeMap<String, Rule> = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(verb) = words.next() else { continue };
            if !verb.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'.' | b'-' | b'_')) {
                return Err(format!("has in line {number} no verb but {verb:?}"));
            }
            let mut rule = Rule::default();
            for word in words {
                let is_known = rule.add(verb, word);
                if !is_known {
                    return Err(format!(
                        "has in line {number} {word:?}, which is no condition of {verb}: exec and verbs of users \
                         and keys take user=NAME, verbs of files take absolute folders"
                    ));
                }
            }
            rules.entry(verb.to_owned()).and_modify(|known| known.widen(&rule)).or_insert(rule);
        }
        Ok(Self(rules))
    }

    pub(super) fn of(&self, verb: &str) -> Option<&Rule> {
        let named = self.0.get(verb).or(is_always_allowed(verb).then_some(&ALL));
        // Hosts send it with the other.
        named.or_else(|| if verb == verb::RESEED { self.of(verb::IDENTITY) } else { None })
    }
}

impl Rule {
    /// Adds a condition, if it is one of the verb.
    fn add(&mut self, verb: &str, word: &str) -> bool {
        if OF_USERS.contains(&verb)
            && let Some(user) =
                word.strip_prefix("user=").filter(|user| !user.is_empty() && !user.contains(':'))
        {
            self.users.get_or_insert_default().push(user.to_owned());
            return true;
        }
        let folder = Path::new(word);
        let is_plain = folder.is_absolute() && !folder.components().any(|c| c == Component::ParentDir);
        if OF_FILES.contains(&verb) && is_plain {
            self.folders.get_or_insert_default().push(folder.to_owned());
            return true;
        }
        false
    }

    /// Allows what another line allows, too.
    fn widen(&mut self, other: &Self) {
        fn both<T: Clone>(own: &mut Option<Vec<T>>, other: Option<&Vec<T>>) {
            match (own.as_mut(), other) {
                (Some(own), Some(other)) => own.extend(other.iter().cloned()),
                // One of them allows all of it.
                _ => *own = None,
            }
        }
        both(&mut self.users, other.users.as_ref());
        both(&mut self.folders, other.folders.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(names: &[&str]) -> Option<Vec<PathBuf>> {
        Some(names.iter().map(PathBuf::from).collect())
    }

    #[test]
    fn what_is_named_is_allowed_and_lines_add_up() {
        let text = "# of the owner\ninfo # facts\n\n  health\nexec user=app\nexec\tuser=web\nget /var/log /srv\nget /opt\nput /a\nput\n";
        let rules = Rules::parse(text).unwrap();
        assert_eq!(rules.of("info"), Some(&Rule::default()));
        assert_eq!(rules.of("exec").unwrap().users, Some(vec!["app".into(), "web".into()]));
        assert_eq!(rules.of("get").unwrap().folders, folders(&["/var/log", "/srv", "/opt"]));
        assert_eq!(rules.of("put").unwrap().folders, None, "one line allows all of it");
        assert_eq!(rules.of("shutdown"), None);
        assert_eq!(Rules::parse("").unwrap().of("ping"), Some(&Rule::default()));
        assert!(rules.of("reseed").is_none() && Rules::parse("identity").unwrap().of("reseed").is_some());
        let keys = Rules::parse("keys user=app\nkeys_change user=app\nuser_add user=app").unwrap();
        assert_eq!(keys.of("keys_change").unwrap().users, Some(vec!["app".into()]));
        // Of a later version.
        assert!(Rules::parse("hibernate\ninfo").unwrap().of("info").is_some());
    }

    #[test]
    fn a_condition_that_is_none_is_a_mistake() {
        for wrong in [
            "*",
            "Exec",
            "exec usr=app",
            "exec app",
            "exec user=",
            "exec user=app:disk",
            "users user=app",
            "exec /bin",
            "get log",
            "get /var/../etc",
            "get user=app",
            "info user=app",
            "shutdown /",
            "info health",
            "exec=app",
        ] {
            assert!(Rules::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_allows_what_it_does_not_name(text in ".{0,200}") {
            if let Ok(rules) = Rules::parse(&text) {
                for verb in ["exec", "put", "upgrade"] {
                    assert!(rules.of(verb).is_none() || text.contains(verb), "{text:?}");
                }
            }
        }
    }
}
