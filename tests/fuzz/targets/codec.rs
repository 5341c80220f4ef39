//! Requests of clients, replies and events of hosts: any bytes give a value or an error, in either format.
//! What can be read can be written, and is read the same again.
#![no_main]

use drover_fuzz::bounded;
use drover_schemas::body::guest::{ExecReply, ExecRequest, GetRequest, GuestShutdownRequest, PutRequest};
use drover_schemas::body::host::{HostInfo, HostRecord};
use drover_schemas::body::vm::{
    ChangeReply, ChangeRequest, CreateRequest, ListRequest, LogsRequest, LookupReply, LookupRequest,
    ShutdownRequest, StopRequest, ValidateRequest,
};
use drover_schemas::codec::{self, Format};
use drover_schemas::audit::AuditEvent;
use drover_schemas::event::{HostEvent, RejectedEvent, VmEvent};
use drover_schemas::stream::{StreamFrame, StreamOpened};
use drover_schemas::{ErrorBody, body::events::EventsReadRequest};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Elements of the smallest kind take one byte of input and some tens in memory.
const FACTOR: usize = 160;
const BASE: usize = 64 << 10;

macro_rules! requests {
    ($bytes:expr, $($type:ty),*) => {$(
        for format in [Format::MsgPack, Format::Json] {
            let read = bounded($bytes, BASE, FACTOR, || codec::decode_request::<$type>(format, $bytes));
            if let Ok(value) = read {
                let written = codec::encode_as(format, &value).unwrap();
                let again = codec::decode_request::<$type>(format, &written).unwrap();
                assert_eq!(codec::encode_as(format, &again).unwrap(), written);
            }
        }
    )*};
}

macro_rules! replies {
    ($bytes:expr, $($type:ty),*) => {$(
        if let Ok(value) = bounded($bytes, BASE, FACTOR, || codec::decode::<$type>($bytes)) {
            let written = codec::encode(&value).unwrap();
            assert_eq!(codec::decode::<$type>(&written).unwrap(), value);
        }
    )*};
}

fuzz_target!(|bytes: &[u8]| {
    let _ = Format::detect(None, bytes);
    requests!(
        bytes,
        CreateRequest,
        ChangeRequest,
        ShutdownRequest,
        StopRequest,
        ListRequest,
        LookupRequest,
        ValidateRequest,
        LogsRequest,
        ExecRequest,
        PutRequest,
        GetRequest,
        GuestShutdownRequest,
        EventsReadRequest
    );
    replies!(
        bytes,
        ChangeReply,
        LookupReply,
        ExecReply,
        HostInfo,
        HostRecord,
        VmEvent,
        HostEvent,
        RejectedEvent,
        AuditEvent,
        ErrorBody,
        StreamFrame,
        StreamOpened
    );
    let _ = bounded(bytes, BASE, FACTOR, || codec::decode::<Value>(bytes).is_ok());
});
