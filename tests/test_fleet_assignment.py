"""The order of hosts for shared addresses, and the values and small parts that lead to it."""

from __future__ import annotations

import hashlib
import itertools
import json
import random

import pytest

from ndxdp.config.shared_value import SharedValueReader
from ndxdp.errors import UsageError
from ndxdp.fleet import assignment
from ndxdp.fleet.alarms import Alarms
from ndxdp.fleet.assignment import Candidates
from ndxdp.fleet.handover import Reservations, Window
from ndxdp.fleet.records import Holder, decode_holder, encode, encode_holder
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.fleet.unheld import why_unheld
from ndxdp.rules.precedence import Precedence
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.rules.rule import SHARED_ORIGIN, UNCOUNTED, Rule
from tests.test_etcd_values import SAME

ONE = parse_prefix("2001:db8::1")
TWO = parse_prefix("2001:db8::2")
ANY = SharedAddress(ONE, Rule())

# ---- the value -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [each for each in SAME if each.get("answer") != "never"])
def test_a_value_is_a_rule_with_hosts(keys: dict[str, object]) -> None:
    read = SharedValueReader("vlan7").read
    for more in ({}, {"hosts": ["b", "a.x:1"], "failback": True}, {"failback": False}):
        found = read(json.dumps({"prefix": "2001:db8::1", **keys, **more}).encode())
        assert found.prefix == ONE
        assert found.rule.origin == SHARED_ORIGIN
        assert found.rule.label == ("vlan7" if keys.get("count", True) else UNCOUNTED)
        assert not found.rule.leased
        assert found.force == (keys.get("force") is True)
        assert found.hosts == tuple(more.get("hosts", ()))  # type: ignore[arg-type]
        assert found.failback is more.get("failback", False)


def test_values_that_differ_in_the_prefix_only_share_a_rule() -> None:
    read = SharedValueReader("vlan7").read
    one = read(b'{"prefix": "2001:db8::1", "hosts": ["a"], "failback": true}')
    two = read(b'{"prefix": "2001:db8::2", "hosts": ["a"], "failback": true}')
    assert two == one._replace(prefix=TWO)
    assert two.rule is one.rule
    assert read(b'{"prefix": "2001:db8::2", "hosts": ["b"], "failback": true}').hosts == ("b",)


WRONG = {
    '{"hosts": ["a"]}': "prefix: this key is missing",
    '{"prefix": "2001:db8::1", "hosts": []}': "hosts: this names no host",
    '{"prefix": "2001:db8::1", "hosts": "a"}': "hosts: a string, not an array",
    '{"prefix": "2001:db8::1", "hosts": [7]}': "hosts[0]: an integer, not a string",
    '{"prefix": "2001:db8::1", "hosts": ["a/b"]}': "'a/b' is not the name of a host",
    '{"prefix": "2001:db8::1", "hosts": ["a", "b", "a"]}': "hosts[2]: a is given twice",
    '{"prefix": "2001:db8::1", "failback": 1}': "failback: an integer, not true or false",
    '{"prefix": "2001:db8::1", "answer": "never"}': "answer: no host would answer",
    '{"prefix": "::/0"}': "nearly every address",
    '{"prefix": "2001:db8::1", "file": "x"}': "file: the value has no such key",
    "[]": "an array, not a JSON object",
}


@pytest.mark.parametrize("value", WRONG)
def test_a_wrong_value(value: str) -> None:
    with pytest.raises(UsageError) as raised:
        SharedValueReader("vlan7").read(value.encode())
    assert WRONG[value] in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint


def test_the_value_of_a_holder() -> None:
    for holder in (Holder("h1", 5.5, "2001:db8::1", True), Holder("h1", 0.0)):
        assert decode_holder(encode_holder(holder)) == holder
    assert decode_holder(encode(host="h1", since=1.0)) == Holder("h1", 1.0, "", False)
    assert decode_holder(b'{"host": 1, "prefix": 2, "moved": 1}') == Holder("", 0.0, "", False)


# ---- the order -----------------------------------------------------------------------------------


def candidates(*hosts: str) -> Candidates:
    found = Candidates("vlan7")
    for number, host in enumerate(hosts):
        found.add(host, float(number))
    return found


def score(host: str, name: str) -> bytes:
    """Return the score as the documentation describes it."""
    return hashlib.blake2b(f"{host}\0vlan7\0{name}".encode(), digest_size=8).digest()


def test_the_documented_score() -> None:
    hosts = [f"node{number}" for number in range(9)]
    several = candidates(*hosts)
    for name in ("web", "db", "mail", "ü", ""):
        by_hand = sorted(hosts, key=lambda host: (score(host, name), host), reverse=True)
        assert several.order(name, ANY) == by_hand
    assert candidates("node1", "node2", "node3").order("web", ANY) == ["node2", "node3", "node1"]


@pytest.mark.parametrize(
    ("hosts", "able", "members", "problem"),
    [
        ("", "", "", "no host is a member of the segment"),
        ("a", "", "", "no host is a member of the segment"),
        ("", "", "ab", "all members of the segment are drained"),
        ("", "b", "ab", ""),
        ("ab", "b", "abc", ""),
        ("cab", "d", "abd", "all of its hosts that are members are drained: a, b"),
        ("ab", "c", "c", "none of its hosts is a member: a, b"),
        ("abcdefg", "x", "x", "none of its hosts is a member: a, b, c, d, e and 2 more"),
    ],
)
def test_why_no_host_can_answer(hosts: str, able: str, members: str, problem: str) -> None:
    assert why_unheld(tuple(hosts), set(able), set(members)) == problem
    assert why_unheld(tuple(hosts), candidates(*able), candidates(*members)) == problem


def test_each_view_of_the_order_is_the_same() -> None:
    rng = random.Random(1)
    for number in range(200):
        hosts = [f"h{each}" for each in range(rng.randint(1, 7))]
        several = candidates(*rng.sample(hosts, rng.randint(1, len(hosts))))
        chosen = tuple(rng.sample(hosts, rng.randint(0, len(hosts))))
        address = ANY._replace(hosts=chosen)
        moved_to = rng.choice([*hosts, "", "h99"])
        name = f"n{number}"
        order = several.order(name, address, moved_to)
        assert len(set(order)) == len(order)
        assert set(order) == {each for each in several.since if not chosen or each in chosen}
        for place, host in enumerate(order):
            ahead = list(several.ahead(host, name, address, moved_to))
            assert sorted(ahead) == sorted(order[:place])
        plain = several.order(name, address)
        for one, other in itertools.permutations(plain, 2):
            earlier = plain.index(one) < plain.index(other)
            assert several.precedes(one, other, name, address) is earlier
        for host in several.since:
            assert several.has_other(host, address) is bool(set(order) - {host})
            assert several.may_have(host, address) is (host in order)


def test_a_host_that_is_no_candidate_has_a_place_all_the_same() -> None:
    several = candidates("h2", "h3", "h4", "h5")
    everybody = candidates("h1", "h2", "h3", "h4", "h5").order("web", ANY)
    assert set(several.ahead("h1", "web", ANY)) == set(everybody[: everybody.index("h1")])


def test_hosts_get_as_many_and_a_loss_moves_its_own_only() -> None:
    several = candidates(*(f"h{number}" for number in range(10)))
    names = [f"n{number}" for number in range(2000)]
    before = {name: several.order(name, ANY)[0] for name in names}
    counts = [list(before.values()).count(host) for host in several.since]
    assert 150 < min(counts) <= max(counts) < 250
    several.remove("h4")
    for name in names:
        now = several.order(name, ANY)[0]
        assert now != "h4"
        assert before[name] in (now, "h4")


def test_to_know_that_another_host_is_ahead_costs_few_hashes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    several = candidates(*(f"h{number}" for number in range(1000)))
    found = 0
    hashed: list[bytes] = []
    real = assignment._score

    def count(begun: hashlib.blake2b, packed: bytes) -> bytes:
        hashed.append(packed)
        return real(begun, packed)

    monkeypatch.setattr(assignment, "_score", count)
    for number in range(200):
        found += next(several.ahead("h0", f"n{number}", ANY), None) is not None
    assert found > 190
    assert len(hashed) < 200 * 20


# ---- small parts ---------------------------------------------------------------------------------


def test_the_oldest_key_with_a_prefix_is_in_force() -> None:
    rng = random.Random(2)
    keys: dict[str, tuple[int, Prefix]] = {}
    precedence = Precedence()

    def winners() -> dict[str, str]:
        first: dict[Prefix, tuple[int, str]] = {}
        for name, (created, prefix) in keys.items():
            first[prefix] = min((created, name), first.get(prefix, (created, name)))
        return {name: first[prefix][1] for name, (_, prefix) in keys.items()}

    for _ in range(3000):
        before, name = winners(), f"k{rng.randrange(8)}"
        if rng.random() < 0.4:
            keys.pop(name, None)
            affected = precedence.remove(name)
        else:
            keys[name] = rng.randrange(5), rng.choice([ONE, TWO])
            affected = precedence.put(name, keys[name][1], keys[name][0])
        after = winners()
        changed = {each for each in after if before.get(each) != after[each]}
        assert changed - {name} <= set(affected) <= set(keys)
        for each in keys:
            assert precedence.winner(each) == after[each]
        for prefix in (ONE, TWO):
            names = [each for each in keys if keys[each][1] == prefix]
            assert precedence.in_force(prefix) == (after[names[0]] if names else None)
        assert precedence.prefixes == len({prefix for _, prefix in keys.values()})
        assert len(precedence) == len(keys)
        assert precedence.winner("other") is None


def test_alarms() -> None:
    alarms = Alarms()
    assert alarms.first is None
    alarms.set("a", 5.0)
    alarms.set("b", 3.0)
    alarms.set("a", 9.0)  # there is an earlier one
    alarms.set("b", 2.0)
    assert alarms.first == 2.0
    assert alarms.due(1.9) == []
    assert alarms.due(2.0) == ["b"]
    assert alarms.due(4.9) == []
    assert alarms.due(5.0) == ["a"]
    assert alarms.due(99.0) == []
    alarms.set("a", 100.0)
    assert alarms.due(100.0) == ["a"]


def test_a_window() -> None:
    window = Window()
    for number in range(100):
        assert window.opens is None
        assert window.admits("next")
        window.add(f"n{number}", 10.0 + number)
    assert window.opens == 10.0
    assert not window.admits("next")
    assert window.admits("n5")
    window.add("n0", 200.0)
    assert window.opens == 11.0
    window.discard("n7")
    assert window.admits("next")
    window.expire(12.0)
    assert window.admits("n1")
    window.add("x", 300.0)
    window.expire(109.0)
    window.expire(199.9)


def test_reservations() -> None:
    some = Reservations()
    some.add(ONE, "a", 50, 10.0)
    assert some.against(ONE, "b", 49) == 10.0
    assert some.against(ONE, "b", 50) == 0.0
    assert some.against(ONE, "a", 0) == 0.0
    assert some.against(TWO, "b", 0) == 0.0
    some.add(TWO, "a", 60, 11.0)
    some.add(ONE, "c", 70, 12.0)
    some.expire(11.0)
    assert some.against(TWO, "b", 0) == 0.0
    assert some.against(ONE, "a", 69) == 12.0
    some.expire(12.0)
    assert some.against(ONE, "a", 0) == 0.0
