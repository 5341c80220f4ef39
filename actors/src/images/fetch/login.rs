//! Logins of registries: which one is for whom, and how its password is read. The worker is given that of the registry
//! it asks, over its standard input, and no other.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use drover_schemas::ErrorCode;
use drover_schemas::secret::Secret;
use serde::{Deserialize, Serialize};

use super::policy::split;

/// A password is never longer, in bytes: some are whole tokens.
const LONGEST: usize = 16 * 1024;

/// How the host logs in at a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "Unread")]
pub struct RegistryLogin {
    /// The registry as references name it, with `:port` if it is not 443; it must be one of `images.urls.hosts`.
    pub host: String,
    /// Who logs in.
    pub user: String,
    /// A file of root's that nobody else may read, with the password or the token that is given in its place. It is read
    /// anew for each image.
    pub password_file: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unread {
    host: String,
    user: String,
    password_file: PathBuf,
}

/// What should be a login is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotALogin {
    /// The host is something else.
    #[error("host of a registry is its name or address, with :port if it is not 443, and nothing more")]
    Host,
    /// The user cannot be shown to a server.
    #[error("user of a registry is one or more visible characters, and none of them is a colon")]
    User,
}

impl TryFrom<Unread> for RegistryLogin {
    type Error = NotALogin;

    fn try_from(Unread { host, user, password_file }: Unread) -> Result<Self, NotALogin> {
        if host.is_empty() || host.contains(['/', '@', '*', '?', '#']) || host.contains(char::is_whitespace) {
            return Err(NotALogin::Host);
        }
        // What stands before the first colon is the user.
        if user.is_empty() || user.contains(':') || user.contains(char::is_control) {
            return Err(NotALogin::User);
        }
        Ok(Self { host, user, password_file })
    }
}

/// The password of a login cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// It is not there.
    #[error("read {path}, the password_file of images.urls.registries")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may know it.
    #[error(
        "{path}, the password_file of images.urls.registries, is not root's alone to read (chown root, chmod 600)"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// It is none.
    #[error(
        "{path}, the password_file of images.urls.registries, holds no password: one line of at most {LONGEST} bytes"
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
}

impl PasswordError {
    /// Its code on the bus.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Exposed { .. } => ErrorCode::PermissionDenied,
            Self::Read { .. } | Self::Content { .. } => ErrorCode::Internal,
        }
    }
}

/// Whom the worker is at the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    user: String,
    password: Secret,
}

impl Credentials {
    /// The value of `Authorization` that shows them.
    #[must_use]
    pub fn basic(&self) -> Secret {
        let both = format!("{}:{}", self.user, self.password.reveal());
        Secret::new(format!("Basic {}", STANDARD.encode(both)))
    }
}

impl RegistryLogin {
    /// Whether it is for the registry of a reference.
    #[must_use]
    pub fn is_for(&self, registry: &str) -> bool {
        let (own, other) = (self.host.to_ascii_lowercase(), registry.to_ascii_lowercase());
        split(&own) == split(&other)
    }

    /// Reads the password. Blocks.
    ///
    /// # Errors
    /// [`PasswordError`]
    pub fn credentials(&self) -> Result<Credentials, PasswordError> {
        Ok(Credentials { user: self.user.clone(), password: password(&self.password_file)? })
    }
}

fn password(path: &Path) -> Result<Secret, PasswordError> {
    let failed = |source| PasswordError::Read { path: path.to_owned(), source };
    // A pipe would be waited for.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblock).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    let own = [0, rustix::process::geteuid().as_raw()].contains(&about.uid());
    if !own || about.mode() & 0o077 != 0 {
        return Err(PasswordError::Exposed { path: path.to_owned() });
    }
    let mut text = String::new();
    if about.is_file() {
        file.take(LONGEST as u64 + 2).read_to_string(&mut text).map_err(failed)?;
    }
    let line = text.trim_end_matches(['\n', '\r']);
    if line.is_empty() || line.len() > LONGEST || line.contains(char::is_control) {
        return Err(PasswordError::Content { path: path.to_owned() });
    }
    Ok(Secret::new(line))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn login(host: &str) -> RegistryLogin {
        RegistryLogin { host: host.into(), user: "me".into(), password_file: "/none".into() }
    }

    #[test]
    fn a_login_is_for_one_registry_at_one_port() {
        for (host, registry) in [
            ("registry.example", "registry.example"),
            ("registry.example:443", "registry.example"),
            ("Registry.Example", "registry.example:443"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert!(login(host).is_for(registry), "{host} {registry}");
        }
        for (host, registry) in [
            ("registry.example", "registry.example:5000"),
            ("registry.example", "evil.registry.example"),
            ("registry.example", "registry.example.evil"),
            ("registry.example:5000", "registry.example"),
        ] {
            assert!(!login(host).is_for(registry), "{host} {registry}");
        }
    }

    #[test]
    fn a_login_that_is_none_is_refused() {
        let read = |host: &str, user: &str| {
            let login = serde_json::json!({"host": host, "user": user, "password_file": "/p"});
            serde_json::from_value::<RegistryLogin>(login)
        };
        assert!(read("registry.example:5000", "robot$ci").is_ok());
        for host in ["", "https://registry.example", "registry.example/x", "*.example", "me@registry.example"]
        {
            assert!(read(host, "me").is_err(), "{host}");
        }
        for user in ["", "me:secret", "me\n"] {
            assert!(read("registry.example", user).is_err(), "{user}");
        }
    }

    #[test]
    fn a_password_that_others_may_read_is_not_used_and_none_is_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let given = |text: &str, mode: u32| {
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            RegistryLogin { password_file: path.clone(), ..login("r") }.credentials()
        };
        let read = given("pass:word\n", 0o600).unwrap();
        assert_eq!(read.basic().reveal(), "Basic bWU6cGFzczp3b3Jk");
        assert!(!format!("{read:?}").contains("pass:word"));
        for mode in [0o644, 0o640, 0o604, 0o620] {
            assert!(matches!(given("secret", mode), Err(PasswordError::Exposed { .. })), "{mode:o}");
        }
        for text in ["", "\n", "two\nlines", &"x".repeat(LONGEST + 1)] {
            assert!(matches!(given(text, 0o600), Err(PasswordError::Content { .. })));
        }
        assert!(matches!(login("r").credentials(), Err(PasswordError::Read { .. })));
        let folder = RegistryLogin { password_file: dir.path().into(), ..login("r") };
        assert!(folder.credentials().is_err());
    }
}
