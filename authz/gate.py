"""The one orchestrator: match the rule, take the credential, prove it, judge it.

Every exit but Allow is a Deny (invariant DENY-BY-DEFAULT). One check reads one Snapshot, so a reload never mixes two
policies in one answer. The only thing it ever waits for is a provider, and that only up to the deadline: the fetch goes
on without it, and a later check finds the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Protocol

from authz.clients.authenticate import Authenticator, token_digest
from authz.core.answers import Refusal, render_deny
from authz.core.authorize import NOBODY_ASKS, Proof, authorize, decide_preflight, match_asked_method, new_proof
from authz.core.cors import Cors
from authz.core.credentials import match_bearer, match_credential
from authz.core.jwt import Jwt, looks_like_jwt, parse_jwt
from authz.core.path import check_accepted
from authz.core.policy import Access, Branch, Match, Policy, match_rule
from authz.model import Credential, Decision, Deny, ProviderError, Reason, Rejected, Request, Unread
from authz.observe import Timing


class Clock(Protocol):
    """Seconds since 1970, for claims."""

    def now_s(self) -> float:
        """Return the time."""
        ...


class Recorder(Protocol):
    """Where each decision is told."""

    def record(self, request: Request | Unread | None, decision: Decision, timing: Timing) -> None:
        """Note one check."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that one check goes by. ``generation`` counts the policies that were loaded."""

    policy: Policy
    authenticators: Mapping[str, Authenticator]
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """A check that has come as far as it can without waiting: its token must be proved."""

    match: Match
    cors: Cors | None
    credential: Credential


class Gate:
    """Decides requests by the current Snapshot."""

    def __init__(self, snapshot: Snapshot | None, *, clock: Clock, recorder: Recorder) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._recorder = recorder

    @property
    def snapshot(self) -> Snapshot | None:
        """The policy in force; None until the first one is loaded."""
        return self._snapshot

    def swap(self, snapshot: Snapshot) -> None:
        """Put another policy in force. Checks under way keep the one they began with."""
        self._snapshot = snapshot

    async def check(
        self, request: Request, *, received_ns: int | None = None, deadline_s: float | None = None
    ) -> Decision:
        """Decide one request. Every exit but Allow is a Deny; cancellation propagates.

        ``deadline_s`` is in the event loop's time. ``received_ns`` is ``perf_counter_ns()`` at the request's arrival.
        """
        snapshot = self._snapshot
        if snapshot is None:
            return self.refuse(Reason.NOT_READY, request=request, received_ns=received_ns)
        parsed_ns = perf_counter_ns()
        timing = Timing(parsed_ns if received_ns is None else received_ns, parsed_ns, snapshot.generation)
        found = self._begin(snapshot, request, timing)
        if isinstance(found, _Pending):
            decision = await self._finish(snapshot, request, found, deadline_s, timing)
        else:
            decision = found
        timing.answered = perf_counter_ns()
        self._recorder.record(request, decision, timing)
        return decision

    def refuse(
        self,
        reason: Reason,
        *,
        detail: str = "",
        request: Request | Unread | None = None,
        received_ns: int | None = None,
    ) -> Deny:
        """Turn away what never came as far as a rule."""
        decision = render_deny(Refusal(reason=reason, detail=detail), request=request)
        timing = Timing(0, perf_counter_ns(), 0 if self._snapshot is None else self._snapshot.generation)
        timing.received = timing.parsed if received_ns is None else received_ns
        timing.answered = perf_counter_ns()
        self._recorder.record(request, decision, timing)
        return decision

    def _begin(self, snapshot: Snapshot, request: Request, timing: Timing) -> Decision | _Pending:
        """Decide by what is known: nearly every check ends here, and has waited for nothing."""
        policy = snapshot.policy
        match: Match | None = None
        cors: Cors | None = None
        try:
            cors = policy.cors.match_first(request.host.name)
            if cors is not None:
                wanted = match_asked_method(policy, cors, request)
                if wanted is not None:
                    return decide_preflight(policy, cors, request, wanted)
            match = match_accepted(policy, request)
            timing.matched = perf_counter_ns()
            found = self._match_proof(snapshot, match, request, timing)
            timing.authenticated = perf_counter_ns()
            if isinstance(found, Credential):
                return _Pending(match=match, cors=cors, credential=found)
            return authorize(policy, match, request, found, cors=cors)
        except Rejected as rejected:
            refusal = Refusal(reason=rejected.reason, detail=rejected.detail)
        return render_deny(refusal, request=request, match=match, cors=cors)

    def _match_proof(self, snapshot: Snapshot, match: Match, request: Request, timing: Timing) -> Proof | Credential:
        """Return who asks, where that is known already, or the credential that is to be proved."""
        rule = match.rule
        if rule.access is Access.NOBODY:
            raise Rejected(Reason.NOBODY)
        if rule.access is Access.ANYONE:
            return NOBODY_ASKS
        credential = match_bearer(request, rule.places)
        proof = self._match_evidence(snapshot, rule.branches, credential) if credential is not None else None
        if proof is None:
            # Not known as it stands: now every place is looked at, and every character.
            credential = match_credential(request, rule.places)
            if credential is None:
                if rule.access is Access.OPTIONAL:
                    return NOBODY_ASKS
                raise Rejected(Reason.NO_CREDENTIAL)
            proof = self._match_evidence(snapshot, rule.branches, credential)
            if proof is None:
                timing.cache = "miss"
                return credential
        timing.cache = "hit"
        return proof

    def _match_evidence(self, snapshot: Snapshot, branches: tuple[Branch, ...], credential: Credential) -> Proof | None:
        now_s = self._clock.now_s()
        for branch in branches:
            authenticator = snapshot.authenticators[branch.provider]
            known = authenticator.match_evidence(token_digest(authenticator.provider, credential.token), now_s)
            if known is not None:
                return new_proof(branch=branch, credential=credential, principal=known.principal)
        return None

    async def _finish(
        self, snapshot: Snapshot, request: Request, pending: _Pending, deadline_s: float | None, timing: Timing
    ) -> Decision:
        """Prove the token, waiting for its provider if need be, and decide."""
        match, cors = pending.match, pending.cors
        try:
            try:
                proof = await self._prove(snapshot, match.rule.branches, pending.credential, deadline_s)
            finally:
                timing.authenticated = perf_counter_ns()
            return authorize(snapshot.policy, match, request, proof, cors=cors)
        except Rejected as rejected:
            refusal = Refusal(reason=rejected.reason, detail=rejected.detail)
        except ProviderError as error:
            refusal = Refusal(reason=error.reason, detail=error.detail, retry_after_s=error.retry_after_s)
        return render_deny(refusal, request=request, match=match, cors=cors)

    async def _prove(
        self, snapshot: Snapshot, branches: tuple[Branch, ...], credential: Credential, deadline_s: float | None
    ) -> Proof:
        jwt = parse_jwt(credential.token) if looks_like_jwt(credential.token) else None
        branch = choose_branch(snapshot, branches, jwt)
        authenticator = snapshot.authenticators[branch.provider]
        try:
            async with asyncio.timeout_at(deadline_s):
                evidence = await authenticator.authenticate(credential.token, jwt=jwt)
        except TimeoutError:
            stale = authenticator.match_stale(token_digest(authenticator.provider, credential.token))
            if stale is None:
                detail = f"provider `{branch.provider}` did not answer in time; its answer is kept for the next check"
                raise ProviderError(Reason.DEADLINE, detail) from None
            evidence = stale
        return Proof(branch=branch, credential=credential, principal=evidence.principal)


def match_accepted(policy: Policy, request: Request) -> Match:
    """Find the rule. A target that is ambiguous under it, or under no rule, is refused as such."""
    try:
        match = match_rule(policy, request.host, request.target, request.method)
    except Rejected:
        check_accepted(request.target, frozenset())
        raise
    check_accepted(request.target, match.rule.accept)
    return match


def choose_branch(snapshot: Snapshot, branches: tuple[Branch, ...], jwt: Jwt | None) -> Branch:
    """Choose the provider that a token is shown to: by its unverified issuer, among the rule's providers only."""
    if len(branches) == 1:
        return branches[0]
    providers = [(branch, snapshot.authenticators[branch.provider].provider) for branch in branches]
    if jwt is None:
        for branch, provider in providers:
            if provider.introspection is not None:
                return branch
        raise Rejected(Reason.OPAQUE_REFUSED)
    if "iss" not in jwt.claims:
        raise Rejected(Reason.ISSUER_MISSING)
    for branch, provider in providers:
        if jwt.claims["iss"] == provider.expectation.issuer:
            return branch
    raise Rejected(Reason.ISSUER_MISMATCH)
