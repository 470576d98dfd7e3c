"""Learning hosts on a share: limits, floods, and random events."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.message import Solicitation
from ndxdp.rules.prefix import parse_prefix
from ndxdp.sharing.actions import Action, Advertise, Ask, Bind, Unbind
from ndxdp.sharing.recent import Recent
from ndxdp.sharing.searches import CLAIMS, LOOKUPS
from tests.fixtures.learning_world import (
    GATEWAY,
    HOST,
    LATENCY,
    LINK_LOCAL,
    LINKS,
    OTHER,
    OUTSIDE,
    OWN,
    PREFIX,
    ROUTER,
    THIRD,
    UP,
    A,
    B,
    C,
    T,
    World,
    address,
    mac,
)

# ---- limits and floods ---------------------------------------------------------------------------


def test_the_table_is_limited() -> None:
    world = World(max_hosts=4)
    for number in range(16, 22):
        world.use(A, address(number), mac(number))
    world.wait()
    assert len(world.routes) == 4
    assert world.counted == {"learned": 4, "limit": 2}
    before = len(world.done)
    world.use(A, address(30), mac(30))
    world.reply(A, address(31), mac(31))
    world.wait()
    assert len(world.done) == before
    assert world.counted["limit"] == 4


def test_invented_hosts_make_room_for_real_ones() -> None:
    """Forged MACs can fill the table; a claim without room has the silent hosts asked."""
    world = World(max_hosts=40)
    for number in range(16, 36):  # half of them are there
        world.nodes[A, address(number)] = mac(number)
    for number in range(16, 56):
        world.use(A, address(number), mac(number))
    world.wait()
    assert len(world.routes) == 40
    world.wait(60)
    assert len(world.routes) == 40  # nobody needs the room
    world.use(B, address(99))
    assert world.learner.refused["limit"] == 1
    world.wait(5)
    assert len(world.routes) == 20
    assert world.learner.counters["expired"] == 20
    world.learn(B, address(99))
    world.wait(20)
    asked = world.learner.counters["asked"]
    world.wait(200)
    assert world.learner.counters["asked"] <= asked + 21  # by then there is no hurry any more


def test_a_duplicate_is_found_beyond_the_limit() -> None:
    world = World(max_hosts=1)
    world.learn(A, address(99), OTHER)
    world.nodes[UP, T] = GATEWAY
    world.dad(B)
    world.wait()
    assert world.advertised == [(B, T)]
    world.dad(B, address(98))
    world.wait()
    assert world.counted == {"learned": 1, "defended": 1, "limit": 1}


def test_a_host_moves_although_the_table_is_full() -> None:
    world = World(max_hosts=1)
    world.learn(A)
    world.nodes.clear()
    world.learn(B)


def test_the_addresses_of_a_mac_are_limited() -> None:
    world = World(max_hosts_per_mac=4)
    for number in range(16, 22):
        world.use(A, address(number))
    world.use(B, address(30), OTHER)
    world.wait()
    assert len(world.routes) == 5
    assert world.counted == {"learned": 5, "mac_limit": 2}
    world.use(B, address(30))  # it keeps its MAC
    assert world.learner.hosts[address(30)].ifindex == B
    world.use(A, address(16), OTHER)
    world.learn(A, address(40))


def test_ten_thousand_claims_by_one_mac() -> None:
    world = World(max_hosts=4096, max_hosts_per_mac=1024)
    world.learn(B, T, OTHER)
    for number in range(10_000):
        world.learner.solicited(
            world.now, A, Solicitation(address(number + 99), LINK_LOCAL, HOST, HOST)
        )
    assert world.learner.refused["rate"] == 10_000 - 64
    world.now += 0.5
    world.learn(C, address(50), THIRD)
    assert world.routes[T] == B
    assert world.learner.counters["learned"] < 70


def test_a_host_with_all_the_addresses_that_it_may_have_moves() -> None:
    world = World(max_hosts_per_mac=1)
    world.learn(A)
    world.nodes.clear()
    world.learn(B)


def test_all_links_together_are_limited() -> None:
    world = World(max_hosts=4096, max_hosts_per_mac=1024)
    world.do(world.learner.set_links(world.now, UP, frozenset((A, B, C))))  # changes nothing
    for number in range(6000):
        source = mac(number + 99)
        ns = Solicitation(UNSPECIFIED, address(number + 99), source, source)
        world.learner.solicited(world.now, (A, B, C)[number % 3], ns)
    assert world.learner.refused["rate"] == 6000 - 1000
    world.learner.set_links(world.now, UP, frozenset((A, B, C)))
    assert world.dad(A) == []


def test_a_share_with_many_links_searches_less(world: World) -> None:
    """Ask on 40 links together as much as on 4."""
    world.do(world.learner.set_links(world.now, UP, frozenset(range(10, 49))))
    for number in range(1000):
        world.look_up(UP, address(number + 99))
        source = mac(number)
        ns = Solicitation(UNSPECIFIED, address(number + 9999), source, source)
        world.learner.solicited(world.now, 10, ns)
    assert len(world.done) == 20 * 39
    assert world.learner.refused["rate"] == 1000 - 50


def test_a_proxy_upstream_claims_more_learned_hosts_than_one_node_may() -> None:
    """Another host's share checks with its own MAC what its hosts claim, and is answered."""
    world = World(max_hosts=200, max_hosts_per_mac=200)
    hosts = [address(number + 99) for number in range(200)]
    for number, target in enumerate(hosts):
        world.learn(A, target, mac(number // 10 + 99))
    for target in hosts:
        world.dad(UP, target, GATEWAY)
    world.wait()
    assert world.advertised == [(UP, target) for target in hosts]
    assert set(world.routes) == set(hosts)
    for number in range(100):  # addresses that it has no answer for are limited as ever
        world.dad(UP, address(number + 999), GATEWAY)
    assert world.learner.refused["rate"] == 100 - 64


def test_a_link_that_forges_macs_leaves_room_for_others() -> None:
    world = World(max_hosts=4096, max_hosts_per_mac=1024)
    for number in range(10_000):
        source = mac(number + 99)
        world.learner.solicited(
            world.now, A, Solicitation(UNSPECIFIED, address(number + 99), source, source)
        )
    assert world.learner.refused["rate"] == 10_000 - 500
    world.dad(B)
    world.wait()
    assert world.routes[T] == B


def test_a_scan_leaves_hosts_and_other_links_alone(world: World) -> None:
    """Bound the searches of a scan from upstream, which asks nothing on the upstream link."""
    world.learn(A)
    before = len(world.done)
    for number in range(10_000):
        world.look_up(UP, address(number + 99))
    asked = [each for _, each in world.done[before:]]
    assert len(asked) == 3 * LOOKUPS // 2
    assert not any(isinstance(each, Ask) and each.ifindex == UP for each in asked)
    found = address(1 << 20)
    world.nodes[B, found] = OTHER
    world.look_up(C, found)
    world.learn(C, address(1 << 21), THIRD)
    assert world.advertised == [(C, found)]
    assert world.use(A) == []
    assert world.routes == {T: A, found: B, address(1 << 21): C}


def test_memory_is_bounded() -> None:
    """Count what the learner remembers during a flood of every kind of message."""
    world = World(max_hosts=100, max_hosts_per_mac=100)
    learner = world.learner
    for number in range(60_000):
        world.now += 0.0005
        target, source = address(number + 99), mac(number)
        ns = Solicitation(target, address(number * 7 + 99), source, source)
        link = LINKS[number % 4]
        learner.solicited(world.now, link, ns)
        learner.solicited(world.now, link, ns._replace(source=UNSPECIFIED))
        tick = learner.next_tick()
        if tick is not None and tick <= world.now:
            learner.tick(world.now)
        assert len(learner._locator._searches) <= CLAIMS + LOOKUPS
        assert len(learner._locator._searches._steps) <= 2 * (CLAIMS + LOOKUPS)
    assert len(learner.hosts) == 100
    assert len(learner._locator._on_upstream) == 4096
    assert len(learner._locator._absent) <= 4096
    assert len(learner._bindings._moves) <= 4096
    for limiter in (
        learner._locator.rates._mac,
        learner._locator.rates._link,
        learner._locator.rates._lookups,
    ):
        assert len(limiter._spent) <= 1024


def test_a_prefix_of_one_address_has_no_anycast_address(world: World) -> None:
    world.do(world.learner.set_prefixes(world.now, [parse_prefix("2001:db8::10/128")]))
    world.learn(A)


# ---- anything ------------------------------------------------------------------------------------


class Checked(World):
    """A world that remembers what was sent, and checks each action against it.

    Attributes:
        there: Since when a node answers, by link and address.
    """

    def __init__(self) -> None:
        super().__init__(max_hosts=24, max_hosts_per_mac=8, expire=20)
        self.there: dict[tuple[int, bytes], float] = {}
        self.sent: dict[int, tuple[float, int, Solicitation]] = {}

    def solicit(self, link: int, source: bytes, target: bytes, eth_source: bytes) -> None:
        ns = Solicitation(source, target, eth_source, eth_source)
        self.sent[id(ns)] = self.now, link, ns
        self.do(self.learner.solicited(self.now, link, ns))

    def enter(self, link: int, target: bytes, source: bytes) -> None:
        self.nodes[link, target] = source
        self.there[link, target] = self.now

    def leave(self, link: int, target: bytes) -> None:
        self.nodes.pop((link, target), None)
        self.there.pop((link, target), None)

    def do(self, actions: Iterable[Action]) -> list[Action]:
        actions = list(actions)
        for action in actions:
            match action:
                case Advertise(link, ns):
                    # Each answer has its solicitation, is in time, and is the only one.
                    since, by, _ = self.sent.pop(id(ns))
                    assert (by, self.now - since <= 1) == (link, True)
                case Bind(target, link, _):
                    # The other links were asked twice, and nobody there would have answered.
                    asked = [
                        each.ifindex
                        for time, each in self.done
                        if isinstance(each, Ask) and each.target == target
                        if self.now - 0.5 - 1e-9 <= time
                    ]
                    for other in {*LINKS} - {link}:
                        assert asked.count(other) >= 2
                        entered = self.there.get((other, target), self.now)
                        assert self.now - entered <= 0.5 + LATENCY
        return super().do(actions)


@pytest.mark.parametrize("seed", range(40))
def test_anything(seed: int) -> None:
    """Let nodes come, go, move, forge and scan at random; World and Checked have the invariants."""
    random_ = random.Random(seed)
    world = Checked()
    targets = [address(number) for number in range(99, 99 + random_.choice((3, 12, 40)))]
    targets += [OWN, ROUTER, OUTSIDE, PREFIX.address, LINK_LOCAL]
    macs = [mac(number) for number in range(1, 1 + random_.choice((2, 10)))]
    for _ in range(400):
        link, target = random_.choice(LINKS), random_.choice(targets)
        source = random_.choice(macs)
        match random_.randrange(12):
            case 0 | 1:
                world.enter(link, target, source)
            case 2 | 3:
                world.leave(link, target)
            case 4 | 5:
                world.solicit(link, UNSPECIFIED, target, source)
            case 6:
                world.solicit(link, target, random_.choice(targets), source)
            case 7:
                world.solicit(link, LINK_LOCAL, target, source)
            case 8:
                world.reply(link, target, source)
            case 9:
                world.do(world.learner.forget(world.now, target))
            case _:
                world.wait(random_.choice((0, 0.01, 0.1, 0.25, 0.3, 0.6, 1, 5)))
    world.nodes.clear()
    world.there.clear()
    world.wait(60)
    assert not world.routes
    assert world.learner.next_tick() is None
    counters = world.learner.counters
    assert counters["learned"] == sum(
        isinstance(each, Bind) and not each.former for _, each in world.done
    )
    assert counters["moved"] + counters["expired"] + counters["forgotten"] == sum(
        isinstance(each, Unbind) or (isinstance(each, Bind) and each.former > 0)
        for _, each in world.done
    )
    assert counters["asked"] == len(world.asked())
    assert counters["defended"] + counters["found"] == len(world.advertised)


def test_the_newest_addresses_are_remembered() -> None:
    recent = Recent(10, size=2)
    for number, target in enumerate((address(1), address(2), address(1), address(3))):
        recent.add(target, number)
    assert [recent.has(address(number), 11) for number in (1, 2, 3)] == [True, False, True]
    assert [recent.has(address(number), 12) for number in (1, 2, 3)] == [False, False, True]
