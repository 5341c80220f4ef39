//! The state folder and a real nats-server, where there is one on PATH.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A bus of its own, for tests of what speaks over one; ends when it is dropped.
pub(crate) struct TestBus {
    server: Server,
    _state: StateDir,
    _dir: tempfile::TempDir,
}

impl TestBus {
    /// Starts a server; `None`, with a word on it, where there is none.
    pub(crate) async fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(dir.path().join("state"))).unwrap();
        let Ok(binary) = nats_binary::find(None, &state).await else {
            eprintln!("skipped: no nats-server here and none can be fetched");
            return None;
        };
        let mut server = Server::start(&binary, &state, 0).await.unwrap();
        server.wait_ready().await.unwrap();
        Some(Self { server, _state: state, _dir: dir })
    }

    pub(crate) fn client_file(&self) -> ClientFile {
        self.server.client_file()
    }
}

#[test]
fn a_state_folder_has_one_user_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let root = Some(dir.path().join("state"));
    let first = StateDir::open(root.clone()).unwrap();
    assert!(matches!(StateDir::open(root.clone()), Err(DevError::InUse { .. })));
    drop(first);
    assert!(StateDir::open(root).is_ok());
}

#[tokio::test]
async fn the_server_starts_is_reached_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(Some(dir.path().join("state"))).unwrap();
    let Ok(binary) = nats_binary::find(None, &state).await else {
        eprintln!("skipped: no nats-server here and none can be fetched");
        return;
    };
    let mut server = Server::start(&binary, &state, 0).await.unwrap();
    server.wait_ready().await.unwrap();
    let client = server.client_file();
    client.write(&state).unwrap();
    for name in ["client.json", "nats.conf"] {
        let mode = std::fs::metadata(state.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let nobody = async_nats::ConnectOptions::new().connect(&client.url).await;
    assert!(nobody.is_err(), "a stranger was let in");
    server.stop().await.unwrap();

    // The next start takes the same port, and ends what a killed one left.
    let mut left = Server::start(&binary, &state, 0).await.unwrap();
    left.wait_ready().await.unwrap();
    assert_eq!(left.client_file().url, client.url);
    let mut next = Server::start(&binary, &state, 0).await.unwrap();
    assert!(matches!(left.ended().await, DevError::NatsEnded { .. }));
    next.wait_ready().await.unwrap();
    next.stop().await.unwrap();
}
