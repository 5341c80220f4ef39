"""What a message of a host says: a body, a coded error, or that nobody listens."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]

from .errors import DroverError


def nobody_listens(message: Any) -> bool:
    """Whether the message is the server's: no host had subscribed to the subject."""
    return (message.headers or {}).get("Status") == "503"


def read(message: Any) -> Any:
    """The body of a reply.

    Raises `DroverError` when it is a coded error."""
    body = msgpack.unpackb(message.data)
    if "Nats-Service-Error-Code" in (message.headers or {}):
        raise DroverError(body)
    return body
