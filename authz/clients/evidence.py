"""What was proved of a token, kept for its next use (invariant EVIDENCE-NOT-VERDICTS).

Kept are claims and whose key or answer vouches for them; rules and time are judged again at each use. The key is a
digest of the token bound to the provider's settings, never the token (invariant NO-RAW-TOKENS).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from authz.cache import CacheStats, TimedCache, size_of_json
from authz.model import Claims, Principal, Provider, Reason

ROLE_BYTES: Final = 80
"""One Role, without its texts: two slots and what the allocator and the collector add."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A proved token. ``key`` is the thumbprint of the key that signed it, None if it is known by introspection alone.

    ``asked_s``, of the monotonic clock, is when its provider was asked; None for a token that its signature proves.
    ``expires_at_s`` is the token's ``exp``, in seconds since 1970.
    """

    claims: Claims = field(repr=False)
    principal: Principal
    key: str | None
    asked_s: float | None
    expires_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A token that was refused a moment ago, so that its next use asks nobody."""

    reason: Reason
    detail: str


class EvidenceCache:
    """All providers' evidence, bounded in bytes together.

    Refusals have a place of their own, an eighth as large: a flood of bad tokens pushes out no good one.
    """

    def __init__(self, *, max_bytes: int, clock: Callable[[], float]) -> None:
        """``clock`` is monotonic, in seconds."""
        self._entries: TimedCache[Evidence] = TimedCache(max_bytes=max_bytes - max_bytes // 8, clock=clock)
        self._refused: TimedCache[Refused] = TimedCache(max_bytes=max_bytes // 8, clock=clock)

    def match(self, digest: bytes) -> Evidence | None:
        """Return what was proved of a token."""
        return self._entries.get(digest)

    def match_refused(self, digest: bytes) -> Refused | None:
        """Return why a token was refused a moment ago."""
        return self._refused.get(digest)

    def keep(self, digest: bytes, evidence: Evidence, *, keep_s: float) -> None:
        """Keep evidence for some seconds; the caller sees to it that this is not past ``exp``."""
        if keep_s > 0:
            size = size_of_json(evidence.claims) + _size_of_principal(evidence.principal)
            self._entries.put(digest, evidence, size=size, keep_s=keep_s)

    def refuse(self, digest: bytes, refused: Refused, *, keep_s: float) -> None:
        """Remember a refusal for some seconds, in the place of any evidence."""
        self._entries.discard(digest)
        self._refused.discard(digest)
        if keep_s > 0:
            self._refused.put(digest, refused, size=len(refused.detail), keep_s=keep_s)

    def stats(self) -> CacheStats:
        """Return the figures of now: sizes of both kinds, look-ups of proved tokens."""
        proved, refused = self._entries.stats(), self._refused.stats()
        return replace(proved, entries=proved.entries + refused.entries, bytes=proved.bytes + refused.bytes)


def _size_of_principal(principal: Principal) -> int:
    """Return what the principal's own sets take up; its texts are the claims'."""
    sets = (principal.roles, principal.groups, principal.scopes)
    return sum(map(sys.getsizeof, sets)) + len(principal.roles) * ROLE_BYTES


def token_digest(provider: Provider, token: str) -> bytes:
    """Return the cache key of a token at a provider: SHA-256 over the provider's own digest and the token."""
    return hashlib.sha256(provider.digest + token.encode("utf-8", "surrogatepass")).digest()
