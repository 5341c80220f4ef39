//! Images from OCI registries, in the process without rights: [`reference`](self::reference) says what is asked for,
//! [`manifest`](self::manifest) which of what is there is taken, [`layers`](self::layers) finds the file in the layers
//! of a container disk, and [`pull`](self::pull) asks. All but the last are pure.

mod challenge;
mod layers;
mod manifest;
pub(super) mod pull;
mod reference;
mod refused;

pub(super) use self::manifest::Blob;
pub use self::reference::Reference;
pub use self::refused::Refused;

/// `sha256:` and 64 lower-case hexadecimal digits.
fn is_digest(text: &str) -> bool {
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    text.strip_prefix("sha256:").is_some_and(|digits| digits.len() == 64 && digits.bytes().all(hex))
}
