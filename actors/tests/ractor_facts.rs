//! What drover relies on in ractor, pinned: an upgrade that changes one of these fails here first.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus, SupervisionEvent};
use tokio::sync::{mpsc, oneshot};

const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Told {
    Panic,
    Err,
    Hold(oneshot::Receiver<()>, oneshot::Sender<()>),
    Answer(oneshot::Sender<u32>),
}

#[derive(Clone, Default)]
struct Seen {
    post_stop: Arc<AtomicBool>,
    handled: Arc<AtomicUsize>,
}

struct Child(Seen);

impl Actor for Child {
    type Msg = Told;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Told>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<Told>, message: Told, (): &mut ()) -> Result<(), ActorProcessingErr> {
        self.0.handled.fetch_add(1, Ordering::SeqCst);
        match message {
            Told::Panic => panic!("as told"),
            Told::Err => Err("as told".into()),
            Told::Hold(release, holding) => {
                let _ = holding.send(());
                let _ = release.await;
                Ok(())
            }
            Told::Answer(reply) => {
                let _ = reply.send(7);
                Ok(())
            }
        }
    }

    async fn post_stop(&self, _: ActorRef<Told>, (): &mut ()) -> Result<(), ActorProcessingErr> {
        self.0.post_stop.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// A parent that reports what it hears of its children and lives on.
struct Parent(mpsc::UnboundedSender<&'static str>);

impl Actor for Parent {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let _ = self.0.send(match event {
            SupervisionEvent::ActorStarted(_) => "started",
            SupervisionEvent::ActorTerminated(..) => "terminated",
            SupervisionEvent::ActorFailed(..) => "failed",
            SupervisionEvent::ProcessGroupChanged(_) => "group",
        });
        Ok(())
    }
}

struct Family {
    parent: ActorRef<()>,
    child: ActorRef<Told>,
    heard: mpsc::UnboundedReceiver<&'static str>,
    seen: Seen,
}

async fn family() -> Family {
    let (tell, heard) = mpsc::unbounded_channel();
    let (parent, _) = Actor::spawn(None, Parent(tell), ()).await.unwrap();
    let seen = Seen::default();
    let (child, _) = Actor::spawn_linked(None, Child(seen.clone()), (), parent.get_cell()).await.unwrap();
    Family { parent, child, heard, seen }
}

impl Family {
    async fn hears(&mut self, want: &str) {
        let heard = tokio::time::timeout(PATIENCE, async {
            while let Some(heard) = self.heard.recv().await {
                if heard == want {
                    return true;
                }
            }
            false
        });
        assert!(heard.await.unwrap(), "the parent never heard {want}");
    }
}

#[tokio::test]
async fn a_panic_is_a_failure_of_the_child_and_not_of_the_parent() {
    let mut family = family().await;
    family.child.cast(Told::Panic).unwrap();
    family.hears("failed").await;
    assert_eq!(family.parent.get_status(), ActorStatus::Running);
    assert!(!family.seen.post_stop.load(Ordering::SeqCst), "post_stop does not run after a panic");
    family.parent.stop(None);
}

#[tokio::test]
async fn an_error_from_a_handler_ends_the_actor_without_post_stop() {
    let mut family = family().await;
    family.child.cast(Told::Err).unwrap();
    family.hears("failed").await;
    assert!(!family.seen.post_stop.load(Ordering::SeqCst));
    family.parent.stop(None);
}

#[tokio::test]
async fn stop_waits_for_the_handler_and_runs_post_stop() {
    let family = family().await;
    let (release, released) = oneshot::channel();
    let (holding, held) = oneshot::channel();
    family.child.cast(Told::Hold(released, holding)).unwrap();
    held.await.unwrap();
    family.child.stop(None);
    assert_ne!(family.child.get_status(), ActorStatus::Stopped, "stop does not interrupt a handler");
    release.send(()).unwrap();
    family.child.wait(Some(PATIENCE)).await.unwrap();
    assert!(family.seen.post_stop.load(Ordering::SeqCst));
    family.parent.stop(None);
}

#[tokio::test]
async fn messages_that_wait_when_an_actor_stops_are_dropped_and_their_callers_learn_it() {
    let family = family().await;
    let (release, released) = oneshot::channel();
    let (holding, held) = oneshot::channel();
    family.child.cast(Told::Hold(released, holding)).unwrap();
    held.await.unwrap();
    let (reply, answer) = oneshot::channel();
    family.child.cast(Told::Answer(reply)).unwrap();
    family.child.stop(None);
    release.send(()).unwrap();
    assert!(tokio::time::timeout(PATIENCE, answer).await.unwrap().is_err(), "the reply port was dropped");
    family.parent.stop(None);
}

#[tokio::test]
async fn children_of_a_parent_that_ends_are_killed_without_post_stop() {
    let family = family().await;
    family.parent.stop(None);
    family.parent.wait(Some(PATIENCE)).await.unwrap();
    let _ = family.child.wait(Some(PATIENCE)).await;
    assert!(
        !family.seen.post_stop.load(Ordering::SeqCst),
        "so a parent stops its children in its own post_stop"
    );
}

#[tokio::test]
async fn the_mailbox_has_no_bound_so_permits_are_taken_at_the_edge() {
    let family = family().await;
    let (release, released) = oneshot::channel();
    let (holding, held) = oneshot::channel();
    family.child.cast(Told::Hold(released, holding)).unwrap();
    held.await.unwrap();
    for _ in 0..10_000 {
        let (reply, _) = oneshot::channel();
        family.child.cast(Told::Answer(reply)).unwrap();
    }
    assert_eq!(family.seen.handled.load(Ordering::SeqCst), 1);
    release.send(()).unwrap();
    let (reply, answer) = oneshot::channel();
    family.child.cast(Told::Answer(reply)).unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap(), 7);
    family.parent.stop(None);
}
