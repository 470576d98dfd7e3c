"""Sets of rules, from command lines and lists, and the differences between two sets."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import replace

import pytest

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.difference import Difference, difference, mark_owned, merge, merge_owned
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.prefix import parse_prefix as P
from ndxdp.rules.rule import HOST_ORIGIN, Rule, owned_rule
from ndxdp.rules.rule_lists import compile_rules, rules_of_lines
from ndxdp.rules.ruleset import Rules

# ---- the set itself -----------------------------------------------------------------------------

LAN, ONE, TWO = P("2001:db8::/64"), P("2001:db8::1"), P("2001:db8::2")


def some_rules(rng: random.Random) -> dict[Prefix, Rule]:
    """Return random rules from a small range, so that two sets have prefixes in common."""
    every = [Prefix(bytes(15) + bytes((n,)), 128) for n in range(20)]
    every += [Prefix(bytes(15) + bytes((n & 0xF0,)), 124) for n in range(0, 256, 16)]
    return {prefix: Rule(label=rng.choice("abc")) for prefix in rng.sample(every, 14)}


def test_is_the_mapping_that_it_is_made_of() -> None:
    plain = {LAN: Rule(), ONE: Rule(label="x"), TWO: Rule(label="x")}
    rules = Rules.of(plain)
    assert rules == plain
    assert plain == rules
    assert rules != plain | {TWO: Rule()}
    assert (len(rules), set(rules), dict(rules.pairs())) == (3, set(plain), plain)
    assert (dict(rules.items()), list(rules.values())) == (plain, [*map(rules.get, rules)])
    assert [rules[prefix] for prefix in plain] == list(plain.values())
    assert rules.get(P("2001:db8::3")) is None
    assert rules.get(P("2001:db8::/63")) is None
    assert rules.addresses == AddressSet.of([ONE.address, TWO.address])
    assert set(rules.distinct_rules) == {Rule(), Rule(label="x")}
    assert Rules.of(rules) is rules
    assert not Rules()
    assert "2001" not in repr(Rules())


def test_cannot_be_a_key() -> None:
    with pytest.raises(TypeError):
        hash(Rules())


@pytest.mark.parametrize("seed", range(40))
def test_same_results_as_dicts(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    a, b = some_rules(rng), some_rules(rng)
    ours, theirs = Rules.of(a), Rules.of(b)
    assert ours | theirs == a | b
    assert ours | b == a | b
    assert ours.without(theirs) == {p: rule for p, rule in a.items() if p not in b}
    assert ours.restricted_to(theirs) == {p: rule for p, rule in a.items() if p in b}
    assert ours.different_from(theirs) == {p: rule for p, rule in a.items() if b.get(p) != rule}
    assert ours.where(lambda rule: rule.label == "a") == {
        p: rule for p, rule in a.items() if rule.label == "a"
    }
    expected = sorted((p, rule.label, b[p].label) for p, rule in a.items() if p in b)
    assert sorted((p, one.label, two.label) for p, one, two in ours.paired_with(theirs)) == expected
    assert ours == a
    assert theirs == b
    with monkeypatch.context() as patch:  # lists, as it were
        patch.setattr("ndxdp.rules.ruleset._PART", rng.randrange(1, 6))
        assert (
            sorted((p, one.label, two.label) for p, one, two in ours.paired_with(theirs))
            == expected
        )


def test_a_thousand_rules_of_one_address_each() -> None:
    """Compare the sets in 30 ms; pair by pair it took 10 s."""
    texts = [f"2001:db8::{number:x}" for number in range(2, 1002)]
    began = time.monotonic()
    assert merge(compile_rules(texts), compile_rules(texts)) == compile_rules(texts)
    assert time.monotonic() - began < 5


# ---- lists --------------------------------------------------------------------------------------


def test_rules_of_lines() -> None:
    lines = ["# addresses", "2001:db8::2  # two", "", " 2001:db8::/64", "2001:db8::1/128"]
    rules = rules_of_lines(lines, "guests", Rule(origin="config"))
    rule = Rule(origin="config", label="guests")
    assert rules == {LAN: rule, ONE: rule, TWO: rule}
    assert rules_of_lines([], "guests", Rule()) == {}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["::2", "", "::3", "# ::2", "::3/128", "::2"], "l:5: ::3 is given twice"),
        (["::/64", "::2", "::/64", "::2"], "l:3: ::/64 is given twice"),
        (["::2", "eth0"], "l:2: 'eth0' is not an IPv6 address"),
    ],
)
def test_rules_of_lines_names_the_line(lines: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        rules_of_lines(lines, "l", Rule())
    assert error.value.message == message


# ---- rules of a command line --------------------------------------------------------------------


def test_compile_rules() -> None:
    profile = Profile(router=False)
    rules = compile_rules(
        ["2001:db8::/64", "2001:db8::1/128"],
        ["2001:db8::bad"],
        rule=Rule(profile=profile, origin="run"),
    )
    assert rules == {
        P("2001:db8::/64"): Rule(profile=profile, origin="run", label="2001:db8::/64"),
        P("2001:db8::1"): Rule(profile=profile, origin="run", label="2001:db8::1"),
        P("2001:db8::bad"): Rule(Answer.NEVER, origin="run", label="2001:db8::bad"),
    }


def test_compile_rules_with_a_label_for_all() -> None:
    rules = compile_rules(["2001:db8::/64"], ["2001:db8::1"], rule=Rule(label="guests"))
    assert {rule.label for rule in rules.values()} == {"guests"}


def test_compile_rules_of_nothing() -> None:
    assert compile_rules([]) == {}


@pytest.mark.parametrize(
    ("answered", "excepted", "message"),
    [
        (["2001:db8::1", "2001:DB8::1/128"], [], "2001:db8::1 is given twice"),
        ([], ["2001:db8::/64", "2001:db8::/64"], "2001:db8::/64 is given twice"),
        (["2001:db8::1"], ["2001:db8::1"], "2001:db8::1 is given twice, to answer and not to"),
    ],
)
def test_compile_rules_refuses_a_prefix_given_twice(
    answered: list[str], excepted: list[str], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        compile_rules(answered, excepted)
    assert error.value.message == message


# ---- desired and actual -------------------------------------------------------------------------


def apply(actual: Mapping[Prefix, Rule], change: Difference) -> dict[Prefix, Rule]:
    left = {prefix: rule for prefix, rule in actual.items() if prefix not in change.remove}
    after = left | dict(change.write.pairs())
    assert change.applied_to(Rules.of(actual)) == after
    return after


def changes(write: dict[Prefix, Rule], remove: list[Prefix], change: Difference) -> bool:
    """Return True if a difference writes and removes exactly these rules."""
    assert bool(change) is bool(write or remove)
    return change.write == write and set(change.remove) == set(remove)


def test_difference() -> None:
    kept, changed, gone, new = P("::1"), P("::2"), P("::3"), P("::/64")
    actual = {kept: Rule(), changed: Rule(), gone: Rule()}
    desired = {kept: Rule(), changed: Rule(Answer.NEVER), new: Rule()}
    change = difference(desired, actual)
    assert changes({changed: Rule(Answer.NEVER), new: Rule()}, [gone], change)
    assert apply(actual, change) == desired


def test_difference_of_the_same_is_nothing() -> None:
    rules = compile_rules(["2001:db8::/64", "2001:db8::1"])
    assert changes({}, [], difference(rules, dict(rules)))
    assert changes({}, [], difference({}, {}))


@pytest.mark.parametrize("field", ["profile", "source", "label", "dynamic", "held", "leased"])
def test_difference_sees_every_field(field: str) -> None:
    other: dict[str, Rule] = {
        "profile": Rule(profile=Profile(override=True)),
        "source": Rule(origin="docker"),
        "label": Rule(label="x"),
        "dynamic": Rule(dynamic=True),
        "held": Rule(owned=True),
        "leased": Rule(leased=True),
    }
    assert difference({P("::1"): other[field]}, {P("::1"): Rule()}).write


@pytest.mark.parametrize("seed", range(20))
def test_difference_makes_actual_into_desired(seed: int) -> None:
    rng = random.Random(seed)

    def some() -> dict[Prefix, Rule]:
        return {
            Prefix(bytes(15) + bytes((number,)), 128): Rule(label=rng.choice("ab"))
            for number in rng.sample(range(20), 10)
        }

    desired, actual = some(), some()
    change = difference(desired, actual)
    assert apply(actual, change) == desired
    for prefix, rule in change.write.items():
        assert actual.get(prefix) != rule
    assert not set(change.write) & set(change.remove)


# ---- the host's own addresses -------------------------------------------------------------------

OURS, GATEWAY = ONE, P("fe80::1")


def test_hold_makes_a_hole_and_removes_it() -> None:
    actual: dict[Prefix, Rule] = {LAN: Rule()}
    change = mark_owned({OURS: "own", GATEWAY: "gateway"}, actual)
    assert changes({OURS: owned_rule("own"), GATEWAY: owned_rule("gateway")}, [], change)
    actual = apply(actual, change)
    assert actual[OURS].origin == HOST_ORIGIN
    assert actual[OURS].answer is Answer.NEVER
    assert changes({}, [OURS], mark_owned({GATEWAY: "gateway"}, actual))
    assert apply(actual, mark_owned({}, actual)) == {LAN: Rule()}


def test_hold_is_still_when_nothing_changes() -> None:
    owned = {OURS: "own", GATEWAY: "gateway"}
    actual: dict[Prefix, Rule] = {LAN: Rule(), OURS: Rule(origin="config", label="x")}
    actual = apply(actual, mark_owned(owned, actual))
    assert changes({}, [], mark_owned(owned, actual))


def test_hold_marks_a_rule_and_restores_it() -> None:
    written = Rule(profile=Profile(override=True), origin="docker", label="net", dynamic=True)
    actual: dict[Prefix, Rule] = {OURS: written}
    change = mark_owned({OURS: "own"}, actual)
    assert changes({OURS: replace(written, owned=True)}, [], change)
    actual = apply(actual, change)
    change = mark_owned({}, actual)
    assert changes({OURS: written}, [], change)
    assert apply(actual, change) == {OURS: written}


def test_hold_marks_a_never_rule_too() -> None:
    """Mark an owned `never` rule, too: it may become an `always` rule in the meantime."""
    rule = Rule(Answer.NEVER, origin="config")
    assert mark_owned({OURS: "own"}, {OURS: rule}).write == {OURS: replace(rule, owned=True)}


def test_hold_leaves_rules_of_others() -> None:
    others: dict[Prefix, Rule] = {
        LAN: Rule(),
        P("2001:db8::7"): Rule(origin="docker"),
        P("2001:db8::8"): Rule(Answer.NEVER, origin="config"),
        P("::/0"): Rule(Answer.NEVER),
    }
    actual = others | {P("2001:db8::2"): owned_rule("own")}
    change = mark_owned({OURS: "own"}, actual)
    assert changes({OURS: owned_rule("own")}, [P("2001:db8::2")], change)
    assert apply(actual, change) == others | {OURS: owned_rule("own")}


def test_hold_corrects_why() -> None:
    assert changes(
        {OURS: owned_rule("own")}, [], mark_owned({OURS: "own"}, {OURS: owned_rule("gateway")})
    )


@pytest.mark.parametrize("seed", range(20))
def test_hold_comes_and_goes_without_a_trace(seed: int) -> None:
    rng = random.Random(seed)
    addresses = [Prefix(bytes(15) + bytes((number,)), 128) for number in range(12)]
    written: dict[Prefix, Rule] = {
        address: Rule(rng.choice(list(Answer)), origin=rng.choice(("config", "docker")))
        for address in rng.sample(addresses, 6)
    }
    actual = dict(written)
    for _ in range(10):
        owned = dict.fromkeys(rng.sample(addresses, rng.randrange(8)), "own")
        actual = apply(actual, mark_owned(owned, actual))
        assert {prefix for prefix, rule in actual.items() if rule.owned} == set(owned)
        assert changes({}, [], mark_owned(owned, actual))
    assert apply(actual, mark_owned({}, actual)) == written


# ---- rules beside existing rules ----------------------------------------------------------------


def test_merged() -> None:
    """Keep existing rules, and mark rules for owned addresses."""
    there = {LAN: Rule(label="old"), ONE: owned_rule("own")}
    rules = {LAN: Rule(label="new"), ONE: Rule(), TWO: Rule()}
    assert merge(rules, there) == {
        LAN: Rule(label="old"),
        ONE: Rule(owned=True),
        TWO: Rule(),
    }


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("prefix", [ONE, LAN])
def test_merged_leaves_a_rule_with_the_same_words_to_its_writer(
    prefix: Prefix, replacing: bool
) -> None:
    there = {prefix: Rule(origin="config", label="file"), TWO: Rule()}
    assert merge({prefix: Rule()}, there, replacing=replacing) == there


@pytest.mark.parametrize(
    ("there", "hint"),
    [
        (Rule(Answer.NEVER), "`ndxdp prefix replace` changes it"),
        (Rule(Answer.NEVER, origin="wg0"), "ndxdp prefix replace --origin wg0"),
        (Rule(Answer.NEVER, origin="config"), "where it was added"),
    ],
)
@pytest.mark.parametrize("prefix", [ONE, LAN])
def test_merged_refuses_another_rule(there: Rule, hint: str, prefix: Prefix) -> None:
    with pytest.raises(NdxdpError, match=f"^{prefix} has a rule already: never") as refused:
        merge({prefix: Rule()}, {prefix: there, TWO: Rule()})
    assert hint in refused.value.hint


@pytest.mark.parametrize("prefix", [ONE, LAN])
def test_merged_replaces_a_rule_of_its_own_source(prefix: Prefix) -> None:
    there = {prefix: Rule(Answer.NEVER, owned=True), TWO: Rule()}
    assert merge({prefix: Rule()}, there, replacing=True) == {
        prefix: Rule(owned=True),
        TWO: Rule(),
    }
    with pytest.raises(NdxdpError, match=f"^{prefix} has a rule already: never, by 'wg0'"):
        merge({prefix: Rule()}, {prefix: Rule(Answer.NEVER, origin="wg0")}, replacing=True)


def test_with_holes() -> None:
    kept = {TWO: owned_rule("gateway"), LAN: Rule()}
    assert merge_owned({ONE: Rule()}, kept, {ONE: "own", GATEWAY: "gateway"}) == {
        LAN: Rule(),
        ONE: Rule(owned=True),
        GATEWAY: owned_rule("gateway"),
    }
