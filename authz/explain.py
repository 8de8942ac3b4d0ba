"""Say why a request would be let in or turned away: the rule, the credential, each condition with what was found.

The decision comes from the functions that serve, in the order in which the gate calls them; the steps beside it are for
people. Offline nobody is asked: a token's signature is verified only against keys that stand in the rules file,
otherwise its claims are judged as if it were genuine, and the step says so. Where only its provider can tell what a
token is worth, the decision stays open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from authz.core.answers import Refusal, render_deny
from authz.core.authorize import NOBODY_ASKS, Proof, authorize, decide_preflight, match_address, match_asked_method
from authz.core.claims import check_claims, check_times, read_principal
from authz.core.condition import Facts
from authz.core.cors import Cors
from authz.core.credentials import match_credential
from authz.core.jwk import KeySet, key_set_from_secret, parse_key_set
from authz.core.jwt import Jwt, looks_like_jwt, parse_jwt, verify_jwt
from authz.core.policy import Access, Match, match_guards
from authz.core.require import Test
from authz.found import Found, match_found
from authz.gate import Snapshot, choose_branch, match_accepted
from authz.model import (
    Decision,
    Deny,
    Principal,
    Provider,
    ProviderError,
    Reason,
    Rejected,
    Request,
    Secret,
    TokenUse,
    Unread,
)
from authz.reasons import REASON_TEXT

_NO_TOKEN = Secret("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that was looked at: ``held`` None means that it decides nothing.

    ``found`` is what stands where a condition looked, ``reason`` why it does not hold.
    """

    stage: str
    text: str
    held: bool | None = None
    found: Found | None = None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The decision and how it came about; None where only the provider can tell, and it was not asked.

    ``rule`` is the one that judges, empty where none was found. ``token`` is the presented one, so that whoever shows
    the decision can hide it.
    """

    decision: Decision | None
    rule: str = ""
    steps: tuple[Step, ...]
    token: Secret = field(default=_NO_TOKEN)


async def explain(snapshot: Snapshot, request: Request, *, now_s: float, online_s: float | None = None) -> Explanation:
    """Decide one request step by step.

    ``now_s`` is in seconds since 1970. ``online_s`` is how long a provider may take to answer, as a check's deadline
    would have it; None means that none is asked.
    """
    inquiry = _Inquiry(snapshot, request, now_s=now_s, online_s=online_s)
    decision = await inquiry.decide()
    rule = inquiry.rule if decision is None else decision.rule
    return Explanation(decision=decision, rule=rule, steps=tuple(inquiry.steps), token=inquiry.token)


def explain_unread(refusal: Refusal, request: Unread | None) -> Explanation:
    """Word the refusal of a request that could not be read."""
    step = _render_refusal("request", refusal)
    return Explanation(decision=render_deny(refusal, request=request), steps=(step,))


class _Inquiry:
    """One request on its way, as :class:`authz.gate.Gate` takes it, noting each step."""

    def __init__(self, snapshot: Snapshot, request: Request, *, now_s: float, online_s: float | None) -> None:
        self._snapshot = snapshot
        self._policy = snapshot.policy
        self._request = request
        self._now_s = now_s
        self._online_s = online_s
        self.steps: list[Step] = []
        self.rule = ""
        self.token = _NO_TOKEN

    async def decide(self) -> Decision | None:
        """Return what the gate would, or None where only the provider can tell."""
        match: Match | None = None
        cors: Cors | None = None
        try:
            cors = self._policy.cors.match_first(self._request.host.name)
            wanted = match_asked_method(self._policy, cors, self._request)
            if cors is not None and wanted is not None:
                self._note("cors", f"a browser's preflight for {wanted}")
                return decide_preflight(self._policy, cors, self._request, wanted)
            match = match_accepted(self._policy, self._request)
            self.rule = match.rule.name
            self._note("rule", f"`{match.rule.name}`, line {match.rule.line}", held=True)
            proof = await self._prove(match)
            if proof is None:
                return None
            self.steps.extend(self._judge(match, proof))
            decision = authorize(self._policy, match, self._request, proof, cors=cors)
        except Rejected as rejected:
            stage, refusal = "refused", Refusal(reason=rejected.reason, detail=rejected.detail)
        except ProviderError as error:
            stage = "provider"
            refusal = Refusal(reason=error.reason, detail=error.detail, retry_after_s=error.retry_after_s)
        else:
            if isinstance(decision, Deny) and all(step.held is not False for step in self.steps):
                self.steps.append(_render_refusal("refused", decision))
            return decision
        self.steps.append(_render_refusal(stage, refusal))
        return render_deny(refusal, request=self._request, match=match, cors=cors)

    async def _prove(self, match: Match) -> Proof | None:
        rule = match.rule
        if rule.access is Access.NOBODY:
            raise Rejected(Reason.NOBODY)
        if rule.access is Access.ANYONE:
            self._note("credential", "not looked at: the rule lets anyone in")
            return NOBODY_ASKS
        credential = match_credential(self._request, rule.places)
        if credential is None:
            if rule.access is Access.OPTIONAL:
                self._note("credential", "none, and none is needed")
                return NOBODY_ASKS
            raise Rejected(Reason.NO_CREDENTIAL)
        self.token = Secret(credential.token)
        where = f"{credential.place.kind} {credential.place.name}".strip()
        self._note("credential", f"a token of {len(credential.token)} characters in {where}", held=True)
        jwt = parse_jwt(credential.token) if looks_like_jwt(credential.token) else None
        branch = choose_branch(self._snapshot, rule.branches, jwt)
        if self._online_s is None:
            principal = self._prove_offline(self._snapshot.authenticators[branch.provider].provider, jwt)
        else:
            principal = await self._prove_online(branch.provider, credential.token, jwt)
        return None if principal is None else Proof(branch=branch, credential=credential, principal=principal)

    async def _prove_online(self, name: str, token: str, jwt: Jwt | None) -> Principal:
        try:
            async with asyncio.timeout(self._online_s):
                evidence = await self._snapshot.authenticators[name].authenticate(token, jwt=jwt)
        except TimeoutError:
            # The gate's own words but for the last: nothing is kept here.
            raise ProviderError(Reason.DEADLINE, f"provider `{name}` did not answer in time") from None
        self._note("token", f"proved by provider `{name}`", held=True)
        return evidence.principal

    def _prove_offline(self, provider: Provider, jwt: Jwt | None) -> Principal | None:
        """Do what the provider's authenticator does, as far as that goes without asking anybody."""
        if jwt is None:
            if provider.introspection is None:
                raise Rejected(Reason.OPAQUE_REFUSED, f"provider `{provider.name}` has no `introspection`")
            self._leave_open(provider, "an opaque token")
            return None
        if jwt.claims.get("iss") != provider.expectation.issuer:
            raise Rejected(Reason.ISSUER_MISMATCH if "iss" in jwt.claims else Reason.ISSUER_MISSING)
        keys = _match_inline_keys(provider)
        if keys is not None:
            verify_jwt(jwt, keys, provider.expectation)
            self._note("token", "the signature holds", held=True)
        elif provider.keys is not None:
            self._note("token", "the signature is not verified: the keys are the provider's (use --online)")
        if _is_asked_about(provider, jwt):
            if "cnf" in jwt.claims:
                raise Rejected(Reason.PROOF_MISSING, "the token is bound to a key (`cnf`), and no proof is checked")
            check_times(jwt.claims, provider.expectation, now_s=self._now_s)
            self._leave_open(provider, "such a token")
            return None
        if provider.keys is None:
            raise Rejected(Reason.JWT_UNKNOWN_KEY, f"provider `{provider.name}` has no keys")
        check_claims(jwt.claims, provider.expectation, now_s=self._now_s)
        self._note("token", f"the claims are as provider `{provider.name}` expects", held=True)
        return read_principal(provider, jwt.claims)

    def _leave_open(self, provider: Provider, what: str) -> None:
        self._note("token", f"what {what} is worth only provider `{provider.name}` can tell: ask it with --online")

    def _judge(self, match: Match, proof: Proof) -> Iterator[Step]:
        request, principal = self._request, proof.principal
        address = match_address(request, self._policy.trusted_hops)
        for covering in match_guards(self._policy, request.host, request.target):
            facts = Facts(request=request, principal=principal, host=covering.host, path=covering.path, address=address)
            yield from self._judge_tests(f"guard `{covering.guard.name}`", covering.guard.tests, facts)
        if proof.branch is not None:
            facts = Facts(request=request, principal=principal, host=match.host, path=match.path, address=address)
            yield from self._judge_tests("require", proof.branch.tests, facts)

    def _judge_tests(self, stage: str, tests: tuple[Test, ...], facts: Facts) -> Iterator[Step]:
        for test in tests:
            reason = None
            try:
                test.check(facts)
            except Rejected as rejected:
                reason = rejected.reason
            found = match_found(test, facts, token=self.token.reveal())
            yield Step(stage=stage, text=str(test), held=reason is None, found=found, reason=reason)

    def _note(self, stage: str, text: str, *, held: bool | None = None) -> None:
        self.steps.append(Step(stage=stage, text=text, held=held))


def _match_inline_keys(provider: Provider) -> KeySet | None:
    """Return the keys that stand in the rules file, None where they are the provider's."""
    if provider.keys is None:
        return None
    if provider.keys.inline is not None:
        return parse_key_set(provider.keys.inline.encode())
    if provider.keys.secret is not None:
        return key_set_from_secret(provider.keys.secret, provider.expectation.algorithms)
    return None


def _is_asked_about(provider: Provider, jwt: Jwt) -> bool:
    """Say whether the provider is asked about a JWT, as its authenticator would."""
    tokens = None if provider.introspection is None else provider.introspection.tokens
    if tokens is TokenUse.LIGHTWEIGHT:
        return "aud" not in jwt.claims or "sub" not in jwt.claims
    return tokens is TokenUse.ALL


def _render_refusal(stage: str, refusal: Refusal | Deny) -> Step:
    text = refusal.detail or REASON_TEXT[refusal.reason].meaning
    return Step(stage=stage, text=text, held=False, reason=refusal.reason)
