//! The seed disk: whether there is one, and what may be on it.

use drover_schemas::ErrorBody;
use drover_schemas::body::spec::{SeedSpec, VmSpec};

use super::invalid;

const MAX_USER_DATA: usize = 16 * 1024;
const MAX_KEYS: usize = 32;
/// One of RSA with 16,384 bits and a comment has less.
const MAX_KEY: usize = 4 * 1024;
/// How the types of public keys begin.
const TYPES: [&str; 4] = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];

/// The seed disk of a spec over its template: the request's goes before the template's, and user-data needs one.
///
/// # Errors
/// `invalid_argument` that names the field.
pub(super) fn resolve(spec: &VmSpec, base: &VmSpec) -> Result<Option<SeedSpec>, ErrorBody> {
    let user_data = spec.user_data.as_ref().or(base.user_data.as_ref());
    if user_data.is_some_and(|data| data.reveal().len() > MAX_USER_DATA) {
        return Err(invalid("spec.user_data", format!("at most {MAX_USER_DATA} bytes are taken")));
    }
    let Some(seed) = spec.seed.as_ref().or(base.seed.as_ref()) else {
        return Ok(user_data.map(|_| SeedSpec::default()));
    };
    check_keys(&seed.ssh_keys)?;
    if seed.enabled {
        return Ok(Some(seed.clone()));
    }
    if spec.user_data.is_some() || !seed.ssh_keys.is_empty() || seed.agent {
        let text = "it says that there is no seed disk, by which user_data, ssh_keys and the agent come to the guest; leave one out";
        return Err(invalid("spec.seed.enabled", text));
    }
    Ok(None)
}

fn check_keys(keys: &[String]) -> Result<(), ErrorBody> {
    if keys.len() > MAX_KEYS {
        return Err(invalid("spec.seed.ssh_keys", format!("at most {MAX_KEYS} keys")));
    }
    let is_key = |key: &String| {
        let mut words = key.split(' ');
        let (kind, body) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
        key.len() <= MAX_KEY
            && !key.chars().any(char::is_control)
            && TYPES.iter().any(|known| kind.starts_with(known))
            && body.len() >= 16
            && body.chars().all(base64)
    };
    match keys.iter().position(|key| !is_key(key)) {
        Some(index) => Err(invalid(
            &format!("spec.seed.ssh_keys[{index}]"),
            "it is no public key as `ssh-keygen` writes one, such as \"ssh-ed25519 AAAA... name\"",
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use drover_schemas::secret::Secret;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJq3yZs8 me@home";

    fn spec(json: &str) -> VmSpec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn there_is_one_if_it_is_asked_for_or_needed() {
        let none = VmSpec::default();
        let data = VmSpec { user_data: Some(Secret::new("#cloud-config")), ..VmSpec::default() };
        let on = spec(r#"{"seed": {}}"#);
        let off = spec(r#"{"seed": {"enabled": false}}"#);
        assert_eq!(resolve(&none, &none), Ok(None));
        for (request, template) in [(&data, &none), (&none, &data), (&on, &none), (&none, &on), (&on, &off)] {
            assert_eq!(resolve(request, template), Ok(Some(SeedSpec::default())));
        }
        // The request does without what its template has.
        assert_eq!(resolve(&off, &data), Ok(None));
        assert_eq!(resolve(&off, &on), Ok(None));
        let keys = spec(&format!(r#"{{"seed": {{"ssh_keys": ["{KEY}"]}}}}"#));
        assert_eq!(resolve(&keys, &on).unwrap().unwrap().ssh_keys, [KEY]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        let refused =
            |request: &VmSpec| resolve(request, &VmSpec::default()).unwrap_err().details["field"].clone();
        let long =
            VmSpec { user_data: Some(Secret::new("x".repeat(MAX_USER_DATA + 1))), ..VmSpec::default() };
        assert_eq!(refused(&long), "spec.user_data");
        assert_eq!(refused(&spec(r#"{"seed": {"enabled": false}, "user_data": "x"}"#)), "spec.seed.enabled");
        assert_eq!(refused(&spec(r#"{"seed": {"enabled": false, "agent": true}}"#)), "spec.seed.enabled");
        for key in
            ["", "hunter2", "ssh-ed25519", "ssh-ed25519 short", "command=\"x\" ssh-rsa AAAAB3NzaC1yc2EAAAA"]
        {
            let seed = SeedSpec { ssh_keys: vec![KEY.into(), key.into()], ..SeedSpec::default() };
            assert_eq!(
                refused(&VmSpec { seed: Some(seed), ..VmSpec::default() }),
                "spec.seed.ssh_keys[1]",
                "{key}"
            );
        }
        let lines = SeedSpec { ssh_keys: vec![format!("{KEY}\n{KEY}")], ..SeedSpec::default() };
        assert_eq!(refused(&VmSpec { seed: Some(lines), ..VmSpec::default() }), "spec.seed.ssh_keys[0]");
        let many = SeedSpec { ssh_keys: vec![KEY.into(); 33], ..SeedSpec::default() };
        assert_eq!(refused(&VmSpec { seed: Some(many), ..VmSpec::default() }), "spec.seed.ssh_keys");
    }
}
