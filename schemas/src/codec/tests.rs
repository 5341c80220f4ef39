use super::*;
use crate::blob::Blob;
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    n: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Body {
    name: String,
    #[serde(default)]
    data: Blob,
    #[serde(default)]
    inner: Option<Inner>,
}

fn body() -> Body {
    Body { name: "a".into(), data: vec![0xff, 0].into(), inner: Some(Inner { n: 3 }) }
}

#[test]
fn both_formats_carry_the_same_body() {
    for format in [Format::MsgPack, Format::Json] {
        let bytes = encode_as(format, &body()).unwrap();
        assert_eq!(Format::detect(None, &bytes).unwrap(), format);
        assert_eq!(decode_request::<Body>(format, &bytes).unwrap(), body());
    }
    assert_eq!(
        String::from_utf8(encode_as(Format::Json, &body()).unwrap()).unwrap(),
        r#"{"name":"a","data":"/wA=","inner":{"n":3}}"#
    );
}

#[test]
fn a_request_with_an_unknown_field_is_refused_by_its_path() {
    for (format, bytes) in [
        (Format::Json, br#"{"name":"a","inner":{"n":1,"typo":2}}"#.to_vec()),
        (Format::MsgPack, encode(&serde_json::json!({"name":"a","inner":{"n":1,"typo":2}})).unwrap()),
    ] {
        let error = decode_request::<Body>(format, &bytes).unwrap_err();
        assert!(matches!(&error, DecodeError::UnknownField { path } if path == "inner.typo"), "{error}");
        assert!(decode_as::<Body>(format, &bytes).is_ok(), "readers of replies ignore it");
    }
}

#[test]
fn trailing_bytes_arrays_and_depth_are_refused() {
    let mut bytes = encode(&body()).unwrap();
    bytes.push(0xc0);
    assert!(matches!(decode::<Body>(&bytes), Err(DecodeError::TrailingBytes { count: 1 })));
    assert!(matches!(decode::<Body>(&[0x91, 0xa1, b'a']), Err(DecodeError::NotAMap)));
    assert!(matches!(decode::<Body>(&[]), Err(DecodeError::NotAMap)));
    assert!(matches!(decode_request::<Body>(Format::Json, b"[1]"), Err(DecodeError::NotAMap)));
    let mut deep = vec![0x81, 0xa1, b'x'];
    deep.extend(std::iter::repeat_n(0x91, 100_000));
    assert!(matches!(decode::<Body>(&deep), Err(DecodeError::Malformed { .. })));
}

#[test]
fn an_empty_request_is_an_empty_map() {
    #[derive(Debug, Deserialize)]
    struct Empty {}
    assert!(decode_request::<Empty>(Format::MsgPack, b"").is_ok());
    assert!(decode_request::<Empty>(Format::Json, b"").is_ok());
}

#[test]
fn content_type_decides_before_the_first_byte() {
    assert_eq!(Format::detect(Some("application/json; charset=utf-8"), b"\x80").unwrap(), Format::Json);
    assert_eq!(Format::detect(Some("application/x-msgpack"), b"{").unwrap(), Format::MsgPack);
    assert!(Format::detect(Some("text/plain"), b"{").is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode::<Body>(&bytes);
        let _ = decode_request::<Body>(Format::Json, &bytes);
    }
}
