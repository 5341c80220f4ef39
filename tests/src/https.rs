//! A server of files with `https`, which does what a test says: breaks off, is silent, passes on, lies.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::certificates::Certificate;

/// What is found under a path.
#[derive(Debug, Clone)]
pub enum Page {
    /// A file; a part of it if that is asked for.
    File(Vec<u8>),
    /// The same, but each answer breaks off after so many bytes.
    Breaks(Vec<u8>, usize),
    /// The same, but after so many bytes of the file the server is silent.
    Silent(Vec<u8>, usize),
    /// The first answer breaks off in the middle of one file; another file is there then.
    Changes(Vec<u8>, Vec<u8>),
    /// A file without its length.
    NoLength(Vec<u8>),
    /// It is elsewhere.
    Elsewhere(String),
    /// An error.
    Status(u16),
    /// For those who show this as `Authorization`; others are told by `WWW-Authenticate` how to get it.
    Wants {
        /// What is to be shown.
        shown: String,
        /// What others are told.
        challenge: String,
        /// What is there.
        page: Box<Page>,
    },
}

/// A request that came: its path, and the first byte that was asked for.
pub type Came = (String, Option<usize>);

/// The server, until it is dropped.
#[derive(Debug)]
pub struct Https {
    /// Its port of 127.0.0.1.
    pub port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    pages: BTreeMap<String, Page>,
    came: Mutex<Vec<Came>>,
    strangers: Mutex<Vec<String>>,
    shown: Mutex<Vec<(String, String)>>,
}

impl Https {
    /// Starts it on a free port, which `pages` may need to know.
    ///
    /// # Panics
    /// The certificate cannot be used.
    pub async fn start(certificate: &Certificate, pages: impl FnOnce(u16) -> BTreeMap<String, Page>) -> Self {
        let chain = CertificateDer::pem_file_iter(&certificate.cert).expect("a certificate");
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let config = config.with_single_cert(chain, key).expect("a certificate with its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("a port").port();
        let shared = Arc::new(Shared {
            pages: pages(port),
            came: Mutex::default(),
            strangers: Mutex::default(),
            shown: Mutex::default(),
        });
        let own = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, shared) = (acceptor.clone(), Arc::clone(&own));
                // A client that breaks off is what some tests are about.
                tokio::spawn(async move { drop(serve(&acceptor, socket, &shared).await) });
            }
        });
        Self { port, shared, task }
    }

    /// Where something is.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}/{path}", self.port)
    }

    /// What was asked for a path.
    #[must_use]
    pub fn came(&self, path: &str) -> Vec<Option<usize>> {
        let came = self.shared.came.lock().unwrap_or_else(PoisonError::into_inner);
        came.iter().filter(|(asked, _)| asked == path).map(|(_, from)| *from).collect()
    }

    /// Paths that were asked for with an `Authorization` that nobody had wanted.
    #[must_use]
    pub fn strangers(&self) -> Vec<String> {
        self.shared.strangers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every `Authorization` that came, with the path, but for its query.
    #[must_use]
    pub fn shown(&self) -> Vec<(String, String)> {
        self.shared.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(acceptor: &TlsAcceptor, socket: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut stream = acceptor.accept(socket).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    let range = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let from = range.and_then(|range| range.trim_end_matches('-').parse::<usize>().ok());
    let before = {
        let mut came = shared.came.lock().unwrap_or_else(PoisonError::into_inner);
        came.push((path.clone(), from));
        came.iter().filter(|(asked, _)| *asked == path).count()
    };
    let Some(mut page) = shared.pages.get(path.split('?').next().unwrap_or_default()) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    };
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let showed = header("authorization");
    if let Some(showed) = &showed {
        let path = path.split('?').next().unwrap_or_default().to_owned();
        shared.shown.lock().unwrap_or_else(PoisonError::into_inner).push((path, showed.clone()));
    }
    if let Page::Wants { shown, challenge, page: behind } = page {
        if showed.as_ref() != Some(shown) {
            let answer = format!(
                "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: {challenge}\r\ncontent-length: 0\r\n\r\n"
            );
            return stream.write_all(answer.as_bytes()).await;
        }
        page = behind;
    } else if showed.is_some() {
        shared.strangers.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
    }
    let (content, sends, tag) = match page {
        Page::File(content) => (content, content.len(), "one"),
        Page::Breaks(content, sends) | Page::Silent(content, sends) => (content, *sends, "one"),
        Page::Changes(first, _) if before == 1 => (first, first.len() / 2, "one"),
        Page::Changes(_, then) => (then, then.len(), "two"),
        Page::NoLength(content) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
            stream.write_all(content).await?;
            return stream.shutdown().await;
        }
        Page::Elsewhere(to) => {
            let answer = format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
            return stream.write_all(answer.as_bytes()).await;
        }
        Page::Status(status) => {
            let answer = format!("HTTP/1.1 {status} So\r\ncontent-length: 0\r\n\r\n");
            return stream.write_all(answer.as_bytes()).await;
        }
        Page::Wants { .. } => return Err(io::Error::other("it is wanted twice")),
    };
    let is_same = header("if-range").is_none_or(|known| known == format!("\"{tag}\""));
    let from = from.filter(|from| is_same && *from < content.len());
    let rest = &content[from.unwrap_or(0)..];
    let sends =
        if matches!(page, Page::Silent(..)) { sends.saturating_sub(from.unwrap_or(0)) } else { sends };
    let status = match from {
        Some(from) => format!(
            "206 Partial Content\r\ncontent-range: bytes {from}-{}/{}",
            content.len() - 1,
            content.len()
        ),
        None => "200 OK".to_owned(),
    };
    let answer = format!("HTTP/1.1 {status}\r\netag: \"{tag}\"\r\ncontent-length: {}\r\n\r\n", rest.len());
    stream.write_all(answer.as_bytes()).await?;
    stream.write_all(&rest[..sends.min(rest.len())]).await?;
    stream.flush().await?;
    if matches!(page, Page::Silent(..)) {
        // Until the client has had enough.
        let _ = stream.read_u8().await;
    }
    stream.shutdown().await
}
