"""The raw adapter, called as a server calls it: odd callers get the status that gRPC has for them, never none."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from authz.config.settings import ServerSettings
from authz.gate import Gate
from authz.observe import Observer
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz.servers import asgi
from authz.servers.asgi import CHECK, HEALTH, REFLECTION, AsgiDoor
from authz.servers.frames import FrameReader, render_frame
from tests.fakes import FakeClock
from tests.servers.service import check_request

BODY = render_frame(check_request().SerializeToString())


class Caller:
    """One call: ``events`` are what the caller sends, then it waits for ever, or vanishes."""

    def __init__(
        self,
        path: str,
        *pieces: bytes,
        method: str = "POST",
        kind: bytes | None = b"application/grpc",
        ended: bool = True,
        vanishes: bool = False,
        **headers: str,
    ) -> None:
        fields = [] if kind is None else [(b"content-type", kind)]
        fields += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.scope = {"type": "http", "method": method, "path": path, "headers": fields}
        self.events = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        if ended:
            self.events.append({"type": "http.request", "body": b"", "more_body": False})
        self.vanishes = vanishes
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self.events:
            return self.events.pop(0)
        if self.vanishes:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, event: Any) -> None:
        if self.vanishes:
            raise ConnectionResetError
        self.sent.append(dict(event))

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def code(self) -> int | None:
        trailers = [its for its in self.sent if its["type"] == "http.response.trailers"]
        assert len(trailers) <= 1
        return int(dict(trailers[0]["headers"])[b"grpc-status"]) if trailers else None

    @property
    def messages(self) -> list[bytes]:
        reader = FrameReader(max_bytes=1 << 20)
        bodies = (event["body"] for event in self.sent if event["type"] == "http.response.body")
        return [message for body in bodies if (message := reader.feed(body)) is not None]


async def made() -> AsgiDoor:
    observer = Observer(stream=io.StringIO())
    door = AsgiDoor(Gate(None, clock=FakeClock(), recorder=observer), ServerSettings(drain_s=0), observer)
    await door.start()
    return door


async def call(path: str, *pieces: bytes, door: AsgiDoor | None = None, **options: Any) -> Caller:
    caller = Caller(path, *pieces, **options)
    await asyncio.wait_for((door or await made())(caller.scope, caller.receive, caller.send), 5)
    return caller


@pytest.mark.parametrize(
    "pieces",
    [
        (BODY,),
        (BODY[:3], BODY[3:7], BODY[7:]),
        tuple(BODY[at : at + 1] for at in range(len(BODY))),
        (BODY + BODY,),
        (BODY + b"junk",),
        (render_frame(b""),),
    ],
)
async def test_the_first_message_is_answered_however_it_comes(pieces: tuple[bytes, ...]) -> None:
    for ended in (True, False):
        caller = await call(CHECK, *pieces, ended=ended)
        assert (caller.status, caller.code) == (200, 0)
        (message,) = caller.messages
        assert CheckResponse.FromString(message).status.message in {"not_ready", "not_http"}


@pytest.mark.parametrize(
    ("path", "pieces", "options", "code"),
    [
        ("/other.Service/Check", (BODY,), {}, 12),
        (f"{CHECK}/", (BODY,), {}, 12),
        ("/", (), {}, 12),
        (CHECK, (), {}, 13),
        (CHECK, (BODY[:-1],), {}, 13),
        (CHECK, (BODY[:4],), {}, 13),
        (CHECK, (b"\1" + BODY[1:],), {}, 13),
        (CHECK, (b"\1" + BODY[1:],), {"grpc_encoding": "gzip"}, 12),
        (CHECK, (b"\0\xff\xff\xff\xff",), {"ended": False}, 8),
        (CHECK, (BODY,), {"grpc_timeout": "soon"}, 13),
        (f"/{HEALTH}/Check", (render_frame(b"\xff"),), {}, 13),
        (f"/{HEALTH}/Check", (render_frame(health_pb2.HealthCheckRequest(service="x").SerializeToString()),), {}, 5),
        (f"/{HEALTH}/Watch", (), {}, 13),
        (f"/{REFLECTION[0]}/ServerReflectionInfo", (render_frame(b"\xff"),), {}, 13),
        (f"/{REFLECTION[0]}/ServerReflectionInfo", (b"\0\0",), {}, 13),
    ],
)
async def test_what_cannot_be_answered_has_its_status(
    path: str, pieces: tuple[bytes, ...], options: dict[str, Any], code: int
) -> None:
    caller = await call(path, *pieces, **options)
    assert (caller.status, caller.code, caller.messages) == (200, code, [])
    assert (b"grpc-accept-encoding", b"identity") in caller.sent[0]["headers"]


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"method": "GET"}, 405),
        ({"method": "PUT"}, 405),
        ({"kind": b"application/json"}, 415),
        ({"kind": b"application/grpc-web"}, 415),
        ({"kind": None}, 415),
        ({"kind": b"application/grpc+proto"}, 200),
        ({"kind": b"application/grpc;charset=x"}, 200),
    ],
)
async def test_who_speaks_no_grpc_is_told_in_http(options: dict[str, Any], status: int) -> None:
    caller = await call(CHECK, BODY, **options)
    assert caller.status == status
    assert caller.code == (0 if status == 200 else None)


@pytest.mark.parametrize(
    "path", [CHECK, f"/{HEALTH}/Check", f"/{HEALTH}/Watch", f"/{REFLECTION[1]}/ServerReflectionInfo"]
)
@pytest.mark.parametrize("pieces", [(), (BODY[:3],), (render_frame(b""),)])
async def test_a_caller_who_vanishes_is_left_at_once(path: str, pieces: tuple[bytes, ...]) -> None:
    caller = await call(path, *pieces, ended=False, vanishes=True)
    assert caller.sent == []


async def watching(door: AsgiDoor, service: str = "", **options: Any) -> tuple[Caller, asyncio.Task[None]]:
    body = render_frame(health_pb2.HealthCheckRequest(service=service).SerializeToString())
    caller = Caller(f"/{HEALTH}/Watch", body, **options)
    task = asyncio.create_task(door(caller.scope, caller.receive, caller.send))
    await asyncio.sleep(0.01)
    return caller, task


def statuses(caller: Caller) -> list[int]:
    return [health_pb2.HealthCheckResponse.FromString(message).status for message in caller.messages]


async def test_a_watch_tells_changes_only_and_ends_with_the_drain() -> None:
    door = await made()
    caller, task = await watching(door)
    for serving in (True, True, False):
        await door.set_serving(serving=serving)
        await asyncio.sleep(0.01)
    assert statuses(caller) == [2, 1, 2]
    await door.drain()
    await asyncio.wait_for(task, 1)
    assert caller.code == 14
    late, task = await watching(door)
    await asyncio.wait_for(task, 1)
    assert statuses(late) == [2]


async def test_a_watch_of_an_unknown_service_stays_open() -> None:
    door = await made()
    caller, task = await watching(door, "other")
    assert statuses(caller) == [3]
    assert not task.done()
    await door.drain()
    await task


async def test_a_watch_ends_with_its_deadline() -> None:
    caller, task = await watching(await made(), grpc_timeout="50m")
    await asyncio.wait_for(task, 1)
    assert caller.code == 4


async def test_a_watcher_who_has_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "HEARTBEAT_S", 0.02)
    caller, task = await watching(await made())
    await asyncio.sleep(0.1)
    assert not task.done()
    assert statuses(caller) == [2]
    caller.vanishes = True
    await asyncio.wait_for(task, 1)


async def test_reflection_answers_each_question_in_turn() -> None:
    ask = reflection_pb2.ServerReflectionRequest
    questions = (
        ask(list_services=""),
        ask(file_containing_symbol="envoy.service.auth.v3.Authorization"),
        ask(file_by_filename="nowhere.proto"),
        ask(),
    )
    pieces = [render_frame(its.SerializeToString()) for its in questions]
    for name in REFLECTION:
        caller = await call(f"/{name}/ServerReflectionInfo", b"".join(pieces[:2]), *pieces[2:])
        answers = [reflection_pb2.ServerReflectionResponse.FromString(message) for message in caller.messages]
        kinds = [its.WhichOneof("message_response") for its in answers]
        assert kinds == ["list_services_response", "file_descriptor_response", "error_response", "error_response"]
        assert {its.name for its in answers[0].list_services_response.service} >= {HEALTH, *REFLECTION}
        assert caller.code == 0


@contextlib.contextmanager
def loop_elsewhere() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def test_a_call_in_another_loop_is_answered_at_home() -> None:
    door = await made()
    with loop_elsewhere() as loop:
        answered = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(CHECK, BODY, door=door), loop))
        caller = await asyncio.wait_for(answered, 5)
        assert caller.code == 0
        watch = Caller(f"/{HEALTH}/Watch", render_frame(b""))
        ended = asyncio.run_coroutine_threadsafe(door(watch.scope, watch.receive, watch.send), loop)
        while not watch.sent:
            await asyncio.sleep(0.01)
        await door.drain()
        await asyncio.wait_for(asyncio.wrap_future(ended), 5)
        assert statuses(watch) == [2]
