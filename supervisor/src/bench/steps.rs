//! How long each step of the host's in a boot took, by its metrics. These are sums over all boots, so they are read before
//! and after one.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long the page may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A page is never longer.
const MAX_PAGE: u64 = 16 << 20;
/// How a line of the page begins that counts.
const METRIC: &str = "drover_boot_step_seconds_";

/// Why the steps of a boot are not known.
#[derive(Debug, thiserror::Error)]
pub enum StepsError {
    /// Nobody said where the page is.
    #[error("name the host's address for metrics (admin.listen of its configuration) with --admin")]
    NoAddress,
    /// There is no page.
    #[error("read the metrics at {address}")]
    Read {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others boot on the host, or it is of a version that does not tell.
    #[error("the host tells of {boots} boots with a step {step:?} where one was looked for")]
    Boots {
        /// How many.
        boots: u64,
        /// The step.
        step: &'static str,
    },
}

/// Count and seconds of each step, of all boots of a daemon.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals(BTreeMap<String, Total>);

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Total {
    boots: u64,
    seconds: f64,
}

impl Totals {
    /// What the daemon says at this time.
    ///
    /// # Errors
    /// [`StepsError`]
    pub async fn now(address: Option<SocketAddr>) -> Result<Self, StepsError> {
        let address = address.ok_or(StepsError::NoAddress)?;
        let page = timeout(PATIENCE, page(address)).await;
        let page = page.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        Ok(Self::read(&page.map_err(|source| StepsError::Read { address, source })?))
    }

    fn read(page: &str) -> Self {
        let mut totals = BTreeMap::<String, Total>::new();
        for (field, step, value) in page.lines().filter_map(fields) {
            let total = totals.entry(step.to_owned()).or_default();
            match field {
                "count" => total.boots = value.parse().unwrap_or_default(),
                "sum" => total.seconds = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
        Self(totals)
    }

    /// Seconds that `step` took in the one boot since `before`.
    ///
    /// # Errors
    /// [`StepsError::Boots`]
    pub fn since(&self, before: &Self, step: &'static str) -> Result<f64, StepsError> {
        let of = |totals: &Self| totals.0.get(step).copied().unwrap_or_default();
        let (now, then) = (of(self), of(before));
        match now.boots.saturating_sub(then.boots) {
            1 => Ok((now.seconds - then.seconds).max(0.0)),
            boots => Err(StepsError::Boots { boots, step }),
        }
    }
}

/// `sum`, `network` and `0.25` of a line about a step; buckets have more labels.
fn fields(line: &str) -> Option<(&str, &str, &str)> {
    let (field, rest) = line.strip_prefix(METRIC)?.split_once("{step=\"")?;
    let (step, value) = rest.split_once("\"} ")?;
    (!step.contains('"')).then_some((field, step, value))
}

async fn page(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.take(MAX_PAGE).read_to_string(&mut text).await?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("it answers {:?}", text.lines().next().unwrap_or_default()))),
    }
}

#[cfg(test)]
mod tests {
    use drover_actors::metrics::{BootLabels, Metrics};
    use tokio::net::TcpListener;

    use super::*;

    fn observed(metrics: &Metrics, seconds: f64) -> Totals {
        metrics.boot_steps.get_or_create(&BootLabels { step: "disks" }).observe(seconds);
        Totals::read(&metrics.page())
    }

    #[test]
    fn a_step_is_what_one_boot_has_added() {
        let metrics = Metrics::default();
        let none = Totals::read(&metrics.page());
        assert_eq!(none, Totals::default());
        let first = observed(&metrics, 0.25);
        let second = observed(&metrics, 0.5);
        assert_eq!(first.since(&none, "disks").unwrap(), 0.25);
        assert_eq!(second.since(&first, "disks").unwrap(), 0.5);
        let boots = |now: &Totals, before| match now.since(before, "disks") {
            Err(StepsError::Boots { boots, .. }) => boots,
            other => panic!("{other:?}"),
        };
        assert_eq!((boots(&second, &none), boots(&second, &second), boots(&none, &second)), (2, 0, 0));
        assert!(second.since(&first, "network").is_err());
    }

    #[tokio::test]
    async fn a_page_is_read_and_another_answer_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            for head in ["HTTP/1.0 200 OK", "HTTP/1.0 404 Not Found"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let page = format!(
                    "{head}\r\n\r\n{METRIC}sum{{step=\"disks\"}} 0.5\n{METRIC}count{{step=\"disks\"}} 1\n"
                );
                let mut request = [0; 25];
                stream.read_exact(&mut request).await.unwrap();
                stream.write_all(page.as_bytes()).await.unwrap();
            }
        };
        let client = async {
            let totals = Totals::now(Some(address)).await.unwrap();
            assert_eq!(totals.since(&Totals::default(), "disks").unwrap(), 0.5);
            let error = drover_actors::chain(&Totals::now(Some(address)).await.unwrap_err()).to_string();
            assert!(error.contains("404"), "{error}");
        };
        tokio::join!(server, client);
        assert!(matches!(Totals::now(None).await, Err(StepsError::NoAddress)));
    }
}
