"""The process that keeps the workers: starts them, asks them, restarts them, and ends them unhurriedly.

Each worker of the fast door is an Envoy with the whole service inside, each of the portable door a Python of its own.
All bind the same addresses (``SO_REUSEPORT``) and the system spreads connections over them. This process answers no
check. It validates before any socket opens, holds the ports, serves the one HTTP side with the sums of all workers, and
passes on signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Coroutine, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import aiohttp
from prometheus_client import CollectorRegistry, Counter, Gauge

from authz.config import Configuration
from authz.config.settings import Listener, TlsSettings
from authz.model import ConfigError, ConfigProblem
from authz.observe import Observer
from authz.servers.engine import (
    DRAIN_S,
    Bound,
    Engine,
    list_certificates,
    render_engine_config,
    render_python_path,
    render_secrets,
    split_address,
)
from authz.servers.figures import Ledger
from authz.servers.grpc import remove_socket
from authz.servers.http import HttpServer, render_http_app
from authz.watch import digest_files, watch_files
from authz.worker import LOCK, ORDERS, WorkerOrders, stamp_settings

ASK_S: Final = 5.0
"""How long a worker may take to answer a question: longer than it is ever busy with one thing."""

MIND_S: Final = 2.0
HANG_S: Final = 10.0
"""A worker that took callers and says nothing for so long gets more of them all the same, so it is ended."""

LOOK_S: Final = 0.7
"""How long a probe of all workers waits for one: kubelet's own patience is a second."""

START_S: Final = 60.0
"""How long a worker may take until it says anything, and to put new rules in force."""

STOP_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0
STEADY_S: Final = 60.0
"""A worker that lived this long is restarted at once again."""

UNANSWERED: Final = (aiohttp.ClientError, TimeoutError)

APPLICATIONS: Final = ("authz.worker:APPLICATION", "authz.worker:FURTHER")


def count_cores() -> int:
    """Return how many cores this process may use: by affinity, and by the quota of its cgroup."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker, for people."""

    number: int
    pid: int
    ready: bool
    restarts: int


class Worker:
    """One process that answers checks, and the next one in its place."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.folder = folder
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0
        self.seen: Mapping[str, Any] = {}
        """What it last said of itself; empty while it says nothing."""
        self.seen_s = 0.0
        """When it last said anything; 0 for one that has not yet."""

    @property
    def control(self) -> Path:
        """The socket at which the service inside is asked."""
        return self.folder / "control"

    @property
    def is_ready(self) -> bool:
        """Whether it was ready when last seen."""
        return bool(self.seen.get("ready"))

    async def look(self) -> bool:
        """Ask how it is, and say whether it answered. One that is slow is taken to be as it was, for a while."""
        try:
            self.seen = json.loads(await self.ask("GET", "readyz", timeout_s=LOOK_S))
        except (*UNANSWERED, ValueError) as error:
            if not isinstance(error, TimeoutError) or time.monotonic() - self.seen_s > ASK_S:
                self.seen = {}
            return False
        self.seen_s = time.monotonic()
        return True

    async def ask(self, method: str, path: str, *, timeout_s: float = ASK_S) -> bytes:
        """Ask the service inside, and return what it says.

        Raises:
            aiohttp.ClientError, TimeoutError: if it does not answer.

        """
        return (await _call(self.control, method, path, timeout_s))[1]

    async def is_envoy_listening(self) -> bool:
        """Ask the Envoy around it, which listens last of all."""
        with contextlib.suppress(*UNANSWERED):
            return (await _call(self.folder / "admin", "GET", "ready", ASK_S))[0] == HTTPStatus.OK
        return False

    async def tell_envoy(self, path: str) -> None:
        """Order something of the Envoy around it; one that does not answer needs no order."""
        with contextlib.suppress(*UNANSWERED):
            await _call(self.folder / "admin", "POST", path, ASK_S)


class Supervisor:
    """All workers and what they share. ``ports`` are the bound TCP ports in the listeners' order.

    ``engine`` is what the fast door's workers are; None for those of the portable door.
    """

    def __init__(
        self, file: Path, configuration: Configuration, engine: Engine | None, *, workers: int, observer: Observer
    ) -> None:
        self._file = file
        self._settings = configuration.server
        self._engine = engine
        self._observer = observer
        self._count = workers
        self._stopping = asyncio.Event()
        self._held: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._parts = contextlib.ExitStack()
        self._folder = Path()
        self._alive_fd = -1
        self._bound: tuple[Bound, ...] = ()
        self._workers: list[Worker] = []
        self._ledger = Ledger()
        self._registry = CollectorRegistry()
        self._restarts = Counter(
            "authz_worker_restarts", "Workers that ended by themselves or hung.", registry=self._registry
        )
        self._serving = Gauge("authz_workers_ready", "Workers that are ready.", registry=self._registry)
        self.ports: tuple[int, ...] = ()
        self.http: HttpServer | None = None

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, reload on SIGHUP, then drain.

        Raises:
            ConfigError: for addresses that cannot be bound, and workers that do not start.

        """
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self.reload()))
        with self._parts:
            stopped = self._spawn(_wait_for(stop))
            ready = False
            try:
                started = self._spawn(self.start())
                await asyncio.wait((started, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not stopped.done():
                    await started
                    ready = True
                    await stopped
            finally:
                await self.stop(at_once=not ready)

    async def start(self) -> None:
        """Bind the addresses, start every worker, and wait until all are ready.

        Raises:
            ConfigError: for addresses that cannot be bound, and workers that do not start.

        """
        self._prepare()
        if self._settings.http is not None:
            self.http = HttpServer(render_http_app(metrics=self.render_metrics, view=self.view), self._settings.http)
            await self.http.start()
        # Those of the portable door are read by each worker for itself.
        certificates = () if self._engine is None else list_certificates(self._settings.grpc)
        for number, tls in enumerate(certificates):
            await self._publish(number, tls)
            self._watch(self._follow(number, tls))
        first: list[asyncio.Task[None]] = []
        for worker in self._workers:
            came_up = asyncio.get_running_loop().create_future()
            self._watch(self._keep(worker, came_up))
            first.append(self._spawn(_wait_for_future(came_up)))
        await asyncio.gather(*first)
        self._observer.lifecycle(
            "serving",
            door=self._settings.door.value,
            **({} if self._engine is None else {"envoy": self._engine.version}),
            workers=self._count,
            addresses=[its.address for its in self._bound],
            http=self.http.address if self.http is not None else "",
        )

    async def reload(self) -> None:
        """Have every worker read the rules again, each for itself; a bad file is refused by each."""
        await asyncio.gather(*(self._order(worker, "reload", START_S) for worker in self._workers))

    async def stop(self, *, at_once: bool = False) -> None:
        """Let the workers answer on until their callers have gone, then end them."""
        self._stopping.set()
        self._observer.lifecycle("draining")
        patient = not at_once and self._settings.drain_s > 0
        await asyncio.gather(*(self._end(worker, patient=patient) for worker in self._workers))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.http is not None:
            await self.http.stop()
        for held in self._held:
            held.close()
        self._observer.lifecycle("stopped")

    async def view(self) -> Mapping[str, object]:
        """Return what the readiness probe and people see: ready if any worker is, and the worst that any says."""
        await asyncio.gather(*(worker.look() for worker in self._workers))
        known = [worker.seen for worker in self._workers if worker.seen]
        providers: dict[str, Mapping[str, Any]] = {}
        for its in (provider for seen in known for provider in seen["providers"]):
            if its["name"] not in providers or not its["healthy"]:
                providers[its["name"]] = its
        return {
            "ready": not self._stopping.is_set() and any(worker.is_ready for worker in self._workers),
            "generation": min((seen["generation"] for seen in known), default=0),
            "last_reload_error": next((text for seen in known if (text := seen["last_reload_error"])), ""),
            "providers": list(providers.values()),
            "workers": [asdict(_describe(worker)) for worker in self._workers],
        }

    async def render_metrics(self) -> bytes:
        """Return the sums of all workers' figures, and ours."""
        await asyncio.gather(*(self._read_figures(worker) for worker in self._workers))
        self._serving.set(sum(worker.is_ready for worker in self._workers))
        return await asyncio.to_thread(self._ledger.render, self._registry)

    async def _read_figures(self, worker: Worker) -> None:
        if not await worker.look():
            return
        with contextlib.suppress(*UNANSWERED):
            self._ledger.note(worker.number, (await worker.ask("GET", "metrics")).decode())

    def _prepare(self) -> None:
        """Take the addresses and make the folder that the workers share with us, and with nobody else."""
        try:
            folder = self._parts.enter_context(tempfile.TemporaryDirectory(prefix="authz-"))
        except OSError as error:
            text = f"no temporary folder for the workers: {(error.strerror or '').lower()}: set TMPDIR"
            raise ConfigError(ConfigProblem(message=text, path="server.door")) from None
        self._folder = Path(folder)
        (self._folder / LOCK).touch()
        # Nobody writes to it: reading ends when we do, whatever ends us.
        self._alive_fd, write_fd = os.pipe()
        self._parts.callback(os.close, write_fd)
        self._parts.callback(os.close, self._alive_fd)
        self._bound = tuple(self._take(its) for its in self._settings.grpc)
        self.ports = tuple(split_address(its.address)[1] for its in self._bound if not its.address.startswith("unix:"))
        for number in range(self._count):
            worker = Worker(number, self._folder / str(number))
            worker.folder.mkdir(mode=0o700)
            if self._engine is not None:
                text = render_engine_config(
                    self._engine, self._settings, self._bound, applications=APPLICATIONS, folder=worker.folder
                )
                (worker.folder / "envoy.json").write_text(text)
            self._workers.append(worker)

    def _take(self, listener: Listener) -> Bound:
        """Hold an address, so that it stays ours between one worker and the next."""
        if listener.address.startswith("unix:"):
            remove_socket(Path(listener.address.removeprefix("unix:")))
            return Bound(address=listener.address, tls=listener.tls)
        host, port = split_address(listener.address)
        try:
            if port:
                # Not shared: whoever listens there already, another one of us included, is told apart.
                with _make_socket(host, share=False) as probe:
                    probe.bind((host, port))
            held = _make_socket(host, share=True)
            held.bind((host, port))
        except OSError as error:
            message = f"cannot listen on `{listener.address}`: {(error.strerror or '').lower()}"
            raise ConfigError(ConfigProblem(message=message, path="server.grpc")) from None
        self._held.append(held)
        shown = listener.address.rpartition(":")[0]
        return Bound(address=f"{shown}:{held.getsockname()[1]}", tls=listener.tls)

    async def _keep(self, worker: Worker, came_up: asyncio.Future[None]) -> None:
        """Start a worker, and another one in its place for as long as we serve."""
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began_s = time.monotonic()
            how = await self._live(worker, came_up)
            if self._stopping.is_set():
                return
            self._ledger.retire(worker.number)
            if not came_up.done():
                text = f"worker {worker.number} {how} before it was ready: the log says why"
                came_up.set_exception(ConfigError(ConfigProblem(message=text, path="server.door")))
                return
            self._restarts.inc()
            self._observer.lifecycle("worker ended, starting another", worker=worker.number, how=how)
            if time.monotonic() - began_s > STEADY_S:
                pause_s = FIRST_PAUSE_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _live(self, worker: Worker, came_up: asyncio.Future[None]) -> str:
        """Start a worker and wait for its end; return how it ended."""
        try:
            process = await self._launch(worker)
        except OSError as error:
            return f"could not be started ({(error.strerror or '').lower()})"
        minder = self._watch(self._mind(worker, process))
        await self._wait_until_ready(worker, process)
        if worker.is_ready and not came_up.done():
            came_up.set_result(None)
        code = await process.wait()
        minder.cancel()
        worker.seen = {}
        return f"ended with code {code}"

    async def _launch(self, worker: Worker) -> asyncio.subprocess.Process:
        for name in ("admin", "control"):
            (worker.folder / name).unlink(missing_ok=True)
        orders = WorkerOrders(
            file=str(self._file.absolute()),
            control=str(worker.control),
            shared=str(self._folder),
            settings=stamp_settings(self._settings),
            alive_fd=self._alive_fd,
            patient=worker.starts > 0 and self._count > 1,
            addresses=() if self._engine is not None else [its.address for its in self._bound],
        )
        worker.starts += 1
        worker.seen_s = 0.0
        if self._engine is None:
            command = [sys.executable, "-P", "-m", "authz.worker"]
            environ: Mapping[str, str] = {"PYTHONPATH": render_python_path()}
        else:
            command = [self._engine.binary, "--config-path", str(worker.folder / "envoy.json")]
            command += ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
            command += ["--drain-strategy", "immediate", "--drain-time-s", str(DRAIN_S)]
            environ = self._engine.environ
        worker.process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **environ, ORDERS: orders.render()},
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(self._alive_fd,),
            # A terminal's Ctrl-C is for us: we let the workers finish.
            start_new_session=True,
        )
        return worker.process

    async def _wait_until_ready(self, worker: Worker, process: asyncio.subprocess.Process) -> None:
        while process.returncode is None and not self._stopping.is_set():
            if self._engine is None or await worker.is_envoy_listening():
                await worker.look()
                if worker.is_ready:
                    break
            await asyncio.sleep(0.02)

    async def _mind(self, worker: Worker, process: asyncio.subprocess.Process) -> None:
        """End a worker that hangs; another one takes its place."""
        began_s = time.monotonic()
        while time.monotonic() < (worker.seen_s + HANG_S if worker.seen_s else began_s + START_S):
            await asyncio.sleep(MIND_S)
            try:
                await worker.ask("GET", "healthz", timeout_s=HANG_S)
            except aiohttp.ClientConnectorError:
                # One that hangs is connected to all the same: that we cannot ask, for want of files, is our trouble.
                if not worker.seen_s:
                    continue
            except UNANSWERED:
                continue
            worker.seen_s = time.monotonic()
        if not self._stopping.is_set():
            self._observer.lifecycle("a worker hangs, ending it", worker=worker.number)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _order(self, worker: Worker, what: str, timeout_s: float) -> bool:
        try:
            await worker.ask("POST", what, timeout_s=timeout_s)
        except UNANSWERED as error:
            kind = type(error).__name__
            self._observer.lifecycle("a worker did not take an order", worker=worker.number, order=what, kind=kind)
            return False
        return True

    async def _end(self, worker: Worker, *, patient: bool) -> None:
        process = worker.process
        if process is None or process.returncode is not None:
            return
        # Whether it was ready when last seen says nothing: it may have callers since. One that starts takes no order.
        drained = patient and await self._order(worker, "drain", self._settings.drain_s + ASK_S)
        if drained and self._engine is not None:
            # From now on each answer tells its caller to go elsewhere; after DRAIN_S nobody new comes.
            await worker.tell_envoy("drain_listeners?graceful")
            await asyncio.sleep(DRAIN_S)
            await self._order(worker, "drain", self._settings.drain_s + ASK_S)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _publish(self, number: int, tls: TlsSettings) -> bool:
        """Show the workers a certificate, if it can be used: else the last good one stays (LAST-GOOD).

        Envoy looks at the files again when it is told of other names, so each time they have new ones; the files
        themselves are not copied.
        """
        if not await asyncio.to_thread(_is_usable, tls):
            return False
        place = self._folder / f"tls-{number}-{time.monotonic_ns()}"
        place.mkdir(mode=0o700)
        names = {name: path for name, path in asdict(tls).items() if path is not None}
        for name, path in names.items():
            (place / name).symlink_to(path)
        shown = TlsSettings(**{name: str(place / name) for name in names})
        for name, text in render_secrets(shown, number).items():
            draft = place / name
            draft.write_text(text)
            draft.rename(self._folder / name)
        return True

    async def _follow(self, number: int, tls: TlsSettings) -> None:
        files = [Path(path) for path in asdict(tls).values() if path is not None]

        async def renew() -> None:
            if await self._publish(number, tls):
                self._observer.lifecycle("certificate renewed", file=tls.cert_file)
            else:
                self._observer.lifecycle("certificate cannot be used, the last good one stays", file=tls.cert_file)

        await watch_files(await asyncio.to_thread(digest_files, files), renew)

    def _watch(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something for as long as we serve; a bug of ours in it shows in the log."""

        def tell(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and done.exception() is not None:
                self._observer.internal_error(done.exception())

        task = self._spawn(work)
        task.add_done_callback(tell)
        return task

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _is_usable(tls: TlsSettings) -> bool:
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: b"")
        if tls.client_ca_file is not None:
            ssl.create_default_context(cafile=tls.client_ca_file)
    except OSError:
        return False
    return True


def _describe(worker: Worker) -> WorkerView:
    pid = worker.process.pid if worker.process is not None else 0
    return WorkerView(number=worker.number, pid=pid, ready=worker.is_ready, restarts=max(0, worker.starts - 1))


def _make_socket(host: str, *, share: bool) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if host == "::":
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made


async def _call(place: Path, method: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    connector = aiohttp.UnixConnector(str(place))
    async with (
        asyncio.timeout(timeout_s),
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, f"http://worker/{path}") as response,
    ):
        return response.status, await response.read()


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


async def _wait_for_future(future: asyncio.Future[None]) -> None:
    await future


def choose_workers(configuration: Configuration, asked: int | None) -> int:
    """Return how many workers to start: as asked, as configured, else one a core.

    Raises:
        ConfigError: if several are asked for where one address leads to one process only.

    """
    single = any(its.address.startswith("unix:") for its in configuration.server.grpc)
    wanted = asked if asked is not None else configuration.server.workers
    if wanted is None:
        return 1 if single else count_cores()
    if single and wanted > 1:
        text = "a unix socket leads to one process: several workers need `host:port` only"
        raise ConfigError(ConfigProblem(message=text, path="server.workers"))
    return wanted
