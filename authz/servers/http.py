"""The operator's door: ``/metrics``, ``/healthz`` and ``/readyz``. Keep it off the public network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from authz.clients.authenticate import ProviderStatus
from authz.model import ConfigError, ConfigProblem
from authz.observe import Observer

STOP_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthView:
    """What a readiness probe and people see. A provider's failure shows, but never makes the service unready."""

    ready: bool
    generation: int
    last_reload_error: str
    providers: tuple[ProviderStatus, ...]


def render_http_app(observer: Observer, view: Callable[[], HealthView]) -> Starlette:
    """Build the application."""
    one_scrape = asyncio.Lock()

    async def metrics(_: HttpRequest) -> Response:
        # Thousands of rules make megabytes: checks go on meanwhile, and scrapes do not add up.
        async with one_scrape:
            text = await asyncio.to_thread(observer.render_metrics)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: HttpRequest) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: HttpRequest) -> Response:
        found = view()
        return JSONResponse(asdict(found), status_code=200 if found.ready else 503)

    return Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)])


class HttpServer:
    """Serves an application in the running event loop. ``port`` is the bound one, ``address`` has it too."""

    def __init__(self, app: Starlette, address: str) -> None:
        self.address = address
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False)
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Bind and serve.

        Raises:
            ConfigError: for an address that cannot be bound.

        """
        host, _, port = self.address.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        bound = socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((bare, int(port)))
            bound.listen()  # at once: whoever is told that we listen may call
        except OSError as error:
            bound.close()
            message = f"cannot listen on `{self.address}`: {error.strerror}"
            raise ConfigError(ConfigProblem(message=message, path="server.http")) from None
        self.port = bound.getsockname()[1]
        self.address = f"{host}:{self.port}"
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
