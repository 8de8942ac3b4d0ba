"""What each Reason means and what to do about it, for people; ``docs/reasons.md`` is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from authz.model import Reason


@dataclass(frozen=True, slots=True)
class ReasonText:
    """One sentence each, lower case, without a period."""

    meaning: str
    remedy: str


REASON_TEXT: Final[Mapping[Reason, ReasonText]] = MappingProxyType(
    {
        Reason.NOT_HTTP: ReasonText(
            "the CheckRequest carries no HTTP request, such as one of a TCP filter",
            "use Envoy's HTTP filter `envoy.filters.http.ext_authz`",
        ),
        Reason.BAD_HOST: ReasonText(
            "the host is missing or not a name that every server reads alike",
            "send a plain host name, optionally with a port",
        ),
        Reason.BAD_METHOD: ReasonText("the method is not a token of RFC 9110", "send a valid method"),
        Reason.BAD_HEADER: ReasonText(
            "headers contradict each other or the request line", "look at what sits between the client and Envoy"
        ),
        Reason.PATH_FORM: ReasonText("the target does not start with `/`", "send the origin form of the target"),
        Reason.PATH_TOO_LONG: ReasonText("the path is longer than is read", "shorten the path"),
        Reason.PATH_CONTROL: ReasonText(
            "the path has control characters, blanks or raw non-ASCII", "percent-encode them, if they are meant at all"
        ),
        Reason.PATH_FRAGMENT: ReasonText("the target has a `#`", "do not send the fragment"),
        Reason.PATH_BACKSLASH: ReasonText("the path has a backslash, which some servers read as `/`", "send `/`"),
        Reason.PATH_BAD_ESCAPE: ReasonText(
            "the path has a `%` without two hex digits",
            "write `%25` for a percent sign, and accept `percent` in the rule",
        ),
        Reason.PATH_BAD_UTF8: ReasonText("the path's escapes are not UTF-8", "encode the path as UTF-8"),
        Reason.PATH_DOT_SEGMENT: ReasonText(
            "the path has `.` or `..` segments, plain or encoded", "send the path resolved"
        ),
        Reason.PATH_ENCODED_SLASH: ReasonText(
            "the path has an encoded slash", "if it is data, write `accept: [encoded_slash]` in the rule"
        ),
        Reason.PATH_PERCENT: ReasonText(
            "the path has an encoded percent sign before two hex digits",
            "if it is data, write `accept: [percent]` in the rule",
        ),
        Reason.PATH_SEMICOLON: ReasonText(
            "the path has a `;`, which some servers cut at", "if it is data, write `accept: [semicolon]` in the rule"
        ),
        Reason.PATH_EMPTY_SEGMENT: ReasonText(
            "the path has an empty segment (`//`)", "if it is data, write `accept: [empty_segment]` in the rule"
        ),
        Reason.REQUEST_TOO_LARGE: ReasonText(
            "the CheckRequest is larger than is read",
            "send less of the body: lower `max_request_bytes` in Envoy, or raise ours",
        ),
        Reason.CREDENTIAL_MALFORMED: ReasonText(
            "the credential is not of the form `Bearer TOKEN`", "send one blank and a token of RFC 6750's characters"
        ),
        Reason.CREDENTIAL_TOO_LARGE: ReasonText(
            "the token is larger than is read", "issue smaller tokens, or opaque ones"
        ),
        Reason.CREDENTIAL_TWICE: ReasonText("more than one credential came along", "send exactly one"),
        Reason.QUERY_AMBIGUOUS: ReasonText(
            "the token's query parameter is spelled in a way that only some servers read",
            "send its name literally, without `;`",
        ),
        Reason.NO_CREDENTIAL: ReasonText(
            "the rule needs a token, and none came along", "send one in the place that the rule names"
        ),
        Reason.OTHER_SCHEME: ReasonText("the credential is of another scheme than Bearer", "send a bearer token"),
        Reason.JWT_MALFORMED: ReasonText(
            "the token is not a compact JWS", "send the token unchanged as the provider issued it"
        ),
        Reason.JWT_TOO_LARGE: ReasonText("the token or its header is larger than is read", "issue smaller tokens"),
        Reason.JWT_ENCRYPTED: ReasonText("the token is encrypted", "configure the client to get signed tokens"),
        Reason.JWT_HEADER: ReasonText(
            "the token's header is not valid", "send the token unchanged as the provider issued it"
        ),
        Reason.JWT_CRIT: ReasonText(
            "the token's header needs an extension (`crit`) that is not supported", "issue tokens without it"
        ),
        Reason.JWT_TYPE: ReasonText(
            "the header's `typ` is not one of this provider's",
            "send an access token, or name the type under `token_types`",
        ),
        Reason.JWT_ALGORITHM: ReasonText(
            "the token's algorithm is not in the provider's list",
            "name it under `algorithms`, if it is the one that the provider uses",
        ),
        Reason.JWT_PAYLOAD: ReasonText(
            "the token's payload is not one JSON object", "send the token unchanged as the provider issued it"
        ),
        Reason.JWT_UNKNOWN_KEY: ReasonText(
            "no key of the provider has the token's `kid`",
            "look whether the token is of another realm, or of a key that is gone",
        ),
        Reason.JWT_KEY_MISMATCH: ReasonText(
            "the key with the token's `kid` is not for its algorithm", "look whether the token is genuine"
        ),
        Reason.JWT_SIGNATURE: ReasonText(
            "the signature does not hold", "look whether the token is genuine and unchanged"
        ),
        Reason.ISSUER_MISSING: ReasonText("the token has no `iss`", "issue tokens with one"),
        Reason.ISSUER_MISMATCH: ReasonText(
            "the token's `iss` is no provider of this rule", "compare it with `issuer`, character by character"
        ),
        Reason.AUDIENCE_MISSING: ReasonText("the token has no `aud`", "add an audience mapper at the provider"),
        Reason.AUDIENCE_MISMATCH: ReasonText(
            "the token is for other services",
            "add this service's audience at the provider, or name it under `audiences`",
        ),
        Reason.EXPIRY_MISSING: ReasonText("the token has no `exp`", "issue tokens that expire"),
        Reason.EXPIRY_INVALID: ReasonText("the token's `exp` is no time", "look at what issued it"),
        Reason.EXPIRED: ReasonText("the token has expired", "get a fresh one"),
        Reason.NOT_BEFORE_INVALID: ReasonText("the token's `nbf` is no time", "look at what issued it"),
        Reason.NOT_YET_VALID: ReasonText(
            "the token is not valid yet", "compare the clocks of the provider and this machine"
        ),
        Reason.ISSUED_AT_MISSING: ReasonText(
            "a maximum lifetime is set, and the token has no `iat`", "issue tokens with one"
        ),
        Reason.ISSUED_AT_INVALID: ReasonText("the token's `iat` is no time", "look at what issued it"),
        Reason.ISSUED_IN_FUTURE: ReasonText(
            "the token was issued in the future", "compare the clocks of the provider and this machine"
        ),
        Reason.LIFETIME_TOO_LONG: ReasonText(
            "the token lives longer than `max_lifetime`", "issue tokens with a shorter life"
        ),
        Reason.TOKEN_TYPE: ReasonText(
            "the payload's `typ` is not that of an access token", "send the access token, not an ID or refresh token"
        ),
        Reason.CLIENT_REFUSED: ReasonText(
            "the token was issued to a client that is not in the provider's list", "name the client under `clients`"
        ),
        Reason.CLAIM_INVALID: ReasonText("a claim has a shape that is not its own", "look at the provider's mappers"),
        Reason.PROOF_MISSING: ReasonText(
            "the token is bound to a key (`cnf`), and its proof is not checked here", "get an unbound token"
        ),
        Reason.TOKEN_INACTIVE: ReasonText(
            "the provider says that the token is not active",
            "get a fresh one; Keycloak since 26.6.2 also says so if the introspecting client is not in its `aud`",
        ),
        Reason.OPAQUE_REFUSED: ReasonText(
            "the token is opaque, and no provider of this rule introspects", "send a JWT, or configure `introspection`"
        ),
        Reason.NO_RULE: ReasonText("no rule is for this host and path", "write one, or correct the address"),
        Reason.METHOD_NOT_COVERED: ReasonText(
            "the most specific rule of this path is not for this method", "name the method in a rule of that very path"
        ),
        Reason.NOBODY: ReasonText("the rule lets nobody in", "look at the rule"),
        Reason.ROLE_MISSING: ReasonText("a role is missing", "give the role to the user or client at the provider"),
        Reason.GROUP_MISSING: ReasonText("a group is missing", "add the user to the group at the provider"),
        Reason.SCOPE_MISSING: ReasonText("a scope is missing", "ask for it when getting the token"),
        Reason.CLIENT_NOT_LISTED: ReasonText(
            "the token was issued to a client that the rule does not list", "name the client under `client_ids`"
        ),
        Reason.CLAIM_MISMATCH: ReasonText(
            "a claim does not have a value that the rule asks for", "look at the claim with `authz check`"
        ),
        Reason.NETWORK_REFUSED: ReasonText(
            "the client's address is in none of the rule's networks, or not known",
            "look at `client_address.trusted_hops`",
        ),
        Reason.CONDITION_FALSE: ReasonText("the rule's `when` is false", "look at it with `authz check`"),
        Reason.CONDITION_ERROR: ReasonText(
            "the rule's `when` cannot be evaluated, for example because a claim is missing", "ask with `has()` first"
        ),
        Reason.ORIGIN_REFUSED: ReasonText(
            "the preflight's origin, method or header is not in the `cors` entry", "add it there, if it is meant"
        ),
        Reason.PREFLIGHT: ReasonText("a browser's preflight was answered", "nothing: this is no refusal"),
        Reason.KEYS_UNAVAILABLE: ReasonText(
            "the provider's keys cannot be had, and the last good ones are too old or there are none",
            "look at the provider and the way to it",
        ),
        Reason.KEY_REFETCH_HELD_BACK: ReasonText(
            "the token's key is unknown, and the keys were fetched just now", "try again shortly"
        ),
        Reason.PROVIDER_UNAVAILABLE: ReasonText(
            "the provider cannot be reached", "look at the provider and the way to it"
        ),
        Reason.PROVIDER_ANSWER: ReasonText(
            "the provider's answer is not what RFC 7662 says", "look at the endpoint's address and its answer"
        ),
        Reason.OVERLOADED: ReasonText(
            "more checks are under way than are allowed", "add replicas, or raise `max_inflight`"
        ),
        Reason.DEADLINE: ReasonText("the provider did not answer in time", "try again: its answer is kept"),
        Reason.NOT_READY: ReasonText("no policy is in force yet", "wait until the service is ready"),
        Reason.HEADER_BUDGET: ReasonText(
            "the identity headers would be longer than 8 KiB", "send fewer claims upstream"
        ),
        Reason.INTERNAL: ReasonText("a bug of ours", "look at the log for `internal error`, and report it"),
    }
)
