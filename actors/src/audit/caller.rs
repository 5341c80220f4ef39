//! Who sent a request.

use async_nats::HeaderMap;
use drover_schemas::Token;
use drover_schemas::audit::{Caller, MAX_NAME, told};
use drover_schemas::headers::REQUEST_INFO;
use serde::Deserialize;

use crate::bus::permissions::{INBOX, RELAYED};
use crate::ingress::request::header;

#[derive(Default, Deserialize)]
struct Info {
    acc: Option<String>,
    user: Option<String>,
    host: Option<String>,
    server: Option<String>,
    id: Option<u64>,
    name: Option<String>,
}

/// The caller as the server says, where it says so. When a message crosses accounts the server puts a reply subject
/// of its own in the place of the caller's, and its own header in the place of a forged one; it takes such a reply
/// subject from no client. So who comes with one is whom the header names. Without a reply subject the header may
/// be anybody's; and what comes with an inbox has crossed nothing, and is named by the inbox.
pub(crate) fn of(headers: &HeaderMap, reply: Option<&str>) -> Caller {
    let crossed = reply.is_some_and(|reply| first(reply) == RELAYED);
    let info = header(headers, REQUEST_INFO).filter(|_| crossed || reply.is_none());
    match info.and_then(|info| serde_json::from_str::<Info>(info).ok()) {
        Some(Info { acc, user, host, server, id, name }) => {
            let cut = |text: Option<String>| text.map(|text| told(&text, MAX_NAME));
            Caller {
                verified: crossed,
                account: cut(acc),
                user: cut(user),
                address: cut(host),
                server: cut(server),
                connection: id.filter(|id| *id <= MAX_INTEGER),
                program: cut(name),
            }
        }
        None => Caller { user: reply.and_then(owner), ..Caller::default() },
    }
}

/// No integer on the wire is larger.
const MAX_INTEGER: u64 = 1 << 53;

fn first(subject: &str) -> &str {
    subject.split('.').next().unwrap_or_default()
}

/// The user of `_INBOX.<user>.<random>…`; an inbox without a user has nothing that is a token there.
fn owner(reply: &str) -> Option<String> {
    let mut tokens = reply.split('.');
    let user = (tokens.next() == Some(INBOX)).then(|| tokens.next()).flatten()?;
    tokens.next()?;
    Token::new(user).ok().map(|user| user.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(info: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_INFO, info);
        headers
    }

    #[test]
    fn the_server_is_believed_and_nobody_else() {
        let said = headers(
            r#"{"start":"2026","host":"10.0.0.7","id":9,"acc":"acme","user":"alice","name":"x","rtt":1,"server":"n1"}"#,
        );
        let crossed = of(&said, Some("_R_.abc.def"));
        let named = (crossed.account.as_deref(), crossed.user.as_deref(), crossed.connection);
        assert_eq!(named, (Some("acme"), Some("alice"), Some(9)));
        assert!(crossed.verified);
        let claimed = of(&said, None);
        assert_eq!(claimed, Caller { verified: false, ..crossed });
        // Within one account everybody can write the header.
        let same = of(&said, Some("_INBOX.bob.N1.2"));
        assert_eq!(same, Caller { user: Some("bob".into()), ..Caller::default() });
        for nonsense in ["", "{", "[]", "{\"acc\": 3}"] {
            assert_eq!(of(&headers(nonsense), None), Caller::default());
        }
    }

    #[test]
    fn a_header_of_somebodys_choice_stays_short() {
        let long = serde_json::json!({"user": "x".repeat(9_000), "name": "a\nb", "id": u64::MAX});
        let caller = of(&headers(&long.to_string()), None);
        assert_eq!(caller.user.map(|user| user.len()), Some(MAX_NAME));
        assert_eq!((caller.program.as_deref(), caller.connection), (Some("a\u{fffd}b"), None));
    }

    #[test]
    fn an_inbox_names_its_user_if_it_has_one() {
        assert_eq!(owner("_INBOX.ops.Ab1.x").as_deref(), Some("ops"));
        for none in
            ["_INBOX.GkzpQ1.3", "_INBOX.ops", "_INBOX", "", "_R_.a.b", "$JS.API.x.y", "x._INBOX.ops.a"]
        {
            assert_eq!(owner(none), None, "{none}");
        }
    }
}
