"""Compile the ``server`` part: addresses, certificates and limits."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

from authz.config.certificates import check_ca, check_pair
from authz.config.document import Loc
from authz.config.problems import Problems, show
from authz.config.schema import ServerPart, TlsPart
from authz.config.settings import Door, Listener, LogDecisions, ServerSettings, TlsSettings

_UNIX: Final = "unix:"
_MAX_UNIX_BYTES: Final = 107
"""What fits into ``sockaddr_un`` on Linux."""

_MAX_PORT: Final = 65_535
_PORT: Final = re.compile(r"[0-9]{1,5}")


def compile_server(part: ServerPart, folder: Path, problems: Problems) -> ServerSettings:
    """Return the settings; what is wrong is noted, and what is returned is then not to be used."""
    listeners: list[Listener] = []
    for at, its in enumerate(part.grpc):
        loc: Loc = ("server", "grpc", at)
        problems.attempt((*loc, "address"), check_address, its.address, unix=True)
        if its.address in (other.address for other in listeners):
            problems.add((*loc, "address"), f"{show(its.address)} is listed twice: remove one")
        tls = None if its.tls is None else _tls(its.tls, (*loc, "tls"), folder, problems)
        listeners.append(Listener(address=its.address, tls=tls))
    if part.max_connection_age_grace_s * 1_000 <= part.deadline_ms:
        text = "is not longer than `deadline_ms`: checks under way would be cut with their connection"
        problems.add(("server", "max_connection_age_grace_s"), text)
    if part.http is not None:
        problems.attempt(("server", "http"), check_address, part.http, unix=False)
    _check_workers(part, problems)
    return ServerSettings(
        door=Door(part.door),
        workers=part.workers,
        grpc=tuple(listeners),
        http=part.http,
        deadline_ms=part.deadline_ms,
        max_request_bytes=part.max_request_bytes,
        max_inflight=part.max_inflight,
        max_concurrent_streams=part.max_concurrent_streams,
        max_connection_age_s=part.max_connection_age_s,
        max_connection_age_grace_s=part.max_connection_age_grace_s,
        drain_s=part.drain_s,
        evidence_cache_bytes=part.evidence_cache_bytes,
        log_decisions=LogDecisions(part.log_decisions),
    )


def _check_workers(part: ServerPart, problems: Problems) -> None:
    if part.workers is None or part.workers == 1:
        return
    if any(its.address.startswith(_UNIX) for its in part.grpc):
        text = "a unix socket leads to one process: leave it out, or listen on `host:port` only"
        problems.add(("server", "workers"), text)


def check_address(text: str, *, unix: bool) -> None:
    """Check ``host:port``, ``[v6]:port`` or ``unix:/path``.

    Raises:
        ValueError: with a message for the operator.

    """
    if text.startswith(_UNIX):
        path = text.removeprefix(_UNIX)
        if not unix:
            raise ValueError(f"{show(text)}: metrics and health need `host:port`")
        if not path.startswith("/") or len(path.encode("utf-8", "surrogatepass")) > _MAX_UNIX_BYTES:
            raise ValueError(f"{show(text)}: write `unix:/path`, of at most {_MAX_UNIX_BYTES} bytes")
        return
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > _MAX_PORT:
        raise ValueError(f"{show(text)} is no address: write `host:port`, such as `0.0.0.0:9001`")
    if host != "localhost" and not _is_address(host):
        raise ValueError(f"{show(text)}: write an ip address of this machine, `localhost`, or `0.0.0.0` for all")


def _is_address(host: str) -> bool:
    in_brackets = host.startswith("[") and host.endswith("]")
    try:
        return isinstance(ip_address(host[1:-1] if in_brackets else host), IPv6Address) is in_brackets
    except ValueError:
        return False


def _tls(part: TlsPart, loc: Loc, folder: Path, problems: Problems) -> TlsSettings:
    settings = TlsSettings(
        cert_file=str(folder / part.cert_file),
        key_file=str(folder / part.key_file),
        client_ca_file=None if part.client_ca_file is None else str(folder / part.client_ca_file),
    )
    problems.attempt(loc, check_pair, settings.cert_file, settings.key_file)
    if settings.client_ca_file is not None:
        problems.attempt((*loc, "client_ca_file"), check_ca, settings.client_ca_file)
    return settings
