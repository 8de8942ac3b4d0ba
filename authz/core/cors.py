"""Cross-origin requests (the Fetch standard's CORS protocol): preflights, and denies that a browser's code can read.

A real preflight is OPTIONS with ``Origin`` and ``Access-Control-Request-Method``. It is answered here, or passed on
where the upstream answers its own; either way only for a method and path that have a rule. Nothing here lets a
cross-origin request in: browsers enforce the answer, and the rule judges the request itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from authz.core.hosts import HostPattern
from authz.model import HeaderAction, HeaderEdit, Reason, Rejected, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Cors:
    """What browsers may do from elsewhere.

    ``origins`` are exact, lower case; ``*`` alone means any, never with credentials. ``answer`` says who answers
    preflights: we, or the upstream.
    """

    hosts: tuple[HostPattern, ...]
    origins: frozenset[str]
    methods: tuple[str, ...]
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    credentials: bool = False
    max_age_s: int = 600
    answer: bool = True
    line: int = 0


def match_preflight(request: Request) -> str | None:
    """Return the method that a preflight asks for, or None for any other request."""
    if request.method != "OPTIONS" or "origin" not in request.headers:
        return None
    return request.headers.get("access-control-request-method")


def check_origin(cors: Cors, request: Request) -> str:
    """Return the origin to allow in the answer.

    Raises:
        Rejected: ORIGIN_REFUSED.

    """
    origin = request.headers.get("origin", "")
    if "origin" not in request.repeated:
        if origin.lower() in cors.origins:
            return origin
        if "*" in cors.origins:
            return "*"
    raise Rejected(Reason.ORIGIN_REFUSED, "the origin is not in the list")


def render_preflight(cors: Cors, request: Request, wanted: str) -> tuple[HeaderEdit, ...]:
    """Return the headers of a preflight's answer.

    Raises:
        Rejected: ORIGIN_REFUSED, also for a method or a header that is not in the list.

    """
    check_origin(cors, request)
    if wanted not in cors.methods:
        raise Rejected(Reason.ORIGIN_REFUSED, "the method is not in the list")
    asked = request.headers.get("access-control-request-headers", "")
    names = {name.strip(" \t").lower() for name in asked.split(",")} - {""}
    if not names <= set(cors.headers):
        raise Rejected(Reason.ORIGIN_REFUSED, "a header is not in the list")
    edits = [
        *render_cors(cors, request),
        HeaderEdit(HeaderAction.SET, "access-control-allow-methods", ", ".join(cors.methods)),
        HeaderEdit(HeaderAction.SET, "access-control-max-age", str(cors.max_age_s)),
    ]
    if cors.headers:
        edits.append(HeaderEdit(HeaderAction.SET, "access-control-allow-headers", ", ".join(cors.headers)))
    return tuple(edits)


def render_cors(cors: Cors, request: Request) -> tuple[HeaderEdit, ...]:
    """Return the headers that let a browser's code read an answer; none for an origin that is not allowed."""
    vary = HeaderEdit(HeaderAction.APPEND, "vary", "origin")
    if "origin" not in request.headers:
        return (vary,)
    try:
        origin = check_origin(cors, request)
    except Rejected:
        return (vary,)
    edits = [HeaderEdit(HeaderAction.SET, "access-control-allow-origin", origin), vary]
    if cors.credentials:
        edits.append(HeaderEdit(HeaderAction.SET, "access-control-allow-credentials", "true"))
    if cors.expose:
        edits.append(HeaderEdit(HeaderAction.SET, "access-control-expose-headers", ", ".join(cors.expose)))
    return tuple(edits)
