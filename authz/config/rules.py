"""Compile rules, guards and cross-origin parts: patterns, requirements, headers, answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, TypeVar
from urllib.parse import urlsplit

from authz.config.document import Loc
from authz.config.problems import Problems, show, suggest
from authz.config.requirements import compile_requirements
from authz.config.schema import AnswerPart, BranchPart, CorsPart, GuardPart, RequirePart, RulePart
from authz.core.cors import Cors
from authz.core.credentials import AUTHORIZATION
from authz.core.headers import (
    Mark,
    Template,
    are_apart,
    fold_name,
    match_mark,
    parse_header_name,
    parse_header_value,
    parse_identity_name,
    parse_template,
    plan_identity,
)
from authz.core.hosts import HostPattern, parse_host_pattern
from authz.core.path import parse_method
from authz.core.policy import Access, Branch, Guard, Keep, Outfit, Rule
from authz.core.trie import PathPattern, parse_path_pattern
from authz.model import Ambiguity, Answer, CredentialPlace, HeaderAction, HeaderEdit, PlaceKind, Provider, Rejected
from authz.pb.envoy.type.v3.http_status_pb2 import StatusCode

T = TypeVar("T")

MAX_BODY_CHARS: Final = 16_384

_ABOUT_WHOM: Final = frozenset({"sub", "email", "roles", "groups", "scopes", "client_id", "claims"})
_FRAMING: Final = frozenset(
    {"connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "host"}
)
_STATUSES: Final = frozenset(StatusCode.values()) & frozenset(map(int, HTTPStatus))
"""What Envoy can answer with; another number would become another answer."""

_REDIRECTS: Final = _STATUSES & frozenset({301, 302, 303, 307, 308})
_CLIENT_ERRORS: Final = _STATUSES & frozenset(range(400, 500))
_UNAVAILABLE: Final = 503
_ASKS: Final[Mapping[tuple[str, ...], str]] = {
    ("tokens_from", "require"): "",
    ("any_of",): "",
    (): "says not who may pass: add `tokens_from` and `require`, `any_of`, or `allow`",
    ("tokens_from",): "says not what the token must have: add `require`, or write `require: any_token`",
    ("require",): "says not whose tokens count: add `tokens_from`",
}


class RulesCompiler:
    """Compiles one file's rules; what is wrong is noted, and what is returned is then not to be used."""

    def __init__(
        self,
        identity: Mapping[str, Template],
        providers: Mapping[str, Provider],
        lines: Callable[[Loc], int],
        problems: Problems,
        *,
        lacks: Callable[[str, str], bool],
    ) -> None:
        """Take what rules refer to.

        ``lines`` tells where something stands in the file, ``lacks`` whether a part of that key and name may be in it
        though it is not given here, for faults of its own.
        """
        self._identity = identity
        self._providers = providers
        self._lines = lines
        self._lacks = lacks
        self._problems = problems
        self._outfits: dict[tuple[object, ...], Outfit] = {}
        self._filled: dict[str, dict[tuple[str, str], tuple[Mark | None, str]]] = {}

    def compile_rule(self, part: RulePart, loc: Loc) -> Rule:
        """Compile one rule."""
        hosts, paths = self._patterns(part.hosts, part.paths, loc)
        access = self._access(part, loc)
        branches = self._branches(part, loc, hosts, paths, access)
        templates = self._templates(part, loc)
        self._check_whose(part.name, templates, branches, loc)
        places = tuple(part.token_in) if part.token_in is not None else (AUTHORIZATION,)
        for at, place in enumerate(places):
            if place in places[:at]:
                self._problems.add((*loc, "token_in", at), "is named twice: remove one")
            if place.kind is PlaceKind.HEADER and fold_name(place.name) in set(map(fold_name, self._identity)):
                text = f"`{place.name}` is an identity header too: choose another name for the token"
                self._problems.add((*loc, "token_in", at), text)
        return Rule(
            name=part.name,
            hosts=hosts,
            paths=paths,
            access=access,
            methods=self._methods(part.methods, (*loc, "methods")),
            branches=branches,
            places=places,
            accept=frozenset(Ambiguity(word) for word in part.accept),
            outfit=self._outfit(templates, self._authorization(part, loc, access), places),
            response_headers=tuple(
                HeaderEdit(HeaderAction.SET, name, value)
                for name, value in self._headers(part.response_headers, (*loc, "response_headers")).items()
            ),
            answers=MappingProxyType(
                {int(status): self._answer(its, (*loc, "answers", status)) for status, its in part.answers.items()}
            ),
            line=self._lines(loc),
        )

    def _outfit(
        self, templates: Mapping[str, Template], authorization: Keep | Template, places: tuple[CredentialPlace, ...]
    ) -> Outfit:
        """Return one object for all rules that do the same to headers, so that what is made for one serves all."""
        headers = tuple(place.name for place in places if place.kind is PlaceKind.HEADER)
        key = (tuple(templates.items()), authorization, headers)
        found = self._outfits.get(key)
        if found is None:
            plan = plan_identity(templates)
            found = self._outfits[key] = Outfit(
                identity=plan,
                authorization=authorization,
                token_headers=headers,
                folded=frozenset(map(fold_name, (*templates, *headers))),
            )
        return found

    def compile_guard(self, part: GuardPart, loc: Loc) -> Guard:
        """Compile one guard."""
        hosts, paths = self._patterns(part.hosts, part.paths, loc)
        where = (*loc, "require")
        tests = compile_requirements(part.require, where, hosts=hosts, paths=paths, problems=self._problems)
        if part.require == RequirePart():
            self._problems.add(where, "requires nothing: name what is needed, or remove the guard")
        return Guard(name=part.name, hosts=hosts, paths=paths, tests=tests, line=self._lines(loc))

    def compile_cors(self, part: CorsPart, loc: Loc) -> Cors:
        """Compile what browsers may do on some hosts."""
        hosts, _ = self._patterns(part.hosts, [], loc)
        origins = [self._origin(text, (*loc, "origins", at)) for at, text in enumerate(part.origins)]
        if "*" in origins and (part.credentials or len(origins) > 1):
            text = "`*` stands alone, and never with `credentials: true`: any page could read what its visitor may"
            self._problems.add((*loc, "origins"), text)
        return Cors(
            hosts=hosts,
            origins=frozenset(origins),
            methods=tuple(sorted(self._methods(part.methods, (*loc, "methods")) or ())),
            headers=self._names(part.headers, (*loc, "headers")),
            expose=self._names(part.expose, (*loc, "expose")),
            credentials=part.credentials,
            max_age_s=round(part.max_age),
            answer=part.preflight == "answer",
            line=self._lines(loc),
        )

    def _patterns(
        self, hosts: list[str], paths: list[str], loc: Loc
    ) -> tuple[tuple[HostPattern, ...], tuple[PathPattern, ...]]:
        found_hosts = self._each(hosts, (*loc, "hosts"), parse_host_pattern)
        found_paths = self._each(paths, (*loc, "paths"), parse_path_pattern)
        for at, host in enumerate(found_hosts):
            if any(host.key == its.key for its in found_hosts[:at]):
                self._problems.add((*loc, "hosts"), f"`{host}` is named twice: remove one")
        return found_hosts, found_paths

    def _each(self, texts: Iterable[str], loc: Loc, parse: Callable[[str], T]) -> tuple[T, ...]:
        found = [self._problems.attempt((*loc, at), parse, text) for at, text in enumerate(texts)]
        return tuple(its for its in found if its is not None)

    def _access(self, part: RulePart, loc: Loc) -> Access:
        add = self._problems.add
        if part.allow is None:
            self._check_asks(part, loc)
            return Access.PROVED
        if part.require is not None:
            add((*loc, "allow"), "stands beside `require`: keep the one that is meant")
        if part.allow == "optional":
            if part.any_of is not None or part.tokens_from is None:
                add((*loc, "allow"), "`optional` needs `tokens_from`: whose tokens count where one is shown")
            return Access.OPTIONAL
        for name in ("tokens_from", "any_of", "token_in"):
            if getattr(part, name) is not None:
                add((*loc, name), f"does nothing with `allow: {part.allow}`: remove one of the two")
        return Access(part.allow)

    def _check_asks(self, part: RulePart, loc: Loc) -> None:
        asks = tuple(name for name in ("tokens_from", "any_of", "require") if getattr(part, name) is not None)
        problem = _ASKS.get(asks, "has parts beside `any_of`: each of its branches has `tokens_from` and `require`")
        if problem:
            self._problems.add(loc, problem)

    def _branches(
        self, part: RulePart, loc: Loc, hosts: tuple[HostPattern, ...], paths: tuple[PathPattern, ...], access: Access
    ) -> tuple[Branch, ...]:
        if access in (Access.ANYONE, Access.NOBODY):
            return ()
        parts: list[tuple[Loc, BranchPart]] = []
        if part.any_of is not None:
            parts = [((*loc, "any_of", at), its) for at, its in enumerate(part.any_of)]
        elif part.tokens_from is not None:
            branch = BranchPart(tokens_from=part.tokens_from, require=part.require or RequirePart())
            parts = [(loc, branch)]
        branches: list[Branch] = []
        issuers: dict[str, str] = {}
        asks: list[str] = []
        for where, its in parts:
            tests = compile_requirements(
                its.require, (*where, "require"), hosts=hosts, paths=paths, problems=self._problems
            )
            provider = self._providers.get(its.tokens_from)
            if provider is None and self._lacks("providers", its.tokens_from):
                continue
            if provider is None:
                text = f"there is no provider {show(its.tokens_from)}: {suggest(its.tokens_from, self._providers)}"
                self._problems.add((*where, "tokens_from"), text)
                continue
            if issuers.setdefault(provider.issuer, provider.name) != provider.name or any(
                branch.provider == provider.name for branch in branches
            ):
                text = "the issuer of this provider has a branch already: tokens could be judged by either, keep one"
                self._problems.add((*where, "tokens_from"), text)
            if provider.introspection is not None:
                asks.append(provider.name)
            branches.append(Branch(provider=provider.name, tests=tests))
        if len(asks) > 1:
            names = " and ".join(f"`{name}`" for name in asks)
            text = f"providers {names} both introspect: a token of one must not be shown to the other, keep one of them"
            self._problems.add((*loc, "any_of"), text)
        return tuple(branches)

    def _templates(self, part: RulePart, loc: Loc) -> dict[str, Template]:
        templates = dict(self._identity)
        for text, value in part.identity_headers.items():
            where = (*loc, "identity_headers", text)
            name = self._problems.attempt(where, parse_identity_name, text)
            template = self._problems.attempt(where, parse_template, value)
            if name is not None and name not in self._identity and self._lacks("identity_headers", text):
                continue
            if name is not None and name not in self._identity:
                message = f"is not in the policy's `identity_headers`: {suggest(name, self._identity)}"
                self._problems.add(where, f"{message} Only names listed there are taken from clients on every rule")
            elif name is not None and template is not None:
                templates[name] = template
        return templates

    def _check_whose(
        self, rule: str, templates: Mapping[str, Template], branches: tuple[Branch, ...], loc: Loc
    ) -> None:
        """Refuse a header that two providers can fill alike: equal subjects of two issuers are two people."""
        for name, template in templates.items():
            if not template.slots & _ABOUT_WHOM:
                continue
            filled = self._filled.setdefault(name, {})
            for branch in branches:
                provider = self._providers.get(branch.provider)
                if provider is None:
                    continue
                mark = match_mark(template, provider)
                for other, (other_mark, other_rule) in filled.items():
                    if other[0] != branch.provider and not are_apart(mark, other_mark):
                        text = (
                            f"identity header `{name}` could be filled by provider `{other[0]}` (rule `{other_rule}`) "
                            f"and by `{branch.provider}` with the same value, and nobody could tell whose it is: begin "
                            "the template of each with `{provider}:`, or with `{issuer} ` and a blank"
                        )
                        self._problems.add(loc, text)
                        break
                filled.setdefault((branch.provider, template.text), (mark, rule))

    def _authorization(self, part: RulePart, loc: Loc, access: Access) -> Keep | Template:
        choice = part.authorization
        if choice is None:
            return Keep.NEVER if access is Access.ANYONE else Keep.PROVED
        if isinstance(choice, str):
            return Keep(choice)
        if access in (Access.ANYONE, Access.NOBODY):
            text = f"nothing fills the template with `allow: {access}`: write `keep` or `remove`"
            self._problems.add((*loc, "authorization"), text)
        template = self._problems.attempt((*loc, "authorization"), parse_template, choice["replace"])
        return Keep.NEVER if template is None else template

    def _methods(self, names: list[str] | None, loc: Loc) -> frozenset[str] | None:
        if names is None:
            return None
        for at, name in enumerate(names):
            try:
                parse_method(name)
            except Rejected:
                self._problems.add((*loc, at), f"{show(name)} is no method: write one such as `GET`")
            if name != name.upper():
                self._problems.add((*loc, at), f"{show(name)}: methods are case-sensitive, write `{name.upper()}`")
            if name in names[:at]:
                self._problems.add((*loc, at), f"{show(name)} is named twice: remove one")
        return frozenset(names)

    def _names(self, names: list[str], loc: Loc) -> tuple[str, ...]:
        return self._each(names, loc, parse_header_name)

    def _headers(self, headers: Mapping[str, str], loc: Loc) -> dict[str, str]:
        found: dict[str, str] = {}
        for text, value in headers.items():
            name = self._problems.attempt((*loc, text), parse_header_name, text)
            self._problems.attempt((*loc, text), parse_header_value, value)
            if name in _FRAMING:
                self._problems.add((*loc, text), "is set by the proxy itself: remove it")
            elif name in found:
                self._problems.add((*loc, text), "is named twice in different case: remove one")
            elif name is not None:
                found[name] = value
        return found

    def _answer(self, part: AnswerPart, loc: Loc) -> Answer:
        add = self._problems.add
        status = part.status
        redirects = status in _REDIRECTS
        if status is not None and not (redirects or status in _CLIENT_ERRORS or status == _UNAVAILABLE):
            text = f"`{status}` is not for a deny, or not known to Envoy: write 302 with a location, 4xx, or 503"
            add((*loc, "status"), text)
        if redirects and part.location is None:
            add((*loc, "status"), f"`{status}` needs a `location`")
        if part.location is not None:
            self._problems.attempt((*loc, "location"), parse_header_value, part.location)
            if "{" in part.location or "}" in part.location:
                add((*loc, "location"), "is sent as it stands, nothing is filled in: write a whole url without braces")
            if not redirects:
                add((*loc, "location"), "needs a 3xx `status`, such as 302")
        if part.content_type is not None:
            self._problems.attempt((*loc, "content_type"), parse_header_value, part.content_type)
            if part.body is None:
                add((*loc, "content_type"), "is for a `body`: add one, or remove it")
        if part.body is not None and len(part.body) > MAX_BODY_CHARS:
            add((*loc, "body"), f"is longer than {MAX_BODY_CHARS} characters")
        if part == AnswerPart():
            add(loc, "changes nothing: write a status, headers or a body, or remove it")
        return Answer(
            status=status,
            location=part.location,
            headers=MappingProxyType(self._headers(part.headers, (*loc, "headers"))),
            body=part.body,
            content_type=part.content_type,
        )

    def _origin(self, text: str, loc: Loc) -> str:
        if text == "*":
            return text
        try:
            url = urlsplit(text)
            good = url.scheme in {"http", "https"} and f"{url.scheme}://{url.netloc}" == text and url.port != 0
        except ValueError:
            good = False
        if not good or text != text.lower() or "@" in text or "*" in text:
            message = f"{show(text)} is no origin: write `https://app.example.com`, in lower case and without a path"
            self._problems.add(loc, message)
        return text


def compile_identity(headers: Mapping[str, str], problems: Problems) -> dict[str, Template]:
    """Compile the policy's identity headers."""
    templates: dict[str, Template] = {}
    folded: dict[str, str] = {}
    for text, value in headers.items():
        loc = ("identity_headers", text)
        name = problems.attempt(loc, parse_identity_name, text)
        template = problems.attempt(loc, parse_template, value)
        if name is None or template is None:
            continue
        other = folded.setdefault(fold_name(name), text)
        if other != text:
            problems.add(loc, f"many upstreams read it as `{other}`: keep one of the two")
        templates[name] = template
    return templates
