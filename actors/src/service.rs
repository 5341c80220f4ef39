//! A part of the host that works for as long as the daemon runs: started by the root, stopped with it, and
//! begun again when it ends or panics, so that one mistake does not leave a host without heartbeats.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use crate::metrics::Metrics;

/// Pause before work that ended is begun again, so that what ends at once does not spin.
const AGAIN: Duration = Duration::from_secs(1);

/// The actor; it has no state of its own.
#[derive(Debug)]
pub struct Service;

/// What a service starts with.
pub struct ServiceArgs {
    name: &'static str,
    metrics: Metrics,
    work: Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
}

impl std::fmt::Debug for ServiceArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceArgs").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A message to a service.
#[derive(Debug)]
pub enum ServiceMsg {
    /// Its work ended, by a panic or not.
    Ended {
        /// What it did.
        how: &'static str,
    },
    /// Begin again.
    Begin,
}

/// The state of a service; dropping it ends the work.
#[derive(Debug)]
pub struct ServiceState {
    args: ServiceArgs,
    work: AbortOnDropHandle<()>,
}

/// Starts a service below `root`. `work` gives the whole of its work, each time anew.
///
/// # Errors
/// Another actor has the name.
pub async fn supervise<F>(
    root: &ActorCell,
    metrics: &Metrics,
    name: &'static str,
    work: impl Fn() -> F + Send + Sync + 'static,
) -> Result<ActorRef<ServiceMsg>, SpawnErr>
where
    F: Future<Output = ()> + Send + 'static,
{
    let work = Box::new(move || work().boxed());
    let args = ServiceArgs { name, metrics: metrics.clone(), work };
    Actor::spawn_linked(Some(name.to_owned()), Service, args, root.clone()).await.map(|(actor, _)| actor)
}

fn begin(myself: &ActorRef<ServiceMsg>, args: &ServiceArgs) -> AbortOnDropHandle<()> {
    let (work, myself) = (AssertUnwindSafe((args.work)()).catch_unwind(), myself.clone());
    AbortOnDropHandle::new(tokio::spawn(async move {
        let how = if work.await.is_ok() { "ended" } else { "panicked" };
        let _ = myself.cast(ServiceMsg::Ended { how });
    }))
}

impl Actor for Service {
    type Msg = ServiceMsg;
    type State = ServiceState;
    type Arguments = ServiceArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<ServiceMsg>,
        args: ServiceArgs,
    ) -> Result<ServiceState, ActorProcessingErr> {
        let work = begin(&myself, &args);
        Ok(ServiceState { args, work })
    }

    async fn handle(
        &self,
        myself: ActorRef<ServiceMsg>,
        message: ServiceMsg,
        state: &mut ServiceState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ServiceMsg::Ended { how } => {
                error!(service = state.args.name, how, "a part of the host is begun again");
                state.args.metrics.actor_restarts.inc();
                myself.send_after(AGAIN, || ServiceMsg::Begin);
            }
            ServiceMsg::Begin => state.work = begin(&myself, &state.args),
        }
        Ok(())
    }

    /// Whoever waits for the service to stop knows that it does nothing any more.
    async fn post_stop(
        &self,
        _: ActorRef<ServiceMsg>,
        state: &mut ServiceState,
    ) -> Result<(), ActorProcessingErr> {
        state.work.abort();
        let _ = (&mut state.work).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Top;

    impl Actor for Top {
        type Msg = ();
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_panics_or_ends_is_begun_again_and_ends_with_its_root() {
        let (top, handle) = Actor::spawn(None, Top, ()).await.unwrap();
        let metrics = Metrics::default();
        let begun = Arc::new(AtomicU32::new(0));
        let alive = Arc::new(());
        let (count, token) = (Arc::clone(&begun), Arc::clone(&alive));
        let work = move || {
            let (count, token) = (Arc::clone(&count), Arc::clone(&token));
            async move {
                let _token = token;
                match count.fetch_add(1, Ordering::SeqCst) {
                    0 => panic!("the first time"),
                    1 => {}
                    _ => std::future::pending().await,
                }
            }
        };
        let service = supervise(&top.get_cell(), &metrics, "service of a test", work).await.unwrap();
        while begun.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(AGAIN).await;
        }
        assert_eq!(metrics.actor_restarts.get(), 2);
        // Ours, the factory's and the one of the work that is under way.
        assert_eq!(Arc::strong_count(&alive), 3);
        service.stop(None);
        service.wait(None).await.unwrap();
        // It does nothing any more; only what would begin it again is left.
        assert!(Arc::strong_count(&alive) <= 2);
        top.stop(None);
        handle.await.unwrap();
        while Arc::strong_count(&alive) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
