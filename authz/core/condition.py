"""A rule's ``when``: one CEL expression over what is known of the request and of who asks.

It holds only if its whole result is of type BOOL and true. An error (a missing member is one; ``has()`` asks first),
another type or an exception is no answer, and no answer is a Deny with the Reason CONDITION_ERROR.

Only what the expression names is handed over: converting the rest would cost time, and an unused claim that CEL
cannot hold (2^64, a lone surrogate) would fail the whole evaluation. The names are read from the checked syntax tree;
an expression that uses ``claims`` as a whole gets all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cel_expr_python import cel
from google.protobuf.any_pb2 import Any as AnyMessage

from authz.model import Principal, Reason, Rejected, Request
from authz.pb.cel.expr_pb2 import CheckedExpr, Expr

MAX_EXPRESSION_CHARS: Final = 4_096

_TEXT_MAP: Final = cel.Type.Map(cel.Type.STRING, cel.Type.STRING)
_ANY_MAP: Final = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
_VARIABLES: Final = {
    "request": _ANY_MAP,
    "host": _TEXT_MAP,
    "path": _TEXT_MAP,
    "claims": _ANY_MAP,
    "principal": _ANY_MAP,
    "source": _TEXT_MAP,
    "context": _TEXT_MAP,
}
MEMBERS: Final[Mapping[str, frozenset[str]]] = {
    "request": frozenset({"method", "host", "path", "scheme", "protocol", "headers"}),
    "principal": frozenset(
        {"provider", "issuer", "subject", "client_id", "email", "roles", "groups", "scopes"},
    ),
    "source": frozenset({"principal", "address"}),
}
"""What these variables can have; the others have what the token, the patterns and the route give them."""

_ENV: Final = cel.NewEnv(variables=_VARIABLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that a requirement is judged on. ``address`` is the client's, None where it is not known."""

    request: Request
    principal: Principal | None
    host: Mapping[str, str]
    path: Mapping[str, str]
    address: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A compiled expression. ``uses`` maps each variable to the members it names; None means all of them."""

    text: str
    uses: Mapping[str, frozenset[str] | None]
    program: cel.Expression = field(repr=False)

    def check(self, facts: Facts) -> None:
        """Evaluate it.

        Raises:
            Rejected: CONDITION_FALSE, or CONDITION_ERROR for anything that is neither true nor false.

        """
        data = {name: _render_variable(name, members, facts) for name, members in self.uses.items()}
        try:
            result = self.program.eval(data=data)
            kind, value = result.type(), result.plain_value()
        except (RuntimeError, ValueError, TypeError, OverflowError, KeyError, UnicodeError) as error:
            raise Rejected(Reason.CONDITION_ERROR, f"cannot be evaluated: {type(error).__name__}") from None
        if kind != cel.Type.BOOL:
            missing = "an error, such as a missing member"
            detail = missing if kind == cel.Type.ERROR else f"{_with_article(kind)}, not true or false"
            raise Rejected(Reason.CONDITION_ERROR, f"`{self.text}` gives {detail}")
        if value is not True:
            raise Rejected(Reason.CONDITION_FALSE, f"`{self.text}` is false")


def parse_condition(text: str) -> Condition:
    """Compile an expression.

    Raises:
        ValueError: with CEL's own message, for the operator.

    """
    if len(text) > MAX_EXPRESSION_CHARS:
        raise ValueError(f"the expression is longer than {MAX_EXPRESSION_CHARS} characters")
    try:
        program = _ENV.compile(text)
    except RuntimeError as error:
        first = str(error).removeprefix("INVALID_ARGUMENT: ").split("\n", 1)[0].split("<input>:", 1)[-1]
        # The parser lists whatever could stand there instead: a dozen names of its own.
        first = first.partition(" expecting {")[0].replace("mismatched input '<EOF>'", "the expression ends too early")
        raise ValueError(f"not a valid expression: {first.strip()}") from None
    except TypeError:
        raise ValueError("not a valid expression: an unpaired surrogate") from None
    if program.return_type() not in (cel.Type.BOOL, cel.Type.DYN):
        what = _with_article(program.return_type())
        raise ValueError(f"gives {what}, not true or false: compare it, as in `claims.tenant == host.tenant`")
    wrapped = AnyMessage.FromString(program.serialize())
    uses: dict[str, frozenset[str] | None] = {}
    for name, member in _names(CheckedExpr.FromString(wrapped.value).expr):
        if name not in _VARIABLES:
            continue
        known = uses.get(name, frozenset())
        uses[name] = None if member is None or known is None else known | {member}
    return Condition(text=text, uses=uses, program=program)


def _with_article(kind: cel.Type) -> str:
    name = kind.name().lower()
    return f"an {name}" if name == "int" else f"a {name}"


def _names(expr: Expr) -> Iterator[tuple[str, str | None]]:
    """Yield (variable, member) for each use; the member is None where the variable is used as a whole."""
    match expr.WhichOneof("expr_kind"):
        case "ident_expr":
            yield expr.ident_expr.name, None
        case "select_expr" if expr.select_expr.operand.HasField("ident_expr"):
            yield expr.select_expr.operand.ident_expr.name, expr.select_expr.field
        case "call_expr" if _is_index_by_text(expr.call_expr):
            yield expr.call_expr.args[0].ident_expr.name, expr.call_expr.args[1].const_expr.string_value
        case _:
            for child in _children(expr):
                yield from _names(child)


def _is_index_by_text(call: Expr.Call) -> bool:
    return (
        call.function == "_[_]"
        and len(call.args) == 2  # noqa: PLR2004 - what is indexed, and the index
        and call.args[0].HasField("ident_expr")
        and call.args[1].const_expr.HasField("string_value")
    )


def _children(expr: Expr) -> Iterator[Expr]:
    if expr.HasField("select_expr"):
        yield expr.select_expr.operand
    if expr.HasField("call_expr"):
        yield expr.call_expr.target
        yield from expr.call_expr.args
    yield from expr.list_expr.elements
    for entry in expr.struct_expr.entries:
        yield entry.map_key
        yield entry.value
    if expr.HasField("comprehension_expr"):
        loop = expr.comprehension_expr
        yield from (loop.iter_range, loop.accu_init, loop.loop_condition, loop.loop_step, loop.result)


def _render_variable(name: str, members: frozenset[str] | None, facts: Facts) -> Mapping[str, Any]:
    if name == "claims":
        claims = facts.principal.claims if facts.principal is not None else {}
        return dict(claims) if members is None else {key: claims[key] for key in members if key in claims}
    return _RENDERERS[name](facts)


def _render_request(request: Request) -> Mapping[str, Any]:
    return {
        "method": request.method,
        "host": request.host.name,
        "path": "/" + "/".join(request.target.segments),
        "scheme": request.scheme,
        "protocol": request.protocol,
        "headers": dict(request.headers),
    }


def _render_principal(principal: Principal | None) -> Mapping[str, Any]:
    """Return the members that are known: what is missing is an error to an expression that does not ask first."""
    if principal is None:
        return {}
    return {name: value for name, value in list_members(principal).items() if value is not None}


def list_members(principal: Principal) -> Mapping[str, Any]:
    """Return all that expressions call ``principal``; None stands for what is missing."""
    return {
        "provider": principal.provider,
        "issuer": principal.issuer,
        "subject": principal.subject,
        "client_id": principal.client_id,
        "email": principal.email,
        "roles": [role.name for role in sorted(principal.roles) if not role.client],
        "groups": sorted(principal.groups),
        "scopes": sorted(principal.scopes),
    }


def _render_source(facts: Facts) -> Mapping[str, Any]:
    known = {"principal": facts.request.source_principal}
    return known if facts.address is None else known | {"address": facts.address}


_RENDERERS: Final[Mapping[str, Callable[[Facts], Mapping[str, Any]]]] = {
    "request": lambda facts: _render_request(facts.request),
    "host": lambda facts: dict(facts.host),
    "path": lambda facts: dict(facts.path),
    "principal": lambda facts: _render_principal(facts.principal),
    "source": _render_source,
    "context": lambda facts: dict(facts.request.context),
}
