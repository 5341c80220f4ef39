//! How a registry says what it wants to be shown (`WWW-Authenticate`): pure.

use super::Refused;

/// What a registry wants to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token.
    Bearer(Realm),
    /// The user and the password themselves.
    Basic,
}

/// Where a token is given, and to which service it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Realm {
    /// A URL.
    pub realm: String,
    /// What the registry is called there.
    pub service: Option<String>,
}

/// Of several challenges the one to answer: a token is shown rather than a password. `knows` says that there is one.
pub(super) fn choose<'a>(headers: impl Iterator<Item = &'a str>, knows: bool) -> Result<Challenge, Refused> {
    let (mut chosen, mut why) = (None, None);
    for header in headers {
        match read(header) {
            Ok(Challenge::Bearer(realm)) => return Ok(Challenge::Bearer(realm)),
            Ok(Challenge::Basic) if knows => chosen = Some(Challenge::Basic),
            Ok(Challenge::Basic) => {}
            Err(error) => why = Some(error),
        }
    }
    chosen.ok_or_else(|| why.unwrap_or(Refused::Login))
}

/// Reads a challenge; what is of another scheme than these is for those who log in in another way.
fn read(header: &str) -> Result<Challenge, Refused> {
    let header = header.trim();
    let (scheme, mut rest) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Ok(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refused::Login);
    }
    let no = |reason| Refused::Challenge { reason };
    let (mut realm, mut service) = (None, None);
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            break;
        }
        let (key, behind) = rest.split_once('=').ok_or_else(|| no("it has a parameter without a value"))?;
        let (value, behind) = value(behind).ok_or_else(|| no("it has a text without an end"))?;
        rest = behind;
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            // The scope is ours to say.
            _ => {}
        }
    }
    Ok(Challenge::Bearer(Realm { realm: realm.ok_or_else(|| no("it names no realm"))?, service }))
}

/// A word, or a text in quotes, and what is behind it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.trim_start().strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let (mut value, mut chars) = (String::new(), quoted.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_challenge_says_where_a_token_is_given() {
        let read_ = |text: &str| match read(text).unwrap() {
            Challenge::Bearer(realm) => realm,
            Challenge::Basic => panic!("{text}"),
        };
        let both =
            read_("Bearer realm=\"https://auth.example/token\",service=\"a, b\",scope=\"repository:x:pull\"");
        assert_eq!(
            (both.realm.as_str(), both.service.as_deref()),
            ("https://auth.example/token", Some("a, b"))
        );
        let bare = read_("bearer  service=x , realm=https://a.example/t?y=1");
        assert_eq!((bare.realm.as_str(), bare.service.as_deref()), ("https://a.example/t?y=1", Some("x")));
        assert_eq!(read_("Bearer realm=\"a\\\"b\"").realm, "a\"b");
        assert_eq!(read("Basic realm=\"x\"").unwrap(), Challenge::Basic);
        assert!(matches!(read("Negotiate"), Err(Refused::Login)));
        for none in
            ["Bearer", "Bearer service=\"x\"", "Bearer realm", "Bearer realm=\"x", "Bearer realm=\"x\\"]
        {
            assert!(matches!(read(none), Err(Refused::Challenge { .. })), "{none}");
        }
        assert!(matches!(read(""), Err(Refused::Login)));
    }

    #[test]
    fn a_password_is_shown_only_where_no_token_is_given() {
        let (basic, bearer) = ("Basic realm=\"x\"", "Bearer realm=\"https://a.example\"");
        let chosen = |headers: &[&str], knows| choose(headers.iter().copied(), knows);
        for headers in [[basic, bearer], [bearer, basic]] {
            for knows in [false, true] {
                assert!(matches!(chosen(&headers, knows), Ok(Challenge::Bearer(_))));
            }
        }
        assert_eq!(chosen(&["Negotiate", basic], true).unwrap(), Challenge::Basic);
        for (headers, knows) in [(&[basic][..], false), (&["Negotiate"][..], true), (&[][..], true)] {
            assert!(matches!(chosen(headers, knows), Err(Refused::Login)), "{headers:?}");
        }
        assert!(matches!(chosen(&["Bearer", basic], false), Err(Refused::Challenge { .. })));
    }

    proptest! {
        #[test]
        fn whatever_a_registry_says_is_read_or_refused(text in "(Bearer )?[a-z=\", \\\\é]{0,40}") {
            let _ = read(&text);
        }
    }
}
