"""What was proved of a token, kept for its next use (invariant EVIDENCE-NOT-VERDICTS).

Kept are claims and whose key or answer vouches for them; rules and time are judged again at each use. The key is a
digest of the token bound to the provider's settings, never the token (invariant NO-RAW-TOKENS).
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cachetools import LRUCache

from authz.cache import CacheStats, TimedCache, size_of_json
from authz.core.claims import read_principal
from authz.model import Claims, Principal, Provider, Reason

PACKED_ENTRY_BYTES: Final = 400
"""What packed evidence takes up beside its bytes: the key, the two objects' heads, and the places in the cache."""

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

    Proved tokens are ready for their next use as long as there is room. Where there is none, those not used for longest
    are packed, so that a token takes a fifth or so: its claims alone, of which the principal is read again at the next
    use. A quarter of the room stays for ready ones; beyond that, packed ones are forgotten. Refusals have an eighth of
    all to themselves: a flood of bad tokens pushes out no good one.
    """

    def __init__(self, *, max_bytes: int, clock: Callable[[], float]) -> None:
        """``clock`` is monotonic, in seconds."""
        refused_bytes = max_bytes // 8
        self._max_bytes = max_bytes - refused_bytes
        self._ready: TimedCache[Evidence] = TimedCache(max_bytes=self._max_bytes, clock=clock, pushed_out=self._pack)
        self._packed: LRUCache[bytes, bytes] = LRUCache(maxsize=self._max_bytes, getsizeof=_packed_size)
        self._refused: TimedCache[Refused] = TimedCache(max_bytes=refused_bytes, clock=clock)
        self._clock = clock
        self._unpacked = 0

    def match(self, digest: bytes, provider: Provider) -> Evidence | None:
        """Return what was proved of a token at this provider; its settings are part of the digest."""
        return self._ready.get(digest) or self._unpack(digest, provider)

    def match_refused(self, digest: bytes) -> Refused | None:
        """Return why a token was refused a moment ago."""
        return self._refused.get(digest)

    def keep(self, digest: bytes, evidence: Evidence, *, keep_s: float) -> None:
        """Keep evidence for some seconds; the caller sees to it that this is not past ``exp``."""
        if keep_s > 0:
            size = size_of_json(evidence.claims) + _size_of_principal(evidence.principal)
            self._packed.pop(digest, None)
            self._ready.put(digest, evidence, size=size, keep_s=keep_s)
            self._make_room()

    def refuse(self, digest: bytes, refused: Refused, *, keep_s: float) -> None:
        """Remember a refusal for some seconds, in the place of any evidence."""
        self._ready.discard(digest)
        self._packed.pop(digest, None)
        self._refused.discard(digest)
        if keep_s > 0:
            self._refused.put(digest, refused, size=len(refused.detail), keep_s=keep_s)

    def stats(self) -> CacheStats:
        """Return the figures of now: sizes of all kinds, look-ups of proved tokens.

        Packed evidence past its time counts until it is asked for or makes room.
        """
        proved, refused = self._ready.stats(), self._refused.stats()
        return CacheStats(
            entries=proved.entries + len(self._packed) + refused.entries,
            bytes=proved.bytes + int(self._packed.currsize) + refused.bytes,
            hits=proved.hits + self._unpacked,
            misses=proved.misses - self._unpacked,
        )

    def _make_room(self) -> None:
        while self._ready.size + self._packed.currsize > self._max_bytes:
            if self._ready.size > self._max_bytes // 4:
                self._ready.push_out()
            else:
                self._packed.popitem()

    def _pack(self, digest: bytes, evidence: Evidence, until_s: float) -> None:
        """Keep what cannot be read again of the claims, and these, in the interpreter's own form: smallest, fastest.

        Not a form to be read from anywhere else: these bytes never leave the process.
        """
        parts = (until_s, evidence.key, evidence.asked_s, evidence.expires_at_s, dict(evidence.claims))
        packed = marshal.dumps(parts)
        with contextlib.suppress(ValueError):  # larger than the whole place
            self._packed[digest] = packed

    def _unpack(self, digest: bytes, provider: Provider) -> Evidence | None:
        packed = self._packed.pop(digest, None)
        if packed is None:
            return None
        until_s, key, asked_s, expires_at_s, claims = marshal.loads(packed)  # noqa: S302 - our own, see _pack
        keep_s = until_s - self._clock()
        if keep_s <= 0:
            return None
        self._unpacked += 1
        principal = read_principal(provider, claims)
        evidence = Evidence(claims=claims, principal=principal, key=key, asked_s=asked_s, expires_at_s=expires_at_s)
        self.keep(digest, evidence, keep_s=keep_s)
        return evidence


def _packed_size(packed: bytes) -> int:
    return len(packed) + PACKED_ENTRY_BYTES


def _size_of_principal(principal: Principal) -> int:
    """Return what the principal's own sets take up; its texts are the claims'."""
    sets = (principal.roles, principal.groups, principal.scopes)
    return sum(map(sys.getsizeof, sets)) + len(principal.roles) * ROLE_BYTES


def token_digest(provider: Provider, token: str) -> bytes:
    """Return the cache key of a token at a provider: SHA-256 over the provider's own digest and the token."""
    return hashlib.sha256(provider.digest + token.encode("utf-8", "surrogatepass")).digest()
