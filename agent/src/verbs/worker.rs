//! The thread of one transfer: it stands back behind commands, and ends with the transfer.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use drover_schemas::{ErrorBody, ErrorCode};
use tokio::sync::oneshot;

/// How much lower the priority is than the agent's, in steps of `nice`. Reading a file and its digest take all the CPU
/// that they can get, and a command must not wait for its share of what they leave. Work of others in the guest leaves
/// them a tenth of a CPU still.
const STEPS: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// Does the file work of one transfer, a job after the other. It is no thread of the runtime's: those start processes,
/// which would inherit its priority.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts a thread that waits for jobs.
    ///
    /// # Errors
    /// `resource_exhausted` when the guest has no room for a thread.
    pub(super) fn start() -> Result<Self, ErrorBody> {
        let (jobs, coming) = mpsc::channel::<Job>();
        let started = thread::Builder::new().name("transfer".into()).spawn(move || {
            // Of this thread alone, on Linux. A sandbox that forbids it costs commands their time, and nothing else.
            let _ = rustix::process::nice(STEPS);
            while let Ok(job) = coming.recv() {
                job();
            }
        });
        match started {
            Ok(_) => Ok(Self { jobs }),
            Err(error) => Err(ErrorBody::new(
                ErrorCode::ResourceExhausted,
                format!(
                    "the guest cannot start a thread for the transfer: {error}; end some of its processes"
                ),
            )),
        }
    }

    /// Does one job. If nobody waits for it any more, it is done to its end all the same.
    ///
    /// # Errors
    /// The job's own, or `internal` if it panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ErrorBody> + Send + 'static,
    ) -> Result<T, ErrorBody> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(work));
            let _ = done.send(outcome.unwrap_or_else(|panic| Err(failed(&*panic))));
        });
        // The thread is there for as long as its sender.
        let _ = self.jobs.send(job);
        result.await.unwrap_or_else(|_| Err(failed(&"its thread has ended")))
    }
}

fn failed(why: &(dyn Any + Send)) -> ErrorBody {
    let text =
        why.downcast_ref::<&str>().copied().or_else(|| why.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("it panicked");
    ErrorBody::new(ErrorCode::Internal, format!("the agent's file work failed: {text}"))
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;
    use rustix::thread::gettid;

    use super::*;

    #[tokio::test]
    async fn all_jobs_of_a_transfer_stand_back_on_one_thread_and_nothing_else_does() {
        let own = getpriority_process(None).unwrap();
        let worker = Worker::start().unwrap();
        let look = || Ok((gettid(), getpriority_process(None).unwrap()));
        let (thread, priority) = worker.run(look).await.unwrap();
        assert_eq!(priority, (own + STEPS).min(19));
        assert_ne!(thread, gettid());
        assert_eq!(worker.run(look).await.unwrap(), (thread, priority));
        assert_eq!(getpriority_process(None).unwrap(), own);
        let others = tokio::task::spawn_blocking(|| getpriority_process(None).unwrap()).await.unwrap();
        assert_eq!(others, own);
    }

    #[tokio::test]
    async fn a_job_that_panics_is_told_and_the_next_one_is_done() {
        let worker = Worker::start().unwrap();
        let error = worker.run(|| -> Result<(), _> { panic!("of the test") }).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
        assert!(error.message.contains("of the test"), "{error:?}");
        assert_eq!(worker.run(|| Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_done_to_its_end() {
        let worker = Worker::start().unwrap();
        let (begin, may_begin) = mpsc::channel::<()>();
        let (end, ended) = oneshot::channel();
        let job = worker.run(move || {
            let _ = may_begin.recv();
            let _ = end.send(());
            Ok(())
        });
        tokio::select! {
            biased;
            _ = job => panic!("it waits"),
            () = std::future::ready(()) => {}
        }
        drop(worker);
        begin.send(()).unwrap();
        ended.await.unwrap();
    }
}
