//! Logs of a VM and its console, from the files that its holder writes.

use std::io;

use drover_schemas::body::vm::{ConsoleReply, ConsoleRequest, LogSource, LogsReply, LogsRequest};

use super::{
    Answer, Channel, ErrorBody, ErrorCode, Request, Router, Shape, Token, body_of, codec, interrupted,
};
use crate::console::{Console, ConsoleError};
use crate::hypervisor::record::file;
use crate::hypervisor::ring::{self, RingChunk};
use crate::hypervisor::run_dir::RunDir;
use crate::stream::{Far, Finish};

/// How much of a log is sent if nobody says.
const LOG_TAIL: u64 = 64 << 10;
/// How much of the past a console begins with if nobody says.
const CONSOLE_TAIL: u64 = 4 << 10;
/// The most that is sent of the past.
const LONGEST_TAIL: u64 = 256 << 10;

fn tail(wanted: Option<u64>, usual: u64) -> usize {
    usize::try_from(wanted.unwrap_or(usual).min(LONGEST_TAIL)).unwrap_or(0)
}

impl Router {
    pub(super) async fn logs(&self, ns: &Token, name: &Token, request: &Request) -> Answer {
        let body: LogsRequest = request.decode()?;
        let dir = self.services.run_root.vm(self.slot(ns, name)?.vm_id);
        let tail = tail(body.tail_bytes, LOG_TAIL);
        if !body.follow {
            let logs = tokio::task::spawn_blocking(move || read_log(&dir, body.source, tail)).await;
            return body_of(request, &logs.map_err(|_| interrupted())??);
        }
        if body.source != LogSource::Console {
            let text = "only the console can be followed; leave `follow` out for other logs";
            return Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", "follow"));
        }
        let far = async {
            let console = Console::open(dir, tail).await.map_err(|e| not_open(&e))?;
            let offset = console.offset();
            Ok((Far::Console(Box::new(console)), offset))
        };
        let shape = Shape { down: &[Channel::Stdout], up: None, ctl: false };
        self.stream(ns, request, shape, far, as_it_is(), |opened, offset| {
            let reply = LogsReply { data: Vec::new().into(), offset, stream: Some(opened) };
            codec::encode_as(request.format, &reply)
        })
        .await
    }

    pub(super) async fn console(&self, ns: &Token, name: &Token, request: &Request) -> Answer {
        let body: ConsoleRequest = request.decode()?;
        let slot = self.slot(ns, name)?;
        let view = self.view(ns, name).await?;
        if view.run.is_none() {
            let state = view.machine.state;
            let text =
                format!("a VM that is {state} has no console to write to; start it, or read its `logs`");
            return Err(ErrorBody::new(ErrorCode::InvalidState, text).with("state", state));
        }
        let dir = self.services.run_root.vm(slot.vm_id);
        let far = async {
            let writer = slot.take_console(body.take)?;
            let console = Console::open(dir, tail(body.tail_bytes, CONSOLE_TAIL)).await;
            let console = console.map_err(|e| not_open(&e))?.for_writer(writer);
            let offset = console.offset();
            Ok((Far::Console(Box::new(console)), offset))
        };
        let shape = Shape { down: &[Channel::Stdout], up: Some(Channel::Stdin), ctl: false };
        self.stream(ns, request, shape, far, as_it_is(), |stream, offset| {
            codec::encode_as(request.format, &ConsoleReply { offset, stream })
        })
        .await
    }
}

/// The far end's result is the client's.
fn as_it_is() -> Finish {
    Box::new(|bytes| Ok(bytes::Bytes::copy_from_slice(bytes)))
}

fn not_open(error: &ConsoleError) -> ErrorBody {
    ErrorBody::new(ErrorCode::Internal, crate::chain(error).to_string())
}

fn read_log(dir: &RunDir, source: LogSource, max: usize) -> Result<LogsReply, ErrorBody> {
    let chunk = match source {
        LogSource::Console => match ring::tail(dir, file::CONSOLE, max) {
            // Nothing was ever started.
            Err(error) if error.kind() == io::ErrorKind::NotFound => RingChunk::default(),
            Err(error) => {
                let text = format!("the log cannot be read: {error}");
                return Err(ErrorBody::new(ErrorCode::Internal, text));
            }
            Ok(chunk) => chunk,
        },
        LogSource::Vmm => RingChunk { data: dir.stderr_tail(max).into_bytes(), ..RingChunk::default() },
    };
    Ok(LogsReply { data: chunk.data.into(), offset: chunk.offset, stream: None })
}
