//! Authorities and certificates of a test, in PEM, made by `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files of a certificate.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Signs certificates.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    own: Certificate,
}

impl Authority {
    /// Makes one, whose files are in `folder`.
    ///
    /// # Panics
    /// `openssl` cannot.
    #[must_use]
    pub fn new(folder: &Path, name: &str) -> Self {
        let own = files(folder, name);
        let args = format!("req -x509 {KEY} -days 2 -keyout {name}.key -out {name}.pem -subj /CN={name}");
        openssl(folder, &args);
        Self { folder: folder.to_owned(), own }
    }

    /// Its own certificate, for those who shall trust it.
    #[must_use]
    pub fn cert(&self) -> &Path {
        &self.own.cert
    }

    /// A certificate for `place`, as `IP:127.0.0.1` or `DNS:bus`, that is valid for `days`; it has expired if they are
    /// less than nothing.
    ///
    /// # Panics
    /// `openssl` cannot make it.
    #[must_use]
    pub fn certificate(&self, name: &str, place: &str, days: i32) -> Certificate {
        let (ca, ca_key) = (self.own.cert.display(), self.own.key.display());
        openssl(&self.folder, &format!("req -new {KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        let extensions = format!("subjectAltName={place}\nbasicConstraints=critical,CA:FALSE\n");
        fs::write(self.folder.join(format!("{name}.ext")), extensions).expect("write");
        let args = format!(
            "x509 -req -in {name}.csr -CA {ca} -CAkey {ca_key} -days {days} -extfile {name}.ext -out {name}.pem"
        );
        openssl(&self.folder, &args);
        files(&self.folder, name)
    }
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

fn files(folder: &Path, name: &str) -> Certificate {
    Certificate { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) }
}

fn openssl(folder: &Path, args: &str) {
    let mut command = Command::new("openssl");
    command.args(args.split_whitespace()).current_dir(folder).stdin(Stdio::null());
    let done = command.output().expect("openssl");
    assert!(done.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&done.stderr));
}
