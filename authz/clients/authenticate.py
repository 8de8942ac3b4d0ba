"""Prove a token at its provider: by the provider's keys, by asking the provider, or from what was proved before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from authz.cache import SingleFlight
from authz.clients import Clock, ProviderEvents
from authz.clients.discovery import Discovery
from authz.clients.evidence import Evidence, EvidenceCache, Refused, token_digest
from authz.clients.http import HttpClient
from authz.clients.introspection import Breaker, Introspector
from authz.clients.jwks import KeySource, fetch_document
from authz.clients.keyshare import KeyShare
from authz.core.claims import check_claims, check_times, expires_at, read_principal
from authz.core.jwk import Key
from authz.core.jwt import Jwt, looks_like_jwt, parse_jwt, verify_jwt
from authz.model import Claims, IntrospectionSettings, Provider, ProviderError, Reason, Rejected, TokenUse

__all__ = ["Authenticator", "Evidence", "EvidenceCache", "ProviderStatus", "token_digest"]

HINT_EVERY_S: Final = 60.0
"""How often one provider's hint about inactive tokens is repeated in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatus:
    """How a provider does, for probes, metrics and people. ``tried`` says that the first attempt is over."""

    name: str
    tried: bool
    healthy: bool
    keys: int
    keys_age_s: float | None
    last_error: str
    breaker: str


class Authenticator:
    """Proves the tokens of one provider."""

    def __init__(
        self,
        provider: Provider,
        *,
        cache: EvidenceCache,
        clock: Clock,
        events: ProviderEvents,
        shared: Path | None = None,
    ) -> None:
        """Wire up what the provider's settings ask for; nothing is fetched yet.

        ``shared`` is the folder in which the workers of one host tell each other of the keys they fetched.
        """
        self.provider = provider
        self._cache = cache
        self._clock = clock
        self._events = events
        self.http = HttpClient(provider, events=events)
        url = None if provider.keys is None else provider.keys.discovery
        self.discovery = None if url is None else Discovery(provider, url, http=self.http)
        self.keys: KeySource | None = None
        if provider.keys is not None:
            self.keys = KeySource(
                provider,
                provider.keys,
                fetch=partial(fetch_document, provider.keys, self.http, self.discovery),
                clock=clock,
                events=events,
                share=None if shared is None else KeyShare(provider, shared),
            )
        self.introspector: Introspector | None = None
        if provider.introspection is not None:
            self.introspector = Introspector(
                provider, provider.introspection, http=self.http, discovery=self.discovery, clock=clock, events=events
            )
        self._flight: SingleFlight[bytes, Evidence] = SingleFlight()
        self._hinted_s = -math.inf
        self._tried = False

    async def start(self) -> None:
        """Make one attempt to have keys; a provider that fails is tried again in the background."""
        if self.keys is not None:
            await self.keys.start()
        self._tried = True

    async def close(self) -> None:
        """End all that is under way."""
        await self._flight.close()
        if self.keys is not None:
            await self.keys.close()
        if self.discovery is not None:
            await self.discovery.close()
        await self.http.close()

    def match_evidence(self, digest: bytes, now_s: float) -> Evidence | None:
        """Return what was proved of a token before, if it still counts: the path of nearly every check.

        Not from ``exp`` on: the leeway's seconds are judged afresh. Not once the key has left the provider's set.
        """
        found = self._cache.match(digest, self.provider)
        if found is None or now_s >= found.expires_at_s:
            return None
        return found if self._still_counts(found) else None

    async def authenticate(self, token: str, *, jwt: Jwt | None = None) -> Evidence:
        """Prove a token. ``jwt`` is the token taken apart, where that was done already.

        Raises:
            Rejected: with the Reason why it proves nothing.
            ProviderError: if that cannot be known now.

        """
        if jwt is None and looks_like_jwt(token):
            jwt = parse_jwt(token)
        settings = self.provider.introspection
        digest = token_digest(self.provider, token)
        if jwt is None:
            if settings is None:
                raise Rejected(Reason.OPAQUE_REFUSED, f"provider `{self.provider.name}` has no `introspection`")
            return await self._introspect(digest, token, None, settings)
        if jwt.claims.get("iss") != self.provider.expectation.issuer:
            raise Rejected(Reason.ISSUER_MISMATCH if "iss" in jwt.claims else Reason.ISSUER_MISSING)
        key = await self._verify(jwt, digest)
        if isinstance(key, Evidence):
            return key
        if settings is not None and _is_asked_about(jwt, settings):
            if "cnf" in jwt.claims:  # whatever the provider's answer leaves out
                raise Rejected(Reason.PROOF_MISSING, "the token is bound to a key (`cnf`), and no proof is checked")
            check_times(jwt.claims, self.provider.expectation, now_s=self._clock.now_s())
            return await self._introspect(digest, token, key, settings, jwt)
        if key is None:
            raise Rejected(Reason.JWT_UNKNOWN_KEY, f"provider `{self.provider.name}` has no keys")
        return self._judge(digest, jwt.claims, key.thumbprint)

    def status(self) -> ProviderStatus:
        """Return how the provider does now."""
        keys = None if self.keys is None else self.keys.match_keys()
        breaker = "" if self.introspector is None else self.introspector.breaker.value
        error = "" if self.keys is None else self.keys.last_error
        if not error and self.introspector is not None:
            error = self.introspector.last_error
        lacks_keys = self.keys is not None and keys is None
        return ProviderStatus(
            name=self.provider.name,
            tried=self._tried,
            healthy=self._tried and not error and not lacks_keys and breaker in {"", Breaker.CLOSED},
            keys=0 if keys is None else len(keys.keys),
            keys_age_s=None if self.keys is None else self.keys.age_s,
            last_error=error,
            breaker=breaker,
        )

    def match_stale(self, digest: bytes) -> Evidence | None:
        """Return evidence older than it should be, within what the operator accepts while the provider fails."""
        settings = self.provider.introspection
        found = self._cache.match(digest, self.provider)
        if settings is None or found is None or self._clock.now_s() >= found.expires_at_s:
            return None
        if found.asked_s is None or not self._is_vouched_for(found):
            return None
        if self._clock.monotonic_s() >= found.asked_s + settings.cache_s + settings.stale_if_error_s:
            return None
        self._events.provider_event(self.provider.name, "stale_evidence")
        return found

    def _still_counts(self, evidence: Evidence) -> bool:
        if evidence.asked_s is not None:
            settings = self.provider.introspection  # of now: a reload may believe answers for less long
            if settings is None or self._clock.monotonic_s() >= evidence.asked_s + settings.cache_s:
                return False
        return self._is_vouched_for(evidence)

    def _is_vouched_for(self, evidence: Evidence) -> bool:
        """Say whether the key that signed the token, if one did, is still among the provider's."""
        if evidence.key is None:
            return True
        keys = None if self.keys is None else self.keys.match_keys()
        return keys is not None and evidence.key in keys.thumbprints

    async def _verify(self, jwt: Jwt, digest: bytes) -> Key | Evidence | None:
        """Verify the signature; None where this provider has no keys at all.

        A token that came several times while its key was fetched is verified once: the others get its evidence.
        """
        if self.keys is None:
            return None
        known = self.keys.match_keys()
        if known is None:
            keys = await self.keys.fetch_keys()
        else:
            try:
                return verify_jwt(jwt, known, self.provider.expectation)
            except Rejected as rejected:
                if rejected.reason is not Reason.JWT_UNKNOWN_KEY:
                    raise
            keys = await self.keys.fetch_newer(known)
        return self.match_evidence(digest, self._clock.now_s()) or verify_jwt(jwt, keys, self.provider.expectation)

    def _judge(self, digest: bytes, claims: Claims, thumbprint: str) -> Evidence:
        now_s = self._clock.now_s()
        check_claims(claims, self.provider.expectation, now_s=now_s)
        principal = read_principal(self.provider, claims)
        evidence = Evidence(
            claims=claims,
            principal=principal,
            key=thumbprint,
            asked_s=None,
            expires_at_s=principal.expires_at_s,
        )
        self._cache.keep(digest, evidence, keep_s=principal.expires_at_s - now_s)
        return evidence

    async def _introspect(
        self, digest: bytes, token: str, key: Key | None, settings: IntrospectionSettings, jwt: Jwt | None = None
    ) -> Evidence:
        refused = self._cache.match_refused(digest)
        if refused is not None:
            raise Rejected(refused.reason, refused.detail)
        found = self.match_evidence(digest, self._clock.now_s())
        if found is not None:
            return found
        try:
            return await self._flight.run(digest, lambda: self._ask(digest, token, key, settings, jwt))
        except ProviderError:
            stale = self.match_stale(digest)
            if stale is None:
                raise
            return stale

    async def _ask(
        self, digest: bytes, token: str, key: Key | None, settings: IntrospectionSettings, jwt: Jwt | None
    ) -> Evidence:
        if self.introspector is None:
            raise Rejected(Reason.OPAQUE_REFUSED)
        asked_s = self._clock.monotonic_s()
        answer = await self.introspector.fetch(token)
        try:
            evidence = self._judge_answer(answer, key, jwt, asked_s)
        except Rejected as rejected:
            if rejected.reason is Reason.TOKEN_INACTIVE and key is not None and jwt is not None:
                self._hint(jwt, settings)
            refused = Refused(reason=rejected.reason, detail=rejected.detail)
            self._cache.refuse(digest, refused, keep_s=settings.inactive_s)
            raise
        left_s = evidence.expires_at_s - self._clock.now_s()
        self._cache.keep(digest, evidence, keep_s=min(settings.cache_s + settings.stale_if_error_s, left_s))
        return evidence

    def _judge_answer(self, answer: dict[str, Any], key: Key | None, jwt: Jwt | None, asked_s: float) -> Evidence:
        if answer["active"] is not True:
            raise Rejected(Reason.TOKEN_INACTIVE)
        check_claims(answer, self.provider.expectation, now_s=self._clock.now_s(), introspected=True)
        principal = read_principal(self.provider, answer)
        # An answer may lack `exp` where the operator says so; a JWT's own counts all the same.
        own_s = expires_at(jwt.claims) if jwt is not None else None
        return Evidence(
            claims=answer,
            principal=principal,
            key=None if key is None else key.thumbprint,
            asked_s=asked_s,
            expires_at_s=principal.expires_at_s if own_s is None else min(own_s, principal.expires_at_s),
        )

    def _hint(self, jwt: Jwt, settings: IntrospectionSettings) -> None:
        """Say what an inactive token with a good signature, issuer and expiry usually means."""
        audience = jwt.claims.get("aud", [])
        names = audience if isinstance(audience, list) else [audience]
        now_s = self._clock.monotonic_s()
        if settings.client_id in names or now_s - self._hinted_s < HINT_EVERY_S:
            return
        self._hinted_s = now_s
        self._events.provider_event(self.provider.name, "inactive_but_valid", inactive_hint(settings.client_id))


def inactive_hint(client_id: str) -> str:
    """Word the hint, for the log and for ``validate --online``."""
    return (
        f"a token is inactive although its signature, issuer and expiry are fine: either its session has ended, or "
        f"client `{client_id}` is not in the token's `aud`, and keycloak since 26.6.2 then says inactive: "
        f"add an audience mapper for `{client_id}` to the clients that obtain tokens, or introspect as a client that is"
    )


def _is_asked_about(jwt: Jwt, settings: IntrospectionSettings) -> bool:
    """Say whether the provider is asked about a JWT: all of them, or those that lack what rules need.

    Keycloak's lightweight tokens have neither ``sub`` nor ``aud``.
    """
    if settings.tokens is TokenUse.LIGHTWEIGHT:
        return "aud" not in jwt.claims or "sub" not in jwt.claims
    return settings.tokens is TokenUse.ALL
