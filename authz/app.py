"""Wiring and life cycle, read top to bottom: load, bind, try each provider once, serve, reload, drain.

Invariant LAST-GOOD: a reload compiles everything first and swaps one reference last; whatever goes wrong before that
leaves the policy in force as it is, and shows in the log, the metrics and the readiness detail.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from authz import __version__
from authz.clients.authenticate import Authenticator, EvidenceCache, ProviderStatus
from authz.config import Configuration, load
from authz.config.problems import count
from authz.config.settings import LogDecisions, ServerSettings
from authz.gate import Gate, Snapshot
from authz.model import ConfigError, ConfigProblem
from authz.observe import Observer
from authz.servers.grpc import GrpcServer
from authz.servers.http import HealthView, HttpServer, render_http_app
from authz.turns import making_what_stays
from authz.watch import watch_files

FIRST_TRY_S: Final = 10.0
"""How long a start or a reload waits for new providers: each gets one bounded attempt, then the rest is background."""

CLOSE_AFTER_S: Final = 30.0
"""Longer than any check takes: checks under way keep the providers of the policy they began with."""


class Door(Protocol):
    """What callers come through: one server, or an application inside of one."""

    ports: tuple[int, ...]
    addresses: tuple[str, ...]

    async def start(self) -> None:
        """Take calls, unready."""
        ...

    async def set_serving(self, *, serving: bool) -> None:
        """Tell health checkers."""
        ...

    async def drain(self, *, at_once: bool = False) -> None:
        """Answer on until the callers have gone, or not at all."""
        ...


DoorMaker = Callable[[Gate, ServerSettings, Observer], Door]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlace:
    """Where a worker and its supervisor meet.

    ``control`` is the socket at which the supervisor asks, instead of the operator's door for metrics and health;
    ``shared`` is the folder that all workers have in common. ``patient`` means that others take calls meanwhile, so
    that this one takes none before it is ready.
    """

    control: Path
    shared: Path
    patient: bool


class SystemClock:
    """The machine's clocks: seconds since 1970, and a clock that never jumps."""

    def now_s(self) -> float:
        """Return the wall clock's time."""
        return time.time()

    def monotonic_s(self) -> float:
        """Return the time since some fixed moment."""
        return time.monotonic()


class App:
    """One running service."""

    def __init__(
        self,
        path: Path,
        *,
        environ: Mapping[str, str],
        observer: Observer,
        make_door: DoorMaker = GrpcServer,
        place: WorkerPlace | None = None,
        configuration: Configuration | None = None,
    ) -> None:
        """Load the configuration, unless that was done.

        ``place`` is for one of several workers.

        Raises:
            ConfigError: with every problem. No socket is open then.

        """
        self._path = path
        self._environ = environ
        self._observer = observer
        self._clock = SystemClock()
        self._configuration = load(path, environ=environ) if configuration is None else configuration
        observer.denies_only = self._configuration.server.log_decisions is LogDecisions.DENIES
        self._cache = EvidenceCache(
            max_bytes=self._configuration.server.evidence_cache_bytes, clock=self._clock.monotonic_s
        )
        self._watched = self._configuration.files
        self._authenticators: dict[str, Authenticator] = {}
        self._open: set[Authenticator] = set()
        self._listening = False
        self._draining = False
        self._generation = 0
        self._last_error = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self.gate = Gate(None, clock=self._clock, recorder=observer)
        self._place = place
        self.grpc = make_door(self.gate, self._configuration.server, observer)
        self.http: HttpServer | None = None

    async def start(self) -> None:
        """Bind the sockets, try every provider once, then say that we are ready.

        Raises:
            ConfigError: for addresses that cannot be bound.

        """
        self._observer.watch(statuses=self._statuses, cache=self._cache.stats)
        patient = self._place is not None and self._place.patient
        if not patient:
            await self.grpc.start()
        address = self._configuration.server.http if self._place is None else f"unix:{self._place.control}"
        if address is not None:
            orders = {} if self._place is None else {"reload": self.reload, "drain": self.drain}
            self.http = HttpServer(render_http_app(metrics=self._figures, view=self._seen, orders=orders), address)
            await self.http.start()
        self._listening = True
        http = None if self.http is None else self.http.address
        self._observer.lifecycle("listening", grpc=self.grpc.addresses, http=http, version=__version__)
        await self._put_in_force(self._configuration)
        if patient:
            await self.grpc.start()
        await self.grpc.set_serving(serving=True)
        if self._place is None:
            door = self._configuration.server.door.value
            self._observer.lifecycle("serving", door=door, workers=1, addresses=self.grpc.addresses, http=http or "")
        self._spawn(self._follow_files())

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, reload on SIGHUP, then drain."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        handlers: Mapping[signal.Signals, Callable[[], object]] = {
            signal.SIGTERM: stop.set,
            signal.SIGINT: stop.set,
            signal.SIGHUP: lambda: self._spawn(self.reload()),
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        loop.set_exception_handler(self.report)
        stopped, started = self._spawn(_wait_for(stop)), self._spawn(self.start())
        ready = False
        try:
            await asyncio.wait((started, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                await started
                ready = True
                await stopped
        finally:
            await self.stop(at_once=not ready)
            for number in handlers:
                loop.remove_signal_handler(number)

    def report(self, _loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Take what nobody waits for: a bug of ours in the background shows in log and figures."""
        self._observer.internal_error(context.get("exception"))

    async def reload(self) -> None:
        """Read the files again; put them in force only if all of it is good."""
        async with self._reloading:  # one at a time: a signal and a changed file often come together
            loaded = False
            try:
                # Ten thousand rules take seconds to compile: checks go on meanwhile.
                with making_what_stays():
                    configuration = await asyncio.to_thread(load, self._path, environ=self._environ)
                loaded = True
                self._check_server(configuration)
            except ConfigError as error:
                loaded = True
                # Watched as well is what the bad file names: the mending may happen there.
                self._watched = {**self._watched, **error.files}
                self._refuse_reload(str(error))
                return
            finally:
                if not loaded:  # a bug of ours, which the event loop reports: it must show here too
                    self._refuse_reload("the file could not be compiled, for a reason that is ours: see the log")
            await self._put_in_force(configuration)

    def _refuse_reload(self, why: str) -> None:
        self._last_error = why
        self._observer.reload_event(ok=False, generation=self._generation, detail=why)

    async def stop(self, *, at_once: bool = False) -> None:
        """Drain, or close the doors at once; then close everything."""
        await self.drain(at_once=at_once)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.http is not None:
            await self.http.stop()
        for authenticator in self._open:
            await authenticator.close()
        if self._listening:
            self._observer.lifecycle("stopped")

    async def drain(self, *, at_once: bool = False) -> None:
        """Be unready, and answer on until the callers have gone, or not at all."""
        self._draining = True
        if self._listening:
            self._observer.lifecycle("draining")
        await self.grpc.drain(at_once=at_once)

    def view(self) -> HealthView:
        """Return what the readiness probe and people see."""
        return HealthView(
            ready=self.gate.snapshot is not None and not self._draining,
            generation=self._generation,
            last_reload_error=self._last_error,
            providers=tuple(self._statuses()),
        )

    async def _seen(self) -> Mapping[str, object]:
        return asdict(self.view())

    async def _figures(self) -> bytes:
        # Thousands of rules make megabytes: checks go on meanwhile.
        return await asyncio.to_thread(self._observer.render_metrics)

    def _check_server(self, configuration: Configuration) -> None:
        if configuration.server != self._configuration.server:
            message = "`server` has changed: restart to put that in force, or undo it; nothing else was reloaded"
            raise ConfigError(ConfigProblem(message=message, file=str(self._path), path="server"))

    async def _put_in_force(self, configuration: Configuration) -> None:
        new: dict[str, Authenticator] = {}
        fresh: list[Authenticator] = []
        for name, provider in configuration.providers.items():
            known = self._authenticators.get(name)
            if known is not None and known.provider == provider:
                new[name] = known
            else:
                shared = None if self._place is None else self._place.shared
                new[name] = Authenticator(
                    provider, cache=self._cache, clock=self._clock, events=self._observer, shared=shared
                )
                fresh.append(new[name])
        self._open.update(fresh)
        if self._generation == 0:
            self._authenticators = new  # so that whoever waits for the start sees which provider it waits for
        # Their own fetches go on after this: a dead provider fails only the rules that need it.
        if fresh:
            await asyncio.wait([self._spawn(its.start()) for its in fresh], timeout=FIRST_TRY_S)
        old = [its for its in self._authenticators.values() if its not in new.values()]
        self._authenticators = new
        self._configuration = configuration
        self._watched = configuration.files
        self._generation += 1
        self._last_error = ""
        self.gate.swap(Snapshot(policy=configuration.policy, authenticators=dict(new), generation=self._generation))
        detail = count(len(configuration.policy.rules), "rule")
        self._observer.reload_event(ok=True, generation=self._generation, detail=detail)
        if old:
            self._spawn(self._close_later(old))

    async def _follow_files(self) -> None:
        while True:
            files = self._watched
            changed = asyncio.Event()

            async def note(changed: asyncio.Event = changed) -> None:
                changed.set()

            watcher = self._spawn(watch_files(files, note))
            try:
                # Watched anew when a reload names other files.
                while self._watched.keys() == files.keys():
                    await changed.wait()
                    changed.clear()
                    await asyncio.wait((self._spawn(self.reload()),))
            finally:
                watcher.cancel()

    async def _close_later(self, authenticators: list[Authenticator]) -> None:
        await asyncio.sleep(CLOSE_AFTER_S)
        for authenticator in authenticators:
            self._open.discard(authenticator)
            await authenticator.close()

    def _statuses(self) -> Iterator[ProviderStatus]:
        for authenticator in self._authenticators.values():
            yield authenticator.status()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()
