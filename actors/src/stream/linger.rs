//! The last frame is worth repeating: without it a client does not know what its command did.

use std::time::Duration;

use drover_schemas::stream::{MAX_RESEND_MS, PEER_LOST_MS, RESEND_MS, StreamEnd, StreamFrame};
use futures_util::StreamExt as _;
use tokio::time::{Instant, sleep_until};

use super::pump::Outlet;

/// Tells how the stream ended until the client says that it knows. A client that was cut off learns it when it is back:
/// its first frame is answered with the end.
pub(super) async fn tell(mut outlet: Outlet, mut frames: async_nats::Subscriber, end: StreamEnd) {
    let end = StreamFrame { end: Some(end), ..StreamFrame::default() };
    outlet.publish(&end).await;
    let Some(_place) = outlet.streams.budget.linger() else { return };
    let until = Instant::now() + Duration::from_millis(PEER_LOST_MS);
    let mut pause = Duration::from_millis(RESEND_MS);
    let mut next = Instant::now() + pause;
    while Instant::now() < until {
        tokio::select! {
            message = frames.next() => {
                let Some(message) = message else { return };
                outlet.follow(&message);
                match drover_schemas::codec::decode::<StreamFrame>(&message.payload) {
                    Ok(frame) if frame.done || frame.cancel => return,
                    _ => {
                        outlet.publish(&end).await;
                    }
                }
            }
            () = outlet.reconnected() => {
                outlet.publish(&end).await;
            }
            () = sleep_until(next.min(until)) => {
                outlet.publish(&end).await;
                pause = (pause * 2).min(Duration::from_millis(MAX_RESEND_MS));
                next = Instant::now() + pause;
            }
        }
    }
}
