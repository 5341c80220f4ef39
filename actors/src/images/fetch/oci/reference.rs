//! What an image of a registry is called: pure.

use std::fmt;

use super::Refused;
use super::is_digest;

/// The longest path of a repository, in bytes.
const MAX_PATH: usize = 255;
/// The longest tag, in bytes.
const MAX_TAG: usize = 128;

/// `registry.example/owner/name:tag`, `registry.example/owner/name@sha256:…`, or both: then the digest counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Name or address, with `:port` if it is not 443.
    pub registry: String,
    /// The path of the repository.
    pub repository: String,
    /// Its tag.
    pub tag: Option<String>,
    /// The digest of the manifest, with `sha256:`.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads a reference. Nothing is added to it: neither a registry nor a tag.
    ///
    /// # Errors
    /// [`Refused::Reference`] says what it lacks.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let no = |reason| Refused::Reference { reason };
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) if is_digest(digest) => (text, Some(digest.to_owned())),
            Some(_) => return Err(no("behind @ is no sha256: with 64 lower-case hexadecimal digits")),
            None => (text, None),
        };
        let Some((registry, path)) = text.split_once('/') else { return Err(no("it names no registry")) };
        if !is_registry(registry) {
            return Err(no("it does not begin with a registry's name or address"));
        }
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) if is_tag(tag) => (repository, Some(tag.to_owned())),
            Some(_) => return Err(no("behind : is no tag")),
            None => (path, None),
        };
        if repository.len() > MAX_PATH || !repository.split('/').all(is_component) {
            return Err(no("the repository's name is none"));
        }
        if tag.is_none() && digest.is_none() {
            return Err(no("it has neither a tag nor a digest"));
        }
        Ok(Self { registry: registry.to_owned(), repository: repository.to_owned(), tag, digest })
    }

    /// Where the registry has what belongs to the repository.
    #[must_use]
    pub fn url(&self, folder: &str, name: &str) -> String {
        format!("https://{}/v2/{}/{folder}/{name}", self.registry, self.repository)
    }

    /// What the manifest is asked for by: the digest, and else the tag.
    #[must_use]
    pub fn wanted(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or_default()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// A name, an address, or an address of IPv6 in brackets; with a port or without.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_port = |port: &str| port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.split('.').all(|label| {
                    !label.is_empty() && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                })
        }
    };
    is_host && port.is_none_or(is_port)
}

/// Lower-case letters and digits, with a dot, one or two underscores or any dashes between them.
fn is_component(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    let between = bytes.split(|c| plain(*c)).filter(|between| !between.is_empty());
    plain(*first)
        && plain(*last)
        && between.into_iter().all(|sep| matches!(sep, b"." | b"_" | b"__") || sep.iter().all(|c| *c == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|c| word(c) || c == b'.' || c == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_reference_names_registry_repository_and_tag_or_digest() {
        let read = Reference::parse("registry.example:5000/owner/a-b__c.d:1.0").unwrap();
        assert_eq!(
            (read.registry.as_str(), read.repository.as_str()),
            ("registry.example:5000", "owner/a-b__c.d")
        );
        assert_eq!((read.wanted(), read.digest.as_deref()), ("1.0", None));
        let both = Reference::parse(&format!("[::1]:5000/a:x@{DIGEST}")).unwrap();
        assert_eq!((both.wanted(), both.tag.as_deref()), (DIGEST, Some("x")));
        assert_eq!(
            both.url("manifests", both.wanted()),
            format!("https://[::1]:5000/v2/a/manifests/{DIGEST}")
        );
        for none in [
            "",
            "debian",
            "debian:12",
            "/a:1",
            "registry.example/:1",
            "registry.example/a",
            "registry.example/a:",
            "registry.example/a:b:c",
            "registry.example/a/:1",
            "registry.example/a/../b:1",
            "registry.example/A:1",
            "registry.example/a._b:1",
            "registry.example/a?x:1",
            "registry.example/a:1?x",
            "registry.example/a#:1",
            "registry.example/a@sha256:00",
            "registry.example/a@sha512:00",
            "registry.example:x/a:1",
            "registry.example:/a:1",
            "registry.example:99999/a:1",
            "https://registry.example/a:1",
            "user:secret@registry.example/a:1",
            "user@registry.example/a:1",
            "reg istry/a:1",
            "registry..example/a:1",
            "[::1/a:1",
            "[localhost]/a:1",
        ] {
            assert!(Reference::parse(none).is_err(), "{none}");
        }
        assert!(Reference::parse(&format!("r/{}:1", "a/".repeat(128))).is_err());
        assert!(Reference::parse(&format!("r/a:{}", "1".repeat(129))).is_err());
    }

    proptest! {
        #[test]
        fn what_is_read_says_the_same_again_and_its_url_leads_nowhere_else(
            text in "[a-z0-9.:@/_A-Z?#%\\[\\]-]{0,12}/[a-z0-9._/-]{1,12}(:[a-z0-9._-]{1,8})?",
        ) {
            if let Ok(read) = Reference::parse(&text) {
                prop_assert_eq!(&read.to_string(), &text);
                let url = reqwest::Url::parse(&read.url("blobs", DIGEST)).unwrap();
                let path = format!("/v2/{}/blobs/{DIGEST}", read.repository);
                prop_assert_eq!((url.scheme(), url.path(), url.query()), ("https", path.as_str(), None));
                prop_assert!(url.username().is_empty() && url.password().is_none());
            }
        }

        #[test]
        fn what_is_well_formed_is_read(
            registry in "[a-z0-9]{1,8}(\\.[a-z]{1,5})?(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,4}([._-][a-z0-9]{1,4})?(/[a-z0-9]{1,4}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}",
        ) {
            let read = Reference::parse(&format!("{registry}/{path}:{tag}")).unwrap();
            prop_assert_eq!((read.registry, read.repository, read.tag), (registry, path, Some(tag)));
        }
    }
}
