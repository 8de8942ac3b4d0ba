"""Ask a provider all that can be wrong between it and us, for ``authz validate --online``."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from authz.clients import Clock
from authz.clients.authenticate import Authenticator, inactive_hint
from authz.core.claims import MAX_TIME, check_claims
from authz.core.jwt import looks_like_jwt, parse_jwt
from authz.model import ProviderError, Rejected

MAX_SKEW_S: Final = 5.0
"""More than that eats up the leeway of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was tried, and whether it is as it should be."""

    good: bool
    text: str


async def probe(authenticator: Authenticator, token: str | None, *, clock: Clock) -> list[Finding]:
    """Try discovery, keys, clock and introspection, and what the provider says of ``token`` if there is one."""
    first: list[Finding] = []
    then: list[Finding] = []
    skew_s: float | None = None
    if authenticator.keys is not None:
        first.append(await _probe_keys(authenticator))
        skew_s = _match_skew(authenticator, clock.now_s())
    if authenticator.introspector is not None:
        then.append(await _probe_introspection(authenticator))
        if skew_s is None:
            skew_s = _match_skew(authenticator, clock.now_s())
        if token is not None:
            then.append(await _probe_token(authenticator, token, clock.now_s()))
    return [*first, _judge_clock(skew_s, token, clock.now_s()), *then]


async def _probe_keys(authenticator: Authenticator) -> Finding:
    source = authenticator.keys
    if source is None:
        return Finding(good=False, text="no keys")
    try:
        keys = await source.fetch_keys()
    except ProviderError as error:
        return Finding(good=False, text=f"keys: {error.detail}")
    skipped = f", skipped {'; '.join(keys.skipped)}" if keys.skipped else ""
    found = "issuer as configured, " if authenticator.discovery is not None else ""
    return Finding(good=True, text=f"{found}{len(keys.keys)} keys{skipped}")


def _match_skew(authenticator: Authenticator, now_s: float) -> float | None:
    """Return how far the provider's clock is ahead of ours, by the ``date`` of its last answer; None without one."""
    try:
        return parsedate_to_datetime(authenticator.http.date).timestamp() - now_s
    except (ValueError, TypeError, OverflowError):
        return None


def _judge_clock(skew_s: float | None, token: str | None, now_s: float) -> Finding:
    """Compare clocks by an answer's date; by when the token was issued for providers that send none, as Keycloak."""
    if skew_s is not None:
        text = f"clock: the provider's is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} ours"
        return Finding(good=abs(skew_s) <= MAX_SKEW_S, text=text)
    issued_s = _match_issued(token) if token is not None else None
    if issued_s is None:
        text = "clock: the provider does not tell its time: compare with a fresh token (`--token-file`)"
        return Finding(good=True, text=text)
    good = issued_s <= now_s + MAX_SKEW_S
    return Finding(good=good, text=f"clock: the token was issued {now_s - issued_s:.0f} s ago by the provider's")


def _match_issued(token: str) -> float | None:
    try:
        issued_s = parse_jwt(token).claims.get("iat")
    except Rejected:
        return None
    fits = isinstance(issued_s, int | float) and not isinstance(issued_s, bool) and 0 <= issued_s < MAX_TIME
    return issued_s if fits else None


async def _probe_introspection(authenticator: Authenticator) -> Finding:
    """Ask about a token that nobody issued: the answer must be that it is not active."""
    introspector, settings = authenticator.introspector, authenticator.provider.introspection
    if introspector is None or settings is None:
        return Finding(good=False, text="no introspection")
    try:
        answer = await introspector.fetch(f"probe-{secrets.token_urlsafe(24)}")
    except ProviderError as error:
        return Finding(good=False, text=f"introspection as client `{settings.client_id}`: {error.detail}")
    if answer["active"] is not False:
        return Finding(good=False, text="introspection calls a token active that nobody issued: do not trust it")
    return Finding(good=True, text=f"introspection works for client `{settings.client_id}`")


async def _probe_token(authenticator: Authenticator, token: str, now_s: float) -> Finding:
    introspector, settings = authenticator.introspector, authenticator.provider.introspection
    if introspector is None or settings is None:
        return Finding(good=False, text="no introspection")
    try:
        answer = await introspector.fetch(token)
        if answer["active"] is True:
            check_claims(answer, authenticator.provider.expectation, now_s=now_s, introspected=True)
            return Finding(good=True, text="the token is active and says what is expected")
        audience = parse_jwt(token).claims.get("aud", []) if looks_like_jwt(token) else []
    except ProviderError as error:
        return Finding(good=False, text=f"the token: {error.detail}")
    except Rejected as rejected:
        return Finding(good=False, text=f"the token is refused: {rejected.reason} {rejected.detail}".rstrip())
    names = audience if isinstance(audience, list) else [audience]
    hint = "" if settings.client_id in names else f": {inactive_hint(settings.client_id)}"
    return Finding(good=False, text=f"the token is not active{hint}")
