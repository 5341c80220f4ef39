//! One line of `authorized_keys`, as sshd reads it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use drover_schemas::guest::{AuthorizedKey, MAX_KEY_LINE};
use drover_schemas::{ErrorBody, ErrorCode};
use sha2::{Digest as _, Sha256};

use super::shorten;

/// Shorter ones are broken, longer ones only slow.
const RSA_BITS: std::ops::RangeInclusive<u32> = 2048..=16384;

/// A key, with what stands beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) options: String,
    pub(super) kind: String,
    pub(super) blob: Vec<u8>,
    pub(super) comment: String,
    bits: u32,
}

/// What a line is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing, or a comment.
    Comment,
    /// A key.
    Key(Key),
    /// What sshd may understand and this agent does not, or nobody.
    Other,
}

impl Line {
    pub(super) fn parse(line: &[u8]) -> Self {
        let text = line.trim_ascii();
        if text.is_empty() || text.starts_with(b"#") {
            return Self::Comment;
        }
        // A comment may be in any encoding; what counts is ASCII.
        Key::parse(&String::from_utf8_lossy(text)).map_or(Self::Other, Self::Key)
    }
}

impl Key {
    /// A key that a caller gave.
    ///
    /// # Errors
    /// `invalid_argument` with what is wrong about it.
    pub(super) fn given(line: &str, field: &str) -> Result<Self, ErrorBody> {
        let wrong = |why: String| Err(ErrorBody::new(ErrorCode::InvalidArgument, why).with("field", field));
        if line.len() > MAX_KEY_LINE {
            return wrong(format!("a key's line has {} bytes; at most {MAX_KEY_LINE}", line.len()));
        }
        if line.chars().any(char::is_control) {
            return wrong(
                "a key is one line, without control characters; send each of several by itself".into(),
            );
        }
        match Self::parse(line.trim()) {
            Ok(key) => Ok(key),
            Err(why) => wrong(format!("{:?} is no SSH key: {why}", shorten(line, 60))),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let word = |text: &str| text.split([' ', '\t']).next().unwrap_or_default().to_owned();
        let (options, rest) = match Kind::of(&word(text)) {
            Some(_) => ("", text),
            None => split_options(text)?,
        };
        let name = word(rest);
        let Some(kind) = Kind::of(&name) else {
            let text = "it has no type that is known, such as ssh-ed25519; a private key is none";
            return Err(text.to_owned());
        };
        let rest = rest[name.len()..].trim_start_matches([' ', '\t']);
        let base64 = word(rest);
        let comment = rest[base64.len()..].trim().to_owned();
        let blob =
            STANDARD.decode(&base64).map_err(|e| format!("what follows its type is no base64: {e}"))?;
        let bits = kind.bits(&name, &blob)?;
        Ok(Self { options: options.to_owned(), kind: name, blob, comment, bits })
    }

    pub(super) fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&self.blob)))
    }

    /// The line as it is written.
    pub(super) fn line(&self) -> String {
        let Self { options, kind, comment, blob, .. } = self;
        let base64 = STANDARD.encode(blob);
        let parts = [options.as_str(), kind, &base64, comment];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    pub(super) fn shown(&self) -> AuthorizedKey {
        AuthorizedKey {
            fingerprint: self.fingerprint(),
            kind: self.kind.clone(),
            bits: self.bits,
            comment: shorten(&self.comment, 200),
            options: shorten(&self.options, 500),
        }
    }
}

/// Options end at the first space that is not within quotes.
fn split_options(text: &str) -> Result<(&str, &str), String> {
    let (mut quoted, mut escaped) = (false, false);
    for (place, c) in text.char_indices() {
        match c {
            ' ' | '\t' if !quoted => {
                return Ok((&text[..place], text[place..].trim_start_matches([' ', '\t'])));
            }
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    Err(if quoted { "a quote of its options has no end" } else { "it is one word" }.to_owned())
}

/// What the bytes of a key are.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Ed25519,
    Rsa,
    /// The name of its curve, and the bytes of a point.
    Ecdsa(&'static str, u32, usize),
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "ssh-ed25519" | "sk-ssh-ed25519@openssh.com" => Self::Ed25519,
            "ssh-rsa" => Self::Rsa,
            "ecdsa-sha2-nistp256" | "sk-ecdsa-sha2-nistp256@openssh.com" => Self::Ecdsa("nistp256", 256, 65),
            "ecdsa-sha2-nistp384" => Self::Ecdsa("nistp384", 384, 97),
            "ecdsa-sha2-nistp521" => Self::Ecdsa("nistp521", 521, 133),
            _ => return None,
        })
    }

    /// How long the key is, if its bytes are those of one.
    fn bits(self, name: &str, blob: &[u8]) -> Result<u32, String> {
        let short = || "its bytes end too early".to_owned();
        let mut rest = blob;
        let mut next = || -> Option<&[u8]> {
            let (length, after) = rest.split_at_checked(4)?;
            let length = u32::from_be_bytes(length.try_into().ok()?);
            let (field, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
            rest = after;
            Some(field)
        };
        if next().ok_or_else(short)? != name.as_bytes() {
            return Err("its bytes are of another type than it says".to_owned());
        }
        let bits = match self {
            Self::Ed25519 => match next().ok_or_else(short)?.len() {
                32 => 256,
                other => return Err(format!("it has {other} bytes, not 32")),
            },
            Self::Ecdsa(curve, bits, length) => {
                let is_curve = next().ok_or_else(short)? == curve.as_bytes();
                let point = next().ok_or_else(short)?;
                if !is_curve || point.len() != length || point.first() != Some(&4) {
                    return Err(format!("it is no point of {curve}"));
                }
                bits
            }
            Self::Rsa => {
                let exponent = next().ok_or_else(short)?;
                let modulus = next().ok_or_else(short)?;
                let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
                let leading = modulus.first().map_or(0, |first| first.leading_zeros());
                let bits = u32::try_from(modulus.len()).unwrap_or(u32::MAX).saturating_mul(8) - leading;
                if exponent.is_empty() || !RSA_BITS.contains(&bits) {
                    let (from, to) = (RSA_BITS.start(), RSA_BITS.end());
                    return Err(format!("an RSA key of {bits} bits; {from} to {to} are taken"));
                }
                bits
            }
        };
        // Those in a token end in what they are for.
        if name.starts_with("sk-") {
            next().ok_or_else(short)?;
        }
        if rest.is_empty() { Ok(bits) } else { Err("its bytes go on after its end".to_owned()) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn field(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    /// A key that is as valid as any, for each number another.
    pub(in super::super) fn ed25519(number: u8) -> String {
        let blob = [field(b"ssh-ed25519"), field(&[number; 32])].concat();
        format!("ssh-ed25519 {}", STANDARD.encode(blob))
    }

    #[test]
    fn a_key_is_what_ssh_keygen_says_it_is() {
        // Made by ssh-keygen, with what `ssh-keygen -l` says of each.
        for (line, kind, bits, fingerprint) in SAMPLES {
            let key = Key::given(line, "add").unwrap();
            assert_eq!(
                (key.kind.as_str(), key.bits, key.fingerprint().as_str(), key.comment.as_str()),
                (*kind, *bits, *fingerprint, "some body")
            );
            assert_eq!(key.line(), *line);
        }
    }

    #[test]
    fn options_are_told_from_the_key() {
        let plain = ed25519(1);
        let with = format!("from=\"10.0.0.0/8\",command=\"echo \\\"a b\\\"\" {plain} c");
        let key = Key::given(&with, "add").unwrap();
        assert_eq!(key.options, "from=\"10.0.0.0/8\",command=\"echo \\\"a b\\\"\"");
        assert_eq!((key.line(), key.comment.as_str()), (with.clone(), "c"));
        assert_eq!(Line::parse(format!("  {with}\r").as_bytes()), Line::Key(key));
        for comment in ["", "  ", "# ssh-ed25519 x", "\t#"] {
            assert_eq!(Line::parse(comment.as_bytes()), Line::Comment);
        }
        assert_eq!(Line::parse(b"ssh-dss AAAA x"), Line::Other);
        assert_eq!(Line::parse(b"\xff\xfe"), Line::Other);
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_reason() {
        let good = ed25519(1);
        let blob =
            |parts: &[&[u8]]| STANDARD.encode(parts.iter().flat_map(|part| field(part)).collect::<Vec<_>>());
        let rsa = |bytes: usize| format!("ssh-rsa {}", blob(&[b"ssh-rsa", &[1, 0, 1], &vec![0xff; bytes]]));
        for (line, why) in [
            (String::new(), "one word"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----".into(), "private key"),
            ("ssh-ed25519".into(), "end too early"),
            ("ssh-ed25519 !!".into(), "no base64"),
            (good[..good.len() - 8].to_owned(), "end too early"),
            (format!("ssh-ed25519 {}", blob(&[b"ssh-ed25519", &[0; 32], b"more"])), "go on after"),
            (format!("ssh-ed25519 {}", blob(&[b"ssh-ed25519", &[0; 31]])), "31 bytes"),
            (format!("ssh-rsa {}", blob(&[b"ssh-ed25519", &[0; 32]])), "another type"),
            (
                format!("ecdsa-sha2-nistp256 {}", blob(&[b"ecdsa-sha2-nistp256", b"nistp384", &[4; 65]])),
                "no point",
            ),
            (rsa(128), "1024 bits"),
            (rsa(4096), "32768 bits"),
            ("ssh-rsa AAAAB3NzaC1yc2EAAAAA".into(), "end too early"),
            ("ssh-dss AAAAB3NzaC1kc3MAAAAA x".into(), "no type"),
            ("command=\"a ssh-ed25519 AAAA".into(), "no end"),
            (format!("{good}\nssh-rsa x"), "one line"),
            (format!("{good} {}", "c".repeat(MAX_KEY_LINE)), "bytes; at most"),
        ] {
            let error = Key::given(&line, "add").unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(why), "{line:.60} {error}");
        }
        Key::given(&rsa(256), "add").unwrap();
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_strange(
            line in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            blob in proptest::collection::vec(proptest::num::u8::ANY, 0..100),
        ) {
            let _ = Line::parse(&line);
            for kind in ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp521", "sk-ssh-ed25519@openssh.com"] {
                let bytes = [field(kind.as_bytes()), blob.clone()].concat();
                let _ = Line::parse(format!("{kind} {}", STANDARD.encode(bytes)).as_bytes());
            }
        }
    }

    const SAMPLES: &[(&str, &str, u32, &str)] = &[
        (
            "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBL2kawLABdNo3E7rJalzm+YG1jRBITYzjCzAg90ybZW3cvOXr5XEzFNyiN2L8l09nteu6EAOvMZap72vxJOM8GI= some body",
            "ecdsa-sha2-nistp256",
            256,
            "SHA256:R5jmLuIK8M+gflW+r+BDpK/yjcDGj3QuvDZjgLsGrow",
        ),
        (
            "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBAFLBpyk3ZIOaiMY3QUcjCyJWOgs4HUtySVYsi+1+XZ3sYFj7kD4wMKyYqU0fR+NV6EFB1C3zu8lcL+abXFExMIzLABb5yXwGe7P7ADQYAU61jZ10607JhSFmr4AfcFb7xQouJ+aNuaoTCJcvHq4cEbTo+rZ78sBhgtgrGmffE/+DP0hSg== some body",
            "ecdsa-sha2-nistp521",
            521,
            "SHA256:JWQLPWhOkFwh2EHJSsB0G98pNM/ckmzf070IsPqXbXk",
        ),
        (
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0t2wNEDgObt4SS0JgeZJW9rCDnDGZYXFVhiDmJtqz/ some body",
            "ssh-ed25519",
            256,
            "SHA256:WYG6zvbH59bdeHW+XWQBiDAbkf5SuzBExGuc0FF94fE",
        ),
        (
            "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDBxvu6VceWgX11JvOG+rJhqGe83NvPpbZ0zplp7tY9Dr4zZ0ck+sgAOV3UYmiTBbLVWwXhYF5t7XnANRzoynhiZaDo7gflHeMjwchxTKC1usYpid+sJEBAwZ7JMmXSOhpvo9+ArAbDqlJdWJ8J7dnmJ32JoNw6vyHBd551EuERCjHZA3ZZjuwwyfkVnx6Mzfhjf4LvOaaU4Hc92CHmJwEL1g5BkQZ4x1UOSYJhqSSPfc8i6izCWCu9CjhcqYsYiT+chKN7+fMi1mq1gRpbSoOvIf47kR8+Z4dVAJn4yamkEiyRxy/3vKrLuM3EdhXJTfh4xmozUwBWbLO988A8AF1v some body",
            "ssh-rsa",
            2048,
            "SHA256:BmdVZkhj1wBOREKLMYWvH2uh7g6IT3mImo65sZd4p84",
        ),
    ];
}
