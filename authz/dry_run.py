"""Try a rules file, or one request by it, without serving: with the parts that serve."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from authz.app import SystemClock
from authz.clients.authenticate import Authenticator, EvidenceCache
from authz.clients.probe import Finding, probe
from authz.config import Configuration, load
from authz.core.answers import Refusal
from authz.explain import Explanation, explain, explain_unread
from authz.gate import Snapshot
from authz.lines import LineQueue
from authz.model import ConfigError, Reason, Rejected
from authz.observe import Observer, configure_logging
from authz.report.files import FileReport
from authz.servers.check import MAX_DESCRIBED_BYTES
from authz.servers.envoy import describe_check, parse_check


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Keep standard output for what was asked for: everything that is logged goes to standard error."""
    log = LineQueue(sys.stderr)
    configure_logging(stream=log, colour=None)
    try:
        yield
    finally:
        log.close()


def try_file(file: Path, token: str | None, *, online: bool) -> FileReport:
    """Load a rules file, and ask its providers if wanted."""
    try:
        configuration = load(file, environ=os.environ)
    except ConfigError as error:
        return FileReport(file=str(file), error=error)
    if not online:
        return FileReport(file=str(file), configuration=configuration)
    with log_to_stderr():
        found = asyncio.run(_probe(configuration, token))
    return FileReport(file=str(file), configuration=configuration, online=found)


async def _probe(configuration: Configuration, token: str | None) -> dict[str, list[Finding]]:
    async with _in_force(configuration) as snapshot:
        clock = SystemClock()
        return {name: await probe(its, token, clock=clock) for name, its in snapshot.authenticators.items()}


async def try_request(configuration: Configuration, raw: bytes, *, online: bool) -> Explanation:
    """Take the way of the gRPC door: size, reading, then the gate's decision, step by step."""
    server = configuration.server
    try:
        if len(raw) > server.max_request_bytes:
            detail = f"a CheckRequest of {len(raw)} bytes, at most {server.max_request_bytes} are read"
            raise Rejected(Reason.REQUEST_TOO_LARGE, detail)  # noqa: TRY301 - refused as what cannot be read
        request = parse_check(raw)
    except Rejected as rejected:
        seen = describe_check(raw) if len(raw) <= MAX_DESCRIBED_BYTES else None
        return explain_unread(Refusal(reason=rejected.reason, detail=rejected.detail), seen)
    async with _in_force(configuration, start=online) as snapshot:
        online_s = server.deadline_ms / 1_000 if online else None
        return await explain(snapshot, request, now_s=SystemClock().now_s(), online_s=online_s)


@contextlib.asynccontextmanager
async def _in_force(configuration: Configuration, *, start: bool = True) -> AsyncIterator[Snapshot]:
    """Make what a check goes by; with ``start`` each provider is tried once, as the service does."""
    clock = SystemClock()
    cache = EvidenceCache(max_bytes=configuration.server.evidence_cache_bytes, clock=clock.monotonic_s)
    events = Observer(stream=sys.stderr)
    authenticators = {
        name: Authenticator(provider, cache=cache, clock=clock, events=events)
        for name, provider in configuration.providers.items()
    }
    try:
        if start:
            await asyncio.gather(*(its.start() for its in authenticators.values()))
        yield Snapshot(policy=configuration.policy, authenticators=authenticators, generation=1)
    finally:
        for its in authenticators.values():
            await its.close()
