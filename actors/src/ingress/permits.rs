//! Requests in flight, bounded at the edge: mailboxes behind it are unbounded.
//!
//! A permit rides with its request and is given back when the request is dropped, so the sum of all
//! mailboxes never exceeds the permits. Each namespace has a share; one that floods meets `busy` while
//! the others are served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use drover_schemas::{ErrorBody, ErrorCode, Token};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The right to have one request in flight.
#[derive(Debug)]
pub struct Permit {
    _host: OwnedSemaphorePermit,
    _namespace: OwnedSemaphorePermit,
}

/// Hands out permits.
#[derive(Debug, Clone)]
pub struct Permits {
    host: Arc<Semaphore>,
    per_namespace: usize,
    namespaces: Arc<Mutex<HashMap<Token, Arc<Semaphore>>>>,
}

impl Permits {
    /// `host` requests in flight in all, `per_namespace` of one namespace.
    #[must_use]
    pub fn new(host: usize, per_namespace: usize) -> Self {
        Self { host: Arc::new(Semaphore::new(host)), per_namespace, namespaces: Arc::default() }
    }

    /// A permit, or `busy` at once.
    ///
    /// # Errors
    /// `busy` that says whose limit was reached.
    pub fn acquire(&self, namespace: &Token) -> Result<Permit, ErrorBody> {
        let share = {
            let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
            if namespaces.len() > 4_096 {
                // Idle namespaces need no entry: their permits are all there.
                let full = self.per_namespace;
                namespaces.retain(|_, s| s.available_permits() < full);
            }
            Arc::clone(
                namespaces
                    .entry(namespace.clone())
                    .or_insert_with(|| Arc::new(Semaphore::new(self.per_namespace))),
            )
        };
        let busy = |whose: &str, limit: &str| {
            ErrorBody::new(
                ErrorCode::Busy,
                format!("{whose} has too many requests in flight; repeat it later"),
            )
            .with("operation", "requests")
            .with("limit", limit)
        };
        let namespace =
            share.try_acquire_owned().map_err(|_| busy("the namespace", &self.per_namespace.to_string()))?;
        let host = Arc::clone(&self.host).try_acquire_owned().map_err(|_| busy("the host", "host"))?;
        Ok(Permit { _host: host, _namespace: namespace })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespace_cannot_take_the_share_of_another() {
        let permits = Permits::new(3, 2);
        let (a, b) = (Token::new("a").unwrap(), Token::new("b").unwrap());
        let held = [permits.acquire(&a).unwrap(), permits.acquire(&a).unwrap()];
        assert_eq!(permits.acquire(&a).unwrap_err().code, ErrorCode::Busy);
        let other = permits.acquire(&b).unwrap();
        assert!(permits.acquire(&b).unwrap_err().message.contains("the host"));
        drop((held, other));
        assert!(permits.acquire(&a).is_ok());
    }
}
