"""How a Deny is worded for whoever asked: status, challenge (RFC 6750 §3), body, and a rule's own wording.

The client learns the status and, for a token, RFC 6750's error code. The Reason and its detail are the operator's: they
stay in the log, under the request id that the body shows.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from authz.core.cors import Cors, render_cors
from authz.core.policy import Match
from authz.model import REASONS, Answer, Deny, HeaderAction, HeaderEdit, Principal, Reason, Request, Unread

_DEFAULT: Final = Answer()
_CHALLENGED: Final = frozenset({400, 401, 403})
_MAX_ID_CHARS: Final = 128
_NO_STORE: Final = HeaderEdit(HeaderAction.SET, "cache-control", "no-store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is turned away, before it is worded. ``scope`` is what RFC 6750 calls the needed scope."""

    reason: Reason
    detail: str = ""
    guard: str = ""
    scope: str = ""
    retry_after_s: int = 0


def render_deny(
    refusal: Refusal,
    *,
    request: Request | Unread | None = None,
    match: Match | None = None,
    cors: Cors | None = None,
    principal: Principal | None = None,
) -> Deny:
    """Word a refusal by the rule's own answer for its status, or by ours."""
    outcome = REASONS[refusal.reason]
    answer = match.rule.answers.get(outcome.status, _DEFAULT) if match is not None else _DEFAULT
    status = answer.status or outcome.status
    headers = [_NO_STORE]
    if status in _CHALLENGED and (outcome.status == HTTPStatus.UNAUTHORIZED or outcome.error is not None):
        headers.append(HeaderEdit(HeaderAction.SET, "www-authenticate", _render_challenge(refusal, request)))
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append(HeaderEdit(HeaderAction.SET, "retry-after", str(max(1, refusal.retry_after_s))))
    if answer.location is not None:
        headers.append(HeaderEdit(HeaderAction.SET, "location", answer.location))
    if answer.body is not None:
        body, content_type = answer.body, answer.content_type or "text/plain; charset=utf-8"
    elif answer.location is not None:
        body, content_type = "", ""
    else:
        body, content_type = _render_body(status, request)
    if content_type:
        headers.append(HeaderEdit(HeaderAction.SET, "content-type", content_type))
    if cors is not None and isinstance(request, Request):
        headers.extend(render_cors(cors, request))
    if answer.headers:
        headers = [edit for edit in headers if edit.name not in answer.headers]
        headers.extend(HeaderEdit(HeaderAction.SET, name, value) for name, value in answer.headers.items())
    return Deny(
        reason=refusal.reason,
        status=status,
        headers=tuple(headers),
        body=body,
        rule=match.rule.name if match is not None else "",
        guard=refusal.guard,
        detail=refusal.detail,
        principal=principal,
    )


def _render_challenge(refusal: Refusal, request: Request | Unread | None) -> str:
    """Write ``WWW-Authenticate`` (RFC 6750 §3): no error code where no token came along."""
    realm = request.host.name if isinstance(request, Request) else "authz"
    parts = [f'realm="{realm}"']
    error = REASONS[refusal.reason].error
    if error is not None:
        parts.append(f'error="{error}"')
    if refusal.scope:
        parts.append(f'scope="{refusal.scope}"')
    return "Bearer " + ", ".join(parts)


def _render_body(status: int, request: Request | Unread | None) -> tuple[str, str]:
    title = HTTPStatus(status).phrase
    request_id = request.id[:_MAX_ID_CHARS] if request is not None else ""
    seen = request.headers if request is not None else {}
    if seen.get("content-type", "").startswith("application/grpc"):
        return title.lower(), "text/plain; charset=utf-8"
    if seen.get("sec-fetch-mode") == "navigate" or seen.get("accept", "").startswith("text/html"):
        shown = f"<p>Request {html.escape(request_id)}</p>" if request_id else ""
        page = f"<!doctype html><meta charset=utf-8><title>{status} {title}</title><h1>{status} {title}</h1>{shown}\n"
        return page, "text/html; charset=utf-8"
    problem: dict[str, object] = {"type": "about:blank", "title": title, "status": status}
    if request_id:
        problem["request_id"] = request_id
    return json.dumps(problem), "application/problem+json"
