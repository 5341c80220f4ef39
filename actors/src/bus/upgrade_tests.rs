use super::*;
use crate::bus::assets::inspect;
use crate::bus::testing::NatsServer;

fn root() -> Token {
    Token::new("drover").unwrap()
}

async fn js(server: &NatsServer) -> Context {
    let client = async_nats::connect(format!("127.0.0.1:{}", server.port)).await.unwrap();
    async_nats::jetstream::new(client)
}

fn changed(done: &[(String, Outcome)]) -> Vec<String> {
    let mut all = Vec::new();
    for (asset, outcome) in done {
        if let Outcome::Changed(differences) | Outcome::Differs(differences) = outcome {
            all.extend(differences.iter().map(|d| format!("{asset} {}", d.setting)));
        }
    }
    all
}

#[tokio::test]
async fn what_is_absent_is_made_once_and_a_second_time_changes_nothing() {
    let Some(server) = NatsServer::start("").await else { return };
    let js = js(&server).await;
    for change in [false, true] {
        let made = bring_up(&js, &root(), &Wishes::default(), change).await.unwrap();
        assert_eq!(made.len(), 6);
        let wanted = if change { Outcome::Unchanged } else { Outcome::Created };
        assert!(made.iter().all(|(_, outcome)| *outcome == wanted), "{made:?}");
    }
}

#[tokio::test]
async fn an_upgrade_mends_what_differs_and_keeps_what_an_operator_chose() {
    let Some(server) = NatsServer::start("").await else { return };
    let js = js(&server).await;
    let wishes = Wishes { events_max_bytes: Some(64 << 20), ..Wishes::default() };
    bring_up(&js, &root(), &wishes, false).await.unwrap();
    let mut other = find(&js, "DROVER_EVENTS").await.unwrap().unwrap().config;
    (other.discard, other.max_age) = (stream::DiscardPolicy::New, Duration::from_secs(3_600));
    js.update_stream(&other).await.unwrap();

    let told = bring_up(&js, &root(), &Wishes::default(), false).await.unwrap();
    assert_eq!(changed(&told), ["DROVER_EVENTS discard"]);
    let now = find(&js, "DROVER_EVENTS").await.unwrap().unwrap().config;
    assert_eq!(now.discard, stream::DiscardPolicy::New, "nobody asked for a change");

    let done = bring_up(&js, &root(), &Wishes::default(), true).await.unwrap();
    assert_eq!(changed(&done), ["DROVER_EVENTS discard"]);
    let now = find(&js, "DROVER_EVENTS").await.unwrap().unwrap().config;
    assert_eq!(now.discard, stream::DiscardPolicy::Old);
    assert_eq!((now.max_bytes, now.max_age), (64 << 20, Duration::from_secs(3_600)));
    assert_eq!(changed(&bring_up(&js, &root(), &Wishes::default(), true).await.unwrap()), [""; 0]);
}

/// As an earlier version made the stream.
#[tokio::test]
async fn a_compressed_log_is_reported_and_stored_plain_from_then_on() {
    let Some(mut server) = NatsServer::start("").await else { return };
    let mut early = AssetsConfig::new(root()).streams()[0].clone();
    early.compression = Some(stream::Compression::S2);
    let made = js(&server).await;
    made.create_stream(early).await.unwrap();
    let store = async |js: &Context, numbers: std::ops::Range<usize>| {
        for n in numbers {
            let body = vec![b'a' + (n % 20) as u8; 60_000];
            js.publish("drover.v1.evt.host.h1.k", body.into()).await.unwrap().await.unwrap();
        }
    };
    store(&made, 0..200).await;
    let told = bring_up(&made, &root(), &Wishes::default(), false).await.unwrap();
    assert_eq!(changed(&told), ["DROVER_EVENTS compression"]);
    let (absent, differences) = inspect(&made, &AssetsConfig::new(root())).await.unwrap();
    assert_eq!((absent, differences.len()), (Vec::new(), 1));
    let said = differences[0].to_string();
    assert_eq!(said, "DROVER_EVENTS compression: found s2, expected none");
    let done = bring_up(&made, &root(), &Wishes::default(), true).await.unwrap();
    assert_eq!(changed(&done), ["DROVER_EVENTS compression"]);
    store(&made, 200..250).await;
    // The server reads what it had compressed, and what it has not, also after an end.
    drop(made);
    server.kill();
    server.up().await;
    let js = js(&server).await;
    let log = js.get_stream("DROVER_EVENTS").await.unwrap();
    for n in [0, 1, 150, 199, 200, 249] {
        let message = log.get_raw_message(n + 1).await.unwrap();
        assert_eq!(message.payload[..], vec![b'a' + (n % 20) as u8; 60_000]);
    }
    assert_eq!(changed(&bring_up(&js, &root(), &Wishes::default(), true).await.unwrap()), [""; 0]);
}

#[tokio::test]
async fn what_would_lose_events_is_refused_and_nothing_is_changed() {
    let Some(server) = NatsServer::start("").await else { return };
    let js = js(&server).await;
    bring_up(&js, &root(), &Wishes::default(), false).await.unwrap();
    for n in 0..3 {
        let body = vec![b'x'; 10_000];
        js.publish(format!("drover.v1.evt.host.h1.k{n}"), body.into()).await.unwrap().await.unwrap();
    }
    let less = Wishes { events_max_bytes: Some(8_192), ..Wishes::default() };
    let refused = bring_up(&js, &root(), &less, true).await.unwrap_err();
    assert!(
        matches!(&refused, UpgradeError::Loses { setting: "max_bytes", .. })
            && refused.to_string().contains("DROVER_EVENTS"),
        "{refused}"
    );
    let now = find(&js, "DROVER_EVENTS").await.unwrap().unwrap();
    assert_eq!((now.config.max_bytes, now.state.messages), (1 << 30, 3));
    // More is no loss.
    let more = Wishes { events_max_bytes: Some(2 << 30), ..Wishes::default() };
    assert_eq!(changed(&bring_up(&js, &root(), &more, true).await.unwrap()), ["DROVER_EVENTS max_bytes"]);
}
