"""Rule classes: more than the arrays hold, and the output interfaces that several of them name."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ndxdp.errors import Damaged, NdxdpError
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.kernel.libbpf import BpfError
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.rules.difference import Difference, difference
from ndxdp.rules.interface_name import matches_dev, matching_dev
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule, RuleClass
from ndxdp.rules.ruleset import Rules
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_instance
from ndxdp.store.maps import Maps
from ndxdp.store.records import dev_set_of, label_of, origin_of
from tests.fixtures.network import (
    UPLINK,
    Network,
    done,
    eventually,
    explain,
    status,
)

_FIRST = abi.FIRST_RULE_CLASSES


@pytest.fixture(params=["kernel", "files"])
def maps(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Maps]:
    """Yield empty maps, in the kernel or in files."""
    with Maps.create() if request.param == "kernel" else Maps.create_files(tmp_path) as made:
        yield made


def address(number: int) -> bytes:
    return (0x20010DB8 << 96 | number).to_bytes(16, "big")


def of_labels(numbers: range) -> Rules:
    """Return a rule with a class of its own for each number."""
    return Rules(wider={Prefix(address(n << 64), 64): Rule(label=str(n)) for n in numbers})


def write(maps: Maps, rules: Rules) -> None:
    """Make these the only rules."""
    maps.apply(difference(rules, maps.rules()), maps.rules())


# ---- more than the arrays hold -------------------------------------------------------------------


def test_classes_beyond_the_first(maps: Maps) -> None:
    every = of_labels(range(_FIRST + 300))
    write(maps, every)
    assert maps.rules() == every
    classes = maps.rule_classes()
    assert len(classes) == len(every)
    assert max(classes) >= _FIRST
    assert maps.rule_classes_at([0, _FIRST + 1, 60_000]) == {
        slot: classes[slot] for slot in (0, _FIRST + 1)
    }
    counted = maps.rule_count()
    assert counted.prefixes == len(every)
    assert set(counted.classes) == set(classes)
    assert {slot: (origin_of(data), label_of(data)) for slot, data in counted.classes.items()} == {
        slot: (each.origin, each.label) for slot, each in classes.items()
    }
    counts = maps.class_counts()
    assert {each.label for each in counts} == {str(n) for n in range(_FIRST + 300)}
    assert {(each.rules, each.solicited) for each in counts} == {(1, 0)}


def test_slots_without_rules_are_used_before_more_memory(maps: Maps) -> None:
    write(maps, of_labels(range(_FIRST)))
    write(maps, of_labels(range(10)))
    write(maps, of_labels(range(5000, 5500)))
    assert max(maps.rule_classes()) < _FIRST
    assert maps.rules() == of_labels(range(5000, 5500))


def test_a_slot_that_is_used_again_counts_from_zero(maps: Maps) -> None:
    write(maps, of_labels(range(_FIRST + 2)))
    counters = maps.slots("group_counters")
    one = struct.pack("=3Q", 1, 1, 1)
    counters.update((slot, one * (counters.value_size // len(one))) for slot in maps.rule_classes())
    assert all(each.solicited for each in maps.class_counts())
    write(maps, of_labels(range(2)))
    write(maps, of_labels(range(10_000, 10_000 + _FIRST)))
    fresh = [each for each in maps.class_counts() if int(each.label) >= 10_000]
    assert len(fresh) == _FIRST
    assert {each.solicited for each in fresh} == {0}


def test_no_class_is_left_after_a_failure(tmp_path: Path) -> None:
    """Leave neither a class nor a rule if the table of addresses has no room."""
    for made in (Maps.create(2), Maps.create_files(tmp_path, 2)):
        with made as maps:
            there = of_labels(range(_FIRST))
            write(maps, there)
            new = Rules.of({Prefix(address(n), 128): Rule(label=f"new {n}") for n in range(3)})
            assert maps._change(Difference(new, Rules()), Rules()) is not None
            assert maps.rules() == there
            assert max(maps.rule_classes()) < _FIRST


@pytest.mark.parametrize("name", ["more_counters", "more_classes", "dev_sets"])
def test_no_class_is_left_if_memory_is_short(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Change nothing, and say why, if there is no memory for a class or its output interfaces."""
    update = KernelMap.update

    def short(self: KernelMap, keys: bytes, values: bytes) -> None:
        if self.spec.name == name:
            raise BpfError(errno.ENOMEM, "bpf_map_update_elem")
        update(self, keys, values)

    new = Rules.of({Prefix(address(7), 128): routed("new", "tap*")})
    with Maps.create() as maps:
        there = of_labels(range(_FIRST))
        write(maps, there)
        monkeypatch.setattr(KernelMap, "update", short)
        for write_them, present in ((maps.apply, there), (maps.apply_at, Rules())):
            with pytest.raises(NdxdpError, match="no rule was changed"):
                write_them(Difference(new, Rules()), present)
            assert maps.rules() == there
            assert max(maps.rule_classes()) < _FIRST


def test_a_file_that_was_truncated(tmp_path: Path) -> None:
    with Maps.create_files(tmp_path) as maps:
        write(maps, of_labels(range(_FIRST + 300)))
    file = tmp_path / "groups"
    for size in (file.stat().st_size - 1, 10 * abi.RULE_CLASS.size):
        with file.open("r+b") as opened:
            opened.truncate(size)
        with pytest.raises(Damaged):
            Maps.open_files(tmp_path)


@pytest.mark.parametrize("mode", ["generic", "tc", "userspace"])
def test_a_class_beyond_the_first_answers_and_counts(
    net: Network, tmp_path: Path, mode: str
) -> None:
    """Answer, count and explain by a class whose slot is in no array."""
    settings = "".join(
        f'[[interface.prefix]]\nprefix = "2001:db8:{n:x}::/64"\n' for n in range(1, _FIRST + 9)
    )
    config = tmp_path / "ndxdp.toml"
    config.write_text(
        f'[[interface]]\nname = "{UPLINK}"\nmode = "{mode}"\non_stop = "detach"\n{settings}'
    )
    done("check", "-c", str(config))
    run = net.run("-c", str(config))
    try:
        tree = Trees().files if mode == "userspace" else Trees().pins
        with open_instance(tree, UPLINK) as instance:
            slots = {each.label: n for n, each in instance.maps.rule_classes().items()}
        label = next(each for each, slot in slots.items() if slot >= _FIRST and "::/64" in each)
        target = label.replace("::/64", "::1")
        assert net.answers(target)
        eventually(lambda: counted(label) == (1, 1))
        assert explain(target)["rule"]["prefix"] == label
    finally:
        run.end()


def counted(label: str) -> tuple[int, int]:
    """Return what the class with a label counted: solicitations, answers."""
    (found,) = [each for each in status()["groups"] if each["label"] == label]
    return found["solicited"], found["answered"]


@pytest.mark.parametrize("at_once", [1, 7])
def test_memory_that_the_kernel_has_a_moment_later(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Continue with a batch, or repeat an update, that found no memory."""
    tried: list[int] = []
    call = libbpf.call

    def short(name: str, *arguments: Any) -> int:
        if name not in ("bpf_map_update_batch", "bpf_map_update_elem"):
            return call(name, *arguments)
        tried.append(0)
        if len(tried) % 2:
            if name == "bpf_map_update_batch":
                count = arguments[3]._obj
                count.value = 3 if len(tried) == 1 else 0
                call(name, *arguments)
            raise BpfError(errno.ENOMEM, name)
        return call(name, *arguments)

    with contextlib.closing(KernelMap.create(abi.HASHES["more_counters"])) as made:
        keys = b"".join(struct.pack("=I", n) for n in range(at_once))
        values = b"".join(bytes([n]) * made.value_size for n in range(at_once))
        monkeypatch.setattr(bpf_maps, "call", short)
        made.update(keys, values)
        monkeypatch.undo()
        assert {key: value[0] for key, value in made.items()} == {
            struct.pack("=I", n): n for n in range(at_once)
        }
    assert len(tried) == 2


def test_memory_that_the_kernel_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf_maps, "_WAIT", 0)

    def full(name: str, *arguments: Any) -> int:
        if name == "bpf_map_update_batch":
            arguments[3]._obj.value = 0
        raise BpfError(errno.ENOMEM, name)

    with contextlib.closing(KernelMap.create(abi.HASHES["more_counters"])) as made:
        monkeypatch.setattr(bpf_maps, "call", full)
        for count in (1, 5):
            with pytest.raises(BpfError) as caught:
                made.update(bytes(4 * count), bytes(made.value_size * count))
            assert caught.value.errno == errno.ENOMEM


# ---- output interfaces ---------------------------------------------------------------------------


def routed(label: str, *dev: str) -> Rule:
    return Rule(Answer.ROUTED, Profile(), label=label, dev=dev)


def test_classes_share_their_output_interfaces(maps: Maps) -> None:
    """Have one number for each set of output interfaces, however many classes name it."""
    rules = {
        Prefix(address(n << 64), 64): routed(str(n), *("tap*", f"br{n % 3}")) for n in range(300)
    }
    write(maps, Rules(wider=rules))
    assert sorted(maps.dev_sets().values()) == [("tap*", f"br{n}") for n in range(3)]
    assert maps.rules() == Rules(wider=rules)


def test_output_interfaces_that_no_class_names_are_removed(maps: Maps) -> None:
    for n in range(abi.FIRST_RULE_CLASSES + 10):
        rule = {Prefix(address(0), 64): routed("one", f"tap{n}")}
        maps.apply(difference(Rules(wider=rule), maps.rules()), maps.rules())
    # Classes without rules stay in their slots until these are needed.
    assert 1 <= len(maps.dev_sets()) <= abi.FIRST_RULE_CLASSES + 1
    assert set(map(dev_set_of, maps._packed_classes().values())) <= set(maps.dev_sets())
    assert maps.rules() == Rules(wider=rule)


def test_each_set_has_its_interfaces_once() -> None:
    """Write a pair for each set and interface, not for each rule class and interface."""
    names = [(n, f"tap{n}") for n in range(1, 401)] + [(900, "eth0")]
    sets = [("tap*",), ("tap1?",), ("tap7", "eth*"), ("tap400", "no*such")]
    rules = {
        Prefix(address(n << 64), 64): routed(str(n), *sets[n % len(sets)]) for n in range(2000)
    }
    with Maps.create() as maps:
        write(maps, Rules(wider=rules))
        maps.sync_dev_ifindexes(names)
        found: dict[tuple[str, ...], set[int]] = {}
        for key, _ in maps._maps["vias"].items():
            fields = abi.DEV.unpack(key)
            found.setdefault(maps.dev_sets()[fields["dev_set"]], set()).add(fields["ifindex"])
    assert found == {
        ("tap*",): set(range(1, 401)),
        ("tap1?",): set(range(10, 20)),
        ("tap7", "eth*"): {7, 900},
        ("tap400", "no*such"): {400},
    }


def test_a_class_whose_output_interfaces_are_missing_is_damaged(maps: Maps) -> None:
    write(maps, Rules(wider={Prefix(address(0), 64): routed("one", "tap0")}))
    maps._maps["dev_sets"].delete(struct.pack("=I", *maps.dev_sets()))
    with pytest.raises(Damaged):
        maps.rules()


def test_matching_names() -> None:
    """Find by lookup what a comparison with each name finds."""
    names = ["eth0", "tap1", "tap10", "tap[1]", "br-*", "TAP1", "a|b", ""]
    devs = [
        ("eth0",),
        ("tap*",),
        ("tap[1]",),
        ("tap?", "eth*"),
        ("br-*",),
        ("none",),
        ("a|b", "*0"),
    ]
    for dev in devs:
        assert matching_dev(names, dev) >= {each for each in names if matches_dev(each, dev)}
        literal = {each for each in dev if each in names}
        assert matching_dev(names, dev) - literal <= {
            each for each in names if matches_dev(each, dev)
        }


def test_a_class_is_found_again_by_its_bytes(maps: Maps) -> None:
    """Give an equal class its slot, and not a second one."""
    rules = Rules(wider={Prefix(address(0), 64): routed("ä" * 24, "tap*")})
    write(maps, rules)
    more = Rules(wider={Prefix(address(1 << 64), 64): routed("ä" * 24, "tap*")})
    maps.apply_at(Difference(more, Rules()), maps.rules_at(more))
    assert list(maps.rule_classes().values()) == [RuleClass.of(routed("ä" * 24, "tap*"))]
