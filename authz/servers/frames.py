"""gRPC's own words inside HTTP/2: length-prefixed messages and ``grpc-timeout``. Pure: bytes in, values out.

The protocol is grpc/doc/PROTOCOL-HTTP2.md. Read as leniently as grpcio reads them where it costs nothing, so that
the doors do not differ: a longer ``grpc-timeout`` than eight digits counts. Compressed messages are refused: no Envoy
compresses a check, and a few bytes could unpack to millions.
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from typing import Final

_HEAD_BYTES: Final = 5
"""One byte of flags, four of length."""

_TIMEOUT: Final = re.compile(rb"([0-9]{1,18})([HMSmun])")
_UNIT_S: Final = {b"H": 3_600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Code(enum.IntEnum):
    """The gRPC status codes that we send."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class RpcError(Exception):
    """A call that cannot be answered with a message. ``text`` is told to the caller: ASCII, without ``%``."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


@lru_cache(maxsize=256)
def match_timeout(value: bytes) -> float | None:
    """Return the seconds of a ``grpc-timeout``, None for what is none. A proxy sends the same few again and again."""
    found = _TIMEOUT.fullmatch(value)
    return None if found is None else int(found[1]) * _UNIT_S[found[2]]


def parse_timeout(value: bytes) -> float:
    """Return the seconds of a ``grpc-timeout``.

    Raises:
        RpcError: INTERNAL, as grpcio says it.

    """
    seconds = match_timeout(value)
    if seconds is None:
        raise RpcError(Code.INTERNAL, "bad grpc-timeout")
    return seconds


def render_frame(message: bytes) -> bytes:
    """Return a message with its prefix, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def find_whole(body: bytes, max_bytes: int) -> bytes | None:
    """Return the message of a body that is exactly one, uncompressed, as nearly all are; else None."""
    size = len(body) - _HEAD_BYTES
    if 0 <= size <= max_bytes and body[0] == 0 and int.from_bytes(body[1:_HEAD_BYTES], "big") == size:
        return body[_HEAD_BYTES:]
    return None


class FrameReader:
    """Takes a body piece by piece and gives back whole messages."""

    __slots__ = ("_encoded", "_held", "_max_bytes")

    def __init__(self, *, max_bytes: int, encoding: bytes = b"identity") -> None:
        """Expect messages of at most ``max_bytes``; ``encoding`` is the call's ``grpc-encoding``."""
        self._held = bytearray()
        self._max_bytes = max_bytes
        self._encoded = encoding != b"identity"

    def feed(self, piece: bytes) -> bytes | None:
        """Take a piece and return the next whole message, or None if there is none yet. More may be waiting after it.

        Raises:
            RpcError: for a prefix that cannot be: nothing more is to be read of this body then.

        """
        self._held += piece
        if len(self._held) < _HEAD_BYTES:
            return None
        end = _HEAD_BYTES + self._read_length(self._held)
        if len(self._held) < end:
            return None
        message = bytes(memoryview(self._held)[_HEAD_BYTES:end])
        del self._held[:end]
        return message

    @property
    def is_empty(self) -> bool:
        """Whether every byte so far belonged to a message that was given back."""
        return not self._held

    def _read_length(self, data: bytes | bytearray) -> int:
        flags = data[0]
        if flags == 1 and self._encoded:
            raise RpcError(Code.UNIMPLEMENTED, "compressed messages are not read: see grpc-accept-encoding")
        if flags != 0:
            raise RpcError(Code.INTERNAL, "bad flags before a message")
        length = int.from_bytes(data[1:_HEAD_BYTES], "big")
        if length > self._max_bytes:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"a message of {length} bytes, at most {self._max_bytes} are read")
        return length
