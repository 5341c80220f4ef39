//! Whose the name of a host is, and that the host lives. Two keys of the bucket of hosts: `<host>.claim` stays until
//! an operator has the host forgotten, `<host>` goes 90 s after the host was heard last.

use std::collections::BTreeMap;

use drover_schemas::blob::Blob;
use drover_schemas::body::host::HostClaim;
use drover_schemas::{InstallationId, Token, codec};

use super::{ClaimError, Claims, HOST_TTL, INSTALLATION_HEADER, RACES, Written};

/// What follows a host's name in the key of its claim. A name has no dot.
pub const CLAIM_SUFFIX: &str = ".claim";

/// Decides over what is recorded of a host's name. `None`: another installation has it.
#[must_use]
pub fn decide_host(found: Option<&HostClaim>, ours: InstallationId, now_unix_ms: u64) -> Option<HostClaim> {
    let fresh = HostClaim {
        installation: ours,
        seen_unix_ms: now_unix_ms,
        forgotten_unix_ms: None,
        free: false,
        subnets: BTreeMap::new(),
    };
    match found {
        None => Some(fresh),
        Some(claim) if claim.installation == ours => {
            // Others may have taken them since the host was forgotten.
            let subnets = if claim.free { BTreeMap::new() } else { claim.subnets.clone() };
            // What was forgotten stays so, though the host is back.
            Some(HostClaim { forgotten_unix_ms: claim.forgotten_unix_ms, subnets, ..fresh })
        }
        Some(claim) if claim.free => Some(fresh),
        Some(_) => None,
    }
}

impl Claims {
    /// Takes the name of a host for an installation, or says again that it has it.
    ///
    /// # Errors
    /// [`ClaimError::HostTaken`] if another installation has it.
    pub async fn claim_host(
        &self,
        host: &Token,
        installation: InstallationId,
        now_unix_ms: u64,
    ) -> Result<HostClaim, ClaimError> {
        for _ in 0..RACES {
            let (found, revision) = self.read_host_claim(host).await?;
            let Some(claim) = decide_host(found.as_ref(), installation, now_unix_ms) else {
                return Err(self.taken(host, found).await?);
            };
            if found.is_none() {
                // A host of an older version says only that it lives.
                self.alive_is_ours(host, installation).await?;
            }
            if self.write_host_claim(host, &claim, revision).await? {
                return Ok(claim);
            }
        }
        Err(ClaimError::Contended { key: host.to_string() })
    }

    /// Whose the name of a host is.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn host_claim(&self, host: &Token) -> Result<Option<HostClaim>, ClaimError> {
        Ok(self.read_host_claim(host).await?.0)
    }

    /// Notes that an operator had a host forgotten: what it had until now is not its own any more. The name is free
    /// until the installation that had it comes back.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn free_host(&self, host: &Token, now_unix_ms: u64) -> Result<(), ClaimError> {
        for _ in 0..RACES {
            let (found, revision) = self.read_host_claim(host).await?;
            let Some(found) = found else { return Ok(()) };
            let claim = HostClaim { forgotten_unix_ms: Some(now_unix_ms), free: true, ..found };
            if self.write_host_claim(host, &claim, revision).await? {
                return Ok(());
            }
        }
        Err(ClaimError::Contended { key: host.to_string() })
    }

    /// Says that the host lives, with its row of the inventory; the row goes 90 s after the last call.
    ///
    /// # Errors
    /// [`ClaimError::HostTaken`] if another installation lives under the name.
    pub async fn heartbeat(
        &self,
        host: &Token,
        installation: InstallationId,
        value: Blob,
    ) -> Result<u64, ClaimError> {
        let key = host.to_string();
        let wrap = |operation, source| ClaimError::Bucket { operation, key: key.clone(), source };
        for _ in 0..RACES {
            let revision = self.alive_is_ours(host, installation).await?;
            let mark = installation.to_string();
            let headers = [(INSTALLATION_HEADER, mark.as_str())];
            let put = self.hosts.put(&key, value.0.clone(), revision, Some(HOST_TTL), &headers).await;
            if let Written::Done { revision } = put.map_err(|e| wrap("write", e))? {
                return Ok(revision);
            }
        }
        Err(ClaimError::Contended { key: host.to_string() })
    }

    /// What a host said last, if it lives.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn host(&self, host: &Token) -> Result<Option<Blob>, ClaimError> {
        let key = host.to_string();
        let entry = self.hosts.get(&key).await;
        let entry = entry.map_err(|source| ClaimError::Bucket { operation: "read", key, source })?;
        Ok(entry.value.map(Blob))
    }

    /// Takes the row of a host away, as when it is forgotten though it lives.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn remove_row(&self, host: &Token) -> Result<(), ClaimError> {
        let key = host.to_string();
        let wrap = |operation, source| ClaimError::Bucket { operation, key: key.clone(), source };
        for _ in 0..RACES {
            let entry = self.hosts.get(&key).await.map_err(|e| wrap("read", e))?;
            if entry.value.is_none() {
                return Ok(());
            }
            let purged = self.hosts.purge(&key, entry.revision).await.map_err(|e| wrap("remove", e))?;
            if purged != Written::Lost {
                return Ok(());
            }
        }
        Err(ClaimError::Contended { key: host.to_string() })
    }

    /// Takes the row of a host away that stops: it is not there from now on, rather than 90 s later.
    ///
    /// # Errors
    /// [`ClaimError::HostTaken`] if another installation lives under the name.
    pub async fn leave(&self, host: &Token, installation: InstallationId) -> Result<(), ClaimError> {
        let key = host.to_string();
        for _ in 0..RACES {
            let revision = self.alive_is_ours(host, installation).await?;
            let purged = self.hosts.purge(&key, revision).await;
            let purged = purged.map_err(|source| ClaimError::Bucket {
                operation: "remove",
                key: key.clone(),
                source,
            })?;
            // What was still on its way from this host when it was looked at is the row now.
            if purged != Written::Lost {
                return Ok(());
            }
        }
        Err(ClaimError::Contended { key })
    }

    /// The revision of the host's row, if nobody else lives under the name.
    async fn alive_is_ours(&self, host: &Token, ours: InstallationId) -> Result<u64, ClaimError> {
        let key = host.to_string();
        let entry = self.hosts.get(&key).await;
        let entry = entry.map_err(|source| ClaimError::Bucket { operation: "read", key, source })?;
        match entry.header(INSTALLATION_HEADER) {
            Some(other) if entry.value.is_some() && other != ours.to_string() => {
                let installation = other.to_owned();
                Err(ClaimError::HostTaken { host: host.clone(), installation, alive: true })
            }
            _ => Ok(entry.revision),
        }
    }

    async fn taken(&self, host: &Token, claim: Option<HostClaim>) -> Result<ClaimError, ClaimError> {
        let alive = self.host(host).await?.is_some();
        let installation = claim.map(|claim| claim.installation.to_string()).unwrap_or_default();
        Ok(ClaimError::HostTaken { host: host.clone(), installation, alive })
    }

    pub(super) async fn read_host_claim(&self, host: &Token) -> Result<(Option<HostClaim>, u64), ClaimError> {
        let key = format!("{host}{CLAIM_SUFFIX}");
        let entry = self.hosts.get(&key).await;
        let entry =
            entry.map_err(|source| ClaimError::Bucket { operation: "read", key: key.clone(), source })?;
        let Some(value) = entry.value else { return Ok((None, entry.revision)) };
        let claim = codec::decode(&value).map_err(|source| ClaimError::Malformed { key, source })?;
        Ok((Some(claim), entry.revision))
    }

    pub(super) async fn write_host_claim(
        &self,
        host: &Token,
        claim: &HostClaim,
        revision: u64,
    ) -> Result<bool, ClaimError> {
        let key = format!("{host}{CLAIM_SUFFIX}");
        let value = codec::encode(claim).map_err(|source| ClaimError::Encode { key: key.clone(), source })?;
        let put = self.hosts.put(&key, value.into(), revision, None, &[]).await;
        let put = put.map_err(|source| ClaimError::Bucket { operation: "write", key, source })?;
        Ok(put != Written::Lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_with_its_installation_until_it_is_forgotten() {
        let (one, two) = (InstallationId::from_u128(1), InstallationId::from_u128(2));
        let first = decide_host(None, one, 10).unwrap();
        assert_eq!((first.installation, first.seen_unix_ms, first.free), (one, 10, false));
        assert_eq!(decide_host(Some(&first), two, 1 << 50), None, "however long it was silent");
        assert_eq!(decide_host(Some(&first), one, 20).unwrap().seen_unix_ms, 20);
        let subnets = BTreeMap::from([(Token::new("default").unwrap(), "10.64.0.0/20".to_owned())]);
        let with = HostClaim { subnets: subnets.clone(), ..first.clone() };
        assert_eq!(decide_host(Some(&with), one, 25).unwrap().subnets, subnets);
        let forgotten = HostClaim { forgotten_unix_ms: Some(30), free: true, subnets, ..first };
        let next = decide_host(Some(&forgotten), two, 40).unwrap();
        assert_eq!((next.installation, next.forgotten_unix_ms), (two, None));
        let back = decide_host(Some(&forgotten), one, 50).unwrap();
        assert_eq!((back.forgotten_unix_ms, back.free), (Some(30), false), "what it had stays forgotten");
        assert!(back.subnets.is_empty() && next.subnets.is_empty());
        assert_eq!(decide_host(Some(&back), two, 60), None);
    }
}
