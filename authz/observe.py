"""What is told of each check: one decision line, and figures. The only module that logs about requests.

Invariant NO-RAW-TOKENS: a line holds names and Reasons, never a header's value, a query, a cookie or a token; details
pass :func:`redact` once more. Written by hand for speed: one JSON line a check, and bound counters.
"""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from json.encoder import encode_basestring_ascii as _quote
from typing import Final, Protocol, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from authz.lines import LineQueue
from authz.model import Allow, Decision, Principal, Request, Unread

MAX_PATH_CHARS: Final = 256
BUCKETS_S: Final = (
    *(0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)

_BUCKETS_NS: Final = tuple(round(seconds * 1e9) for seconds in BUCKETS_S)
_WHO: Final = "who"

_SECRETS: Final = re.compile(
    r"(?<![^\s/@])[^\s/@]+(?=@)|(?:bearer|basic)\s+\S+"
    r"|[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*|[A-Za-z0-9+/_=-]{40,}",
    re.IGNORECASE,
)


class Timing:
    """The moments of one check in nanoseconds, and where its evidence came from (``hit``, ``miss`` or ``none``).

    Written while the check goes on, one for each, so that nothing is worked out that nobody reads.
    """

    __slots__ = ("answered", "authenticated", "cache", "generation", "matched", "parsed", "received")

    def __init__(self, received_ns: int, parsed_ns: int, generation: int) -> None:
        self.received = received_ns
        self.parsed = parsed_ns
        self.matched = self.authenticated = self.answered = 0
        self.cache = "none"
        self.generation = generation

    @property
    def total_us(self) -> float:
        """From arrival to decision."""
        return (self.answered - self.received) / 1_000

    @property
    def stages_us(self) -> tuple[float, float, float, float]:
        """Reading, matching, authenticating (with what a provider took), and making the decision."""
        parsed, answered = self.parsed, self.answered
        matched = self.matched or answered
        proved = self.authenticated or matched
        return (
            (parsed - self.received) / 1_000,
            (matched - parsed) / 1_000,
            (proved - matched) / 1_000,
            (answered - proved) / 1_000,
        )


class _Status(Protocol):
    """What is read of a provider for the figures."""

    @property
    def name(self) -> str: ...
    @property
    def healthy(self) -> bool: ...
    @property
    def keys(self) -> int: ...
    @property
    def keys_age_s(self) -> float | None: ...
    @property
    def breaker(self) -> str: ...


class _CacheStats(Protocol):
    """What is read of the evidence cache for the figures."""

    @property
    def entries(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...


def redact(text: str) -> str:
    """Take out whatever looks like a token, a digest or a secret."""
    return _SECRETS.sub("[redacted]", text)


def configure_logging(*, stream: TextIO | LineQueue, colour: bool | None = None) -> None:
    """Set up the life-cycle log: for eyes on a terminal, JSON lines in a pipe. ``colour`` None asks the stream."""
    shown = stream.isatty() if colour is None else colour
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=True) if shown else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _redact_event,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(stream),  # type: ignore[arg-type]  # written to and flushed, no more
        cache_logger_on_first_use=False,
    )


class Observer:
    """Tells of checks, providers and reloads; holds the figures of one service in a registry of its own."""

    def __init__(self, *, stream: TextIO | LineQueue, sink: Callable[[str], None] | None = None) -> None:
        """Write decision lines to ``stream``, and to ``sink`` besides (the demo's live view)."""
        self._stream = stream
        self._sink = sink
        self.denies_only = False
        self._pretty = stream.isatty()
        self._log = structlog.get_logger("authz")
        disable_created_metrics()  # type: ignore[no-untyped-call]  # else twice the series, for times nobody asks for
        self.registry = CollectorRegistry()
        self._events = Counter(
            "authz_provider_events", "What happened with providers.", ("provider", "event"), registry=self.registry
        )
        self._fetches = Histogram(
            "authz_provider_seconds", "Time of one call to a provider.", ("provider", "event"), registry=self.registry
        )
        self._errors = Counter(
            "authz_internal_errors", "Our own bugs, each answered with a Deny.", registry=self.registry
        )
        self._generation = Gauge(
            "authz_policy_generation", "How many policies were put in force.", registry=self.registry
        )
        self._reload_ok = Gauge(
            "authz_last_reload_successful",
            "1 if the last reload was put in force, 0 if refused.",
            registry=self.registry,
        )
        self._checks = _Checks()
        self.registry.register(self._checks)

    def watch(self, *, statuses: Callable[[], Iterable[_Status]], cache: Callable[[], _CacheStats]) -> None:
        """Read the providers' and the cache's figures at each scrape from now on."""
        stream = self._stream
        lost = (lambda: stream.lost) if isinstance(stream, LineQueue) else (lambda: 0)
        self.registry.register(_Figures(statuses, cache, lost))

    def render_metrics(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def record(self, request: Request | Unread | None, decision: Decision, timing: Timing) -> None:
        """Count one check and write its line."""
        self._checks.count(decision, timing.answered - timing.received)
        if self.denies_only and decision.__class__ is Allow:
            return
        line = _render_json(request, decision, timing)
        self._stream.write((_render_line(json.loads(line)) if self._pretty else line) + "\n")
        self._stream.flush()
        if self._sink is not None:
            self._sink(line)

    def provider_event(self, provider: str, event: str, detail: str = "", seconds: float | None = None) -> None:
        """Count and log what happened with a provider; routine successes are only counted."""
        self._events.labels(provider, event).inc()
        if seconds is not None:
            self._fetches.labels(provider, event).observe(seconds)
        if detail:
            self._log.warning(event, provider=provider, detail=detail)

    def reload_event(self, *, ok: bool, generation: int, detail: str) -> None:
        """Tell that a policy was put in force, or why it was refused."""
        self._generation.set(generation)
        self._reload_ok.set(1 if ok else 0)
        if ok:
            self._log.info("policy in force", generation=generation, detail=detail)
        else:
            self._log.error("reload refused, the policy in force stays", generation=generation, detail=detail)

    def lifecycle(self, event: str, **facts: object) -> None:
        """Log a step of the service's life."""
        self._log.info(event, **facts)

    def internal_error(self, error: BaseException | None) -> None:
        """Count and log a bug of ours: where it was raised and its type, never its message."""
        self._errors.inc()
        trace = traceback.extract_tb(error.__traceback__) if error is not None else ()
        frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in trace]
        self._log.error("internal error", kind=type(error).__name__ if error is not None else "", frames=frames[-8:])


class _Checks(Collector):
    """Counts checks by rule, decision and reason, and their times: a few additions a check, and no lock.

    Counted in the event loop's thread, and read in another at each scrape.
    """

    def __init__(self) -> None:
        self._decisions: dict[tuple[str, str], int] = {}
        self._buckets = {word: [0] * (len(BUCKETS_S) + 1) for word in ("allow", "deny")}
        self._sums_ns = {"allow": 0, "deny": 0}

    def count(self, decision: Decision, took_ns: int) -> None:
        """Count one check."""
        word, reason = ("allow", "") if isinstance(decision, Allow) else ("deny", decision.reason.value)
        key = (decision.rule, reason)
        self._decisions[key] = self._decisions.get(key, 0) + 1
        self._buckets[word][bisect_left(_BUCKETS_NS, took_ns)] += 1
        self._sums_ns[word] += took_ns

    def collect(self) -> Iterator[Metric]:
        """Yield the two families."""
        names = ("rule", "decision", "reason")
        decisions = CounterMetricFamily("authz_decisions", "Checks by rule, decision and reason.", labels=names)
        for (rule, reason), number in list(self._decisions.items()):
            decisions.add_metric((rule, "deny" if reason else "allow", reason), number)
        yield decisions
        text = "Time of one check, from arrival to decision."
        seconds = HistogramMetricFamily("authz_check_seconds", text, labels=("decision",))
        for word, found in self._buckets.items():
            ends = (*(f"{float(end)!r}" for end in BUCKETS_S), "+Inf")
            buckets = list(zip(ends, accumulate(found), strict=True))
            seconds.add_metric((word,), buckets, self._sums_ns[word] / 1e9)
        yield seconds


class _Figures(Collector):
    """Figures that are read when asked for."""

    def __init__(
        self, statuses: Callable[[], Iterable[_Status]], cache: Callable[[], _CacheStats], lost: Callable[[], int]
    ) -> None:
        self._statuses = statuses
        self._cache = cache
        self._lost = lost

    def collect(self) -> Iterator[Metric]:
        """Yield one family a figure."""
        healthy = GaugeMetricFamily(
            "authz_provider_healthy", "1 while its keys and its answers are good.", labels=("provider",)
        )
        keys = GaugeMetricFamily("authz_provider_keys", "Keys that can verify.", labels=("provider",))
        age = GaugeMetricFamily("authz_provider_keys_age_seconds", "Since the keys were fetched.", labels=("provider",))
        broken = GaugeMetricFamily("authz_provider_breaker_open", "1 while no call is made.", labels=("provider",))
        for status in self._statuses():
            healthy.add_metric((status.name,), 1 if status.healthy else 0)
            keys.add_metric((status.name,), status.keys)
            if status.keys_age_s is not None:
                age.add_metric((status.name,), status.keys_age_s)
            broken.add_metric((status.name,), 0 if status.breaker in ("", "closed") else 1)
        yield from (healthy, keys, age, broken)
        stats = self._cache()
        yield GaugeMetricFamily("authz_cache_entries", "Tokens in the cache, proved or refused.", stats.entries)
        yield GaugeMetricFamily("authz_cache_bytes", "Size of the cache, estimated.", stats.bytes)
        yield CounterMetricFamily("authz_cache_hits", "Look-ups that found evidence.", stats.hits)
        yield CounterMetricFamily("authz_cache_misses", "Look-ups that found none.", stats.misses)
        yield CounterMetricFamily("authz_log_lines_lost", "Lines that the log's reader was too slow for.", self._lost())


def _render_json(request: Request | Unread | None, decision: Decision, timing: Timing) -> str:
    """Return all that is told of one check, as one JSON object, put together of what was written before."""
    if isinstance(decision, Allow):
        what = f'"decision": "allow", "status": 200, "rule": {_quote(decision.rule)}'
    else:
        guard = f', "guard": {_quote(decision.guard)}' if decision.guard else ""
        detail = f', "detail": {_quote(redact(decision.detail))}' if decision.detail else ""
        what = (
            f'"decision": "deny", "status": {decision.status}, "rule": {_quote(decision.rule)}, '
            f'"reason": "{decision.reason.value}"{guard}{detail}'
        )
    where = ""
    if isinstance(request, Request):
        where = (
            f', "id": {_quote(request.id[:MAX_PATH_CHARS])}, "method": {_quote(request.method)}, '
            f'"host": {_quote(request.host.name)}, "path": {_quote(request.target.raw_path[:MAX_PATH_CHARS])}'
        )
    elif request is not None:
        where = "".join(f', "{name}": {_quote(text)}' for name, text in _describe_unread(request))
    read, match, prove, decide = timing.stages_us
    return (
        f'{{"time": {time.time()!r}, {what}{where}{_render_who(decision.principal)}, "cache": "{timing.cache}", '
        f'"generation": {timing.generation}, "us": {{"total": {int(timing.total_us)}, "parse": {int(read)}, '
        f'"match": {int(match)}, "authenticate": {int(prove)}, "authorize": {int(decide)}}}}}'
    )


def _render_who(principal: Principal | None) -> str:
    if principal is None:
        return ""
    found: str | None = principal.derived.get(_WHO)
    if found is None:
        facts = {
            "provider": principal.provider,
            "issuer": principal.issuer,
            "subject": principal.subject,
            "client": principal.client_id,
        }
        found = principal.derived[_WHO] = f", {json.dumps(facts)[1:-1]}"
    return found


def _describe_unread(request: Unread) -> Iterator[tuple[str, str]]:
    """Yield what was sent, of any shape, such as a whole URL with a password in it."""
    yield "id", request.id[:MAX_PATH_CHARS]
    for name, text in (("method", request.method), ("host", request.host), ("path", request.path)):
        yield name, redact(text[:MAX_PATH_CHARS])


def _render_line(facts: dict[str, object]) -> str:
    """Write a decision for eyes: what, where, why. As JSON writes texts, control characters cannot be in any of it."""
    colour = "\x1b[32m" if facts["decision"] == "allow" else "\x1b[31m"
    times = facts["us"]
    total = times["total"] if isinstance(times, dict) else ""
    what = f"{colour}{facts['decision']:5} {facts['status']}\x1b[0m"
    where = json.dumps(f"{facts.get('method', '')} {facts.get('host', '')}{facts.get('path', '')}")[1:-1]
    why = " ".join(
        f"{name}={json.dumps(facts[name])}"
        for name in ("reason", "rule", "guard", "subject", "client", "cache", "detail", "id")
        if facts.get(name)
    )
    return f"{what} {where} {why} {total} µs"


def _redact_event(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {
        name: redact(value) if isinstance(value, str) and name == "detail" else value for name, value in event.items()
    }
