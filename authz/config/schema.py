"""The shape of the rules file: every key, its type and what it is for. An unknown key is an error.

What this cannot say (which keys go together, what a text means) is said in ``providers``, ``rules`` and ``compile``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from authz.config.fields import (
    MAX_NAME_CHARS,
    Audiences,
    Authorization,
    Hosts,
    Names,
    Place,
    ProviderName,
    Roles,
    Scalars,
    Seconds,
    Text,
)
from authz.config.settings import DEFAULT_GRPC, DEFAULT_HTTP

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512"
]  # fmt: skip
ANY_TOKEN: Final = "any_token"  # noqa: S105 - a word of the file, no secret
DEFAULT_ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
Secretly = Annotated[
    Any,
    WithJsonSchema({"type": "string", "pattern": r"^\$\{(env|file):[^${}]+\}$"}),
    Field(description="${env:NAME} or ${file:/path}: never the secret itself"),
]
Texts = Annotated[list[Text], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


class _Part(BaseModel):
    """One mapping of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RequirePart(_Part):
    """What the principal must have; the keys are AND-ed."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    roles: Roles = Field(None, description="realm roles, `client:role` for a client's")
    groups: Names = Field(None, description="groups; `staff/**` is staff and all below it")
    scopes: Names = Field(None, description="OAuth scopes")
    client_ids: Names = Field(None, description="clients the token was issued to")
    claims: dict[Text, Scalars] | None = Field(None, description="claims by name or dotted path", min_length=1)
    networks: Names = Field(None, description="the client's address, as CIDR networks")
    when: Text | None = Field(
        None, description="a CEL expression over request, host, path, claims, principal, source, context"
    )


def _parse_require(value: object) -> object:
    if value == ANY_TOKEN:
        return RequirePart()
    if value == {}:
        raise ValueError(f"requires nothing: name what is needed, or write `require: {ANY_TOKEN}`")
    return value


class _OrAnyToken:
    """Tells editors of the word that stands for a whole part."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(core_schema), {"const": ANY_TOKEN}]}


Require = Annotated[
    RequirePart,
    BeforeValidator(_parse_require),
    _OrAnyToken(),
]


class BranchPart(_Part):
    """One provider of several, with what it requires."""

    tokens_from: ProviderName
    require: Require


class AnswerPart(_Part):
    """How a rule words one kind of Deny."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    status: int | None = Field(None, description="3xx with a location, 4xx, or 503")
    location: Text | None = None
    headers: dict[Text, str] = Field({}, description="added to the answer")
    body: Text | None = None
    content_type: Text | None = Field(None, description="of the body; text/plain if not said")


class RulePart(_Part):
    """Who may do what where."""

    name: Name
    hosts: Hosts
    paths: Texts = Field(description="`/orders/{order}`, `/files/**`")
    methods: Texts | None = Field(None, description="every method if not said")
    allow: Literal["anyone", "optional", "nobody"] | None = Field(None, description="instead of `require`")
    tokens_from: ProviderName | None = Field(None, description="the provider that proves who asks")
    any_of: list[BranchPart] | None = Field(None, min_length=2, description="several providers, each with its require")
    require: Require | None = Field(None, description="`any_token` where every token of the provider will do")
    token_in: list[Place] | None = Field(
        None, min_length=1, description="where the token stands; authorization if not said"
    )
    accept: list[Literal["encoded_slash", "percent", "semicolon", "empty_segment"]] = Field(
        [], description="what is data in paths of this rule, though ambiguous"
    )
    identity_headers: dict[Text, Text] = Field({}, description="other values for names of the policy's list")
    authorization: Authorization | None = Field(None, description="what becomes of that header on an allow")
    response_headers: dict[Text, str] = Field({}, description="added to the client's answer on an allow")
    answers: dict[Literal["400", "401", "403", "503"], AnswerPart] = Field({}, description="other wording of a Deny")


class GuardPart(_Part):
    """A requirement on every rule it covers; no narrower rule can shadow it."""

    name: Name
    hosts: Hosts
    paths: Texts
    require: RequirePart


class CorsPart(_Part):
    """What browsers may do from other origins."""

    hosts: Hosts
    origins: Texts = Field(description="`https://app.example.com`; `*` alone is any, never with credentials")
    methods: Texts
    headers: list[Text] = Field([], description="request headers that a page may send")
    expose: list[Text] = Field([], description="response headers that a page may read")
    credentials: bool = False
    max_age: Seconds = Field(600.0, le=86_400)
    preflight: Literal["answer", "pass"] = Field("answer", description="answered here, or passed to the upstream")


class ClientAddressPart(_Part):
    """Where the client's address is read."""

    trusted_hops: int = Field(
        0, ge=0, le=64, description="0: the proxy's peer; N: the Nth of x-forwarded-for from the right"
    )


class KeysPart(_Part):
    """Where a provider's keys come from: one of discovery, jwks_url, jwks, pem, secret."""

    discovery: Text | None = Field(None, description="URL of the discovery document; the issuer's own if not said")
    jwks_url: Text | None = None
    jwks: Annotated[Any, Field(json_schema_extra={"type": ["object", "string"]})] = Field(
        None, description="a JWKS document, as a mapping, a text or ${file:/path}"
    )
    pem: Text | None = Field(None, description="public keys or certificates, as a text or ${file:/path}")
    secret: Secretly | None = None
    cache_dir: Text | None = Field(None, description="keeps the last good keys for a start with the provider down")
    refresh: Seconds = Field(300.0, ge=10, le=86_400)
    min_refetch: Seconds = Field(30.0, ge=1, le=3_600)
    max_stale: Seconds = Field(86_400.0, le=2_592_000)


class ClaimsPart(_Part):
    """Where a provider's tokens keep roles, groups and scopes: paths such as `realm_access.roles`."""

    roles: Texts | None = None
    client_roles: Text | None = Field(None, description='an object of {client: {"roles": [...]}}')
    groups: Texts | None = None
    scopes: Texts | None = Field(None, description="the first that is there counts")


class IntrospectionPart(_Part):
    """How a provider is asked about tokens (RFC 7662)."""

    client_id: Text
    auth: Literal["basic", "post", "private_key_jwt", "token_file", "mtls"] = "basic"
    client_secret: Secretly | None = None
    private_key: Secretly | None = None
    private_key_id: Text | None = None
    private_key_algorithm: Literal[
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
    ] = "RS256"
    assertion_file: Text | None = Field(None, description="a projected token, read at each use")
    assertion_audience: Text | None = None
    tokens: Literal["opaque", "lightweight", "all"] = Field("opaque", description="which tokens are asked about")
    endpoint: Text | None = Field(None, description="the one that discovery names if not said")
    token_type_hint: Text | None = None
    cache: Seconds = Field(30.0, le=3_600)
    inactive_cache: Seconds = Field(5.0, le=300)
    stale_if_error: Seconds = Field(0.0, le=3_600)
    missing: list[Literal["exp", "aud", "iss"]] = Field([], description="members that an answer may lack")
    max_concurrent: int = Field(64, ge=1, le=10_000)
    breaker_failures: int = Field(5, ge=1, le=1_000)
    breaker_open: Seconds = Field(5.0, ge=0.1, le=300)


class HttpPart(_Part):
    """How a provider is called."""

    timeout: Seconds = Field(5.0, ge=0.1, le=60)
    ca_file: Text | None = Field(None, description="replaces the system's trust store")
    proxy: Text | None = None
    client_cert: Text | None = None
    client_key: Text | None = None
    max_body_bytes: int = Field(1_048_576, ge=1_024, le=16_777_216)


class ProviderPart(_Part):
    """One identity provider."""

    preset: Literal["keycloak", "oidc"] = "oidc"
    issuer: Text
    internal_url: Text | None = Field(None, description="where to call it, if not at the issuer's address")
    insecure_http: bool = Field(default=False, description="allows plain http beyond this machine and the cluster")
    audiences: Audiences
    algorithms: list[Algorithm] | None = Field(None, min_length=1, description="RS256, PS256, ES256, EdDSA if not said")
    token_types: Texts | None = Field(None, description="accepted `typ` headers; `none` for an absent one")
    clients: Texts | None = Field(None, description="accepted `azp` or `client_id`; any if not said")
    leeway: Seconds = Field(30.0, le=300)
    max_lifetime: Seconds | None = Field(None, ge=1)
    keys: KeysPart | None = None
    claims: ClaimsPart | None = None
    introspection: IntrospectionPart | None = None
    http: HttpPart | None = None


class TlsPart(_Part):
    """The server's certificate."""

    cert_file: Text
    key_file: Text
    client_ca_file: Text | None = Field(None, description="the proxy must show a certificate of this CA")


class ListenerPart(_Part):
    """One gRPC address."""

    address: Text = Field(description="host:port or unix:/path")
    tls: TlsPart | None = None


class ServerPart(_Part):
    """How the service listens and what it bears. Not reloadable."""

    door: Literal["grpcio", "fast"] = Field("grpcio", description="what speaks gRPC; `fast` needs `authz[fast]`")
    workers: int | None = Field(None, ge=1, le=256, description="processes; as many as cores if not said")
    grpc: list[ListenerPart] = Field([ListenerPart(address=DEFAULT_GRPC)], min_length=1)
    http: Text | None = Field(DEFAULT_HTTP, description="metrics and health; null for none")
    deadline_ms: int = Field(1_000, ge=10, le=60_000)
    max_request_bytes: int = Field(1_048_576, ge=1_024, le=33_554_432)
    max_inflight: Count = 1_000
    max_concurrent_streams: Count = 1_000
    max_connection_age_s: int = Field(300, ge=1, le=86_400)
    max_connection_age_grace_s: int = Field(30, ge=1, le=3_600)
    drain_s: int = Field(20, ge=0, le=3_600)
    evidence_cache_bytes: int = Field(58_720_256, ge=65_536)
    log_decisions: Literal["all", "denies"] = "all"


class RulesFile(_Part):
    """The operator's file: which identity providers are trusted, and who may do what where."""

    version: Literal[1]
    providers: dict[Name, ProviderPart] = {}
    identity_headers: dict[Text, Text] = Field({}, description="the only names ever set upstream, with their templates")
    guards: list[GuardPart] = []
    rules: list[RulePart] = Field(min_length=1)
    hosts: dict[Text, Literal["extends", "replaces"]] = Field(
        {}, description="what a narrower host does with the rules of a broader one"
    )
    cors: list[CorsPart] = []
    client_address: ClientAddressPart = ClientAddressPart()
    server: ServerPart = ServerPart()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the rules file, for editors. A key without a value is no value of it."""
    schema: dict[str, Any] = _without_null(RulesFile.model_json_schema())
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "authz rules file"
    http = schema["$defs"]["ServerPart"]["properties"]["http"]
    http["type"] = ["string", "null"]
    return schema


def _without_null(node: Any) -> Any:
    """Drop the ``null`` that stands for an absent key, which the file has no spelling for."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _without_null(value) for key, value in node.items() if not (key == "default" and value is None)}
    if "anyOf" in kept and {"type": "null"} in kept["anyOf"]:
        others = [item for item in kept["anyOf"] if item != {"type": "null"}]
        del kept["anyOf"]
        kept |= others[0] if len(others) == 1 else {"anyOf": others}
    return kept
