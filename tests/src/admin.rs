//! The daemon's own port, with metrics and health.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Where a test puts it: `config["admin"] = json!({"listen": ADMIN})`.
pub const ADMIN: &str = "127.0.0.1:9464";

/// One page: its status and body.
///
/// # Panics
/// The daemon does not answer.
pub async fn page(path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(ADMIN).await.expect("the port is open");
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer of HTTP");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// Whether the metrics say that an alarm lasts.
///
/// # Panics
/// They do not know the alarm.
pub async fn alarm_lasts(alarm: &str) -> bool {
    metric(&format!("drover_alarm{{alarm=\"{alarm}\"}}")).await == 1
}

/// The value of a metric, such as `drover_streams`, with its labels if it has some.
///
/// # Panics
/// The page has no such metric.
pub async fn metric(name: &str) -> u64 {
    let page = page("/metrics").await.1;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("{name} is not in {page}"));
    value.parse().expect("a number")
}
