//! Passwords as the bus server stores them.

/// What bcrypt looks at; the rest of a longer password would not count.
const MAX: usize = 72;
/// What an attack on a stolen file costs: each step doubles it, and each login too.
pub const COST: u32 = 11;

/// A password cannot be hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// It is empty or longer than what counts.
    #[error("a password has 1 to {MAX} bytes, this one has {len}")]
    Length {
        /// Its length.
        len: usize,
    },
    /// bcrypt failed.
    #[error("hash the password")]
    Bcrypt {
        /// Why.
        #[source]
        source: bcrypt::BcryptError,
    },
}

/// The bcrypt hash of a password, with a salt by chance.
///
/// # Errors
/// The password is empty or too long, or the system has no random numbers.
pub fn hash(password: &str, cost: u32) -> Result<String, HashError> {
    if password.is_empty() || password.len() > MAX {
        return Err(HashError::Length { len: password.len() });
    }
    let parts = bcrypt::hash_with_result(password, cost).map_err(|source| HashError::Bcrypt { source })?;
    // The form that the server's own tools write.
    Ok(parts.format_for_version(bcrypt::Version::TwoA))
}

/// Whether a text is a hash that the server takes.
pub(super) fn is_hash(text: &str) -> bool {
    let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|prefix| text.strip_prefix(prefix));
    let Some((cost, digest)) = rest.and_then(|rest| rest.split_once('$')) else { return false };
    cost.len() == 2
        && cost.parse::<u32>().is_ok_and(|cost| (4..=31).contains(&cost))
        && digest.len() == 53
        && digest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'/')
}
