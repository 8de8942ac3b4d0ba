"""The service inside one of several workers: a process of its own, or what pyvoy's module, in Envoy, looks for.

``APPLICATION`` is the first filter's and owns the service; ``FURTHER`` is that of all other filters of this process,
which start later and pass their calls to the same door. Nothing happens at import: pyvoy tells when to start. A worker
of the portable door is this module run as a program.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from starlette.types import Receive, Scope, Send

from authz.app import App, Door, WorkerPlace
from authz.config import load
from authz.config.settings import ServerSettings
from authz.lines import LineQueue
from authz.model import ConfigError, ConfigProblem
from authz.observe import Observer, configure_logging
from authz.servers.asgi import AsgiDoor
from authz.servers.grpc import GrpcServer
from authz.turns import making_what_stays

ORDERS: Final = "AUTHZ_WORKER"
"""The environment variable with a worker's :class:`WorkerOrders`, in JSON."""

LOCK: Final = "lock"
"""The file in the shared folder that keeps the workers' lines whole."""

EARLY_S: Final = 0.5
"""How long the first start waits for the policy before it takes calls: ``not_ready`` is an answer, a refused
connection is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOrders:
    """What a supervisor tells its worker.

    ``control`` is the socket to be asked at, ``shared`` the folder of all workers, ``alive_fd`` ends with the
    supervisor, ``patient`` as in :class:`WorkerPlace`, ``settings`` the stamp of those that the supervisor bound.
    ``addresses`` are those to share, by the portable door only.
    """

    file: str
    control: str
    shared: str
    alive_fd: int
    patient: bool
    settings: str
    addresses: Sequence[str] = ()

    def render(self) -> str:
        """Return it for the environment."""
        return json.dumps(asdict(self))


class Service:
    """The running service of this process."""

    def __init__(self) -> None:
        self.door: Door | None = None
        self._app: App | None = None
        self._logs: tuple[LineQueue, ...] = ()

    async def start(self, environ: Mapping[str, str]) -> Door:
        """Start it in the running event loop.

        Raises:
            ConfigError: for a file that has gone bad since the supervisor read it, or whose `server` has changed.

        """
        orders = WorkerOrders(**json.loads(environ[ORDERS]))
        log, decisions = self._logs = _open_logs(Path(orders.shared) / LOCK)
        configure_logging(stream=log, colour=None)
        with making_what_stays():
            configuration = load(Path(orders.file), environ=environ)
        if stamp_settings(configuration.server) != orders.settings:
            # Addresses and certificates would no longer be those that belong together.
            text = "`server` has changed since the start: restart the service, or undo it; no worker starts with it"
            raise ConfigError(ConfigProblem(message=text, file=orders.file, path="server"))
        app = self._app = App(
            Path(orders.file),
            environ=environ,
            configuration=configuration,
            observer=Observer(stream=decisions),
            make_door=partial(GrpcServer, at=orders.addresses) if orders.addresses else AsgiDoor,
            place=WorkerPlace(control=Path(orders.control), shared=Path(orders.shared), patient=orders.patient),
        )
        self.door = app.grpc
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(app.report)
        loop.add_reader(orders.alive_fd, _end)
        starting = loop.create_task(app.start())
        await asyncio.wait((starting,), timeout=None if orders.patient else EARLY_S)
        if starting.done():
            starting.result()
        starting.add_done_callback(_end_if_failed)
        return app.grpc

    async def stop(self) -> None:
        """End it: the callers are gone, or the machine wants us gone."""
        if self._app is not None:
            await self._app.stop(at_once=True)
        for log in self._logs:
            await asyncio.to_thread(log.close)


class Filter:
    """The ASGI application of one filter."""

    def __init__(self, service: Service, *, owner: bool) -> None:
        self._service = service
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Live, or answer one call."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await scope["state"]["door"](scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            door = await self._service.start(os.environ) if self._owner else self._service.door
        except ConfigError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        scope["state"]["door"] = door
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._owner:
            await self._service.stop()
        await send({"type": "lifespan.shutdown.complete"})


def stamp_settings(settings: ServerSettings) -> str:
    """Return what differs if any setting of the server does."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()


def _open_logs(lock: Path) -> tuple[LineQueue, LineQueue]:
    """Return the logs' ends; each has the lock open for itself, or one would let the other in."""
    log, decisions = (LineQueue(stream, lock=lock.open("rb")) for stream in (sys.stderr, sys.stdout))
    return log, decisions


def _end() -> None:
    """End this process as the supervisor would, which is no more."""
    asyncio.get_running_loop().remove_reader(json.loads(os.environ[ORDERS])["alive_fd"])
    os.kill(os.getpid(), signal.SIGTERM)


def _end_if_failed(starting: asyncio.Task[None]) -> None:
    if not starting.cancelled() and starting.exception() is not None:
        os.kill(os.getpid(), signal.SIGTERM)


_SERVICE: Final = Service()
APPLICATION: Final = Filter(_SERVICE, owner=True)
FURTHER: Final = Filter(_SERVICE, owner=False)


async def _live() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await _SERVICE.start(os.environ)
    await stop.wait()
    await _SERVICE.stop()


if __name__ == "__main__":
    try:
        asyncio.run(_live())
    except ConfigError as error:
        sys.exit(str(error))
