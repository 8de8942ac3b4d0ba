"""What a rule or a guard requires of who asks: each test is one object that holds or gives its Reason.

Tests are AND-ed. A test over several names says whether any or all of them are needed; it never has none, so that an
empty list cannot mean "anything". Without a principal every test of the principal fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

from authz.core.condition import Condition, Facts
from authz.model import Reason, Rejected, Role

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleTest:
    """One of, or all of, some roles."""

    roles: frozenset[Role]
    every: bool = False

    def check(self, facts: Facts) -> None:
        """Raise Rejected(ROLE_MISSING)."""
        held = facts.principal.roles if facts.principal is not None else frozenset()
        if not (self.roles <= held if self.every else self.roles & held):
            raise Rejected(Reason.ROLE_MISSING, f"needs {self}")

    def __str__(self) -> str:
        """Render for the operator."""
        return _render_choice("role", sorted(map(render_role, self.roles)), every=self.every)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTest:
    """One of, or all of, some groups. ``exact`` is that group only; ``below`` is it and all below it."""

    exact: frozenset[str] = frozenset()
    below: frozenset[str] = frozenset()
    every: bool = False

    def check(self, facts: Facts) -> None:
        """Raise Rejected(GROUP_MISSING)."""
        groups = facts.principal.groups if facts.principal is not None else frozenset()
        results = [group in groups for group in self.exact]
        results += [any(held == top or held.startswith(f"{top}/") for held in groups) for top in self.below]
        if not (all(results) if self.every else any(results)):
            raise Rejected(Reason.GROUP_MISSING, f"needs {self}")

    def __str__(self) -> str:
        """Render for the operator."""
        names = sorted([*self.exact, *(f"{top}/**" for top in self.below)])
        return _render_choice("group", names, every=self.every)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeTest:
    """One of, or all of, some scopes (RFC 6749 §3.3: case-sensitive)."""

    scopes: frozenset[str]
    every: bool = False

    def check(self, facts: Facts) -> None:
        """Raise Rejected(SCOPE_MISSING)."""
        held = facts.principal.scopes if facts.principal is not None else frozenset()
        if not (self.scopes <= held if self.every else self.scopes & held):
            raise Rejected(Reason.SCOPE_MISSING, f"needs {self}")

    def __str__(self) -> str:
        """Render for the operator."""
        return _render_choice("scope", sorted(self.scopes), every=self.every)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTest:
    """The token was issued to one of these clients."""

    client_ids: frozenset[str]

    def check(self, facts: Facts) -> None:
        """Raise Rejected(CLIENT_NOT_LISTED)."""
        if facts.principal is None or facts.principal.client_id not in self.client_ids:
            raise Rejected(Reason.CLIENT_NOT_LISTED, f"needs {self}")

    def __str__(self) -> str:
        """Render for the operator."""
        return _render_choice("client", sorted(self.client_ids), every=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTest:
    """A claim equals one of some values, or is a list with one (or, with ``every``, all) of them in it.

    Types count: the text ``1``, the number 1 and the truth value are three different things.
    """

    place: tuple[str, ...]
    values: tuple[str | int | float | bool, ...]
    every: bool = False

    def check(self, facts: Facts) -> None:
        """Raise Rejected(CLAIM_MISMATCH)."""
        claims: Mapping[str, Any] = facts.principal.claims if facts.principal is not None else {}
        found = match_claim(claims, self.place)
        held = found if isinstance(found, list) else [found]
        results = [any(_same(wanted, value) for value in held) for wanted in self.values]
        if not (all(results) if self.every else any(results)):
            raise Rejected(Reason.CLAIM_MISMATCH, f"needs {self}")

    def __str__(self) -> str:
        """Render for the operator."""
        choice = _render_choice("value", [repr(value) for value in self.values], every=self.every)
        return f"claim {'.'.join(self.place)}: {choice}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTest:
    """The client's address lies in one of these networks; an unknown address lies in none."""

    networks: tuple[Network, ...]

    def check(self, facts: Facts) -> None:
        """Raise Rejected(NETWORK_REFUSED)."""
        if facts.address is not None:
            address = ip_address(facts.address)
            if any(address in network for network in self.networks if network.version == address.version):
                return
        raise Rejected(Reason.NETWORK_REFUSED, f"needs {self}")

    def __str__(self) -> str:
        """Render for the operator."""
        return _render_choice("network", [str(network) for network in self.networks], every=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WhenTest:
    """A condition in CEL holds."""

    condition: Condition

    def check(self, facts: Facts) -> None:
        """Raise Rejected(CONDITION_FALSE or CONDITION_ERROR)."""
        self.condition.check(facts)

    def __str__(self) -> str:
        """Render for the operator."""
        return f"when `{self.condition.text}`"


Test = RoleTest | GroupTest | ScopeTest | ClientTest | ClaimTest | NetworkTest | WhenTest


def check_tests(tests: tuple[Test, ...], facts: Facts) -> None:
    """Judge every test.

    Raises:
        Rejected: for the first test that does not hold, with that test's Reason.

    """
    for test in tests:
        test.check(facts)


def needs_principal(tests: tuple[Test, ...]) -> bool:
    """Say whether nobody can pass these tests without a credential."""
    return any(not isinstance(test, NetworkTest | WhenTest) for test in tests) or any(
        isinstance(test, WhenTest) and {"claims", "principal"} & test.condition.uses.keys() for test in tests
    )


def scopes_of(tests: tuple[Test, ...]) -> str:
    """Return the scopes that would do, space-separated, for ``insufficient_scope`` (RFC 6750 §3)."""
    return " ".join(sorted({scope for test in tests if isinstance(test, ScopeTest) for scope in test.scopes}))


def match_claim(claims: Mapping[str, Any], place: tuple[str, ...]) -> object:
    """Return the value at a path of member names, or None."""
    value: object = claims
    for name in place:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def render_role(role: Role) -> str:
    """Render as ``role`` or ``client:role``; a ``:`` or ``%`` inside a name is percent-encoded, so no two are one."""
    name, client = (part.replace("%", "%25").replace(":", "%3A") for part in (role.name, role.client))
    return f"{client}:{name}" if client else name


def _same(wanted: object, found: object) -> bool:
    return type(wanted) is type(found) and wanted == found


def _render_choice(what: str, names: list[str], *, every: bool) -> str:
    if len(names) == 1:
        return f"{what} {names[0]}"
    return f"{what}s: {'all' if every else 'any'} of {', '.join(names)}"
