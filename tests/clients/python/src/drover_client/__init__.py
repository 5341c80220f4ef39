"""A typed asyncio client of drover; see `Client`."""

from . import _contract as contract
from .client import Client, new_request_id
from .errors import DroverError, NoOutcome, StreamBroken
from .stream import Stream

__all__ = ["Client", "DroverError", "NoOutcome", "Stream", "StreamBroken", "contract", "new_request_id"]
