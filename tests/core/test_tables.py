"""What is refused at load because it could be read in two ways, and which rules then compete."""

from __future__ import annotations

import pytest

from authz.core.trie import MAX_VISITS
from authz.model import ConfigError, ConfigProblem, Reason, Rejected
from tests.core.build import judged_by, policy_of, rule


def problems(text: str) -> list[ConfigProblem]:
    with pytest.raises(ConfigError) as caught:
        policy_of(text)
    return list(caught.value.problems)


def messages(text: str) -> list[str]:
    return [its.message for its in problems(text)]


def test_extending_lets_both_compete_with_the_own_first() -> None:
    rules = "rules:\n" + "".join(
        (
            rule("broad", "['*.example.com']", "/**"),
            rule("broad x", "['*.example.com']", "/x", "methods: [GET, PUT], allow: anyone"),
            rule("own x", "[a.example.com]", "/x", "methods: [GET], allow: anyone"),
            rule("own y", "[a.example.com]", "/y"),
        )
    )
    policy = policy_of(rules + "hosts: {a.example.com: extends}\n")
    assert judged_by(policy, "GET", "a.example.com/x") == "own x"
    assert judged_by(policy, "HEAD", "a.example.com/x") == "own x"
    assert judged_by(policy, "PUT", "a.example.com/x") == "broad x"
    assert judged_by(policy, "GET", "a.example.com/y") == "own y"
    assert judged_by(policy, "GET", "a.example.com/z") == "broad"
    put = policy_of(rules.replace("[GET], allow", "[PUT], allow") + "hosts: {a.example.com: extends}\n")
    assert [judged_by(put, method, "a.example.com/x") for method in ("PUT", "GET")] == ["own x", "broad x"]
    replaced = policy_of(rules + "hosts: {a.example.com: replaces}\n")
    assert judged_by(replaced, "GET", "a.example.com/y") == "own y"
    with pytest.raises(Rejected) as caught:
        judged_by(replaced, "GET", "a.example.com/z")
    assert caught.value.reason is Reason.NO_RULE


@pytest.mark.parametrize(
    ("broad", "own", "judged"),
    [
        ("", "GET", {"GET": "own", "HEAD": "own", "PUT": "broad"}),
        ("HEAD, PUT", "GET", {"GET": "own", "HEAD": "own", "PUT": "broad"}),
        ("GET, PUT", "HEAD", {"GET": "broad", "HEAD": "own", "PUT": "broad"}),
        ("HEAD", "PUT", {"HEAD": "broad", "PUT": "own"}),
    ],
)
def test_of_one_path_a_broader_rule_takes_the_methods_that_the_own_leaves(
    broad: str, own: str, judged: dict[str, str]
) -> None:
    rules = rule("broad", "['*.example.com']", "/x", (f"methods: [{broad}], " if broad else "") + "allow: anyone")
    rules += rule("own", "[a.example.com]", "/x", f"methods: [{own}], allow: anyone")
    policy = policy_of(f"rules:\n{rules}hosts: {{a.example.com: extends}}\n")
    assert {method: judged_by(policy, method, "a.example.com/x") for method in judged} == judged


def test_an_own_rule_for_every_method_takes_all_of_the_broader_ones() -> None:
    rules = "rules:\n" + "".join(
        (
            rule("broad", "['*.example.com']", "/x", "methods: [PUT], allow: anyone"),
            rule("own", "[a.example.com]", "/x", "allow: nobody"),
        )
    )
    assert judged_by(policy_of(rules + "hosts: {a.example.com: extends}\n"), "PUT", "a.example.com/x") == "own"


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            rule("one", "[a.example]", "/x", "methods: [GET, PUT], allow: anyone")
            + rule("two", "[a.example]", "/x", "methods: [PUT], allow: anyone"),
            "rules `one` and `two` could both judge PUT of `/x` on host `a.example`",
        ),
        (
            rule("one", "['{t}.example']", "/x/{a}", "methods: [GET], allow: anyone")
            + rule("two", "['{u}.example']", "/x/{b}", "methods: [GET], allow: anyone"),
            "rules `one` and `two` could both judge GET of `/x/{a}` on host `{t}.example`",
        ),
        (
            rule("one", "[a.example]", "/x", "methods: [GET], allow: anyone")
            + rule("two", "everywhere", "/x", "methods: [GET], allow: anyone"),
            "rules `one` and `two` could both judge GET of `/x` on host `a.example`",
        ),
        (
            rule("one", "[a.example]", "/x") + rule("two", "everywhere", "/x"),
            "rules `one` and `two` could both judge every method of `/x` on host `a.example`",
        ),
        (
            rule("one", "[a.example]", "/x") + rule("two", "[a.example]", "/x/"),
            "rules `one` and `two` could both judge every method of `/x` on host `a.example`",
        ),
        (
            rule("one", "everywhere", "/x") + rule("two", "everywhere", "/x"),
            "rules `one` and `two` could both judge every method of `/x` on host `everywhere`",
        ),
        (
            "  - {name: one, hosts: [a.example], paths: ['/x', '/x/'], methods: [GET, PUT], allow: anyone}\n",
            "`/x` and `/x/` are one path on host `a.example`: keep one of them",
        ),
    ],
)
def test_two_rules_that_could_both_win_are_refused(rules: str, words: str) -> None:
    (problem,) = problems("rules:\n" + rules)
    assert problem.message.startswith(words)
    second = "two" if "two" in rules else "one"
    assert (problem.path, problem.line) == (f"rules[{second}].paths", 6 + rules.count("\n"))


@pytest.mark.parametrize(
    "rules",
    [
        rule("one", "[a.example]", "/x", "methods: [GET], allow: anyone")
        + rule("two", "[a.example]", "/x", "methods: [PUT, HEAD], allow: anyone"),
        rule("one", "[a.example]", "/x", "methods: [GET], allow: anyone") + rule("two", "[a.example]", "/x"),
        rule("one", "[a.example]", "/x") + rule("two", "[b.example]", "/x"),
        rule("one", "[a.example]", "/x") + rule("two", "everywhere", "/x", "methods: [GET], allow: anyone"),
        rule("one", "[a.example]", "/x") + rule("two", "[a.example]", "/x/**"),
        rule("one", "['{t}.example']", "/x") + rule("two", "['*.other']", "/x"),
    ],
)
def test_rules_that_differ_in_method_host_or_path_are_not_refused(rules: str) -> None:
    assert policy_of("rules:\n" + rules)


def test_a_host_named_twice_is_no_conflict_of_a_rule_with_itself() -> None:
    assert messages("rules:\n" + rule("one", "[a.example, A.example]", "/x")) == [
        "`a.example` is named twice: remove one"
    ]


def test_each_pair_that_could_both_win_is_told_once() -> None:
    many = "methods: [GET, PUT], allow: anyone"
    rules = "".join(
        rule(name, hosts, "/x", many) for name, hosts in (("one", "[a.example, b.example]"), ("two", "[a.example]"))
    )
    found = messages("rules:\n" + rules)
    assert [its.partition(" of ")[0].rpartition(" ")[2] for its in found] == ["GET", "PUT"]


def test_rules_everywhere_join_those_of_a_host() -> None:
    policy = policy_of(
        "rules:\n"
        + rule("one", "[a.example]", "/x", "methods: [GET], allow: anyone")
        + rule("all", "everywhere", "/x", "methods: [PUT], allow: anyone")
        + rule("rest", "everywhere", "/x")
    )
    assert [judged_by(policy, method, "a.example/x") for method in ("GET", "PUT", "POST")] == ["one", "all", "rest"]


def hiding(hosts: str, broad: str = "*.example.com", narrow: str = "a.example.com", count: int = 1) -> str:
    broader = "".join(rule(f"broad{n}", f"['{broad}']", f"/{n}") for n in range(count))
    return "rules:\n" + broader + rule("own", f"['{narrow}']", "/y") + hosts


@pytest.mark.parametrize("broad", ["*.example.com", "{t}.example.com", "*.com"])
def test_an_exact_host_must_say_what_becomes_of_the_rules_it_hides(broad: str) -> None:
    (problem,) = problems(hiding("", broad))
    assert problem.message == (
        f"the rules for `a.example.com` hide those for `{broad}` (`broad0`): write "
        '`"a.example.com": extends` (both compete by path) or `replaces` under `hosts:`'
    )
    assert (problem.path, problem.line) == ("hosts[a.example.com]", 8)
    assert (
        judged_by(policy_of(hiding("hosts: {a.example.com: extends}\n", broad)), "GET", "a.example.com/0") == "broad0"
    )
    replaced = policy_of(hiding("hosts: {a.example.com: replaces}\n", broad))
    with pytest.raises(Rejected) as caught:
        judged_by(replaced, "GET", "a.example.com/0")
    assert caught.value.reason is Reason.NO_RULE


@pytest.mark.parametrize("narrow", ["{t}.example.com", "*.b.example.com"])
def test_a_pattern_must_say_so_too(narrow: str) -> None:
    """What it hides may be the rule that lets nobody in."""
    (message,) = messages(hiding("", narrow=narrow))
    assert message.startswith(f"the rules for `{narrow}` hide those for `*.example.com` (`broad0`)")
    host = "a.b.example.com" if narrow.startswith("*") else "a.example.com"
    extended = policy_of(hiding(f"hosts: {{'{narrow}': extends}}\n", narrow=narrow))
    assert judged_by(extended, "GET", f"{host}/0") == "broad0"
    replaced = policy_of(hiding(f"hosts: {{'{narrow}': replaces}}\n", narrow=narrow))
    assert judged_by(replaced, "GET", f"{host}/y") == "own"
    with pytest.raises(Rejected):
        judged_by(replaced, "GET", f"{host}/0")


@pytest.mark.parametrize(("count", "names"), [(5, "`broad3`, `broad4`)"), (6, "`broad4` and more)")])
def test_five_hidden_rules_are_named(count: int, names: str) -> None:
    (message,) = messages(hiding("", count=count))
    assert names in message


@pytest.mark.parametrize(
    ("broad", "narrow"),
    [
        ("*.a.example.com", "a.example.com"),
        ("{t}.example.com", "a.b.example.com"),
        ("b.example.com", "a.example.com"),
        ("everywhere", "a.example.com"),
    ],
)
def test_a_host_that_hides_nothing_need_say_nothing(broad: str, narrow: str) -> None:
    rules = hiding("", broad, narrow).replace("['everywhere']", "everywhere")
    assert policy_of(rules)


@pytest.mark.parametrize(
    ("hosts", "broad", "words"),
    [
        (
            "hosts: {a.example.com: extends}\n",
            "*.example.org",
            "no broader host pattern has rules, so there is nothing",
        ),
        ("hosts: {a.example.com: replaces}\n", "everywhere", "no broader host pattern has rules, so there is nothing"),
        (
            "hosts: {b.example.com: replaces}\n",
            "*.b.example",
            "no rule is for this host itself, so the entry does noth",
        ),
        (
            "hosts: {'*.b.example': extends}\n",
            "c.example",
            "no rule is for this host itself, so the entry does nothing",
        ),
        ("hosts: {'{label}.b.example': extends}\n", "c.example", "no rule is for this host itself"),
    ],
)
def test_an_entry_that_does_nothing_is_refused(hosts: str, broad: str, words: str) -> None:
    (problem,) = problems(hiding(hosts, broad).replace("['everywhere']", "everywhere"))
    assert problem.message.startswith(words)
    assert problem.path == "hosts[" + hosts.partition("{")[2].partition(":")[0].strip("'") + "]"
    assert problem.line == 9


def wild(visits: int) -> list[str]:
    """Return paths whose search could take so many visits: all mixtures of nine places, and some more at one end."""
    paths = ["/" + "/".join("a" if n >> bit & 1 else f"{{x{bit}}}" for bit in range(9)) for n in range(512)]
    return [*paths, paths[0] + "/b" * (visits - 1023)] if visits > 1023 else paths


@pytest.mark.parametrize("hosts", ["[a.example]", "everywhere"])
@pytest.mark.parametrize("what", ["rules", "guards"])
@pytest.mark.parametrize("visits", [MAX_VISITS - 1, MAX_VISITS, MAX_VISITS + 1])
def test_a_search_that_could_run_wild_is_refused_at_load(hosts: str, what: str, visits: int) -> None:
    parts = {"rules": "allow: anyone", "guards": "require: {roles: r}"}
    text = f"{what}:\n  - {{name: wild, hosts: {hosts}, paths: {wild(visits)}, {parts[what]}}}\n"
    text += "" if what == "rules" else "rules:\n" + rule("all", "[b.example]", "/**")
    if visits <= MAX_VISITS:
        assert policy_of(text)
        return
    name = hosts.strip("[]")
    where = f"host `{name}`" if what == "rules" else f"hosts[{name}]"
    (problem,) = problems(text)
    assert problem.message.startswith(
        f"the {what} of {where} could need {visits} steps for one path, at most {MAX_VISITS}"
    )
    assert problem.path == what


@pytest.mark.parametrize("places", [(), ("{cookie: session}", "{query: token}", "{query: key}")])
def test_a_table_knows_the_cookies_and_parameters_of_its_rules(places: tuple[str, ...]) -> None:
    rest = [
        "tokens_from: shop, require: any_token" + (f", token_in: [{place}]" if place else "")
        for place in places or ("",)
    ]
    policy = policy_of("rules:\n" + "".join(rule(f"r{n}", "[a.example]", f"/{n}", its) for n, its in enumerate(rest)))
    table = policy.tables.match_first("a.example")
    assert table is not None
    assert table.cookies == ({"session"} if places else frozenset())
    assert table.parameters == (("key", "token") if places else ())
