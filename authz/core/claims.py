"""What a token says, against what its provider's tokens must say: one Expectation for JWTs and introspection alike.

Our own rules (RFC 7519 §4.1, RFC 8725 §3, RFC 9068 §4, RFC 7662 §2.2), because libraries read odd values in odd ways.
A time is a finite JSON number, 0 <= t < 2^53, never a text or a truth value; absent is absent, never the number 0.
``exp`` is the first moment at which the token is refused, leeway added.

Nothing here says whether the claims are true: the caller has verified a signature, or asked the provider.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from authz.model import ClaimPlaces, Claims, Expectation, Principal, Provider, Reason, Rejected, Role

MAX_TIME: Final = 2**53
"""Beyond it two readers of JSON numbers may not see the same second (RFC 7493 §2.2)."""

_CLIENT_MEMBERS: Final = ("azp", "client_id")


def check_claims(claims: Claims, expectation: Expectation, *, now_s: float, introspected: bool = False) -> None:
    """Judge all that a token says of itself. ``now_s`` is in seconds since 1970.

    Only for an introspected token may members be lacking, those that ``introspection_may_lack`` names.

    Raises:
        Rejected: with the Reason of the first claim that is not as expected.

    """
    may_lack = expectation.introspection_may_lack if introspected else frozenset[str]()
    _check_issuer(claims, expectation, may_lack)
    if "cnf" in claims:
        raise Rejected(Reason.PROOF_MISSING, "the token is bound to a key (`cnf`), and no proof of it is checked")
    _check_type(claims, expectation, introspected=introspected)
    _check_audience(claims, expectation, may_lack)
    if "exp" not in claims and "exp" not in may_lack:
        raise Rejected(Reason.EXPIRY_MISSING)
    check_times(claims, expectation, now_s=now_s)
    _check_issued_at(claims, expectation, now_s)
    _check_client(claims, expectation)
    _read_text(claims, "sub")


def check_times(claims: Claims, expectation: Expectation, *, now_s: float) -> None:
    """Judge ``exp`` and ``nbf``, which change with time alone.

    Evidence that was kept is not judged by this again: it is not used from ``exp`` on, leeway or not.

    Not checked: that ``exp`` is there, where ``introspection_may_lack`` names it; :func:`check_claims` did that.

    Raises:
        Rejected: EXPIRY_MISSING, EXPIRY_INVALID, EXPIRED, NOT_BEFORE_INVALID, NOT_YET_VALID.

    """
    expires_s = expires_at(claims)
    if expires_s is None:
        if "exp" not in expectation.introspection_may_lack:
            raise Rejected(Reason.EXPIRY_MISSING)
    elif now_s >= expires_s + expectation.leeway_s:
        raise Rejected(Reason.EXPIRED)
    not_before_s = _read_time(claims, "nbf", Reason.NOT_BEFORE_INVALID)
    if not_before_s is not None and not_before_s > now_s + expectation.leeway_s:
        raise Rejected(Reason.NOT_YET_VALID)


def expires_at(claims: Claims) -> float | None:
    """Return ``exp`` in seconds since 1970, None where it is absent.

    Raises:
        Rejected: EXPIRY_INVALID.

    """
    return _read_time(claims, "exp", Reason.EXPIRY_INVALID)


def read_principal(provider: Provider, claims: Claims) -> Principal:
    """Take out who is asking, from the places where this provider keeps it. ``expires_at_s`` without ``exp`` is inf.

    Not checked: the claims themselves, see :func:`check_claims`.

    Raises:
        Rejected: CLAIM_INVALID where one of the places holds another shape: half-read roles are nobody's intent.

    """
    places = provider.places
    expires_s = expires_at(claims)
    return Principal(
        provider=provider.name,
        issuer=provider.issuer,
        subject=_read_text(claims, "sub"),
        client_id=_read_client(claims),
        claims=claims,
        roles=frozenset(_read_roles(claims, places)),
        groups=frozenset(_read_groups(claims, places)),
        scopes=_read_scopes(claims, places),
        email=_read_email(claims),
        expires_at_s=math.inf if expires_s is None else expires_s,
    )


def _check_issuer(claims: Claims, expectation: Expectation, may_lack: frozenset[str]) -> None:
    """Compare exactly: a trailing slash or another case is another issuer (RFC 8725 §3.8)."""
    if "iss" in claims:
        if claims["iss"] != expectation.issuer:
            raise Rejected(Reason.ISSUER_MISMATCH)
    elif "iss" not in may_lack:
        raise Rejected(Reason.ISSUER_MISSING)


def _check_type(claims: Claims, expectation: Expectation, *, introspected: bool) -> None:
    """Judge the payload's ``typ``, or an introspection answer's ``token_type``, whose case is free (RFC 6749 §5.1)."""
    if expectation.claim_types is None:
        return
    if introspected and "typ" not in claims:
        found = claims.get("token_type")
        fits = isinstance(found, str) and found.lower() in {name.lower() for name in expectation.claim_types}
    else:
        found = claims.get("typ")
        fits = isinstance(found, str) and found in expectation.claim_types
    if not fits:
        raise Rejected(Reason.TOKEN_TYPE, f"the payload's type is {_quote(found)}")


def _check_audience(claims: Claims, expectation: Expectation, may_lack: frozenset[str]) -> None:
    """Look for ourselves among the audiences (RFC 7519 §4.1.3). A provider that opted out is not looked at."""
    if expectation.audiences is None:
        return
    if "aud" not in claims:
        if "aud" in may_lack:
            return
        raise Rejected(Reason.AUDIENCE_MISSING)
    found = claims["aud"]
    if found == []:
        raise Rejected(Reason.AUDIENCE_MISSING)
    names = [found] if isinstance(found, str) else found
    if not _is_names(names):
        raise Rejected(Reason.CLAIM_INVALID, "`aud` is neither a text nor a list of texts")
    if expectation.audiences.isdisjoint(names):
        raise Rejected(Reason.AUDIENCE_MISMATCH)


def _check_issued_at(claims: Claims, expectation: Expectation, now_s: float) -> None:
    issued_s = _read_time(claims, "iat", Reason.ISSUED_AT_INVALID)
    if issued_s is not None and issued_s > now_s + expectation.leeway_s:
        raise Rejected(Reason.ISSUED_IN_FUTURE)
    if expectation.max_lifetime_s is None:
        return
    if issued_s is None:
        raise Rejected(Reason.ISSUED_AT_MISSING, "a maximum lifetime is set, so `iat` is needed")
    expires_s = expires_at(claims)
    if expires_s is None:
        raise Rejected(Reason.EXPIRY_MISSING, "a maximum lifetime is set, so `exp` is needed")
    if expires_s - issued_s > expectation.max_lifetime_s:
        raise Rejected(Reason.LIFETIME_TOO_LONG)


def _check_client(claims: Claims, expectation: Expectation) -> None:
    """Compare every name that the token gives its client: one on the list does not excuse another."""
    if expectation.clients is None:
        return
    found = [claims[name] for name in _CLIENT_MEMBERS if name in claims]
    if found and not _is_names(found):
        raise Rejected(Reason.CLAIM_INVALID, "`azp` or `client_id` is empty or no text")
    if not found or not expectation.clients.issuperset(found):
        raise Rejected(Reason.CLIENT_REFUSED)


def _read_time(claims: Claims, name: str, reason: Reason) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    # NaN and the infinities fail the comparison too, whoever parsed the claims.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_TIME:
        raise Rejected(reason, f"`{name}` is no time")
    return value


def _read_text(claims: Claims, name: str) -> str | None:
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, str) or not value:
        raise Rejected(Reason.CLAIM_INVALID, f"`{name}` is empty or no text")
    return value


def _read_client(claims: Claims) -> str | None:
    found = {_read_text(claims, name) for name in _CLIENT_MEMBERS} - {None}
    if len(found) > 1:
        raise Rejected(Reason.CLAIM_INVALID, "`azp` and `client_id` name two clients")
    return next(iter(found), None)


def _read_roles(claims: Claims, places: ClaimPlaces) -> Iterator[Role]:
    for place in places.roles:
        for name in _read_names(claims, place) or ():
            yield Role(name)
    if places.client_roles is None:
        return
    clients = _match_member(claims, places.client_roles)
    if clients is None:
        return
    if not isinstance(clients, Mapping) or "" in clients:  # an empty client would make a realm's role of it
        raise Rejected(Reason.CLAIM_INVALID, f"`{'.'.join(places.client_roles)}` is no object of clients")
    for client in clients:
        for name in _read_names(clients, (client, "roles")) or ():
            yield Role(name, client)


def _read_groups(claims: Claims, places: ClaimPlaces) -> Iterator[str]:
    """Yield the groups without their one leading slash, which Keycloak writes where it is asked for full paths."""
    for place in places.groups:
        found = _match_member(claims, place)
        if found is None:
            continue
        if not isinstance(found, list) or (found and not _is_names(found)) or "/" in found:
            raise Rejected(Reason.CLAIM_INVALID, f"`{'.'.join(place)}` is no list of groups")
        for name in found:
            yield name.removeprefix("/")


def _read_scopes(claims: Claims, places: ClaimPlaces) -> frozenset[str]:
    """Return the scopes of the first place that is there: a list, or one text of names (RFC 8693 §4.2)."""
    for place in places.scopes:
        names = _read_names(claims, place)
        if names is not None:
            return frozenset(names)
    return frozenset()


def _read_email(claims: Claims) -> str | None:
    """Return an address that the provider verified; several ``@`` are read differently by different readers."""
    email = claims.get("email")
    if claims.get("email_verified") is not True or not isinstance(email, str):
        return None
    local, _, domain = email.partition("@")
    return email if local and domain and "@" not in domain and email.isprintable() and " " not in email else None


def _read_names(claims: Mapping[str, Any], place: tuple[str, ...]) -> list[str] | None:
    """Return a list of texts, or the words of one text; None where nothing is there."""
    found = _match_member(claims, place)
    if found is None:
        return None
    if isinstance(found, str):
        return [name for name in found.split(" ") if name]
    if found != [] and not _is_names(found):
        raise Rejected(Reason.CLAIM_INVALID, f"`{'.'.join(place)}` is no list of names")
    return list(found)


def _match_member(claims: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    """Return the value at a path of member names, None where one of them is absent.

    Raises:
        Rejected: CLAIM_INVALID where the way leads through anything but objects, or ends at null.

    """
    value: Any = claims
    for name in place:
        if not isinstance(value, Mapping):
            raise Rejected(Reason.CLAIM_INVALID, f"`{'.'.join(place)}` leads through no object")
        if name not in value:
            return None
        value = value[name]
    if value is None:
        raise Rejected(Reason.CLAIM_INVALID, f"`{'.'.join(place)}` is null")
    return value


def _is_names(value: Any) -> bool:
    """Say whether a value is a list of one or more non-empty texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)


def _quote(value: Any) -> str:
    return f"`{ascii(value)[1:-1][:32]}`" if isinstance(value, str) else "missing or no text"
