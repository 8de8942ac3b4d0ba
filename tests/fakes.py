"""The network faked in bytes: a provider that can hang, cut, lie and redirect, and a clock that is set by hand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from jwt import encode
from jwt.algorithms import ECAlgorithm

Answer = bytes | Callable[[str, str, bytes], bytes]
"""A whole HTTP answer, or what makes one of path, head and body. An empty one cuts the connection."""

HANG = b"hang"
"""An answer that never comes."""


class FakeClock:
    """Both clocks, moved by hand."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self.wall_s = now_s
        self.steady_s = 1_000.0

    def now_s(self) -> float:
        return self.wall_s

    def monotonic_s(self) -> float:
        return self.steady_s

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds


class Events:
    """Remembers what was told of providers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def provider_event(self, provider: str, event: str, detail: str = "", seconds: float | None = None) -> None:
        del provider, seconds
        self.seen.append((event, detail))

    def count(self, event: str) -> int:
        return sum(name == event for name, _ in self.seen)

    def details(self, event: str) -> list[str]:
        return [detail for name, detail in self.seen if name == event]


class FakeProvider:
    """An HTTP/1.1 server that answers by path. ``calls`` are the requests seen: (path, head, body).

    ``most_under_way`` is how many were unanswered at once, at the worst moment.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.calls: list[tuple[str, str, bytes]] = []
        self.delay_s = 0.0
        self.most_under_way = 0
        self.url = ""
        self._under_way = 0
        self._server: asyncio.Server | None = None
        self._stop = asyncio.Event()

    def count(self, path: str) -> int:
        return sum(its == path for its, _, _ in self.calls)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next(
                    (
                        int(line.split(":")[1])
                        for line in head.split("\r\n")
                        if line.lower().startswith("content-length:")
                    ),
                    0,
                )
                body = await reader.readexactly(length)
                path = head.split(" ")[1].split("?")[0]
                self.calls.append((path, head, body))
                with self._counted():
                    await asyncio.sleep(self.delay_s)
                answer = self.answers.get(path, http(404))
                raw = answer(path, head, body) if callable(answer) else answer
                if raw == HANG:
                    await self._stop.wait()
                    return
                writer.write(raw)
                await writer.drain()
                if not raw or b"connection: close" in raw:
                    return

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        self.most_under_way = max(self.most_under_way, self._under_way)
        try:
            yield
        finally:
            self._under_way -= 1

    async def start(self) -> None:
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._stop.set()
        if self._server is not None:
            self._server.close()


@contextlib.asynccontextmanager
async def fake_provider() -> AsyncIterator[FakeProvider]:
    provider = FakeProvider()
    await provider.start()
    try:
        yield provider
    finally:
        await provider.stop()


def http(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Return an HTTP answer."""
    fields = {"content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body


def json_answer(value: object, status: int = 200) -> bytes:
    return http(status, json.dumps(value).encode(), content_type="application/json")


class Signer:
    """A key, and tokens signed with it."""

    def __init__(self, kid: str = "k1") -> None:
        self.kid = kid
        self.key: EllipticCurvePrivateKey = generate_private_key(SECP256R1())

    def jwk(self) -> dict[str, Any]:
        member: dict[str, Any] = ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return member | {"kid": self.kid, "use": "sig"}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        return encode(claims, self.key, algorithm="ES256", headers={"kid": self.kid} | header)


def jwks(*signers: Signer) -> bytes:
    return json_answer({"keys": [its.jwk() for its in signers]})


def basic_of(head: str) -> str:
    """Return the decoded Basic credentials of a request's head."""
    line = next(line for line in head.split("\r\n") if line.lower().startswith("authorization: basic "))
    return base64.b64decode(line.split(" ")[2]).decode()
