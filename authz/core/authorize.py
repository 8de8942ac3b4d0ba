"""Judge a proved (or absent) principal by the guards and the rule, and say what the upstream will see.

The guards come first, then the rule's own tests; the first that does not hold decides the Reason. Only then are the
headers made: every identity header ours, no token of ours passed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from authz.core.answers import Refusal, render_deny
from authz.core.condition import Facts
from authz.core.cors import Cors, check_origin, match_preflight, render_cors, render_preflight
from authz.core.credentials import strip_cookies
from authz.core.headers import Template, fold_name, render_identity, render_template
from authz.core.path import check_accepted
from authz.core.policy import Access, Branch, Keep, Match, Policy, Table, match_guards, match_rule
from authz.core.require import check_tests, needs_principal, scopes_of
from authz.model import (
    Allow,
    Credential,
    Decision,
    Deny,
    HeaderAction,
    HeaderEdit,
    PlaceKind,
    Principal,
    Reason,
    Rejected,
    Request,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Who asks: ``branch`` is the one whose provider proved ``credential`` to be of ``principal``; or all are None."""

    branch: Branch | None = None
    credential: Credential | None = None
    principal: Principal | None = None


NOBODY_ASKS: Final = Proof()


def authorize(policy: Policy, match: Match, request: Request, proof: Proof, *, cors: Cors | None = None) -> Decision:
    """Decide: the guards, the rule's tests, then the headers."""
    branch, principal = proof.branch, proof.principal
    address = match_address(request, policy.trusted_hops)
    guard = scope = ""
    try:
        for covering in match_guards(policy, request.host, request.target):
            guard, scope = covering.guard.name, scopes_of(covering.guard.tests)
            facts = Facts(request=request, principal=principal, host=covering.host, path=covering.path, address=address)
            check_tests(covering.guard.tests, facts)
        guard = ""
        if branch is not None and principal is not None:
            scope = scopes_of(branch.tests)
            facts = Facts(request=request, principal=principal, host=match.host, path=match.path, address=address)
            check_tests(branch.tests, facts)
        upstream = tuple(_render_upstream(match, request, proof))
    except Rejected as rejected:
        refusal = Refusal(
            reason=rejected.reason,
            detail=rejected.detail,
            guard=guard,
            scope=scope if rejected.reason is Reason.SCOPE_MISSING else "",
        )
        return render_deny(refusal, request=request, match=match, cors=cors, principal=principal)
    downstream = match.rule.response_headers
    if cors is not None and cors.answer and "origin" in request.headers:
        downstream = (*downstream, *render_cors(cors, request))
    return Allow(
        rule=match.rule.name,
        principal=principal,
        upstream=upstream,
        downstream=downstream,
        remove_query=_tokens_in_query(match.table, request),
    )


def match_asked_method(policy: Policy, cors: Cors | None, request: Request) -> str | None:
    """Return the method that a preflight asks for; None where the request is judged as any other.

    A preflight that would pass to the upstream is any other request where a rule of its path names OPTIONS.
    """
    wanted = match_preflight(request) if cors is not None else None
    if cors is None or wanted is None or cors.answer:
        return wanted
    try:
        named = match_rule(policy, request.host, request.target, request.method).rule.methods
    except Rejected:
        return wanted
    return wanted if named is None else None


def decide_preflight(policy: Policy, cors: Cors, request: Request, wanted: str) -> Decision:
    """Answer a preflight or let it pass to the upstream, as the operator chose.

    It needs a rule for the method that it asks for. No credential can be asked of it, so of the guards only what needs
    none is judged; what passes is an OPTIONS request without any token or identity header.

    Raises:
        Rejected: where there is no such rule, the target is ambiguous, or the origin, method or a header is refused.

    """
    match = match_rule(policy, request.host, request.target, wanted)
    check_accepted(request.target, match.rule.accept)
    if match.rule.access is Access.NOBODY:
        raise Rejected(Reason.NOBODY)
    address = match_address(request, policy.trusted_hops)
    for covering in match_guards(policy, request.host, request.target):
        tests = tuple(test for test in covering.guard.tests if not needs_principal((test,)))
        facts = Facts(request=request, principal=None, host=covering.host, path=covering.path, address=address)
        check_tests(tests, facts)
    if cors.answer:
        headers = render_preflight(cors, request, wanted)
        return Deny(reason=Reason.PREFLIGHT, status=204, headers=headers, rule=match.rule.name)
    check_origin(cors, request)
    edits = [
        *render_identity(match.rule.identity, None, request.headers),
        HeaderEdit(HeaderAction.REMOVE, "authorization"),
        *_strip_places(match, request),
    ]
    return Allow(rule=match.rule.name, upstream=tuple(edits), remove_query=_tokens_in_query(match.table, request))


def match_address(request: Request, trusted_hops: int) -> str | None:
    """Return the client's address: the proxy's peer, or the Nth of ``x-forwarded-for`` from the right.

    A list that is too short, or no address in that place, gives None: then every test of networks fails.
    """
    if trusted_hops == 0:
        return None if request.source_address is None else str(_plain(request.source_address))
    hops = request.headers.get("x-forwarded-for", "").split(",")
    if len(hops) < trusted_hops:
        return None
    try:
        return str(_plain(ip_address(hops[-trusted_hops].strip(" \t"))))
    except ValueError:
        return None


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return an IPv4 address that is written as an IPv6 one as what it is, so that networks see it."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _render_upstream(match: Match, request: Request, proof: Proof) -> Iterator[HeaderEdit]:
    yield from render_identity(match.rule.identity, proof.principal, request.headers)
    yield from _render_authorization(match, proof)
    yield from _strip_places(match, request)


def _render_authorization(match: Match, proof: Proof) -> Iterator[HeaderEdit]:
    choice = match.rule.authorization
    if isinstance(choice, Template):
        value = render_template(choice, proof.principal)
        if value is not None:
            yield HeaderEdit(HeaderAction.SET, "authorization", value)
            return
    proved = proof.credential is not None and proof.credential.place.kind is PlaceKind.AUTHORIZATION
    if choice is Keep.ALWAYS or (choice is Keep.PROVED and proved):
        return
    yield HeaderEdit(HeaderAction.REMOVE, "authorization")


def _strip_places(match: Match, request: Request) -> Iterator[HeaderEdit]:
    """Take out what only we were meant to read: token headers of the rule, token cookies of the host."""
    for place in match.rule.places:
        if place.kind is PlaceKind.HEADER:
            yield HeaderEdit(HeaderAction.REMOVE, place.name)
            folded = fold_name(place.name)
            for name in request.headers:  # other spellings, which an upstream may read as the same name
                if name != place.name and fold_name(name) == folded:
                    yield HeaderEdit(HeaderAction.REMOVE, name)
    cookie = request.headers.get("cookie") if match.table.cookies else None
    if cookie is not None:
        rest = strip_cookies(cookie, match.table.cookies)
        if rest is None:
            yield HeaderEdit(HeaderAction.REMOVE, "cookie")
        elif rest != cookie or "cookie" in request.repeated:
            yield HeaderEdit(HeaderAction.SET, "cookie", rest)


def _tokens_in_query(table: Table, request: Request) -> tuple[str, ...]:
    query = request.target.query
    if not query or not table.parameters:
        return ()
    return tuple(name for name in table.parameters if name in query)
