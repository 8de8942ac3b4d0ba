"""The fast door: gRPC over ASGI, for a server with HTTP/2 and response trailers (Envoy itself, with pyvoy's module).

A raw adapter: unary ``Check``, ``grpc.health.v1`` (``Check`` and ``Watch``) and server reflection, each message in
gRPC's own frames. What grpcio answers to odd callers is answered here too, where that is an answer.

INVARIANT ALWAYS-A-STATUS: every call ends with a ``grpc-status`` that we chose. What is raised out of this application
the server ends with ``grpc-status: 0`` and no message, which a client must not take for an answer, so nothing is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer
from starlette.types import Receive, Scope, Send

from authz.config.settings import ServerSettings
from authz.gate import Gate
from authz.observe import Observer
from authz.servers.check import IDLE_BEFORE_STOP_S, SERVICE, TRANSPORT_MAX_BYTES, CheckHandler
from authz.servers.frames import Code, FrameReader, RpcError, find_whole, match_timeout, parse_timeout, render_frame
from authz.servers.health import SERVICE_UNKNOWN, HealthBoard

CHECK: Final = f"/{SERVICE}/Check"
HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

REFLECTION: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""The younger is the older under another name: the messages are the same on the wire."""

HEARTBEAT_S: Final = 5.0
"""How often a watcher is looked for: the server tells of a caller who has gone only when something is sent."""

SETTLE_S: Final = 0.2

MAX_SMALL_BYTES: Final = 64 * 1024
"""For health and reflection, whose questions are names."""

_HEADERS: Final = [(b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity")]
_START: Final = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
_OK: Final = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")], "more_trailers": False}
_BEAT: Final = {"type": "http.response.body", "body": b"", "more_body": True}

_T = TypeVar("_T")


class AsgiDoor:
    """One ASGI application. ``ports`` stays empty: the server around it binds.

    :meth:`start` makes the running event loop its home. Calls may come in other loops of this process as well (the
    server has one for each kind of listener): what belongs to the service is then done at home.
    """

    def __init__(self, gate: Gate, settings: ServerSettings, observer: Observer) -> None:
        self._handler = CheckHandler(gate, settings, observer)
        self._health = HealthBoard(("", SERVICE))
        self._reflection = ReflectionServicer((SERVICE, HEALTH, *REFLECTION))
        self._home: asyncio.AbstractEventLoop | None = None
        self._routes: Mapping[str, Callable[[Call], Awaitable[None]]] = {
            CHECK: self._check,
            f"/{HEALTH}/Check": self._check_health,
            f"/{HEALTH}/Watch": self._watch_health,
        } | {f"/{name}/ServerReflectionInfo": self._reflect for name in REFLECTION}
        self._drained = False
        self.ports: tuple[int, ...] = ()
        self.addresses = tuple(its.address for its in settings.grpc)

    async def start(self) -> None:
        """Take calls; health says NOT_SERVING until :meth:`set_serving`."""
        self._home = asyncio.get_running_loop()

    async def set_serving(self, *, serving: bool) -> None:
        """Tell health checkers, for the whole server and for the service by name."""
        self._health.set_all(serving=serving)

    async def drain(self, *, at_once: bool = False) -> None:
        """Say NOT_SERVING, answer on until the callers have gone (at most ``drain_s``, or not at all); end watches.

        The second time, when nobody new can come, it waits for what is under way only.
        """
        self._health.set_all(serving=False)
        if not at_once:
            await self._handler.wait_until_quiet(SETTLE_S if self._drained else IDLE_BEFORE_STOP_S)
        self._drained = True
        self._health.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        timeout, kind, encoding = None, b"", b"identity"
        for name, value in scope["headers"]:
            if name == b"content-type":
                kind = value
            elif name == b"grpc-timeout":
                timeout = value
            elif name == b"grpc-encoding":
                encoding = value
        path = scope["path"]
        try:
            if scope["method"] != "POST":
                await _refuse(send, 405, [(b"allow", b"POST")])
            elif kind != b"application/grpc" and not kind.startswith((b"application/grpc+", b"application/grpc;")):
                await _refuse(send, 415, [])
            elif path == CHECK and asyncio.get_running_loop() is self._home:
                await self._check_here(receive, send, timeout, encoding)
            else:
                await self._answer(Call(receive, send, encoding), timeout, self._routes.get(path, _refuse_method))
        except OSError:
            return  # the caller has gone: nobody is left to answer

    async def _check_here(self, receive: Receive, send: Send, patience: bytes | None, encoding: bytes) -> None:
        """Answer a check by the shortest way: a message that came whole, in the loop where the service is at home."""
        event = await receive()
        message = find_whole(event.get("body", b""), TRANSPORT_MAX_BYTES)
        left_s = None if patience is None else match_timeout(patience)
        if message is None or (patience is not None and left_s is None):
            call = Call(_after(event, receive), send, encoding)
            await self._answer(call, patience, self._check)
            return
        await _send_only(send, await self._handler.check(message, left_s))

    async def _answer(self, call: Call, patience: bytes | None, route: Callable[[Call], Awaitable[None]]) -> None:
        try:
            if patience is not None:
                call.expire_in(parse_timeout(patience))
            await route(call)
        except RpcError as error:
            with contextlib.suppress(OSError):
                await call.end(error.code, error.text)

    async def _check(self, call: Call) -> None:
        raw = await call.read_only(TRANSPORT_MAX_BYTES)
        work = self._handler.check(raw, call.left_s)
        await call.answer(await (work if call.loop is self._home else self._at_home(work)))

    async def _check_health(self, call: Call) -> None:
        status = self._health.find(await _read_service(call))
        if status is None:
            raise RpcError(Code.NOT_FOUND, "unknown service")
        await call.answer(health_pb2.HealthCheckResponse(status=status).SerializeToString())

    async def _watch_health(self, call: Call) -> None:
        name = await _read_service(call)
        told: int | None = None
        while True:
            status = self._health.find(name)
            status = SERVICE_UNKNOWN if status is None else status
            if status != told:
                await call.write(health_pb2.HealthCheckResponse(status=status).SerializeToString())
                told = status
            else:
                await call.beat()
            if not await self._at_home(self._health.wait_for_news(call.patience_s(HEARTBEAT_S))):
                break
            if call.left_s is not None and call.left_s <= 0:
                raise RpcError(Code.DEADLINE_EXCEEDED, "the caller's deadline")
        await call.end(Code.UNAVAILABLE, "draining")

    async def _reflect(self, call: Call) -> None:
        async for answer in self._reflection.ServerReflectionInfo(_read_questions(call), None):
            await call.write(answer.SerializeToString())
        await call.end(Code.OK)

    async def _at_home(self, work: Coroutine[Any, Any, _T]) -> _T:
        home = self._home
        if home is None or home is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, home))


class Call:
    """One call: messages in, messages out, one status at the end."""

    __slots__ = ("_expires_s", "_open", "_reader", "_receive", "_send", "_started", "encoding", "loop")

    def __init__(self, receive: Receive, send: Send, encoding: bytes) -> None:
        self._receive = receive
        self._send = send
        self.loop = asyncio.get_running_loop()
        self._expires_s: float | None = None
        self._reader: FrameReader | None = None
        self._open = True
        self._started = False
        self.encoding = encoding

    def expire_in(self, seconds: float) -> None:
        """Note how long the caller waits, from now on."""
        self._expires_s = self.loop.time() + seconds

    @property
    def left_s(self) -> float | None:
        """What is left of the caller's patience; None if it named none."""
        return None if self._expires_s is None else self._expires_s - self.loop.time()

    def patience_s(self, at_most_s: float) -> float:
        """Return how long to wait for something: never longer than the caller does."""
        left_s = self.left_s
        return at_most_s if left_s is None else max(0.0, min(at_most_s, left_s))

    async def read_only(self, max_bytes: int) -> bytes:
        """Return the message of a unary call, as soon as it is there; what comes after it is not read.

        Raises:
            RpcError: if there is none.
            OSError: if the caller has gone.

        """
        piece = await self._next_piece()
        message = find_whole(piece, max_bytes)
        if message is None:
            message = await self._read_on(piece, max_bytes)
        if message is None:
            raise RpcError(Code.INTERNAL, "no message")
        return message

    async def read(self, max_bytes: int) -> bytes | None:
        """Return the next message, or None after the last one.

        Raises:
            RpcError: for a body that is cut inside a message or is none.
            OSError: if the caller has gone.

        """
        return await self._read_on(b"" if self._reader is not None else await self._next_piece(), max_bytes)

    async def write(self, message: bytes) -> None:
        """Send one of several messages."""
        await self._start()
        await self._send({"type": "http.response.body", "body": render_frame(message), "more_body": True})

    async def beat(self) -> None:
        """Send nothing, which fails if the caller has gone."""
        await self._start()
        await self._send(_BEAT)

    async def answer(self, message: bytes) -> None:
        """Send the only message, and OK."""
        await _send_only(self._send, message)

    async def end(self, code: Code, text: str = "") -> None:
        """Send the status."""
        status = [(b"grpc-status", b"%d" % code)] + ([(b"grpc-message", text.encode())] if text else [])
        await self._start()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        await self._send({"type": "http.response.trailers", "headers": status, "more_trailers": False})

    async def _read_on(self, piece: bytes, max_bytes: int) -> bytes | None:
        reader = self._reader
        if reader is None:
            reader = self._reader = FrameReader(max_bytes=max_bytes, encoding=self.encoding)
        while True:
            message = reader.feed(piece)
            if message is not None:
                return message
            if not self._open:
                if reader.is_empty:
                    return None
                raise RpcError(Code.INTERNAL, "the body ends inside a message")
            piece = await self._next_piece()

    async def _start(self) -> None:
        if not self._started:
            self._started = True
            await self._send(_START)

    async def _next_piece(self) -> bytes:
        event = await self._receive()
        if event["type"] == "http.disconnect":
            raise ConnectionResetError
        self._open = event.get("more_body", False)
        body: bytes = event.get("body", b"")
        return body


async def _send_only(send: Send, message: bytes) -> None:
    await send(_START)
    await send({"type": "http.response.body", "body": render_frame(message), "more_body": False})
    await send(_OK)


def _after(event: MutableMapping[str, Any], receive: Receive) -> Receive:
    """Give an event back that was taken too early, and then what comes after it."""
    taken = [event]

    async def receive_on() -> MutableMapping[str, Any]:
        return taken.pop() if taken else await receive()

    return receive_on


async def _read_service(call: Call) -> str:
    raw = await call.read_only(MAX_SMALL_BYTES)
    try:
        name: str = health_pb2.HealthCheckRequest.FromString(raw).service
    except DecodeError:
        raise RpcError(Code.INTERNAL, "not a HealthCheckRequest") from None
    return name


async def _read_questions(call: Call) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    while (raw := await call.read(MAX_SMALL_BYTES)) is not None:
        try:
            yield reflection_pb2.ServerReflectionRequest.FromString(raw)
        except DecodeError:
            raise RpcError(Code.INTERNAL, "not a ServerReflectionRequest") from None


async def _refuse_method(_: Call) -> None:
    raise RpcError(Code.UNIMPLEMENTED, "unknown method")


async def _refuse(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """Tell a caller who speaks no gRPC, in HTTP."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0"), *headers]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
