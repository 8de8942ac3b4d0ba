"""Judge a proved (or absent) principal by the guards and the rule, and say what the upstream will see.

The guards come first, then the rule's own tests; the first that does not hold decides the Reason. Only then are the
headers made: every identity header ours, no token of ours passed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from authz.core.answers import Refusal, render_deny
from authz.core.condition import Facts
from authz.core.cors import Cors, check_origin, match_preflight, render_cors, render_preflight
from authz.core.credentials import strip_cookies
from authz.core.headers import Template, find_odd_names, render_identity, render_odd_names, render_template
from authz.core.path import check_accepted
from authz.core.policy import Access, Branch, Keep, Match, Outfit, Policy, Table, match_guards, match_rule
from authz.core.require import Test, check_tests, needs_principal, scopes_of
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
    SharedEdits,
)
from authz.quick import quick

MAX_DERIVED: Final = 8
"""Kept for one principal: a policy has as many outfits as ways to treat headers, nearly always one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Who asks: ``branch`` is the one whose provider proved ``credential`` to be of ``principal``; or all are None."""

    branch: Branch | None = None
    credential: Credential | None = None
    principal: Principal | None = None


NOBODY_ASKS: Final = Proof()

new_proof: Final = quick(Proof)
_new_facts: Final = quick(Facts)
_new_allow: Final = quick(Allow)


def authorize(policy: Policy, match: Match, request: Request, proof: Proof, *, cors: Cors | None = None) -> Decision:
    """Decide: the guards, the rule's tests, then the headers."""
    branch, principal = proof.branch, proof.principal
    address = match_address(request, policy.trusted_hops)
    guard = ""
    tests: tuple[Test, ...] = ()
    try:
        for covering in match_guards(policy, request.host, request.target):
            guard, tests = covering.guard.name, covering.guard.tests
            facts = Facts(request=request, principal=principal, host=covering.host, path=covering.path, address=address)
            check_tests(tests, facts)
        guard = ""
        if branch is not None:
            tests = branch.tests
            facts = _new_facts(request=request, principal=principal, host=match.host, path=match.path, address=address)
            check_tests(tests, facts)
        upstream = _render_upstream(match, request, proof)
    except Rejected as rejected:
        refusal = Refusal(
            reason=rejected.reason,
            detail=rejected.detail,
            guard=guard,
            scope=scopes_of(tests) if rejected.reason is Reason.SCOPE_MISSING else "",
        )
        return render_deny(refusal, request=request, match=match, cors=cors, principal=principal)
    downstream = match.rule.response_headers
    if cors is not None and cors.answer and "origin" in request.headers:
        downstream = (*downstream, *render_cors(cors, request))
    return _new_allow(
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
    edits = _render_upstream(match, request, NOBODY_ASKS)
    if not any(edit.name == "authorization" for edit in edits):
        edits = (*edits, HeaderEdit(HeaderAction.REMOVE, "authorization"))
    return Allow(rule=match.rule.name, upstream=edits, remove_query=_tokens_in_query(match.table, request))


def match_address(request: Request, trusted_hops: int) -> str | None:
    """Return the client's address: the proxy's peer, or the Nth of ``x-forwarded-for`` from the right.

    A list that is too short, or no address in that place, gives None: then every test of networks fails.
    """
    if trusted_hops == 0:
        return None if request.source_address is None else _render_address(request.source_address)
    hops = request.headers.get("x-forwarded-for", "").split(",")
    if len(hops) < trusted_hops:
        return None
    try:
        return _render_address(ip_address(hops[-trusted_hops].strip(" \t")))
    except ValueError:
        return None


@lru_cache(maxsize=1_024)
def _render_address(address: IPv4Address | IPv6Address) -> str:
    """Return the text; of an IPv4 address that is written as an IPv6 one what it is, so that networks see it."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(address if mapped is None else mapped)


def _render_upstream(match: Match, request: Request, proof: Proof) -> tuple[HeaderEdit, ...]:
    """Return what is the same for all requests of this principal to such a rule, and what this request adds."""
    outfit = match.rule.outfit
    own = _match_own_edits(outfit, proof)
    odd = request.odd_names
    if odd is None:
        odd = find_odd_names(request.headers)
    added = render_odd_names(outfit.folded, own, odd) if odd else []
    if match.table.cookies and "cookie" in request.headers:
        added += _strip_cookies(match.table.cookies, request)
    return (*own, *added) if added else own


def _match_own_edits(outfit: Outfit, proof: Proof) -> SharedEdits:
    """Return the edits that were made for this principal before, or make them.

    They depend on the outfit, the principal and whether it was the ``authorization`` header that proved it, which all
    never change: nothing is decided here.
    """
    principal = proof.principal
    derived = outfit.derived if principal is None else principal.derived
    proved = proof.credential is not None and proof.credential.place.kind is PlaceKind.AUTHORIZATION
    key = (outfit, proved)
    found: SharedEdits | None = derived.get(key)
    if found is None:
        if len(derived) >= MAX_DERIVED:  # outfits of former policies, or very many of them
            derived.clear()
        found = derived[key] = SharedEdits(
            (
                *render_identity(outfit.identity, principal),
                *_render_authorization(outfit.authorization, principal, proved=proved),
                *(HeaderEdit(HeaderAction.REMOVE, name) for name in outfit.token_headers),
            )
        )
    return found


def _render_authorization(
    choice: Keep | Template, principal: Principal | None, *, proved: bool
) -> tuple[HeaderEdit, ...]:
    if isinstance(choice, Template):
        value = render_template(choice, principal)
        if value is not None:
            return (HeaderEdit(HeaderAction.SET, "authorization", value),)
    elif choice is Keep.ALWAYS or (choice is Keep.PROVED and proved):
        return ()
    return (HeaderEdit(HeaderAction.REMOVE, "authorization"),)


def _strip_cookies(names: frozenset[str], request: Request) -> list[HeaderEdit]:
    """Take out the cookies that only we were meant to read."""
    cookie = request.headers["cookie"]
    rest = strip_cookies(cookie, names)
    if rest is None:
        return [HeaderEdit(HeaderAction.REMOVE, "cookie")]
    if rest != cookie or "cookie" in request.repeated:
        return [HeaderEdit(HeaderAction.SET, "cookie", rest)]
    return []


def _tokens_in_query(table: Table, request: Request) -> tuple[str, ...]:
    query = request.target.query
    if not query or not table.parameters:
        return ()
    return tuple(name for name in table.parameters if name in query)
