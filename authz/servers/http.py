"""The operator's door: ``/metrics``, ``/healthz`` and ``/readyz``. Keep it off the public network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from authz.clients.authenticate import ProviderStatus
from authz.model import ConfigError, ConfigProblem

STOP_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthView:
    """What a readiness probe and people see. A provider's failure shows, but never makes the service unready."""

    ready: bool
    generation: int
    last_reload_error: str
    providers: tuple[ProviderStatus, ...]


Order = Callable[[], Awaitable[None]]


def render_http_app(
    *,
    metrics: Callable[[], Awaitable[bytes]],
    view: Callable[[], Awaitable[Mapping[str, object]]],
    orders: Mapping[str, Order] | None = None,
) -> Starlette:
    """Build the application. ``orders`` are what a supervisor may ask of a worker, with POST; never on a public port.

    ``view`` says whether we are ``ready``, and more for people.
    """
    one_scrape = asyncio.Lock()

    async def show_metrics(_: HttpRequest) -> Response:
        # Thousands of rules make megabytes: scrapes do not add up.
        async with one_scrape:
            text = await metrics()
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: HttpRequest) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: HttpRequest) -> Response:
        found = await view()
        return JSONResponse(found, status_code=200 if found["ready"] else 503)

    routes = [Route("/metrics", show_metrics), Route("/healthz", healthz), Route("/readyz", readyz)]
    routes += [Route(f"/{name}", _taking(order), methods=["POST"]) for name, order in (orders or {}).items()]
    return Starlette(routes=routes)


def _taking(order: Order) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def take(_: HttpRequest) -> Response:
        await order()
        return PlainTextResponse("done\n")

    return take


class HttpServer:
    """Serves an application in the running event loop.

    ``port`` is the bound one, 0 for an address ``unix:/path``; ``address`` has it too.
    """

    def __init__(self, app: Starlette, address: str) -> None:
        self._address = address
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False)
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """The address with the bound port."""
        return f"{self._address.rpartition(':')[0]}:{self.port}" if self.port else self._address

    async def start(self) -> None:
        """Bind and serve.

        Raises:
            ConfigError: for an address that cannot be bound.

        """
        bound, at = _make_socket(self.address)
        try:
            bound.bind(at)
            bound.listen()  # at once: whoever is told that we listen may call
        except OSError as error:
            bound.close()
            message = f"cannot listen on `{self.address}`: {error.strerror}"
            raise ConfigError(ConfigProblem(message=message, path="server.http")) from None
        if bound.family != socket.AF_UNIX:
            self.port = bound.getsockname()[1]
        self._task = asyncio.create_task(self._serve(bound))

    async def stop(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=STOP_S)
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _serve(self, bound: socket.socket) -> None:
        # uvicorn's own `serve` takes the process's signals, which are the application's.
        with contextlib.closing(bound):
            await self._server._serve([bound])  # noqa: SLF001 - see above; there is no public way


def _make_socket(address: str) -> tuple[socket.socket, str | tuple[str, int]]:
    if address.startswith("unix:"):
        return socket.socket(socket.AF_UNIX), address.removeprefix("unix:")
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    # The protocol by name: asyncio turns off Nagle's delay only for sockets that say TCP.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made, (bare, int(port))
