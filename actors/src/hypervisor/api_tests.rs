use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

/// Answers every connection with `reply` and hands back what was asked.
fn server(
    temp: &tempfile::TempDir,
    reply: Vec<u8>,
) -> (PathBuf, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let path = temp.path().join("api");
    let listener = UnixListener::bind(&path).unwrap();
    let (asked, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = vec![0; 4096];
            let n = stream.read(&mut buffer).await.unwrap_or(0);
            let _ = asked.send(String::from_utf8_lossy(&buffer[..n]).into_owned());
            let _ = stream.write_all(&reply).await;
            let _ = stream.shutdown().await;
        }
    });
    (path, receiver)
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn quick() -> ApiDeadlines {
    let quick = Duration::from_millis(200);
    ApiDeadlines { quick, change: quick, boot: quick }
}

#[tokio::test]
async fn a_call_without_a_body_sends_none() {
    let temp = tempfile::tempdir().unwrap();
    let (path, mut asked) = server(&temp, b"HTTP/1.1 204 \r\n\r\n".to_vec());
    ApiClient::new(path).boot().await.unwrap();
    let request = asked.recv().await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("put /api/v1/vm.boot http/1.1\r\n"), "{request}");
    assert!(!request.contains("content-type") && !request.contains("transfer-encoding"), "{request}");
    assert!(request.ends_with("\r\n\r\n"));
}

#[tokio::test]
async fn a_refusal_keeps_the_chain_of_errors() {
    let temp = tempfile::tempdir().unwrap();
    let (path, _asked) = server(&temp, http("500", r#"["Error from API","The VM could not boot"]"#));
    let error = ApiClient::new(path).boot().await.unwrap_err();
    assert_eq!(error.vmm_errors(), ["Error from API", "The VM could not boot"]);
    assert_eq!(
        crate::chain(&error).to_string(),
        "vm.boot failed: refused with status 500: Error from API: The VM could not boot"
    );
}

#[tokio::test]
async fn no_vm_is_an_answer_of_info_and_an_unknown_state_is_none_of_ours() {
    let temp = tempfile::tempdir().unwrap();
    let (path, _asked) = server(&temp, http("404", r#"["VM is not created"]"#));
    assert_eq!(ApiClient::new(path).info().await.unwrap().state, VmmState::NotCreated);
    let temp = tempfile::tempdir().unwrap();
    let (path, _asked) =
        server(&temp, http("200", r#"{"state":"BreakPoint","config":{},"device_tree":null}"#));
    assert_eq!(ApiClient::new(path).info().await.unwrap().state, VmmState::Unknown);
}

#[tokio::test]
async fn a_silent_vmm_costs_the_deadline_and_no_more() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("api");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = ApiClient::new(path).with_deadlines(quick()).ping().await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
}

#[tokio::test]
async fn a_second_call_waits_its_turn_within_its_own_deadline() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("api");
    let _listener = UnixListener::bind(&path).unwrap();
    let client = ApiClient::new(path).with_deadlines(quick());
    let (first, second) = tokio::join!(client.ping(), client.ping());
    assert!(first.unwrap_err().is_timeout() && second.unwrap_err().is_timeout());
}

#[tokio::test]
async fn an_endless_reply_is_cut_off() {
    let temp = tempfile::tempdir().unwrap();
    let (path, _asked) = server(&temp, http("200", &"x".repeat(REPLY_MAX + 1)));
    let error = ApiClient::new(path).ping().await.unwrap_err();
    assert!(matches!(error.kind, ApiErrorKind::ReplyTooLarge), "{error:?}");
}

#[tokio::test]
async fn what_is_not_http_or_not_the_reply_is_an_error() {
    for reply in [b"\x00\x01\x02\r\n\r\n".to_vec(), Vec::new(), http("200", "nonsense")] {
        let temp = tempfile::tempdir().unwrap();
        let (path, _asked) = server(&temp, reply);
        let error = ApiClient::new(path).with_deadlines(quick()).ping().await.unwrap_err();
        assert!(matches!(error.kind, ApiErrorKind::Http(_) | ApiErrorKind::Garbage(_)), "{error:?}");
    }
}

#[tokio::test]
async fn another_process_on_the_socket_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (path, _asked) = server(&temp, http("200", r#"{"version":"53.0.0"}"#));
    let client = ApiClient::new(path.clone()).with_peer(std::process::id());
    assert_eq!(client.ping().await.unwrap().version, "53.0.0");
    let error = ApiClient::new(path).with_peer(1).ping().await.unwrap_err();
    assert!(matches!(error.kind, ApiErrorKind::WrongPeer { wanted: 1, .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_there_is_told_from_every_other_failure() {
    let temp = tempfile::tempdir().unwrap();
    assert!(ApiClient::new(temp.path().join("none")).ping().await.unwrap_err().is_connect());
}
