//! Every way in which a NATS server can know who connects: what it is configured with, and what a host
//! then has to say.

use std::fs;
use std::path::{Path, PathBuf};

use async_nats::ConnectOptions;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::certificates::{Authority, Certificate};

/// One way in.
#[derive(Debug, Clone)]
pub struct Login {
    /// What it is called in a failure.
    pub name: &'static str,
    /// For the server's configuration.
    pub rules: String,
    /// For the host's configuration, below `bus`.
    pub settings: Value,
    /// What the host names when the server refuses it.
    pub names: &'static str,
    /// What nobody may find in a log.
    pub secret: String,
    client: Client,
}

#[derive(Debug, Clone)]
enum Client {
    Password(String),
    Token(String),
    Nkey(String),
    Credentials(String),
    Tls { ca: PathBuf, identity: Option<(PathBuf, PathBuf)> },
}

impl Login {
    /// The same way in for a client of the test.
    ///
    /// # Panics
    /// The credentials are not well formed.
    #[must_use]
    pub fn options(&self) -> ConnectOptions {
        let options = ConnectOptions::new().retry_on_initial_connect();
        match &self.client {
            Client::Password(password) => options.user_and_password("host".into(), password.clone()),
            Client::Token(token) => options.token(token.clone()),
            Client::Nkey(seed) => options.nkey(seed.clone()),
            Client::Credentials(text) => options.credentials(text).expect("credentials"),
            Client::Tls { ca, identity } => {
                let options = options.add_root_certificates(ca.clone()).require_tls(true);
                match identity.clone() {
                    Some((cert, key)) => options.add_client_certificate(cert, key),
                    None => options,
                }
            }
        }
    }
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("write");
    path
}

/// A user with a password.
#[must_use]
pub fn password(dir: &Path, secret: &str) -> Login {
    let file = write(dir, &format!("password-{}", secret.len()), &format!("{secret}\n"));
    Login {
        name: "password",
        rules: format!("authorization {{ user: host, password: {secret} }}"),
        settings: json!({"user": "host", "password_file": file}),
        names: "and its password",
        secret: secret.to_owned(),
        client: Client::Password(secret.to_owned()),
    }
}

/// A token.
#[must_use]
pub fn token(dir: &Path, secret: &str) -> Login {
    let file = write(dir, &format!("token-{}", secret.len()), &format!("{secret}\n"));
    Login {
        name: "token",
        rules: format!("authorization {{ token: {secret} }}"),
        settings: json!({"token_file": file}),
        names: "bus.token_file",
        secret: secret.to_owned(),
        client: Client::Token(secret.to_owned()),
    }
}

/// A user's nkey.
///
/// # Panics
/// The system has no random numbers.
#[must_use]
pub fn nkey(dir: &Path) -> Login {
    let pair = KeyPair::new_user();
    let seed = pair.seed().expect("a seed");
    let file = write(dir, &format!("{}.nk", pair.public_key()), &format!("{seed}\n"));
    Login {
        name: "nkey",
        rules: format!("authorization {{ users: [{{ nkey: {} }}] }}", pair.public_key()),
        settings: json!({"nkey_seed_file": file}),
        names: "bus.nkey_seed_file",
        secret: seed.clone(),
        client: Client::Nkey(seed),
    }
}

/// A token of NATS' own form: claims about `subject`, signed by `by`.
fn jwt(by: &KeyPair, subject: &str, name: &str, nats: &Value) -> String {
    let part = |value: &Value| BASE64URL.encode(value.to_string());
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let claims = json!({
        "jti": subject, "iat": 1_700_000_000, "iss": by.public_key(), "name": name, "sub": subject, "nats": nats,
    });
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = by.sign(signed.as_bytes()).expect("sign");
    format!("{signed}.{}", BASE64URL.encode(signature))
}

/// A credentials file of a user, under an operator with an account that may use JetStream.
///
/// # Panics
/// The system has no random numbers.
#[must_use]
pub fn credentials(dir: &Path) -> Login {
    let (operator, system, account, user) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_user());
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
        "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let of_account = |pair: &KeyPair, name: &str, limits: &Value| {
        let nats = json!({"limits": limits, "type": "account", "version": 2});
        jwt(&operator, &pair.public_key(), name, &nats)
    };
    let mut plain = limits.clone();
    for storage in ["mem_storage", "disk_storage", "streams", "consumer"] {
        plain[storage] = json!(0);
    }
    let kind = json!({"type": "operator", "version": 2});
    let rules = format!(
        "operator: {}\nsystem_account: {sys}\nresolver: MEMORY\nresolver_preload {{\n {sys}: {}\n {}: {}\n}}",
        jwt(&operator, &operator.public_key(), "op", &kind),
        of_account(&system, "SYS", &plain),
        account.public_key(),
        of_account(&account, "hosts", &limits),
        sys = system.public_key(),
    );
    let nats = json!({
        "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2,
    });
    let token = jwt(&account, &user.public_key(), "host", &nats);
    let seed = user.seed().expect("a seed");
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    let file = write(dir, &format!("{}.creds", user.public_key()), &text);
    Login {
        name: "credentials",
        rules,
        settings: json!({"credentials_file": file}),
        names: "bus.credentials_file",
        secret: seed,
        client: Client::Credentials(text),
    }
}

/// TLS with an authority of its own; with `mutual`, the server asks for the client's certificate too.
///
/// # Panics
/// `openssl` cannot make the certificates.
#[must_use]
pub fn tls(dir: &Path, authority: &str, mutual: bool) -> Login {
    let signs = Authority::new(dir, &format!("{authority}-ca"));
    let [server, client] =
        ["server", "client"].map(|of| signs.certificate(&format!("{authority}-{of}"), "IP:127.0.0.1", 2));
    let ca = signs.cert().to_owned();
    let verify = if mutual { format!("ca_file: {ca:?}, verify: true") } else { String::new() };
    let Certificate { cert, key } = server;
    let mut settings = json!({"tls": {"ca": ca}});
    let secret = fs::read_to_string(&client.key).expect("a key");
    let identity = mutual.then_some((client.cert, client.key));
    if let Some((cert, key)) = &identity {
        settings["tls"]["cert"] = json!(cert);
        settings["tls"]["key"] = json!(key);
    }
    Login {
        name: if mutual { "mutual TLS" } else { "TLS" },
        rules: format!("tls {{ cert_file: {cert:?}, key_file: {key:?}, {verify} }}"),
        settings,
        names: "bus.tls",
        secret: secret.lines().nth(1).expect("a key").to_owned(),
        client: Client::Tls { ca, identity },
    }
}
