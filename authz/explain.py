"""Say why a request would be let in or turned away: the rule, the credential, each condition with what was found.

The decision itself comes from the same functions that serve; the steps beside it are for people.
Offline, a token's signature is verified only against keys that stand in the rules file; otherwise its claims are judged
as if it were genuine, and the step says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from authz.clients.authenticate import Authenticator
from authz.core.answers import Refusal, render_deny
from authz.core.authorize import NOBODY_ASKS, Proof, authorize, decide_preflight, match_address
from authz.core.claims import check_claims, read_principal
from authz.core.condition import Facts
from authz.core.cors import match_preflight
from authz.core.credentials import match_credential
from authz.core.jwk import KeySet, key_set_from_secret, parse_key_set
from authz.core.jwt import looks_like_jwt, parse_jwt, verify_jwt
from authz.core.path import check_accepted
from authz.core.policy import Access, Branch, Match, Policy, match_guards, match_rule
from authz.core.require import Test
from authz.model import Credential, Decision, Principal, Provider, ProviderError, Reason, Rejected, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that was looked at: ``held`` None means that it decides nothing."""

    stage: str
    text: str
    held: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The decision and how it came about."""

    decision: Decision
    steps: tuple[Step, ...]


async def explain(
    policy: Policy,
    providers: Mapping[str, Provider],
    request: Request,
    *,
    now_s: float,
    authenticators: Mapping[str, Authenticator] | None = None,
) -> Explanation:
    """Decide one request step by step. ``authenticators`` None means offline."""
    steps: list[Step] = []
    match: Match | None = None
    cors = policy.cors.match_first(request.host.name)
    try:
        wanted = match_preflight(request) if cors is not None else None
        if cors is not None and wanted is not None:
            steps.append(Step(stage="cors", text=f"a browser's preflight for {wanted}"))
            return Explanation(decision=decide_preflight(policy, cors, request, wanted), steps=tuple(steps))
        match = match_rule(policy, request.host, request.target, request.method)
        steps.append(Step(stage="rule", text=f"`{match.rule.name}`, line {match.rule.line}", held=True))
        check_accepted(request.target, match.rule.accept)
        proof = await _prove(providers, match, request, now_s, authenticators, steps)
        steps.extend(_judge(policy, match, request, proof))
        decision = authorize(policy, match, request, proof, cors=cors)
    except Rejected as rejected:
        steps.append(Step(stage="refused", text=rejected.detail or rejected.reason.value, held=False))
        refusal = Refusal(reason=rejected.reason, detail=rejected.detail)
        decision = render_deny(refusal, request=request, match=match, cors=cors)
    except ProviderError as error:
        steps.append(Step(stage="provider", text=error.detail or error.reason.value, held=False))
        refusal = Refusal(reason=error.reason, detail=error.detail)
        decision = render_deny(refusal, request=request, match=match, cors=cors)
    return Explanation(decision=decision, steps=tuple(steps))


async def _prove(
    providers: Mapping[str, Provider],
    match: Match,
    request: Request,
    now_s: float,
    authenticators: Mapping[str, Authenticator] | None,
    steps: list[Step],
) -> Proof:
    if match.rule.access is Access.NOBODY:
        raise Rejected(Reason.NOBODY, "the rule lets nobody in")
    if match.rule.access is Access.ANYONE:
        steps.append(Step(stage="credential", text="not looked at: the rule lets anyone in"))
        return NOBODY_ASKS
    credential = match_credential(request, match.rule.places)
    if credential is None:
        if match.rule.access is Access.OPTIONAL:
            steps.append(Step(stage="credential", text="none, and none is needed"))
            return NOBODY_ASKS
        raise Rejected(Reason.NO_CREDENTIAL, "no token in any place where the rule looks for one")
    where = f"{credential.place.kind} {credential.place.name}".strip()
    steps.append(Step(stage="credential", text=f"a token of {len(credential.token)} characters in {where}", held=True))
    branch = _choose(providers, match.rule.branches, credential)
    if authenticators is not None:
        evidence = await authenticators[branch.provider].authenticate(credential.token)
        steps.append(Step(stage="token", text=f"proved by provider `{branch.provider}`", held=True))
        return Proof(branch=branch, credential=credential, principal=evidence.principal)
    principal = _prove_offline(providers[branch.provider], credential, now_s, steps)
    return Proof(branch=branch, credential=credential, principal=principal)


def _choose(providers: Mapping[str, Provider], branches: tuple[Branch, ...], credential: Credential) -> Branch:
    if len(branches) == 1:
        return branches[0]
    if looks_like_jwt(credential.token):
        issuer = parse_jwt(credential.token).claims.get("iss")
        found = [branch for branch in branches if providers[branch.provider].expectation.issuer == issuer]
    else:
        found = [branch for branch in branches if providers[branch.provider].introspection is not None]
    if not found:
        raise Rejected(Reason.ISSUER_MISMATCH, "no provider of this rule issues such tokens")
    return found[0]


def _prove_offline(provider: Provider, credential: Credential, now_s: float, steps: list[Step]) -> Principal:
    if not looks_like_jwt(credential.token):
        raise ProviderError(Reason.PROVIDER_UNAVAILABLE, "an opaque token: ask its provider with --online")
    jwt = parse_jwt(credential.token)
    keys = _inline_keys(provider)
    if keys is None:
        text = "the signature is not verified: the keys are the provider's (use --online)"
        steps.append(Step(stage="token", text=text))
    else:
        verify_jwt(jwt, keys, provider.expectation)
        steps.append(Step(stage="token", text="the signature holds", held=True))
    check_claims(jwt.claims, provider.expectation, now_s=now_s)
    steps.append(Step(stage="token", text=f"the claims are as provider `{provider.name}` expects", held=True))
    return read_principal(provider, jwt.claims)


def _inline_keys(provider: Provider) -> KeySet | None:
    if provider.keys is None:
        return None
    if provider.keys.inline is not None:
        return parse_key_set(provider.keys.inline.encode())
    if provider.keys.secret is not None:
        return key_set_from_secret(provider.keys.secret, provider.expectation.algorithms)
    return None


def _judge(policy: Policy, match: Match, request: Request, proof: Proof) -> Iterator[Step]:
    address = match_address(request, policy.trusted_hops)
    for covering in match_guards(policy, request.host, request.target):
        facts = Facts(
            request=request, principal=proof.principal, host=covering.host, path=covering.path, address=address
        )
        yield from _judge_tests(f"guard `{covering.guard.name}`", covering.guard.tests, facts)
    if proof.branch is not None:
        facts = Facts(request=request, principal=proof.principal, host=match.host, path=match.path, address=address)
        yield from _judge_tests("require", proof.branch.tests, facts)


def _judge_tests(stage: str, tests: tuple[Test, ...], facts: Facts) -> Iterator[Step]:
    for test in tests:
        try:
            test.check(facts)
        except Rejected as rejected:
            yield Step(stage=stage, text=f"{test}: {_found(test, facts) or rejected.detail}", held=False)
        else:
            yield Step(stage=stage, text=str(test), held=True)


def _found(test: Test, facts: Facts) -> str:
    """Say what stands where the test looked, as far as it is no secret: names, never whole claims."""
    if facts.principal is None:
        return "nobody is asking"
    kind = type(test).__name__
    held = {
        "RoleTest": sorted(
            f"{role.client}:{role.name}" if role.client else role.name for role in facts.principal.roles
        ),
        "GroupTest": sorted(facts.principal.groups),
        "ScopeTest": sorted(facts.principal.scopes),
        "ClientTest": [facts.principal.client_id or "none"],
        "NetworkTest": [facts.address or "an unknown address"],
    }.get(kind)
    return "" if held is None else f"found {', '.join(held) or 'none'}"
