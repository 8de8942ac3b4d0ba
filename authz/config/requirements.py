"""Compile what a rule or a guard requires: the keys of ``require`` into tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from typing import Any

from authz.config.document import Loc
from authz.config.fields import Choice, parse_claim_place
from authz.config.problems import Problems, show, suggest
from authz.config.schema import RequirePart
from authz.core.condition import MEMBERS, Condition, parse_condition
from authz.core.hosts import HostPattern
from authz.core.require import (
    ClaimTest,
    ClientTest,
    GroupTest,
    Network,
    NetworkTest,
    RoleTest,
    ScopeTest,
    Test,
    WhenTest,
)
from authz.core.trie import PathPattern
from authz.model import Role


def compile_requirements(
    part: RequirePart,
    loc: Loc,
    *,
    hosts: tuple[HostPattern, ...],
    paths: tuple[PathPattern, ...],
    problems: Problems,
) -> tuple[Test, ...]:
    """Return the tests, the cheap ones first. ``hosts`` and ``paths`` say which captures there are."""
    tests: list[Test] = []
    if part.networks is not None:
        networks = _networks(part.networks, (*loc, "networks"), problems)
        tests.append(NetworkTest(networks=networks))
    if part.client_ids is not None:
        if part.client_ids.every:
            problems.add((*loc, "client_ids"), "a token is of one client: write `{any: […]}`")
        tests.append(ClientTest(client_ids=frozenset(part.client_ids.items)))
    if part.scopes is not None:
        tests.append(_scopes(part.scopes, (*loc, "scopes"), problems))
    if part.roles is not None:
        roles = frozenset(Role(role, client) for client, role in part.roles.items)
        tests.append(RoleTest(roles=roles, every=part.roles.every))
    if part.groups is not None:
        tests.append(_groups(part.groups, (*loc, "groups"), problems))
    tests.extend(_claims(part.claims or {}, (*loc, "claims"), problems))
    if part.when is not None:
        condition = problems.attempt((*loc, "when"), parse_condition, part.when)
        if condition is not None:
            _check_names(condition, (*loc, "when"), hosts, paths, problems)
            tests.append(WhenTest(condition=condition))
    return tuple(tests)


def _networks(choice: Choice, loc: Loc, problems: Problems) -> tuple[Network, ...]:
    if choice.every:
        problems.add(loc, "an address is not in all of several networks: write `{any: […]}`")
    found: list[Network] = []
    for text in choice.items:
        try:
            found.append(ip_network(text))
        except ValueError:
            problems.add(loc, f"{show(text)} is no network: {_network_instead(text)}")
    return tuple(found)


def _network_instead(text: str) -> str:
    try:
        return f"it has bits beyond its length, write `{ip_network(text, strict=False)}`"
    except ValueError:
        return "write one such as `10.0.0.0/8`"


def _scopes(choice: Choice, loc: Loc, problems: Problems) -> Test:
    for name in choice.items:
        if not name.isascii() or not name.isprintable() or any(mark in name for mark in ' "\\'):
            problems.add(loc, f"{show(name)} is no scope: several are `{{any: […]}}` or `{{all: […]}}`")
    return ScopeTest(scopes=frozenset(choice.items), every=choice.every)


def _groups(choice: Choice, loc: Loc, problems: Problems) -> Test:
    names = [name.removeprefix("/") for name in choice.items]
    for name in names:
        top = name.removesuffix("/**")
        if not top or "*" in top or top.endswith("/"):
            problems.add(loc, f"{show(name)} is no group: write `staff`, or `staff/**` for it and all below")
    return GroupTest(
        exact=frozenset(name for name in names if not name.endswith("/**")),
        below=frozenset(name.removesuffix("/**") for name in names if name.endswith("/**")),
        every=choice.every,
    )


def _claims(choices: Mapping[str, Choice], loc: Loc, problems: Problems) -> Iterator[Test]:
    for name, choice in choices.items():
        place = problems.attempt((*loc, name), parse_claim_place, name)
        if place is not None:
            yield ClaimTest(place=place, values=choice.items, every=choice.every)


def _check_names(
    condition: Condition, loc: Loc, hosts: tuple[HostPattern, ...], paths: tuple[PathPattern, ...], problems: Problems
) -> None:
    """Refuse an expression that names what can never be there: it would be an error at every request."""
    captured: dict[str, list[tuple[Any, set[str]]]] = {
        "host": [(host, {host.capture} if host.capture else set()) for host in hosts],
        "path": [(path.text, {name for _, name in path.captures}) for path in paths],
    }
    for variable, patterns in captured.items():
        for member in sorted(condition.uses.get(variable) or ()):
            for text, names in patterns:
                if member not in names:
                    message = f"`{variable}.{member}` is not captured by `{text}`: write `{{{member}}}` there"
                    problems.add(loc, message)
    for variable, known in MEMBERS.items():
        for member in sorted((condition.uses.get(variable) or frozenset()) - known):
            problems.add(loc, f"`{variable}.{member}` does not exist: {suggest(member, known)}")
