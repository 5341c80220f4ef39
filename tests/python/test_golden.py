"""Golden vectors, read by another language: every .msgpack must equal the .json beside it.

Bytes are base64 text in JSON. Runs under pytest or by itself; needs the package `msgpack`.
"""

import base64
import json
import pathlib

import msgpack

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "schemas" / "golden"


def as_json(value):
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), f"keys must be text: {value.keys()}"
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_json(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        assert abs(value) <= 2**53, f"{value} is beyond 2^53"
    return value


def test_golden():
    vectors = sorted(GOLDEN.rglob("*.msgpack"))
    assert vectors, f"no vectors below {GOLDEN}"
    for path in vectors:
        value = msgpack.unpackb(path.read_bytes())
        assert isinstance(value, dict), f"{path}: the top level must be a map"
        assert as_json(value) == json.loads(path.with_suffix(".json").read_text()), path
    lonely = [p for p in GOLDEN.rglob("*.json") if not p.with_suffix(".msgpack").exists()]
    assert not lonely, lonely


if __name__ == "__main__":
    test_golden()
    print("ok:", len(list(GOLDEN.rglob("*.msgpack"))), "vectors")
