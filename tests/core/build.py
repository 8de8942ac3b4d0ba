"""Policies from a few lines of rules, and requests to ask them about."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

from authz.config import load_text
from authz.core.authorize import Proof, authorize
from authz.core.path import check_accepted, parse_host, parse_target
from authz.core.policy import Access, Policy, match_rule
from authz.model import Allow, Credential, CredentialPlace, Decision, HeaderAction, PlaceKind, Principal, Request, Role

HEAD = """
version: 1
providers:
  shop: {issuer: "https://sso.example.com", audiences: [a]}
  acme: {issuer: "https://acme.example.com", audiences: [a]}
"""
AUTHORIZATION = CredentialPlace(kind=PlaceKind.AUTHORIZATION)


def policy_of(text: str) -> Policy:
    """Compile rules; ``HEAD`` stands before them."""
    return load_text(HEAD + text, path=Path("rules.yaml"), environ={}).policy


def rule(name: str, hosts: str, path: str, rest: str = "allow: anyone") -> str:
    """Write one rule in one line."""
    return f"  - {{name: {name}, hosts: {hosts}, paths: ['{path}'], {rest}}}\n"


def request(method: str = "GET", url: str = "a.example/x", *, source: str = "192.0.2.1", **headers: str) -> Request:
    host, slash, target = url.partition("/")
    return Request(
        method=method,
        host=parse_host(host),
        target=parse_target(slash + target or "/", method=method),
        headers={name.replace("__", "_").replace("_", "-"): value for name, value in headers.items()},
        source_address=ip_address(source) if source else None,
    )


def principal(**changes: Any) -> Principal:
    facts: dict[str, Any] = {
        "provider": "shop",
        "issuer": "https://sso.example.com",
        "subject": "alice",
        "client_id": "web",
        "claims": {"sub": "alice"},
        "roles": frozenset({Role("reader")}),
        "expires_at_s": 2_000_000_000.0,
    }
    return Principal(**facts | changes)


def decide(
    policy: Policy, asked: Request, who: Principal | None = None, place: CredentialPlace = AUTHORIZATION
) -> Decision:
    """Match and authorize; ``who`` has been proved by the branch of its provider."""
    match = match_rule(policy, asked.host, asked.target, asked.method)
    check_accepted(asked.target, match.rule.accept)
    proof = Proof()
    if who is not None and match.rule.access in {Access.PROVED, Access.OPTIONAL}:
        branch = next(its for its in match.rule.branches if its.provider == who.provider)
        proof = Proof(branch=branch, credential=Credential(token="t", place=place), principal=who)
    return authorize(policy, match, asked, proof, cors=policy.cors.match_first(asked.host.name))


def judged_by(policy: Policy, method: str, url: str) -> str:
    """Return the name of the rule that judges a request."""
    asked = request(method, url)
    return match_rule(policy, asked.host, asked.target, method).rule.name


def upstream(decision: Decision) -> dict[str, str | None]:
    """Return what an allow does to the upstream's headers: a value, or None for a removal."""
    assert isinstance(decision, Allow), decision
    assert {edit.action for edit in decision.upstream} <= {HeaderAction.SET, HeaderAction.REMOVE}
    return {edit.name: edit.value if edit.action is HeaderAction.SET else None for edit in decision.upstream}
