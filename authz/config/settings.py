"""How the service itself listens and what it bears: the ``server`` part of the rules file.

Nothing here is reloadable: a change is refused with a message, and takes effect at the next start.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

DEFAULT_GRPC: Final = "0.0.0.0:9001"
"""All addresses, as other external authorization services do: Envoy is usually in another pod or container.

The answers tell a stranger which requests would pass, so keep the port inside the cluster, or ask for client
certificates."""

DEFAULT_HTTP: Final = "0.0.0.0:9002"
"""Metrics and health: the scraper and the orchestrator come from elsewhere."""


class Door(enum.StrEnum):
    """What speaks gRPC: the portable library, or Envoy itself with us inside."""

    GRPCIO = "grpcio"
    FAST = "fast"


class LogDecisions(enum.StrEnum):
    """Which decisions get a line in the log."""

    ALL = "all"
    DENIES = "denies"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """The server's certificate; with ``client_ca_file`` the proxy must show one too. Files are read when they change.

    Paths are absolute.
    """

    cert_file: str
    key_file: str
    client_ca_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One address: ``host:port`` or ``unix:/path``."""

    address: str
    tls: TlsSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Addresses and limits.

    ``deadline_ms`` bounds one check beside the caller's own deadline. ``max_request_bytes`` is judged inside our
    handler, so that the answer is a Deny and not an RPC error (invariant VERDICTS-ARE-ANSWERS). ``http`` None means
    that neither metrics nor health are served over HTTP. ``workers`` None means as many as there are cores for us;
    limits and the cache are each worker's own.
    """

    door: Door = Door.GRPCIO
    workers: int | None = None
    grpc: tuple[Listener, ...] = (Listener(address=DEFAULT_GRPC),)
    http: str | None = DEFAULT_HTTP
    deadline_ms: int = 1_000
    max_request_bytes: int = 1_048_576
    max_inflight: int = 1_000
    max_concurrent_streams: int = 1_000
    max_connection_age_s: int = 300
    max_connection_age_grace_s: int = 30
    drain_s: int = 20
    evidence_cache_bytes: int = 56 * 1_048_576
    log_decisions: LogDecisions = LogDecisions.ALL
