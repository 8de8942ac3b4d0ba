"""Load for gRPC servers, cheap enough for one core to saturate another: HTTP/2 frames written by hand.

Every gRPC call is the same HEADERS frame and one DATA frame, so both are made once, and only the stream's number
changes; a plain GET is a HEADERS frame of its own. Whoever asks for the load says what a good answer is. *Closed*
load keeps a number of calls in flight on each connection; *open* load begins calls at a fixed rate, whatever comes of
them, and a call's time counts from when it should have begun.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
_GET: Final = bytes((HEADERS, END_HEADERS | END_STREAM))
WIDE: Final = 2**30
LAST_STREAM: Final = 2**31 - 1
GRPC_PREFIX_BYTES: Final = 5
STATUS_200: Final = 0x88
"""How a header block says so (RFC 7541, appendix A)."""

Body = bytes
Bodies = Callable[[], Body]


@dataclass(slots=True)
class Result:
    """What came of one round: ``latencies_s`` of all calls, how many were answered ill, and how many not at all."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    bad: int = 0
    lost: int = 0

    @property
    def calls(self) -> int:
        """How many calls were answered."""
        return len(self.latencies_s)

    def percentile_us(self, share: float) -> float:
        """Return a percentile in microseconds; 0 where there was no call."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e6 if ordered else 0.0


def encode_message(message: bytes) -> Body:
    """Return a gRPC message as it stands in DATA: not compressed, with its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _text(name: bytes, value: bytes) -> bytes:
    """Write a header that nobody keeps in a table (RFC 7541 §6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(value: bytes) -> bytes:
    """Write a string without Huffman coding (RFC 7541 §5.2)."""
    if len(value) < 0x7F:
        return bytes((len(value),)) + value
    rest, written = len(value) - 0x7F, bytearray(b"\x7f")
    while rest >= 0x80:
        written.append(rest & 0x7F | 0x80)
        rest >>= 7
    written.append(rest)
    return bytes(written) + value


def grpc_headers(path: str, authority: str, timeout: str = "1S") -> bytes:
    """Return the header block of a call, as Envoy's gRPC client would write it."""
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            _text(b":path", path.encode()),
            _text(b":authority", authority.encode()),
            _text(b"te", b"trailers"),
            _text(b"content-type", b"application/grpc"),
            _text(b"grpc-timeout", timeout.encode()),
        )
    )


def get_headers(path: str, authority: str, headers: dict[str, str]) -> Body:
    """Return the header block of a browser's GET."""
    pairs = {":path": path, ":authority": authority} | headers
    return b"\x82\x86" + b"".join(_text(name.encode(), value.encode()) for name, value in pairs.items())


def is_200(block: bytes) -> bool:
    """Say whether an answer's header block says 200; before it may stand what changes the table's size."""
    return STATUS_200 in block[:4]


class Connection(asyncio.Protocol):
    """One HTTP/2 connection that makes calls; without a ``block`` each body is itself the header block of a GET."""

    def __init__(self, block: bytes, bodies: Bodies, is_good: Callable[[bytes], bool], result: Result) -> None:
        self._head = len(block).to_bytes(3, "big") + bytes((HEADERS, END_HEADERS))
        self._block = block
        self._bodies = bodies
        self._is_good = is_good
        self._result = result
        self._buffer = bytearray()
        self._stream = -1
        self._window = 65_535
        self._begun: dict[int, float] = {}
        self._answers: dict[int, bytes] = {}
        self._late: list[tuple[float, Body]] = []
        self._again = False
        self._transport: asyncio.Transport | None = None
        self.ready = asyncio.Event()
        self.idle = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection with wide windows, so that no answer waits for us."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = struct.pack("!HIHI", 2, 0, 4, WIDE)  # no pushes, wide windows for answers
        transport.write(
            PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, WIDE.to_bytes(4, "big"))
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Count what was under way as lost."""
        del exc
        self._result.lost += len(self._begun)
        self._begun.clear()
        self.ready.set()
        self.idle.set()

    def keep(self, count: int) -> None:
        """Have ``count`` calls under way from now on."""
        self._again = True
        now = time.perf_counter()
        for _ in range(count):
            self.begin(now)

    def stop(self) -> None:
        """Begin no more."""
        self._again = False
        if not self._begun:
            self.idle.set()

    def begin(self, due: float) -> None:
        """Make one call; later, if the connection's window is used up."""
        self._send(due, self._bodies())

    def _send(self, due: float, body: Body) -> None:
        if self._transport is not None and self._transport.is_closing():
            self._result.lost += 1
            return
        used = len(body) if self._block else 0
        if used > self._window or self._transport is None:
            self._late.append((due, body))
            return
        self.idle.clear()
        self._window -= used
        self._stream += 2
        number = self._stream.to_bytes(4, "big")
        self._begun[self._stream] = due
        size = len(body).to_bytes(3, "big")
        if self._block:
            self._transport.write(b"".join((self._head, number, self._block, size, b"\0\x01", number, body)))
        else:
            self._transport.write(b"".join((size, _GET, number, body)))

    def data_received(self, data: bytes) -> None:
        """Take whole frames out of what has come."""
        buffer = self._buffer
        buffer += data
        at, end = 0, len(buffer)
        while end - at >= 9:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if end - at < 9 + size:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big") & LAST_STREAM
            payload = bytes(buffer[at + 9 : at + 9 + size])
            at += 9 + size
            self._take(kind, flags, stream, payload)
        del buffer[:at]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == (DATA if self._block else HEADERS):
            self._answers[stream] = self._answers.get(stream, b"") + payload
        if (kind in {DATA, HEADERS} and flags & END_STREAM) or kind == RST_STREAM:
            self._end(stream)
        elif kind == SETTINGS and not flags & ACK:
            self._write(_frame(SETTINGS, ACK, 0, b""))
            self.ready.set()
        elif kind == PING and not flags & ACK:
            self._write(_frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
            late, self._late = self._late, []
            for due, body in late:
                self._send(due, body)

    def _end(self, stream: int) -> None:
        due = self._begun.pop(stream, None)
        if due is None:
            return
        now = time.perf_counter()
        self._result.latencies_s.append(now - due)
        answer = self._answers.pop(stream, b"")
        if not answer:
            self._result.lost += 1
        elif not self._is_good(answer[GRPC_PREFIX_BYTES:] if self._block else answer):
            self._result.bad += 1
        if self._again:
            self.begin(now)
        elif not self._begun:
            self.idle.set()

    def _write(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    def close(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of load: *closed* with ``in_flight`` calls in all, or *open* with ``rate`` calls a second."""

    connections: int
    seconds: float
    in_flight: int = 0
    rate: float = 0.0

    def __str__(self) -> str:
        """Render for a table."""
        how = f"{self.in_flight} in flight" if self.in_flight else f"{self.rate:,.0f}/s"
        return f"{how}, {self.connections} connections"


async def play(port: int, load: Load, bodies: Bodies, is_good: Callable[[bytes], bool], *, path: str = "") -> Result:
    """Play one round against a port of this machine and return what came of it; without a ``path``, of GETs."""
    result = Result()
    block = grpc_headers(path, "authz") if path else b""
    loop = asyncio.get_running_loop()
    callers: list[Connection] = []
    for _ in range(load.connections):
        _, caller = await loop.create_connection(lambda: Connection(block, bodies, is_good, result), "127.0.0.1", port)
        callers.append(caller)
    await asyncio.gather(*(asyncio.wait_for(its.ready.wait(), 5) for its in callers))
    began = time.perf_counter()
    if load.in_flight:
        for caller in callers:
            caller.keep(load.in_flight // load.connections)
        await asyncio.sleep(load.seconds)
    else:
        await _begin_at_rate(callers, load)
    for caller in callers:
        caller.stop()
    result.seconds = time.perf_counter() - began
    await asyncio.wait([asyncio.ensure_future(its.idle.wait()) for its in callers], timeout=5)
    for caller in callers:
        caller.close()
    return result


async def _begin_at_rate(callers: list[Connection], load: Load) -> None:
    """Begin each call when it is due; what is due while we are late begins at once, and counts from when it was due."""
    began, number, total = time.perf_counter(), 0, int(load.rate * load.seconds)
    while number < total:
        due = began + number / load.rate
        wait_s = due - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
            continue
        callers[number % len(callers)].begin(due)
        number += 1
        if number % 64 == 0:
            await asyncio.sleep(0)


def zipf(count: int, *, seed: int) -> Iterator[int]:
    """Yield numbers below ``count`` by a Zipf law of exponent 1, for ever."""
    import random  # noqa: PLC0415 - this alone needs it

    source = random.Random(seed)  # noqa: S311 - load, no secret
    weights = [1 / (rank + 1) for rank in range(count)]
    while True:
        yield from source.choices(range(count), weights, k=65_536)
