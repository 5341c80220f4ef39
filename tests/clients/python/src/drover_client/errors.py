"""What a call can end with instead of a result."""

from __future__ import annotations

from ._contract import ErrorBody


class DroverError(Exception):
    """A coded error of a host."""

    def __init__(self, body: ErrorBody):
        super().__init__(f"{body['code']}: {body['message']}")
        self.body = body
        self.code: str = body["code"]
        self.message: str = body["message"]
        self.retryable: bool = body["retryable"]
        self.details: dict[str, str] = body.get("details", {})


class NoOutcome(Exception):
    """No outcome within the deadline. The request may still have an effect: go on with the same request id."""

    def __init__(self, subject: str, request_id: str | None, why: str):
        again = f"; request id {request_id}" if request_id else ""
        super().__init__(f"no outcome of {subject}: {why}{again}")
        self.subject = subject
        self.request_id = request_id


class StreamBroken(Exception):
    """The stream cannot go on: it has ended, or this end of it failed."""
