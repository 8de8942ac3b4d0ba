"""Take the one credential out of a request, from the places that its rule names, or refuse the request.

Two readers must not find two different credentials (invariant AMBIGUOUS-IS-REJECTED): more than one is refused, and so
is every spelling that another reader might take for the credential and we do not: a header joined of two, a cookie's
name in quotes or with spaces, a query parameter's name percent-encoded or behind a ``;``.

Nothing is proved here, and nothing but characters and size is known of what is returned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote, unquote_plus

from authz.core.jwt import MAX_TOKEN_BYTES
from authz.model import Credential, CredentialPlace, PlaceKind, Reason, Rejected, Request
from authz.quick import quick

MAX_AUTHORIZATION_BYTES: Final = len("Bearer ") + MAX_TOKEN_BYTES

_B64TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""RFC 6750 §2.1."""

_SCHEME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110 §11.1."""

_CREDENTIALS: Final = re.compile(rf"{_SCHEME.pattern} +[^ =].*", re.DOTALL)
"""A scheme and something that is no ``=``: tells credentials from a parameter of the credentials before."""

_new_credential: Final = quick(Credential)

AUTHORIZATION: Final = CredentialPlace(kind=PlaceKind.AUTHORIZATION)
_ONLY_AUTHORIZATION: Final = (AUTHORIZATION,)

_NAME_NOISE: Final = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + "\"'=\0"
"""What some readers take off a cookie's name. Stripped, not matched: a pattern for it takes time squared."""


def parse_bearer(value: str) -> str:
    """Return the token of an ``Authorization`` value: ``Bearer``, in any case, one space, b64token (RFC 6750 §2.1).

    Raises:
        Rejected: CREDENTIAL_TOO_LARGE before anything else is looked at; CREDENTIAL_TWICE for two credentials joined
            with a comma; OTHER_SCHEME for another scheme's; CREDENTIAL_MALFORMED for anything else.

    """
    if len(value) > MAX_AUTHORIZATION_BYTES:
        raise Rejected(Reason.CREDENTIAL_TOO_LARGE)
    if "," in value and sum(_CREDENTIALS.fullmatch(part.strip(" \t")) is not None for part in value.split(",")) > 1:
        raise Rejected(Reason.CREDENTIAL_TWICE)
    scheme, _, token = value.partition(" ")
    if not _SCHEME.fullmatch(scheme):
        raise Rejected(Reason.CREDENTIAL_MALFORMED, "`authorization` names no scheme")
    if scheme.lower() != "bearer":
        raise Rejected(Reason.OTHER_SCHEME)
    return _parse_token(token)


def match_bearer(request: Request, places: tuple[CredentialPlace, ...]) -> Credential | None:
    """Return what stands where nearly every token does, its characters not looked at, or None.

    Good for one thing: to look up a token that was taken before, which is the same text and so has the same characters.
    """
    if places != _ONLY_AUTHORIZATION or "authorization" in request.repeated:
        return None
    value = request.headers.get("authorization", "")
    if value[:7] != "Bearer " or len(value) > MAX_AUTHORIZATION_BYTES:
        return None
    return _new_credential(token=value[7:], place=AUTHORIZATION)


def match_credential(request: Request, places: tuple[CredentialPlace, ...]) -> Credential | None:
    """Return the one credential found in these places, None where there is none.

    Whatever stands in one of the places counts, also what is malformed or of another scheme: beside a credential it
    makes two. Other places are not looked at.

    Raises:
        Rejected: CREDENTIAL_TWICE, CREDENTIAL_MALFORMED, CREDENTIAL_TOO_LARGE, QUERY_AMBIGUOUS, OTHER_SCHEME.

    """
    found = [(place, value) for place in places for value in _find_values(request, place)]
    if not found:
        return None
    if len(found) > 1:
        raise Rejected(Reason.CREDENTIAL_TWICE)
    place, value = found[0]
    match place.kind:
        case PlaceKind.AUTHORIZATION:
            token = parse_bearer(value)
        case PlaceKind.HEADER:
            token = _parse_header_token(value)
        case PlaceKind.COOKIE:
            token = _parse_token(value)
        case _:
            token = _parse_token(unquote_plus(value))
    return Credential(token=token, place=place)


def strip_cookies(header: str, names: frozenset[str]) -> str | None:
    """Return the ``cookie`` header without these cookies, None when nothing is left, itself when none was there.

    Odd spellings go too, which only some readers take for these cookies: quotes and spaces around the name, another
    case, percent-encoding, a cookie after a comma, a name without a value.
    """
    folded = {_fold(name) for name in names}
    if "%" not in header and not any(name in header.lower() for name in folded):
        return header
    kept: list[str] = []
    for piece in header.split(";"):
        parts = [part for part in piece.split(",") if _fold_name(part) not in folded]
        if parts:
            kept.append(",".join(parts))
    left = ";".join(kept)
    if left == header:
        return header
    return left.strip("; \t") or None


def _find_values(request: Request, place: CredentialPlace) -> Iterator[str]:
    match place.kind:
        case PlaceKind.AUTHORIZATION:
            return _find_header(request, "authorization")
        case PlaceKind.HEADER:
            return _find_header(request, place.name)
        case PlaceKind.COOKIE:
            return _find_cookies(request.headers.get("cookie", ""), place.name)
        case _:
            return _find_parameters(request.target.query or "", place.name)


def _find_header(request: Request, name: str) -> Iterator[str]:
    value = request.headers.get(name)
    if value is not None:
        if name in request.repeated:
            raise Rejected(Reason.CREDENTIAL_TWICE)
        yield value


def _find_cookies(header: str, wanted: str) -> Iterator[str]:
    """Yield the values of the cookie (RFC 6265 §4.2.1), refusing what another reader might take for it."""
    folded = _fold(wanted)
    for piece in header.split(";"):
        name, sign, value = piece.strip(" \t").partition("=")
        if sign and name == wanted:
            yield value
        elif any(_fold_name(part) == folded for part in piece.split(",")):
            raise Rejected(Reason.CREDENTIAL_MALFORMED, "the cookie's name is spelled oddly")


def _find_parameters(query: str, wanted: str) -> Iterator[str]:
    """Yield the values of the query parameter by its literal name, refusing what another reader might take for it."""
    folded = _fold(wanted)
    for piece in re.split("[&;]", query):
        name, _, value = piece.partition("=")
        if name == wanted or _fold(name.replace("+", " ")) == folded:
            if name != wanted or ";" in query:
                raise Rejected(Reason.QUERY_AMBIGUOUS)
            yield value


def _parse_header_token(value: str) -> str:
    parts = [part.strip(" \t") for part in value.split(",")]
    if len(parts) > 1 and all(_B64TOKEN.fullmatch(part) for part in parts):
        raise Rejected(Reason.CREDENTIAL_TWICE)
    return _parse_token(value)


def _parse_token(text: str) -> str:
    if len(text) > MAX_TOKEN_BYTES:
        raise Rejected(Reason.CREDENTIAL_TOO_LARGE)
    if not _B64TOKEN.fullmatch(text):
        raise Rejected(Reason.CREDENTIAL_MALFORMED)
    return text


def _fold_name(cookie: str) -> str:
    return _fold(cookie.strip(_NAME_NOISE).partition("=")[0])


def _fold(name: str) -> str:
    """Return what a careless reader may make of a name: decoded, trimmed of spaces, quotes and signs, case lost."""
    return unquote(name).strip(_NAME_NOISE).lower()
