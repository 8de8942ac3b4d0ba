"""Compile one provider: where its keys are, what its tokens must say, how it is called.

A preset names places and token types; everything that decides whom to trust (issuer, audiences, secrets) is said by the
operator, never guessed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm, get_default_algorithms
from jwt.exceptions import InvalidKeyError

from authz.config.certificates import check_ca, check_pair
from authz.config.document import Loc
from authz.config.fields import parse_claim_place
from authz.config.problems import Problems, show
from authz.config.schema import (
    DEFAULT_ALGORITHMS,
    ClaimsPart,
    HttpPart,
    IntrospectionPart,
    KeysPart,
    ProviderPart,
)
from authz.core.jwk import KeySet, key_set_from_pem, key_set_from_secret, parse_key_set
from authz.core.jwt import SYMMETRIC
from authz.core.path import parse_host
from authz.model import (
    ClaimPlaces,
    ClientAuth,
    Expectation,
    HttpSettings,
    IntrospectionSettings,
    KeySettings,
    Provider,
    ProviderError,
    Rejected,
    Secret,
    TokenUse,
)

DISCOVERY_PATH: Final = "/.well-known/openid-configuration"
"""OpenID Connect Discovery 1.0 §4; Keycloak and most others serve it for OAuth too (RFC 8414 §5)."""

_CLUSTER: Final = (".svc", ".svc.cluster.local", ".cluster.local", ".internal", ".localhost")
_KEY_SOURCES: Final = ("discovery", "jwks_url", "jwks", "pem", "secret")
_AUTH: Final[Mapping[str, ClientAuth]] = {
    "basic": ClientAuth.BASIC,
    "post": ClientAuth.POST,
    "private_key_jwt": ClientAuth.PRIVATE_KEY_JWT,
    "token_file": ClientAuth.ASSERTION_FILE,
    "mtls": ClientAuth.MTLS,
}
_AUTH_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "basic": ("client_secret",),
    "post": ("client_secret",),
    "private_key_jwt": ("private_key",),
    "token_file": ("assertion_file",),
    "mtls": (),
}
_AUTH_MAY: Final[Mapping[str, tuple[str, ...]]] = {
    "private_key_jwt": ("private_key_id", "assertion_audience"),
}
_AUTH_KEYS: Final = ("client_secret", "private_key", "private_key_id", "assertion_file", "assertion_audience")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Preset:
    """What a kind of provider is known to do."""

    places: ClaimPlaces
    header_types: frozenset[str]
    claim_types: frozenset[str] | None


_PRESETS: Final[Mapping[str, _Preset]] = {
    "oidc": _Preset(places=ClaimPlaces(), header_types=frozenset({"", "jwt", "at+jwt"}), claim_types=None),
    "keycloak": _Preset(
        places=ClaimPlaces(
            roles=(("realm_access", "roles"),),
            client_roles=("resource_access",),
            groups=(("groups",),),
            scopes=(("scope",),),
        ),
        header_types=frozenset({"jwt", "at+jwt"}),
        claim_types=frozenset({"Bearer"}),
    ),
}


def compile_provider(name: str, part: ProviderPart, loc: Loc, folder: Path, problems: Problems) -> Provider:
    """Return the provider; what is wrong with it is noted, and what is returned is then not to be used."""
    compiler = _Compiler(part, loc, folder, problems)
    preset = _PRESETS[part.preset]
    algorithms = compiler.algorithms()
    introspection = compiler.introspection()
    provider = Provider(
        name=name,
        issuer=part.issuer,
        expectation=Expectation(
            issuer=part.issuer,
            audiences=None if part.audiences is None else frozenset(part.audiences),
            algorithms=algorithms,
            header_types=preset.header_types if part.token_types is None else compiler.header_types(part.token_types),
            claim_types=preset.claim_types,
            clients=None if part.clients is None else frozenset(part.clients),
            leeway_s=round(part.leeway),
            max_lifetime_s=None if part.max_lifetime is None else round(part.max_lifetime),
            introspection_may_lack=frozenset(part.introspection.missing if part.introspection is not None else ()),
        ),
        keys=compiler.keys(algorithms),
        places=compiler.places(preset.places),
        introspection=introspection,
        http=compiler.http(),
        internal_url=compiler.url(part.internal_url, (*loc, "internal_url")),
    )
    return _with_digest(provider)


class _Compiler:
    """One provider's parts, with where they stand."""

    def __init__(self, part: ProviderPart, loc: Loc, folder: Path, problems: Problems) -> None:
        self._part = part
        self._loc = loc
        self._folder = folder
        self._problems = problems

    def add(self, where: str, message: str) -> None:
        self._problems.add((*self._loc, *where.split(".")), message)

    def algorithms(self) -> frozenset[str]:
        part = self._part
        secret = part.keys is not None and part.keys.secret is not None
        named = frozenset(part.algorithms or (("HS256",) if secret else DEFAULT_ALGORITHMS))
        if secret and not named <= SYMMETRIC:
            self.add("algorithms", "a shared secret is for `HS256`, `HS384` and `HS512` only: name no other beside it")
        elif not secret and named & SYMMETRIC:
            text = "HS algorithms need `keys: {secret: …}`: with a public key as the secret, anyone could sign"
            self.add("algorithms", text)
        return named

    def header_types(self, names: list[str]) -> frozenset[str]:
        return frozenset("" if name == "none" else name.lower().removeprefix("application/") for name in names)

    def url(self, text: str | None, loc: Loc, *, query: bool = False, plain: bool = False) -> str | None:
        """Check a URL that is called: https, or plain http where that stays inside (or the operator insists)."""
        if text is None:
            return None
        why = self._problem_of_url(text, query=query, plain=plain or self._part.insecure_http)
        if why is not None:
            self._problems.add(loc, f"{show(_without_user(text))} {why}")
        return text

    @staticmethod
    def _problem_of_url(text: str, *, query: bool, plain: bool) -> str | None:
        try:
            url = urlsplit(text)
            host, _ = url.hostname, url.port
        except ValueError:
            return "is no url: write one such as `https://sso.example.com/realms/shop`"
        if url.scheme not in {"http", "https"} or not host or text != text.strip() or not text.isprintable():
            return "is no url: write one such as `https://sso.example.com/realms/shop`"
        if _is_odd(url.netloc.rpartition("@")[2]):
            return "has a host that cannot be called: write a name, or an address"
        if url.username is not None or url.fragment or (url.query and not query):
            return "has user information, a query or a fragment: leave that out"
        if url.scheme == "http" and not plain and not _is_inside(host):
            return "is plain http beyond this machine and its cluster: write `https`, or `insecure_http: true`"
        return None

    def keys(self, algorithms: frozenset[str]) -> KeySettings | None:
        part = self._part.keys or KeysPart()
        given = [name for name in _KEY_SOURCES if getattr(part, name) is not None]
        times: dict[str, Any] = {
            "refresh_s": part.refresh,
            "min_refetch_s": part.min_refetch,
            "max_stale_s": part.max_stale,
            "cache_dir": self._absolute(part.cache_dir),
        }
        if len(given) > 1:
            names = ", ".join(f"`{name}`" for name in given)
            self.add("keys", f"{names} together: keep one, so that it is clear whose keys count")
        if part.max_stale < part.refresh:
            self.add("keys.max_stale", "is shorter than `refresh`: keys would be too old before they are fetched again")
        if not given:
            return self._discovered(times)
        loc = (*self._loc, "keys", *given)
        match given[0]:
            case "secret":
                least = algorithms & SYMMETRIC or {"HS256"}
                self._attempt(loc, lambda: key_set_from_secret(_secret(part.secret), least))
                return KeySettings(secret=part.secret, **times)
            case "pem":
                found = self._attempt(loc, lambda: key_set_from_pem(str(part.pem)))
                return KeySettings(inline="{}" if found is None else _render_key_set(found), **times)
            case "jwks":
                text = part.jwks if isinstance(part.jwks, str) else json.dumps(part.jwks)
                self._attempt(loc, lambda: _parse_inline(text))
                return KeySettings(inline=text, **times)
            case "jwks_url":
                return KeySettings(jwks_url=self.url(part.jwks_url, loc, query=True), **times)
            case _:
                return KeySettings(discovery=self.url(part.discovery, loc, query=True), **times)

    def _discovered(self, times: dict[str, Any]) -> KeySettings | None:
        introspection = self._part.introspection
        asks_all = introspection is not None and introspection.tokens == "all" and introspection.endpoint
        if self._part.keys is None and asks_all:
            return None
        self._check_issuer_is_called()
        base = self._part.internal_url or self._part.issuer
        return KeySettings(discovery=base.rstrip("/") + DISCOVERY_PATH, **times)

    def _check_issuer_is_called(self) -> None:
        if self._part.internal_url is None:
            self.url(self._part.issuer, (*self._loc, "issuer"))

    def _attempt(self, loc: Loc, parse: Callable[[], KeySet]) -> KeySet | None:
        return self._problems.attempt(loc, parse)

    def places(self, preset: ClaimPlaces) -> ClaimPlaces:
        part = self._part.claims or ClaimsPart()

        def read(name: str, default: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
            texts = getattr(part, name)
            if texts is None:
                return default
            found = [
                self._problems.attempt((*self._loc, "claims", name, at), parse_claim_place, text)
                for at, text in enumerate(texts)
            ]
            return tuple(place for place in found if place is not None)

        clients = preset.client_roles
        if part.client_roles is not None:
            loc = (*self._loc, "claims", "client_roles")
            clients = self._problems.attempt(loc, parse_claim_place, part.client_roles)
        return ClaimPlaces(
            roles=read("roles", preset.roles),
            client_roles=clients,
            groups=read("groups", preset.groups),
            scopes=read("scopes", preset.scopes),
        )

    def introspection(self) -> IntrospectionSettings | None:
        part = self._part.introspection
        if part is None:
            return None
        self._check_client_auth(part)
        if part.endpoint is None and not self._is_discovered():
            text = "discovery is not used, so nothing names the endpoint: add `endpoint:`"
            self.add("introspection.endpoint", text)
        return IntrospectionSettings(
            client_id=part.client_id,
            auth=_AUTH[part.auth],
            endpoint=self.url(part.endpoint, (*self._loc, "introspection", "endpoint"), query=True),
            tokens=TokenUse(part.tokens),
            client_secret=part.client_secret,
            private_key=part.private_key,
            private_key_id=part.private_key_id,
            private_key_algorithm=part.private_key_algorithm,
            assertion_file=self._absolute(part.assertion_file),
            assertion_audience=part.assertion_audience,
            token_type_hint=part.token_type_hint,
            cache_s=part.cache,
            inactive_s=part.inactive_cache,
            stale_if_error_s=part.stale_if_error,
            max_concurrent=part.max_concurrent,
            breaker_failures=part.breaker_failures,
            breaker_open_s=part.breaker_open,
        )

    def _is_discovered(self) -> bool:
        keys = self._part.keys
        return keys is None or not any(getattr(keys, name) is not None for name in _KEY_SOURCES if name != "discovery")

    def _check_client_auth(self, part: IntrospectionPart) -> None:
        needed, may = _AUTH_NEEDS[part.auth], _AUTH_MAY.get(part.auth, ())
        for name in needed:
            if getattr(part, name) is None:
                self.add(f"introspection.{name}", f"is missing: `auth: {part.auth}` needs it")
        for name in _AUTH_KEYS:
            if getattr(part, name) is not None and name not in (*needed, *may):
                self.add(f"introspection.{name}", f"does nothing with `auth: {part.auth}`: remove it, or change `auth`")
        if part.auth == "mtls" and (self._part.http is None or self._part.http.client_cert is None):
            self.add("introspection.auth", "`mtls` needs `http: {client_cert: …, client_key: …}`")
        if isinstance(part.private_key, Secret):
            algorithm = get_default_algorithms()[part.private_key_algorithm]
            try:
                algorithm.prepare_key(part.private_key.reveal())
            except (ValueError, TypeError, InvalidKeyError):
                text = f"no private key in pem for `{part.private_key_algorithm}`: check the file"
                self.add("introspection.private_key", text)

    def http(self) -> HttpSettings:
        part = self._part.http or HttpPart()
        ca_file, cert, key = (self._absolute(its) for its in (part.ca_file, part.client_cert, part.client_key))
        if (cert is None) != (key is None):
            self.add("http", "`client_cert` and `client_key` go together: write both, or neither")
        elif cert is not None and (part.proxy or "").lower().startswith("https:"):
            self.add("http.proxy", "a proxy by https would be shown `client_cert` too: call the proxy by http")
        elif cert is not None and key is not None:
            self._problems.attempt((*self._loc, "http", "client_cert"), check_pair, cert, key)
        if ca_file is not None:
            self._problems.attempt((*self._loc, "http", "ca_file"), check_ca, ca_file)
        self.url(part.proxy, (*self._loc, "http", "proxy"), plain=True)
        return HttpSettings(
            ca_file=ca_file,
            proxy=part.proxy,
            client_cert_file=cert,
            client_key_file=key,
            timeout_s=part.timeout,
            max_body_bytes=part.max_body_bytes,
        )

    def _absolute(self, name: str | None) -> str | None:
        return None if name is None else str(self._folder / name)


def _without_user(text: str) -> str:
    """Return a URL without what stands before the `@`, which may be a password."""
    scheme, mark, rest = text.rpartition("//")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def _is_odd(netloc: str) -> bool:
    try:
        parse_host(netloc)
    except Rejected:
        return True
    return False


def _is_inside(host: str) -> bool:
    """Say whether a host is this machine, or a name that only a cluster's own DNS knows."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return "." not in host or host.endswith(_CLUSTER)


def _secret(value: Any) -> Secret:
    return value if isinstance(value, Secret) else Secret("")


def _parse_inline(text: str) -> KeySet:
    try:
        return parse_key_set(text.encode("utf-8"))
    except (ProviderError, UnicodeEncodeError) as error:
        detail = error.detail if isinstance(error, ProviderError) else "not utf-8"
        raise ValueError(f"{detail}: write a JWKS document with public keys") from None


def _render_key_set(keys: KeySet) -> str:
    """Write keys as a JWKS document (RFC 7517 §5)."""
    members: list[dict[str, Any]] = []
    for its in keys.keys:
        if isinstance(its.key, RSAPublicKey):
            members.append(RSAAlgorithm.to_jwk(its.key, as_dict=True))
        elif isinstance(its.key, EllipticCurvePublicKey):
            members.append(ECAlgorithm.to_jwk(its.key, as_dict=True))
        elif not isinstance(its.key, bytes):
            members.append(OKPAlgorithm.to_jwk(its.key, as_dict=True))
    return json.dumps({"keys": members})


def _with_digest(provider: Provider) -> Provider:
    """Bind evidence to all that bears on what a token proves; how the provider is reached does not."""
    keys, introspection = provider.keys, provider.introspection
    facts = (
        provider.name,
        _in_order(provider.expectation),
        repr(provider.places),
        None if keys is None else (keys.discovery, keys.jwks_url, keys.inline),
        None if keys is None or keys.secret is None else keys.secret.reveal(),
        None if introspection is None else (introspection.endpoint, introspection.client_id, introspection.tokens),
        provider.internal_url,
    )
    digest = hashlib.sha256(repr(facts).encode("utf-8", "backslashreplace")).digest()
    return replace(provider, digest=digest)


def _in_order(expectation: Expectation) -> str:
    """Write an Expectation so that equal ones read alike: sets have no order."""
    values = [getattr(expectation, name) for name in Expectation.__dataclass_fields__]
    return repr([sorted(value) if isinstance(value, frozenset) else value for value in values])
