"""The lists that follow an event of a container engine: of the container, rarely of all."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from typing import cast

import pytest

from ndxdp.daemon.container_rules import ContainerRules
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.daemon.uplink import Uplink
from ndxdp.daemon.wanted_rules import WantedRules
from ndxdp.rules.rule import DOCKER_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.session.request import AttachOptions
from ndxdp.sources import agenda, docker, engine_api
from ndxdp.sources.agenda import ALL, Agenda
from ndxdp.sources.answers import Endpoint, Listed, container_of
from ndxdp.sources.inventory import Inventory
from ndxdp.sources.selector import Selector, rules_after, rules_of
from tests.fixtures.fake_engine import Fake, container, id_of, network
from tests.fixtures.network import eventually
from tests.fixtures.watching import Watching, endpoint, watching

# ---- pure ----------------------------------------------------------------------------------------


def test_a_container_is_listed_and_then_twice_more() -> None:
    agenda = Agenda()
    assert agenda.next_due is None
    agenda.add("a", 10)
    agenda.add("b", 10.02)
    assert agenda.next_due == 10
    assert agenda.take(9) == set()
    assert agenda.take(10) == {"a", "b"}  # one request is about both
    assert agenda.next_due == 10.5
    agenda.add("a", 10.1)
    assert agenda.take(10.1) == {"a"}
    assert agenda.take(10.6) == {"a", "b"}
    assert agenda.take(12.1) == {"a", "b"}
    assert agenda.next_due is None


def test_a_container_that_starts_again_and_again_is_not_put_off() -> None:
    agenda = Agenda()
    for at in range(100):
        agenda.add("a", 10 + at)
    assert agenda.next_due == 10


def test_a_check_is_one_list() -> None:
    agenda = Agenda()
    agenda.add_once(ALL, 300)
    agenda.add_once(ALL, 200)
    assert agenda.next_due == 300
    agenda.add(ALL, 250)  # an event that names no container
    assert agenda.take(250) == {ALL}
    agenda.add_once(ALL, 900)  # its repetitions are checks as well
    assert [agenda.take(at) for at in (250.5, 252)] == [{ALL}, {ALL}]
    assert agenda.next_due is None
    agenda.add_once(ALL, 900)
    assert (agenda.take(900), agenda.next_due) == ({ALL}, None)


@pytest.mark.parametrize(
    ("event", "found"),
    [
        ({"Type": "container", "Actor": {"ID": "a"}}, "a"),
        ({"Type": "network", "Actor": {"ID": "n", "Attributes": {"container": "a"}}}, "a"),
        ({"Type": "network", "Actor": {"ID": "n", "Attributes": {"name": "six"}}}, None),  # Podman
        ({"Type": "network", "Actor": {"ID": "n", "Attributes": None}}, None),
        ({"Type": "container", "Actor": {"ID": ""}}, None),
        ({"Type": "container", "Actor": {"ID": 1}}, None),
        ({"Type": "container", "Actor": {"ID": "a" * 1000}}, None),
        ({"Type": "container", "Actor": "a"}, None),
        ({"Type": "container"}, None),
    ],
)
def test_the_container_of_an_event(event: dict[str, object], found: str | None) -> None:
    assert container_of(event) == found


def listed(container_id: str, *endpoints: Endpoint) -> list[Listed]:
    return [Listed(container_id, "id-six", each) for each in endpoints]


def test_a_list_of_some_containers_changes_only_them() -> None:
    inventory = Inventory()
    one, two, moved = endpoint("2001:db8::1"), endpoint("2001:db8::2"), endpoint("2001:db8::3")
    assert inventory.update([*listed("a", one), *listed("b", two)]) == {
        one.address: (one,),
        two.address: (two,),
    }
    assert inventory.update(listed("a", one), {"a"}) == {}
    assert inventory.update(listed("a", moved), {"a"}) == {
        one.address: (),
        moved.address: (moved,),
    }
    # Nothing is known of a container that is asked for in vain; one that is not asked for stays.
    assert inventory.update(listed("b"), {"a", "c"}) == {moved.address: ()}
    assert inventory.update(listed("d", one), {"c"}) == {}
    assert inventory.by_address == {two.address: (two,)}
    assert inventory.update([]) == {two.address: ()}


def test_an_address_that_passes_from_one_container_to_another() -> None:
    old, new = endpoint("2001:db8::1", "old"), endpoint("2001:db8::1", "new")
    inventory = Inventory()
    inventory.update(listed("a", old))
    # The start of the second one is reported before the end of the first one.
    assert inventory.update(listed("b", new), {"b"}) == {old.address: (old, new)}
    assert inventory.update([], {"a"}) == {old.address: (new,)}
    assert inventory.by_address == {old.address: (new,)}


def test_changes_make_the_same_rules_as_the_whole() -> None:
    """Make the same rules from changes as from complete lists, for random containers."""
    random.seed(17)
    selectors = [Selector(network="six"), Selector(container_label="a"), Selector(network="seven")]
    inventory, rules = Inventory(), rules_of([], selectors)
    for _ in range(300):
        asked = {random.choice("abcdefgh") for _ in range(random.randrange(1, 4))}
        found = [
            Listed(
                each,
                "",
                endpoint(
                    f"2001:db8::{random.randrange(6):x}",
                    each,
                    random.choice(["six", "seven", "eight"]),
                    labels=random.choice([{}, {"a": ""}]),
                ),
            )
            for each in asked
            for _ in range(random.randrange(3))
        ]
        change = inventory.update(found, asked)
        rules = rules_after(change, rules, selectors)
        present = [each for some in inventory.by_address.values() for each in some]
        assert rules == rules_of(present, selectors)


# ---- requests ------------------------------------------------------------------------------------


@pytest.fixture
def settled(fake: Fake) -> Fake:
    """Yield an engine with a thousand containers."""
    fake.containers = [container(number, note="x" * 100) for number in range(1, 1001)]
    return fake


def settle(fake: Fake, watcher: Watching) -> None:
    """Wait until the lists that follow the connection are done."""
    eventually(lambda: watcher.sets)
    eventually(lambda: fake.answered.count("json") == 3, within=5)
    assert fake.named == [None] * 3
    fake.named.clear()
    fake.requests.clear()
    fake.answered.clear()
    fake.sent = 0


def test_an_event_lists_its_container_alone(settled: Fake) -> None:
    with watching(settled.path) as watcher:
        settle(settled, watcher)
        settled.containers.append(container(2000))
        settled.send_network_event("connect", number=2000)
        settled.send_event_of(2000)
        eventually(lambda: len(watcher.sets) == 2)
        assert len(watcher.sets[-1]) == 1001
        eventually(lambda: settled.answered.count("json") == 3, within=5)
        assert settled.named == [[id_of(2000)]] * 3
        assert set(settled.requests) == {"/v1.44/containers/json"}  # the network is known
        assert settled.sent < 3 * len(json.dumps([container(2000, note="x" * 100)])) + 100

        settled.containers.pop()
        settled.send_event_of(2000, action="die")
        eventually(lambda: len(watcher.sets) == 3)
        assert len(watcher.sets[-1]) == 1000
        assert settled.named[3:] == [[id_of(2000)]]


def test_events_of_several_containers_are_one_list(settled: Fake) -> None:
    with watching(settled.path) as watcher:
        settle(settled, watcher)
        numbers = range(2000, 2100)
        settled.containers += [container(number) for number in numbers]
        for number in numbers:
            settled.send_event_of(number)
        eventually(lambda: len(watcher.sets[-1]) == 1100)
        ids = [each for some in settled.named for each in some or []]
        assert set(ids) == {id_of(number) for number in numbers}
        assert None not in settled.named
        # A request is about 64 at most, which a proxy can read.
        assert max(len(some or []) for some in settled.named) <= 64


def test_very_many_events_list_all(settled: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "_SOME_MAX", 20)
    with watching(settled.path) as watcher:
        settle(settled, watcher)
        settled.send_event_of(*range(1, 31), action="die")
        settled.containers = settled.containers[30:]
        eventually(lambda: len(watcher.sets[-1]) == 970)
        assert None in settled.named


@pytest.mark.parametrize(
    "event",
    [
        {"Type": "network", "Action": "connect", "Actor": {"ID": id_of(3), "Attributes": {}}},
        {"Type": "container", "Action": "start"},
        {"Type": "container", "Action": "start", "Actor": {"ID": 7}},
    ],
    ids=["Podman", "no actor", "no text"],
)
def test_an_event_that_names_no_container_lists_all(fake: Fake, event: dict[str, object]) -> None:
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.containers = [container(3)]
        fake.send_event(event)
        watcher.becomes({"2001:db8::3": "six"})
        assert fake.named[0] is None


def test_a_lost_event_is_mended_by_a_check(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "_CHECK_AFTER", 0.4)
    monkeypatch.setattr(docker, "_CHECK_SHARE", 0)
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.containers = [container(3)]
        watcher.becomes({"2001:db8::3": "six"}, within=20)
        before = len(fake.named)
        eventually(lambda: len(fake.named) > before + 2, within=5)
        assert set(map(str, fake.named)) == {"None"}


def test_a_slow_engine_is_listed_rarely(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "_CHECK_AFTER", 0.01)

    def slow(connection: socket.socket) -> None:
        time.sleep(0.05)
        fake.send(connection, json.dumps(fake.containers).encode())

    fake.replies["json"] = slow
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        time.sleep(1)
        assert fake.named == []


# ---- what may happen -----------------------------------------------------------------------------


def test_a_container_in_several_networks(fake: Fake) -> None:
    fake.networks = [network("six"), network("seven", "2001:db8:1::/64", kind="b")]
    fake.containers = [container(2)]
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.containers = [container(2, "six", "seven")]
        fake.send_network_event("connect", "seven", 2)
        watcher.becomes({"2001:db8::2": "six", "2001:db8:1::2": "seven"})
        fake.containers = [container(2, "seven")]
        fake.send_network_event("disconnect", "six", 2)
        watcher.becomes({"2001:db8::2": "seven"})
        (one,) = watcher.sets[-1]
        assert one.network_labels == (("kind", "b"),)
        assert None not in fake.named


class Selecting:
    """The part of an uplink that takes the rules of containers."""

    def __init__(self, *selectors: Selector) -> None:
        self.spec = InterfaceSpec("up0", AttachOptions(), Rules(), selectors=selectors)
        self.rules = WantedRules(lambda: None)

    def chosen(self) -> set[str]:
        """Return the addresses that are answered for."""
        return {str(prefix) for prefix in self.rules.get(DOCKER_ORIGIN) or Rules()}


def test_a_container_that_starts_during_a_reload(fake: Fake) -> None:
    """Choose no container without the labels by which the new selectors exclude it."""
    fake.containers = [container(2)]
    uplink = Selecting(Selector(network="six"))

    async def main() -> None:
        rules = ContainerRules(DaemonStatus(), lambda: [cast(Uplink, uplink)])
        rules.watch(str(fake.path), uplink.spec.selectors)
        while uplink.chosen() != {"2001:db8::2"} or fake.lists() < 3:
            await asyncio.sleep(0.01)
        uplink.spec = Selecting(Selector(network="six", except_label="hidden")).spec
        rules.apply_to(cast(Uplink, uplink))
        fake.containers.append(container(3, hidden=""))
        fake.send_event_of(3)
        while fake.lists() < 5:
            await asyncio.sleep(0.01)
        assert uplink.chosen() == {"2001:db8::2"}
        rules.watch(str(fake.path), uplink.spec.selectors)
        fake.containers.append(container(4))
        while uplink.chosen() != {"2001:db8::2", "2001:db8::4"}:
            await asyncio.sleep(0.01)
        rules.end()
        await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_events_in_the_wrong_order_and_of_removed_containers(fake: Fake) -> None:
    """Take the facts from the list: an event only says that something has changed."""
    fake.containers = [container(2), container(3)]
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.containers = [container(3), container(4)]
        fake.send_event_of(4, action="destroy")
        fake.send_event_of(4, action="die")
        fake.send_event_of(2, action="start")
        fake.send_event_of(9, action="start")
        watcher.becomes({"2001:db8::3": "six", "2001:db8::4": "six"})
        fake.send_event_of(3, action="die")
        fake.send_event_of(3, action="pause")
        eventually(lambda: sum(id_of(3) in (some or []) for some in fake.named) == 3, within=5)
        assert watcher.addresses() == {"2001:db8::3": "six", "2001:db8::4": "six"}
        assert None not in fake.named


def test_a_renamed_container(fake: Fake) -> None:
    fake.containers = [container(2)]
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.containers[0]["Names"] = ["/shop"]
        fake.send_event_of(2, action="rename")
        eventually(lambda: {one.container for one in watcher.sets[-1]} == {"shop"})
        assert None not in fake.named


def test_a_list_that_lags_behind_its_event(fake: Fake) -> None:
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.send_network_event("connect", number=2)
        eventually(lambda: fake.lists() == 1)
        fake.containers = [container(2)]
        watcher.becomes({"2001:db8::2": "six"})
        assert None not in fake.named


def test_an_event_while_its_container_is_listed(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """List a container again if an event arrives in between: the answer may be older."""

    def late(connection: socket.socket) -> None:
        del fake.replies["json"]
        body = json.dumps(fake.containers).encode()
        fake.containers = [container(2)]
        fake.send_event_of(2)
        time.sleep(0.1)
        fake.send(connection, body)

    with watching(fake.path) as watcher:
        settle(fake, watcher)
        monkeypatch.setattr(agenda, "_REPEAT", (60.0, 60.0))  # would mend it otherwise
        fake.replies["json"] = late
        fake.send_event_of(2)
        watcher.becomes({"2001:db8::2": "six"})


def test_a_new_network_is_listed_alone(fake: Fake) -> None:
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.networks.append(network("seven", kind="b"))
        fake.containers = [container(2, "seven")]
        before = fake.sent
        fake.send_event_of(2)
        eventually(lambda: len(watcher.sets) == 2)
        (one,) = watcher.sets[-1]
        assert one.network_labels == (("kind", "b"),)
        assert fake.sent - before < len(json.dumps(fake.networks)) + 1500
        assert fake.requests.count("/v1.44/networks") == 1


@pytest.mark.parametrize("event", ["destroy", "remove"])
def test_a_network_that_is_replaced(fake: Fake, event: str) -> None:
    """Notice a network that was replaced in Podman, whose ids are names, by its event."""
    fake.networks = [network("six", kind="old")]
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.send_network_event(event)
        fake.networks = [network("six", kind="new")]
        fake.containers = [container(2)]
        fake.containers[0]["NetworkSettings"]["Networks"]["six"]["NetworkID"] = "six"
        fake.send_event_of(2)
        eventually(lambda: len(watcher.sets) == 2)
        (one,) = watcher.sets[-1]
        assert one.network_labels == (("kind", "new"),)
        assert None not in fake.named


def test_a_network_that_is_gone_when_it_is_listed(fake: Fake) -> None:
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.containers = [container(2, "gone")]
        fake.send_event_of(2)
        eventually(lambda: len(watcher.sets) == 2)
        (one,) = watcher.sets[-1]
        assert (one.network, one.network_labels, one.subnets) == ("gone", (), ())


def test_a_proxy_that_ignores_filters(fake: Fake) -> None:
    def all_of_them(connection: socket.socket) -> None:
        fake.send(connection, json.dumps(fake.containers).encode())

    fake.containers = [container(2)]
    fake.replies["json"] = all_of_them
    with watching(fake.path) as watcher:
        eventually(lambda: watcher.sets)
        eventually(lambda: fake.lists() == 3, within=5)
        fake.containers = [container(3), container(4)]
        fake.send_event_of(3)
        watcher.becomes({"2001:db8::2": "six", "2001:db8::3": "six"})


def test_containers_that_changed_while_the_engine_was_down(fake: Fake) -> None:
    fake.containers = [container(2), container(3)]
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.containers = [container(3), container(4)]
        fake.cut()
        watcher.becomes({"2001:db8::3": "six", "2001:db8::4": "six"})
        assert fake.named[0] is None
        eventually(lambda: fake.lists() == 3, within=5)
        fake.containers.append(container(5))
        fake.send_event_of(5)
        eventually(lambda: len(watcher.sets[-1]) == 3)
        assert fake.named[3:] == [[id_of(5)]]


def test_single_starts_exceed_the_limit(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disconnect if containers that start one by one exceed the limit of a list."""
    monkeypatch.setattr(engine_api, "_ADDRESSES_MAX", 3)
    fake.containers = [container(number) for number in (1, 2, 3)]
    with watching(fake.path) as watcher:
        settle(fake, watcher)
        fake.containers.append(container(4))
        fake.send_event()
        eventually(lambda: not watcher.docker.connected)
        assert len(watcher.sets[-1]) == 3
