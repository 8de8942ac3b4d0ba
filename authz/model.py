"""The nouns: what a request, a credential, a principal and a decision are.

Nothing here waits, reads a clock or knows of gRPC. Every value is frozen, so that what was checked is what is used.
``docs/glossary.md`` explains the words to operators.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

__all__ = [
    "NO_HEADERS",
    "REASONS",
    "Allow",
    "Ambiguity",
    "Answer",
    "ClaimPlaces",
    "Claims",
    "ClientAuth",
    "ConfigError",
    "ConfigProblem",
    "Credential",
    "CredentialPlace",
    "Decision",
    "Deny",
    "Expectation",
    "HeaderAction",
    "HeaderEdit",
    "Host",
    "HttpSettings",
    "IntrospectionSettings",
    "KeySettings",
    "Outcome",
    "PlaceKind",
    "Principal",
    "Provider",
    "ProviderError",
    "Reason",
    "Rejected",
    "Request",
    "Role",
    "Secret",
    "SharedEdits",
    "Target",
    "TokenUse",
    "Unread",
]


class Reason(enum.StrEnum):
    """Why a request was denied: stable slugs for logs, metrics, audits and tests; never shown to the client."""

    # The request itself (400, but for the two that carry no HTTP request or no method we know).
    NOT_HTTP = "not_http"
    BAD_HOST = "bad_host"
    BAD_METHOD = "bad_method"
    BAD_HEADER = "bad_header"
    PATH_FORM = "path_form"
    PATH_TOO_LONG = "path_too_long"
    PATH_CONTROL = "path_control"
    PATH_FRAGMENT = "path_fragment"
    PATH_BACKSLASH = "path_backslash"
    PATH_BAD_ESCAPE = "path_bad_escape"
    PATH_BAD_UTF8 = "path_bad_utf8"
    PATH_DOT_SEGMENT = "path_dot_segment"
    PATH_ENCODED_SLASH = "path_encoded_slash"
    PATH_PERCENT = "path_percent"
    PATH_SEMICOLON = "path_semicolon"
    PATH_EMPTY_SEGMENT = "path_empty_segment"
    REQUEST_TOO_LARGE = "request_too_large"
    # The credential as presented (400), or its absence (401).
    CREDENTIAL_MALFORMED = "credential_malformed"
    CREDENTIAL_TOO_LARGE = "credential_too_large"
    CREDENTIAL_TWICE = "credential_twice"
    QUERY_AMBIGUOUS = "query_ambiguous"
    NO_CREDENTIAL = "no_credential"
    OTHER_SCHEME = "other_scheme"
    # A token that proves nothing (401).
    JWT_MALFORMED = "jwt_malformed"
    JWT_TOO_LARGE = "jwt_too_large"
    JWT_ENCRYPTED = "jwt_encrypted"
    JWT_HEADER = "jwt_header"
    JWT_CRIT = "jwt_crit"
    JWT_TYPE = "jwt_type"
    JWT_ALGORITHM = "jwt_algorithm"
    JWT_PAYLOAD = "jwt_payload"
    JWT_UNKNOWN_KEY = "jwt_unknown_key"
    JWT_KEY_MISMATCH = "jwt_key_mismatch"
    JWT_SIGNATURE = "jwt_signature"
    ISSUER_MISSING = "issuer_missing"
    ISSUER_MISMATCH = "issuer_mismatch"
    AUDIENCE_MISSING = "audience_missing"
    AUDIENCE_MISMATCH = "audience_mismatch"
    EXPIRY_MISSING = "expiry_missing"
    EXPIRY_INVALID = "expiry_invalid"
    EXPIRED = "expired"
    NOT_BEFORE_INVALID = "not_before_invalid"
    NOT_YET_VALID = "not_yet_valid"
    ISSUED_AT_MISSING = "issued_at_missing"
    ISSUED_AT_INVALID = "issued_at_invalid"
    ISSUED_IN_FUTURE = "issued_in_future"
    LIFETIME_TOO_LONG = "lifetime_too_long"
    TOKEN_TYPE = "token_type"  # noqa: S105 - a slug, not a password
    CLIENT_REFUSED = "client_refused"
    CLAIM_INVALID = "claim_invalid"
    PROOF_MISSING = "proof_missing"
    TOKEN_INACTIVE = "token_inactive"  # noqa: S105 - a slug, not a password
    OPAQUE_REFUSED = "opaque_refused"
    # Proved, or needing no proof, but not permitted (403).
    NO_RULE = "no_rule"
    METHOD_NOT_COVERED = "method_not_covered"
    NOBODY = "nobody"
    ROLE_MISSING = "role_missing"
    GROUP_MISSING = "group_missing"
    SCOPE_MISSING = "scope_missing"
    CLIENT_NOT_LISTED = "client_not_listed"
    CLAIM_MISMATCH = "claim_mismatch"
    NETWORK_REFUSED = "network_refused"
    CONDITION_FALSE = "condition_false"
    CONDITION_ERROR = "condition_error"
    ORIGIN_REFUSED = "origin_refused"
    # Answered by us on the upstream's behalf: no verdict on anybody.
    PREFLIGHT = "preflight"
    # Not decidable now (503).
    KEYS_UNAVAILABLE = "keys_unavailable"
    KEY_REFETCH_HELD_BACK = "key_refetch_held_back"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_ANSWER = "provider_answer"
    OVERLOADED = "overloaded"
    DEADLINE = "deadline"
    NOT_READY = "not_ready"
    # Ours to mend (500).
    HEADER_BUDGET = "header_budget"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a Reason means on the wire: the HTTP status and the RFC 6750 §3.1 error code, if one applies."""

    status: int
    error: str | None = None


def _outcomes() -> Mapping[Reason, Outcome]:
    malformed = Outcome(status=400)
    bad_bearer = Outcome(status=400, error="invalid_request")
    challenge = Outcome(status=401)
    refused = Outcome(status=401, error="invalid_token")
    forbidden = Outcome(status=403)
    unavailable = Outcome(status=503)
    broken = Outcome(status=500)
    r = Reason
    table = {
        r.NOT_HTTP: forbidden,
        r.CREDENTIAL_MALFORMED: bad_bearer,
        r.CREDENTIAL_TOO_LARGE: bad_bearer,
        r.CREDENTIAL_TWICE: bad_bearer,
        r.QUERY_AMBIGUOUS: bad_bearer,
        r.NO_CREDENTIAL: challenge,
        r.OTHER_SCHEME: challenge,
        r.SCOPE_MISSING: Outcome(status=403, error="insufficient_scope"),
        r.PREFLIGHT: Outcome(status=204),
    }
    for first, last, outcome in (
        (r.BAD_HOST, r.REQUEST_TOO_LARGE, malformed),
        (r.JWT_MALFORMED, r.OPAQUE_REFUSED, refused),
        (r.NO_RULE, r.ORIGIN_REFUSED, forbidden),
        (r.KEYS_UNAVAILABLE, r.NOT_READY, unavailable),
        (r.HEADER_BUDGET, r.INTERNAL, broken),
    ):
        reasons = list(r)
        for reason in reasons[reasons.index(first) : reasons.index(last) + 1]:
            table.setdefault(reason, outcome)
    return MappingProxyType(table)


REASONS: Final[Mapping[Reason, Outcome]] = _outcomes()
"""Every Reason with what it means on the wire. A Reason without a row cannot be raised: a test holds it."""


class Rejected(Exception):  # noqa: N818 - a verdict on the caller, not an error of ours
    """The caller's fault: becomes a Deny with this Reason.

    ``detail`` is for the log of the operator. It must never contain a token, a cookie or a secret.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class ProviderError(Exception):
    """The identity provider's fault, or the way to it: becomes a Deny 503, never a 401.

    ``detail`` names the provider's endpoint and the failure; never what was sent.
    """

    def __init__(self, reason: Reason, detail: str = "", *, retry_after_s: int = 1) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigProblem:
    """One thing wrong in the operator's file: where it stands, what is wrong and what to write instead."""

    message: str
    file: str = ""
    line: int = 0
    path: str = ""

    def __str__(self) -> str:
        """Render as ``file:line: path: message`` in one line, leaving out what is not known."""
        place = self.file + (f":{self.line}" if self.line else "")
        text = ": ".join(part for part in (place, self.path, self.message) if part)
        return "".join(char if char.isprintable() else "?" for char in text)


class ConfigError(Exception):
    """The operator's file cannot be used. Carries every problem found, not only the first.

    ``files`` are those it was read from or would have been, with the digest of each: a change of one may mend it.
    ``incomplete`` means that parts could not be judged because of these problems; the text says so too.
    """

    def __init__(
        self, *problems: ConfigProblem, files: Mapping[Path, bytes] = MappingProxyType({}), incomplete: bool = False
    ) -> None:
        more = ("more may show once these are mended",) if incomplete else ()
        super().__init__("\n".join((*map(str, problems), *more)))
        self.problems = problems
        self.files = files
        self.incomplete = incomplete


class Secret:
    """A value that must never be shown. Only :meth:`reveal` gives it out; ``repr``, ``str`` and formats do not."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself. Every caller sends it to its one rightful place."""
        return self._value

    def __repr__(self) -> str:
        """Hide the value."""
        return "Secret(***)"

    def __str__(self) -> str:
        """Hide the value."""
        return "***"

    def __format__(self, spec: str) -> str:
        """Hide the value."""
        return "***"

    def __eq__(self, other: object) -> bool:
        """Compare by value, so that equal settings are equal."""
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        """Hash by value, to agree with equality."""
        return hash(self._value)

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse to be pickled: a pickle would show the value."""
        raise TypeError("a secret cannot be pickled")


# --- the request ------------------------------------------------------------------------------------------------


class Ambiguity(enum.StrEnum):
    """What a path may contain only where its rule accepts it by this name (invariant AMBIGUOUS-IS-REJECTED)."""

    ENCODED_SLASH = "encoded_slash"
    PERCENT = "percent"
    SEMICOLON = "semicolon"
    EMPTY_SEGMENT = "empty_segment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A request's host: ``name`` is lower case, without port or trailing dot, A-labels, IPv6 without brackets."""

    name: str
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A request target, cut at the first ``?``.

    ``segments`` are the path's segments, each percent-decoded exactly once, without the one trailing empty segment.
    ``ambiguities`` is what a rule must accept by name. ``raw_path`` and ``query`` are as sent (``query`` without
    ``?``, None if there was none). ``asterisk`` is the ``*`` of ``OPTIONS *``: it has no segments and no rule.
    """

    raw_path: str
    segments: tuple[str, ...]
    query: str | None = None
    ambiguities: frozenset[Ambiguity] = frozenset()
    asterisk: bool = False


NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def _no_headers() -> Mapping[str, str]:
    return NO_HEADERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the proxy saw, parsed once.

    ``headers`` has lower-case names; several values of one name are joined with ``,`` (``cookie`` with ``; ``), and
    ``repeated`` names those of which more than one was seen, where the proxy tells (``header_map``). It holds what
    the proxy chose to send: Envoy's ``allowed_headers`` may hide names. ``odd_names`` are those with ``_`` or ``.``,
    which careless readers take for ``-``; None where nobody has looked yet.
    ``source_address`` is the direct peer of the proxy, never taken from a header. ``source_principal`` is what the
    proxy says of its peer's certificate. ``context`` is the route's ``context_extensions``: set by configuration.
    """

    method: str
    host: Host
    target: Target
    headers: Mapping[str, str] = field(default_factory=_no_headers)
    repeated: frozenset[str] = frozenset()
    odd_names: tuple[str, ...] | None = None
    id: str = ""
    scheme: str = ""
    protocol: str = ""
    source_address: IPv4Address | IPv6Address | None = None
    source_principal: str = ""
    context: Mapping[str, str] = field(default_factory=_no_headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A request that was refused before it could be read: as sent, for the log and the answer's wording only.

    Nothing here is checked or normalised, so nothing may be decided by it. ``path`` is cut at the first ``?``.
    """

    method: str
    host: str
    path: str
    headers: Mapping[str, str] = field(default_factory=_no_headers)
    id: str = ""


# --- who asks ---------------------------------------------------------------------------------------------------


class PlaceKind(enum.StrEnum):
    """Where in a request a credential may stand."""

    AUTHORIZATION = "authorization"
    HEADER = "header"
    COOKIE = "cookie"
    QUERY = "query"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialPlace:
    """One place a rule takes a token from. ``name`` is the header (lower case), cookie or query parameter."""

    kind: PlaceKind
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A token as presented: unproved, and of the right characters and size. Its ``repr`` does not show it."""

    token: str = field(repr=False)
    place: CredentialPlace


Claims = Mapping[str, Any]
"""What a proved credential says: a JSON object, never changed after it was proved."""


@dataclass(frozen=True, slots=True, order=True)
class Role:
    """A realm's role (``client`` is empty) or one client's. ``admin`` of the realm is never ``admin`` of a client."""

    name: str
    client: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is asking: what a provider proved. ``(issuer, subject)`` together name a person, neither does alone.

    ``groups`` have no leading slash. ``email`` is None unless the provider verified it. ``claims`` are all that the
    credential says. ``expires_at_s`` is the credential's ``exp``, in seconds since 1970.
    """

    provider: str
    issuer: str
    subject: str | None
    client_id: str | None
    claims: Claims = field(repr=False)
    roles: frozenset[Role] = frozenset()
    groups: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    email: str | None = None
    expires_at_s: float
    derived: dict[object, Any] = field(init=False, default_factory=dict, repr=False, compare=False)
    """Texts that were made of it before: header edits, fragments of log lines. Nothing is decided by them."""


# --- the provider -----------------------------------------------------------------------------------------------


class TokenUse(enum.StrEnum):
    """Which tokens are asked about at the introspection endpoint; the others are verified as JWTs."""

    OPAQUE = "opaque"
    LIGHTWEIGHT = "lightweight"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a provider's tokens must say: one type for JWTs and introspection answers alike.

    ``audiences`` None means that the operator opted out loudly; it is never an empty set. ``algorithms`` are JWS
    names. ``header_types`` are accepted ``typ`` headers, lower case, without ``application/``; ``""`` stands for an
    absent one. ``claim_types`` None means that the payload's ``typ`` is not looked at; otherwise one of them is
    required (Keycloak: ``Bearer``). ``clients`` None means any ``azp``/``client_id``.
    ``introspection_may_lack`` names the members (``exp``, ``aud``, ``iss``) that an introspection answer may lack.
    """

    issuer: str
    audiences: frozenset[str] | None
    algorithms: frozenset[str]
    header_types: frozenset[str] = frozenset({"", "jwt", "at+jwt"})
    claim_types: frozenset[str] | None = None
    clients: frozenset[str] | None = None
    leeway_s: int = 30
    max_lifetime_s: int | None = None
    introspection_may_lack: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimPlaces:
    """Where a provider's claims keep roles, groups and scopes: each a path of member names into the claims.

    ``roles`` lead to lists of realm roles (or one space-separated string). ``client_roles`` leads to an object of
    ``{client: {"roles": [...]}}``, as Keycloak's ``resource_access``. The first of ``scopes`` that is there counts.
    """

    roles: tuple[tuple[str, ...], ...] = (("roles",),)
    client_roles: tuple[str, ...] | None = None
    groups: tuple[tuple[str, ...], ...] = (("groups",),)
    scopes: tuple[tuple[str, ...], ...] = (("scope",), ("scp",))


class ClientAuth(enum.StrEnum):
    """How we prove at the introspection endpoint who we are (RFC 6749 §2.3, RFC 7523 §2.2, RFC 8705 §2)."""

    BASIC = "client_secret_basic"
    POST = "client_secret_post"
    PRIVATE_KEY_JWT = "private_key_jwt"
    ASSERTION_FILE = "assertion_file"
    MTLS = "tls_client_auth"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """How one provider is called: ``ca_file`` replaces the system's trust store, ``proxy`` is an http(s) URL.

    ``client_cert_file`` and ``client_key_file`` are for mutual TLS. Files are read again when they change.
    """

    ca_file: str | None = None
    proxy: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None
    timeout_s: float = 5.0
    max_body_bytes: int = 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """Where a provider's public keys come from: exactly one of discovery, ``jwks_url``, ``inline`` or ``secret``.

    ``discovery`` is the URL of the OIDC discovery document. ``inline`` is a JWKS document's text, PEM already turned
    into one. ``secret`` is for HS256/384/512 and stands alone. ``cache_dir`` keeps the last good set for a start
    with the provider down. Times in seconds: ``refresh_s`` between refreshes, ``min_refetch_s`` the least time
    between two fetches forced by unknown key ids, ``max_stale_s`` how long the last good set outlives its refresh.
    """

    discovery: str | None = None
    jwks_url: str | None = None
    inline: str | None = None
    secret: Secret | None = None
    cache_dir: str | None = None
    refresh_s: float = 300.0
    min_refetch_s: float = 30.0
    max_stale_s: float = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IntrospectionSettings:
    """How opaque tokens are asked about (RFC 7662). ``endpoint`` None means: the one that discovery names.

    Times in seconds. ``cache_s`` bounds how long an active answer is believed (never past ``exp``), ``inactive_s``
    an inactive one. ``stale_if_error_s`` 0 means never. ``max_concurrent`` bounds calls under way. After
    ``breaker_failures`` failures in a row no call is made for ``breaker_open_s``; then one probes.
    """

    client_id: str
    auth: ClientAuth
    endpoint: str | None = None
    tokens: TokenUse = TokenUse.OPAQUE
    client_secret: Secret | None = None
    private_key: Secret | None = None
    private_key_id: str | None = None
    private_key_algorithm: str = "RS256"
    assertion_file: str | None = None
    assertion_audience: str | None = None
    token_type_hint: str | None = None
    cache_s: float = 30.0
    inactive_s: float = 5.0
    stale_if_error_s: float = 0.0
    max_concurrent: int = 64
    breaker_failures: int = 5
    breaker_open_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One identity provider, as the operator described it.

    ``internal_url`` is where it is called, where that is not the issuer's own address: origin and path prefix that
    stand for the issuer's in every discovered URL. ``digest`` is of all settings that bear on what a token proves:
    evidence is bound to it, so that a reload of the rules keeps what is proved and a change here does not.
    """

    name: str
    issuer: str
    expectation: Expectation
    keys: KeySettings | None
    places: ClaimPlaces = field(default_factory=ClaimPlaces)
    introspection: IntrospectionSettings | None = None
    http: HttpSettings = field(default_factory=HttpSettings)
    internal_url: str | None = None
    digest: bytes = b""


# --- the answer -------------------------------------------------------------------------------------------------


class HeaderAction(enum.StrEnum):
    """What to do with a header: SET leaves exactly this one value, APPEND adds another, REMOVE leaves none."""

    SET = "set"
    APPEND = "append"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    """One change to one header; ``name`` is lower case, ``value`` safe to send (printable ASCII)."""

    action: HeaderAction
    name: str
    value: str = ""


class SharedEdits(tuple[HeaderEdit, ...]):  # noqa: SLOT001 - a tuple cannot have slots and a member beside
    """Edits that many answers share: whoever writes them for the wire may keep that in ``wire``."""

    wire: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a rule words one kind of Deny: None keeps the default. ``headers`` are added to ours, or replace them."""

    status: int | None = None
    location: str | None = None
    headers: Mapping[str, str] = field(default_factory=_no_headers)
    body: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """Let the request pass, with these changes.

    ``upstream`` edits the request that the protected service sees, ``downstream`` the answer that the client sees.
    ``remove_query`` names query parameters that must not reach the upstream.
    """

    rule: str
    principal: Principal | None = None
    upstream: tuple[HeaderEdit, ...] = ()
    downstream: tuple[HeaderEdit, ...] = ()
    remove_query: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deny:
    """Turn the request away.

    ``status``, ``headers`` and ``body`` are the whole HTTP answer. ``detail`` is for the operator's log only.
    ``guard`` names the guard that refused, where it was one. ``rule`` is empty where none matched.
    """

    reason: Reason
    status: int
    headers: tuple[HeaderEdit, ...] = ()
    body: str = ""
    rule: str = ""
    guard: str = ""
    detail: str = ""
    principal: Principal | None = None


Decision = Allow | Deny
"""The whole answer. There is nothing between the two, and no third."""
