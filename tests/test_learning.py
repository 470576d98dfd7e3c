"""Learning hosts on a share: claims, lookups, limits and expiry, against nodes that answer."""

from __future__ import annotations

import heapq
import itertools
import random
import socket
from collections.abc import Iterable

import pytest

from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.message import NeighborAdvertisement, Solicitation
from ndxdp.rules.prefix import parse_prefix
from ndxdp.runtime.share_report import COUNTERS, REFUSALS
from ndxdp.sharing.actions import Action, Advertise, Ask, Bind, Unbind
from ndxdp.sharing.hosts import HostLimits
from ndxdp.sharing.learning import Learner
from ndxdp.sharing.recent import Recent
from ndxdp.sharing.searches import CLAIMS, LOOKUPS

UP, A, B, C = LINKS = (1, 2, 3, 4)
PREFIX = parse_prefix("2001:db8::/64")
LATENCY = 0.001


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text)


def address(number: int) -> bytes:
    return PREFIX.address[:8] + number.to_bytes(8, "big")


def mac(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


T, LINK_LOCAL = ip("2001:db8::10"), ip("fe80::1")
OWN, ROUTER, OUTSIDE = ip("2001:db8::1"), ip("2001:db8::2"), ip("2001:db8:1::10")
HOST, OTHER, THIRD, GATEWAY = mac(1), mac(2), mac(3), mac(0xFE)


class World:
    """A learner, and nodes that answer it; each action is checked against the routes.

    Attributes:
        nodes: The MAC of each node that answers, by link and address.
        routes: The link of each route.
        done: The actions, with their times.
        ticks: How often time has caused a call.
    """

    def __init__(
        self, max_hosts: int = 64, max_hosts_per_mac: int = 16, expire: float = 600
    ) -> None:
        self.now = 1000.0
        self.limits = HostLimits(max_hosts, max_hosts_per_mac, expire)
        self.learner = Learner(self.limits)
        self.nodes: dict[tuple[int, bytes], bytes] = {}
        self.routes: dict[bytes, int] = {}
        self.done: list[tuple[float, Action]] = []
        self.ticks = 0
        self._replies: list[tuple[float, int, bytes, bytes]] = []
        self.do(self.learner.set_links(self.now, UP, frozenset((A, B, C))))
        self.do(self.learner.set_prefixes(self.now, [PREFIX]))
        self.do(self.learner.set_reserved(self.now, {UP: frozenset((OWN,))}, frozenset((ROUTER,))))

    def do(self, actions: Iterable[Action]) -> list[Action]:
        """Carry out actions; nodes answer a moment later."""
        actions = list(actions)
        for action in actions:
            self.done.append((self.now, action))
            match action:
                case Ask(link, target, asked):
                    node = self.nodes.get((link, target))
                    if node is not None and asked in (None, node):
                        heapq.heappush(self._replies, (self.now + LATENCY, link, target, node))
                case Bind(target, link, former):
                    assert self.routes.get(target, 0) == former != link
                    self.routes[target] = link
                case Unbind(target, link):
                    assert self.routes.pop(target) == link
        self.check()
        return actions

    def check(self) -> None:
        """Check what holds after every call."""
        hosts = self.learner.hosts
        assert self.routes == {target: host.ifindex for target, host in hosts.items()}
        assert len(hosts) <= self.limits.max_hosts
        by_mac: dict[bytes, dict[bytes, None]] = {}
        for host in hosts.values():
            if host.mac is not None:
                by_mac.setdefault(host.mac, {})[host.address] = None
        assert self.learner._bindings.hosts._by_mac == by_mac
        assert max(map(len, by_mac.values()), default=0) <= self.limits.max_hosts_per_mac
        assert not {OWN, ROUTER, OUTSIDE, LINK_LOCAL, PREFIX.address} & set(hosts)
        assert UP not in self.routes.values()

    def wait(self, seconds: float = 1.0) -> list[Action]:
        """Let time pass; return the actions of that time."""
        first, until = len(self.done), self.now + seconds
        while True:
            reply = self._replies[0][0] if self._replies else until + 1
            tick = self.learner.next_tick()
            due = min(reply, until + 1 if tick is None else tick)
            if due > until:
                break
            self.now = max(self.now, due)
            if reply == due:
                _, link, target, node = heapq.heappop(self._replies)
                self.reply(link, target, node)
            else:
                self.ticks += 1
                self.do(self.learner.tick(self.now))
                following = self.learner.next_tick()
                assert following is None or following > self.now
        self.now = until
        return [action for _, action in self.done[first:]]

    def dad(self, link: int, target: bytes = T, source: bytes = HOST) -> list[Action]:
        ns = Solicitation(UNSPECIFIED, target, source, source)
        return self.do(self.learner.solicited(self.now, link, ns))

    def use(self, link: int, target: bytes = T, source: bytes = HOST) -> list[Action]:
        """Have a node solicit its router from an address."""
        ns = Solicitation(target, LINK_LOCAL, source, source)
        return self.do(self.learner.solicited(self.now, link, ns))

    def look_up(self, link: int, target: bytes = T, source: bytes = GATEWAY) -> list[Action]:
        ns = Solicitation(LINK_LOCAL, target, source, source)
        return self.do(self.learner.solicited(self.now, link, ns))

    def reply(self, link: int, target: bytes = T, source: bytes = HOST) -> list[Action]:
        na = NeighborAdvertisement(
            mac(0xFF), source, target, LINK_LOCAL, target, False, True, True, source
        )
        return self.do(self.learner.advertised(self.now, link, na))

    def learn(self, link: int, target: bytes = T, source: bytes = HOST) -> None:
        """Have a node claim an address and stay there; its claim must succeed."""
        self.use(link, target, source)
        self.nodes[link, target] = source
        self.wait(0.6)
        assert self.routes[target] == link

    @property
    def advertised(self) -> list[tuple[int, bytes]]:
        """Link and target of each advertisement."""
        return [
            (each.ifindex, each.solicitation.target)
            for _, each in self.done
            if isinstance(each, Advertise)
        ]

    def asked(self, *targets: bytes) -> list[tuple[float, int, bytes | None]]:
        """Time since the start, link and MAC of each question."""
        return [
            (round(time - 1000, 3), each.ifindex, each.mac)
            for time, each in self.done
            if isinstance(each, Ask) and (not targets or each.target in targets)
        ]

    @property
    def counted(self) -> dict[str, int]:
        """The counters that are not 0, without the number of questions."""
        numbers = {**self.learner.counters, **self.learner.refused}
        return {name: number for name, number in numbers.items() if number and name != "asked"}


@pytest.fixture
def world() -> World:
    return World()


def test_the_counters_are_those_of_the_report(world: World) -> None:
    assert set(world.learner.counters) == set(COUNTERS) - {"relayed", "solicited"}
    assert set(world.learner.refused) == set(REFUSALS)


# ---- claims of free addresses


@pytest.mark.parametrize("claim", [World.dad, World.use, World.reply])
def test_a_free_address_is_learned_after_two_rounds(world: World, claim: object) -> None:
    assert callable(claim)
    claim(world, A)
    assert world.wait(0.499)[-1] == Ask(C, T)
    assert not world.routes
    assert world.wait(0.001) == [Bind(T, A)]
    rounds = itertools.product((0, 0.25), (UP, B, C), (None,))
    assert world.asked() == list(rounds)
    assert world.counted == {"learned": 1}
    host = world.learner.hosts[T]
    assert (host.ifindex, host.mac, host.since, host.seen) == (A, HOST, 1000.5, 1000.5)


def test_a_repeated_claim_does_not_prolong_the_search(world: World) -> None:
    world.dad(A)
    for _ in range(4):
        world.wait(0.1)
        assert world.dad(A) == []
    assert Bind(T, A) in world.wait(0.1)


def test_a_share_with_one_link_learns(world: World) -> None:
    world.do(world.learner.set_links(world.now, None, frozenset((A,))))
    assert world.dad(A) == []
    assert world.wait() == [Bind(T, A)]


def test_a_claim_on_the_upstream_link_binds_nothing(world: World) -> None:
    world.dad(UP)
    assert [each[1] for each in world.asked()] == [A, B, C]
    world.wait()
    world.use(UP)
    world.reply(UP)
    world.wait()
    assert len(world.asked()) == 6
    assert not world.routes
    assert world.counted == {}


# ---- claims that fail


@pytest.mark.parametrize("home", [UP, A, B])
def test_duplicate_address_detection_across_links(home: int) -> None:
    """Detect a duplicate in every combination of sides, before and after the owner is learned."""
    for rival, is_learned in itertools.product({UP, A, B} - {home}, (False, True)):
        world = World()
        world.nodes[home, T] = HOST
        if is_learned:
            world.use(home)
            world.wait()
        before = world.now
        world.dad(rival, source=OTHER)
        world.wait()
        assert world.advertised == [(rival, T)]
        answered = next(time for time, each in world.done if isinstance(each, Advertise))
        assert answered - before < 0.01
        assert world.routes == ({} if home == UP else {T: home})
        assert world.counted == {"defended": 1} | ({} if home == UP else {"learned": 1})


@pytest.mark.parametrize("home", [UP, A])
@pytest.mark.parametrize("is_learned", [False, True])
def test_an_address_cannot_be_taken_while_its_owner_answers(home: int, is_learned: bool) -> None:
    world = World()
    world.nodes[home, T] = HOST
    if is_learned:
        world.use(home)
        world.wait()
    for claim in (world.use, world.reply):
        claim(B, T, OTHER)
        world.wait()
        assert world.routes.get(T) != B
    assert world.learner.refused["elsewhere"] == 2
    assert not world.advertised


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (OWN, {"own_address": 1}),
        (ROUTER, {"router": 1}),
        (PREFIX.address, {"router": 1}),
        (OUTSIDE, {"outside": 1}),
        (LINK_LOCAL, {}),
        (ip("ff02::1"), {}),
        (ip("::1"), {}),
    ],
)
def test_addresses_that_are_never_learned(
    world: World, target: bytes, reason: dict[str, int]
) -> None:
    world.use(A, target)
    assert world.wait() == []
    assert world.counted == reason
    world.reply(A, target)
    assert world.wait() == []
    assert not world.routes
    assert world.counted == dict.fromkeys(reason, 2)


def test_the_router_defends_its_address(world: World) -> None:
    world.nodes[UP, ROUTER] = GATEWAY
    world.dad(A, ROUTER)
    world.wait()
    assert world.advertised == [(A, ROUTER)]
    assert world.counted == {"defended": 1}


def test_the_address_of_a_silent_router_is_not_learned(world: World) -> None:
    world.dad(A, ROUTER)
    world.wait()
    assert world.counted == {"router": 1}


def test_foreign_addresses_on_the_upstream_link_are_not_counted(world: World) -> None:
    world.use(UP, OUTSIDE)
    world.dad(UP, OUTSIDE)
    assert world.wait() == []
    assert world.counted == {}


@pytest.mark.parametrize("source", [bytes(6), b"\x33\x33\0\0\0\1"])
def test_a_claim_by_no_unicast_mac_is_ignored(world: World, source: bytes) -> None:
    assert world.use(A, source=source) + world.dad(A, source=source) + world.wait() == []


def test_messages_of_other_links_are_ignored(world: World) -> None:
    assert world.use(9) + world.dad(9) + world.reply(9) + world.look_up(9) == []


def test_the_upstream_link_needs_no_room() -> None:
    world = World(max_hosts=1)
    world.learn(A, address(99), OTHER)
    for target in (ROUTER, T):
        world.dad(UP, target)
        world.wait()
    assert world.counted == {"learned": 1}
    assert world.look_up(UP) == []  # it lives there


def test_a_claim_that_has_failed_is_not_checked_again_at_once(world: World) -> None:
    world.learn(A)
    assert world.use(B, source=OTHER)
    world.wait(0.01)
    assert world.use(B, source=OTHER) == []
    assert world.reply(UP, source=OTHER) == []
    assert world.learner.refused["elsewhere"] == 3
    world.wait(1)
    assert world.use(B, source=OTHER)


@pytest.mark.parametrize(("first", "second"), [(A, B), (B, A), (UP, A), (A, UP)])
def test_a_node_in_its_probe_need_not_answer(first: int, second: int) -> None:
    """A node ignores questions until its DAD has ended: its link is silent, but not free."""
    for wait in (0.3, 0.55, 0.9):
        world = World()
        world.dad(first)
        world.wait(wait)
        before = dict(world.routes)
        world.dad(second, source=OTHER)
        world.wait(1 - wait)
        world.nodes[first, T] = HOST
        world.wait()
        assert world.advertised == [(second, T)]
        assert set(before.items()) <= set(world.routes.items())
        assert world.routes == ({T: first} if first != UP else {})


def test_a_node_that_moves_during_its_probe(world: World) -> None:
    """The node probes again on the other link, with the same MAC: that is no rival."""
    world.dad(A)
    world.wait(0.6)
    world.dad(B)
    assert world.wait(0.6)[-1] == Bind(T, B, A)


def test_a_probe_that_has_failed_may_be_repeated(world: World) -> None:
    world.learn(A)
    world.dad(B, source=OTHER)
    world.wait(0.01)
    world.nodes.clear()
    world.dad(B, source=OTHER)
    assert world.wait(0.5)[-1] == Bind(T, B, A)


def test_only_a_probe_that_still_waits_is_answered(world: World) -> None:
    world.dad(A)
    world.now += 0.4
    world.dad(A)
    world.now += 0.9  # the daemon had no time
    world.reply(UP, source=OTHER)
    assert world.advertised == [(A, T)]
    world.dad(A, address(99))
    world.now += 1.1
    world.reply(UP, address(99), OTHER)
    assert world.advertised == [(A, T)]
    assert world.counted == {"defended": 1, "elsewhere": 1}


@pytest.mark.parametrize("home", [UP, B])
def test_a_probe_is_answered_although_the_owner_is_slow(world: World, home: int) -> None:
    """Answer DAD that has not finished, though the address is bound: a proxy may take 0.8 s."""
    world.dad(A)
    world.wait(0.8)
    assert world.routes == {T: A}
    world.nodes[home, T] = OTHER
    world.reply(home, source=OTHER)
    world.reply(home, source=OTHER)
    assert world.advertised == [(A, T)]
    world.wait()
    assert world.routes == ({} if home == UP else {T: B})
    assert world.counted == {"learned": 1, "defended": 1, "moved": 1}


def test_the_owner_that_probes_again_need_not_answer(world: World) -> None:
    """No other node takes the address, neither by use nor by an answer."""
    world.learn(A)
    world.nodes.clear()
    world.dad(A)
    for _ in range(9):
        world.use(B, source=OTHER)
        world.reply(UP, source=THIRD)
        world.wait(0.1)
    world.nodes[A, T] = HOST
    world.wait(0.2)
    world.use(B, source=OTHER)
    world.wait()
    assert world.routes == {T: A}
    assert world.advertised == []
    world.nodes.clear()
    world.dad(A)
    world.wait(0.1)
    world.dad(B, source=OTHER)
    assert world.advertised == [(B, T)]
    world.wait()
    assert world.routes == {T: A}


def test_a_probe_that_has_ended_is_no_obstacle(world: World) -> None:
    world.dad(A)
    world.wait(0.6)
    world.dad(A, source=OTHER)  # both are on one link, and hear each other
    world.wait()
    world.dad(B, source=THIRD)
    assert world.wait()[-1] == Bind(T, B, A)
    assert world.advertised == []


def test_a_probe_is_answered_once() -> None:
    """Answer it also for an owner that may not have one more address."""
    world = World(max_hosts_per_mac=1)
    world.learn(B, address(99), OTHER)
    world.dad(A)
    world.wait(0.8)
    world.reply(B, source=OTHER)
    world.reply(B, source=OTHER)
    assert world.advertised == [(A, T)]
    assert world.learner.refused["mac_limit"] == 2


def test_a_slow_owner_ends_a_move(world: World) -> None:
    world.learn(A)
    world.nodes.clear()
    world.dad(B, source=THIRD)
    world.wait(0.8)
    assert world.routes == {T: B}
    world.reply(UP, source=OTHER)
    assert world.advertised == [(B, T)]


def test_a_later_probe_does_not_end_the_first_one(world: World) -> None:
    world.dad(A)
    world.wait(0.8)
    world.dad(B, source=OTHER)
    world.wait(0.2)
    world.nodes[A, T] = HOST  # its DAD has finished
    world.wait()
    assert world.advertised == [(B, T)]
    assert world.routes == {T: A}


def test_a_finished_probe_is_not_answered(world: World) -> None:
    world.dad(A)
    world.wait(1.1)
    world.reply(UP, source=OTHER)
    world.dad(B, address(99))
    world.wait(0.8)
    world.use(C, address(99))  # it has moved
    world.wait(0.1)
    assert world.advertised == []


def test_an_answer_from_the_upstream_link_ends_the_search(world: World) -> None:
    world.nodes[UP, T] = OTHER
    world.use(A)
    world.wait()
    assert len(world.asked()) == 3


# ---- claims of one address by several nodes


def test_several_nodes_of_one_link(world: World) -> None:
    """Keep the probe that came first; bind to the MAC that uses the address."""
    world.dad(A)
    world.dad(A, source=OTHER)
    world.dad(B, address(99))
    world.use(B, address(99), OTHER)
    world.reply(UP, source=THIRD)
    (answer,) = [each for _, each in world.done if isinstance(each, Advertise)]
    assert answer.solicitation.eth_source == HOST
    world.wait()
    assert world.learner.hosts[address(99)].mac == OTHER


def test_the_second_of_two_probes_fails_at_once(world: World) -> None:
    world.dad(A)
    world.wait(0.1)
    world.dad(B, source=OTHER)
    assert world.advertised == [(B, T)]
    world.wait()
    assert world.routes == {T: A}
    assert world.counted == {"learned": 1, "defended": 1}


def test_two_probes_fail_if_a_third_node_has_the_address(world: World) -> None:
    world.dad(A)
    world.dad(B, source=OTHER)
    world.reply(UP, source=THIRD)
    world.wait()
    assert sorted(world.advertised) == [(A, T), (B, T)]
    assert not world.routes


@pytest.mark.parametrize("links", [(A, UP), (UP, A), (A, B)])
def test_a_reflected_probe_does_not_fail(world: World, links: tuple[int, int]) -> None:
    """Links that are one network show each frame on both; a tentative node answers nothing."""
    for _ in range(3):
        for link in links:
            world.dad(link)
        world.wait()
        for link in reversed(links):
            world.dad(link)
        world.wait()
    assert not world.advertised


def test_the_owner_may_probe_again(world: World) -> None:
    """Let the owner of an address win against a probe that came first by another link."""
    world.learn(A)
    del world.nodes[A, T]
    world.dad(B, source=OTHER)
    world.dad(A)
    world.wait()
    assert world.advertised == [(B, T)]
    assert world.routes == {T: A}


def test_a_second_node_on_the_link_of_an_address_is_left_to_the_owner(world: World) -> None:
    world.learn(A)
    assert world.dad(A, source=OTHER) == []
    assert world.learner.hosts[T].mac == HOST


def test_nodes_that_use_one_address_on_two_links(world: World) -> None:
    """Bind neither while both answer, because it is unknown who came first."""
    world.nodes |= {(A, T): HOST, (B, T): OTHER}
    for _ in range(3):
        world.use(A)
        world.wait()
        world.use(B, source=OTHER)
        world.wait()
    assert not world.routes
    del world.nodes[B, T]
    world.learn(A)


def test_the_owner_is_learned_by_its_answer_to_a_rival(world: World) -> None:
    world.nodes[B, T] = OTHER
    world.use(A)
    world.wait()
    assert world.routes == {T: B}
    assert world.counted == {"learned": 1, "elsewhere": 1}


@pytest.mark.parametrize("claim", [World.dad, World.use, World.look_up])
@pytest.mark.parametrize("links", [(A, B), (A, B, C), (UP, A, B), LINKS])
def test_nodes_with_one_address_do_not_keep_each_other_busy(
    world: World, claim: object, links: tuple[int, ...]
) -> None:
    """End after a few questions, although each question is answered by several nodes."""
    world.nodes |= {(link, T): mac(link) for link in links}
    assert callable(claim)
    for link in LINKS:
        claim(world, link, T, mac(9))
        world.wait(0.01)
    world.wait(10)
    assert len(world.asked()) < 50
    before = len(world.asked())
    for _ in range(10):
        world.use(A)
        world.wait(0.1)
    assert len(world.asked()) - before <= 12


# ---- moves


@pytest.mark.parametrize("source", [HOST, OTHER])
@pytest.mark.parametrize("claim", [World.dad, World.use])
def test_a_host_moves_when_its_old_link_is_silent(
    world: World, source: bytes, claim: object
) -> None:
    world.learn(A)
    del world.nodes[A, T]
    assert callable(claim)
    asked = claim(world, B, T, source)
    assert asked == [Ask(A, T, HOST), Ask(UP, T), Ask(A, T), Ask(C, T)]
    assert world.wait(0.5)[-1] == Bind(T, B, A)
    host = world.learner.hosts[T]
    assert (host.ifindex, host.mac, host.since) == (B, source, 1000.5)
    assert world.counted == {"learned": 1, "moved": 1}


def test_a_host_moves_to_the_upstream_link(world: World) -> None:
    world.learn(A)
    del world.nodes[A, T]
    world.reply(UP)
    assert world.wait()[-1] == Unbind(T, A)
    assert world.counted == {"learned": 1, "moved": 1}


def test_a_host_of_the_upstream_link_ends_a_rival_and_a_binding(world: World) -> None:
    """Release an address that another link than the claiming one has by now."""
    world.learn(A)
    del world.nodes[A, T]
    world.nodes[UP, T] = OTHER
    world.dad(B, source=THIRD)
    assert world.wait()[-1] == Unbind(T, A)
    assert world.advertised == [(B, T)]
    assert world.counted == {"learned": 1, "defended": 1, "moved": 1}


def test_an_address_that_moves_every_second_is_held(world: World) -> None:
    world.learn(A)
    world.nodes.clear()
    for number in range(60):
        world.use((B, A)[number % 2])
        world.wait()
    counted = world.counted
    assert counted["moved"] == 12
    assert counted["unstable"] > 20


def test_an_address_that_changes_sides_is_held(world: World) -> None:
    for _ in range(30):
        world.use(A)
        world.wait()
        world.use(UP)
        world.wait()
    counted = world.counted
    assert counted["unstable"] > 20
    assert counted["moved"] + counted["learned"] < 16


def test_a_held_address_is_still_defended(world: World) -> None:
    world.learn(A)
    world.nodes.clear()
    for number in range(6):
        world.use((B, A)[number % 2])
        world.wait()
    link = world.routes[T]
    world.nodes[link, T] = HOST
    world.dad(C, source=OTHER)
    world.wait()
    assert world.advertised == [(C, T)]
    world.nodes.clear()
    world.dad(C, source=OTHER)
    world.wait()
    assert world.routes == {T: link}
    assert world.counted["unstable"] == 1


def test_another_mac_on_the_same_link_is_no_move(world: World) -> None:
    world.learn(A)
    assert world.use(A, source=OTHER) == []
    assert world.learner.hosts[T].mac == OTHER
    assert world.counted == {"learned": 1}


# ---- lookups


@pytest.mark.parametrize("link", [UP, B])
def test_a_lookup_finds_a_host_that_is_not_learned(world: World, link: int) -> None:
    world.nodes[A, T] = HOST
    world.look_up(link)
    actions = world.wait()
    assert [type(each) for each in actions[-2:]] == [Bind, Advertise]
    assert world.advertised == [(link, T)]
    assert world.done[-1][0] - 1000 <= 0.5 + 2 * LATENCY
    assert world.counted == {"learned": 1, "found": 1}


def test_a_lookup_finds_a_host_whose_first_answer_is_lost(world: World) -> None:
    world.look_up(UP)
    world.wait(0.2)
    world.nodes[A, T] = HOST
    world.wait()
    assert world.advertised == [(UP, T)]


def test_every_solicitor_is_answered_once(world: World) -> None:
    world.nodes[C, T] = HOST
    for link in (UP, A, B, UP, A, B, C):
        world.look_up(link)
    world.wait()
    assert sorted(world.advertised) == [(UP, T), (A, T), (B, T)]


def test_a_solicitor_that_has_given_up_is_not_answered(world: World) -> None:
    world.look_up(UP)
    world.wait(0.49)
    world.nodes[A, T] = HOST
    world.use(A)
    world.now += 0.6  # the daemon had no time
    world.wait()
    assert world.routes == {T: A}
    assert not world.advertised


def test_eight_solicitors_are_answered(world: World) -> None:
    """Answer those that came first; one that has asked again may wait longer."""
    solicitors = [
        Solicitation(ip(f"fe80::{number}"), T, GATEWAY, GATEWAY) for number in range(1, 20)
    ]
    for ns in solicitors:
        world.do(world.learner.solicited(world.now, UP, ns))
    world.wait(0.1)
    world.do(world.learner.solicited(world.now, UP, solicitors[1]))
    world.nodes[A, T] = HOST
    world.wait(0.64)
    world.now += 0.31  # the daemon had no time
    world.wait()
    assert world.advertised == [(UP, T)]
    found = address(99)
    world.nodes[A, found] = HOST
    for ns in solicitors:
        world.do(world.learner.solicited(world.now, UP, ns._replace(target=found)))
    world.wait()
    assert world.advertised[1:] == [(UP, found)] * 8


def test_a_share_with_one_link_searches_nothing(world: World) -> None:
    world.do(world.learner.set_links(world.now, UP, frozenset((A,))))
    assert world.look_up(A) == []
    assert world.learner.next_tick() is None


def test_lookups_that_become_claims_leave_room_for_others() -> None:
    world = World(max_hosts=LOOKUPS, max_hosts_per_mac=LOOKUPS)
    for number in range(LOOKUPS):
        world.nodes[A, address(number + 99)] = HOST
        world.look_up(UP, address(number + 99))
        world.wait()
    assert len(world.routes) == LOOKUPS


def test_a_lookup_on_a_second_link_asks_on_the_first(world: World) -> None:
    assert world.look_up(A) == [Ask(B, T), Ask(C, T)]
    assert world.look_up(UP) == [Ask(A, T)]
    assert world.look_up(B) == []
    assert set(world.wait(0.3)) == {Ask(A, T), Ask(B, T), Ask(C, T)}


def test_a_lookup_does_not_give_an_address_of_the_upstream_link_away(world: World) -> None:
    """Verify on the upstream link what a downstream node answers."""
    world.nodes |= {(A, T): OTHER, (UP, T): HOST}
    for link in (UP, B):
        world.look_up(link)
        world.wait(70)
    assert not world.routes
    assert not world.advertised


@pytest.mark.parametrize("target", [OWN, ROUTER, PREFIX.address, OUTSIDE, LINK_LOCAL])
def test_lookups_that_are_not_searched(world: World, target: bytes) -> None:
    assert world.look_up(UP, target) + world.wait() == []


def test_a_lookup_of_a_learned_host_is_left_to_the_kernel(world: World) -> None:
    world.learn(A)
    for link in LINKS:
        assert world.look_up(link) == []


def test_an_absent_address_is_searched_again_after_a_while(world: World) -> None:
    world.look_up(UP)
    world.wait(0.5)
    assert len(world.asked()) == 6
    for _ in range(29):
        assert world.look_up(UP) + world.wait(0.1) == []
    world.wait(0.2)
    assert world.look_up(UP)


def test_an_address_of_the_upstream_link_is_not_searched(world: World) -> None:
    world.use(UP)
    for _ in range(59):
        assert world.look_up(UP) + world.look_up(A) + world.wait() == []
    world.wait(2)
    assert world.look_up(UP)


@pytest.mark.parametrize("link", [UP, A])
def test_a_claim_ends_what_was_remembered(world: World, link: int) -> None:
    world.look_up(link)
    world.wait()
    world.use(UP)
    world.learn(B)
    world.do(world.learner.forget(world.now, T))
    assert world.look_up(link)


# ---- limits and floods


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
    assert not any(each.ifindex == UP for each in asked)
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


# ---- the network, and routes that exist


def test_hosts_of_a_link_that_goes_away_are_forgotten(world: World) -> None:
    world.learn(A)
    world.learn(B, address(99), OTHER)
    world.dad(A, address(98))
    world.look_up(A, address(97))
    world.look_up(UP, address(96))
    world.look_up(A, address(96))
    assert world.do(world.learner.set_links(world.now, UP, frozenset((B, C)))) == [Unbind(T, A)]
    world.nodes[B, address(96)] = THIRD
    asked = world.wait()
    assert Ask(B, address(96)) in asked
    assert not any(each.ifindex == A for each in asked)
    assert world.advertised == [(UP, address(96))]
    assert world.routes == {address(99): B, address(96): B}
    assert world.counted == {"learned": 3, "forgotten": 1, "found": 1}


def test_the_upstream_link_may_be_absent_for_a_while(world: World) -> None:
    world.learn(A)
    world.use(UP, address(99))
    assert world.do(world.learner.set_links(world.now, None, frozenset((A, B, C)))) == []
    world.learn(B, address(98))
    assert world.use(UP) + world.dad(UP) == []
    assert world.do(world.learner.set_links(world.now, UP, frozenset((A, B, C)))) == []
    assert world.look_up(B, address(99)) == [Ask(A, address(99)), Ask(C, address(99))]


def test_a_downstream_link_that_becomes_the_upstream_one(world: World) -> None:
    world.learn(A)
    assert world.do(world.learner.set_links(world.now, A, frozenset((A, B)))) == [Unbind(T, A)]


def test_hosts_outside_the_prefixes_are_forgotten(world: World) -> None:
    old, new = PREFIX, parse_prefix("2001:db8:1::/60")
    world.learn(A)
    world.dad(B, address(99))
    assert world.do(world.learner.set_prefixes(world.now, [old, new])) == []
    target = ip("2001:db8:1:f::7")
    world.use(B, target, OTHER)
    world.wait()
    assert world.do(world.learner.set_prefixes(world.now, [new])) == [
        Unbind(T, A),
        Unbind(address(99), B),
    ]
    world.dad(B, address(98))
    assert world.wait() == []
    assert world.routes == {target: B}
    assert world.counted == {"learned": 3, "forgotten": 2, "outside": 1}


def test_hosts_whose_address_becomes_reserved_are_forgotten(world: World) -> None:
    world.learn(A)
    world.learn(B, address(99), OTHER)
    world.learn(C, address(98), THIRD)
    world.dad(A, address(97))
    own = {UP: frozenset((OWN, address(97))), A: frozenset((address(99),))}
    routers = frozenset((ROUTER, T))
    done = world.do(world.learner.set_reserved(world.now, own, routers))
    assert done == [Unbind(T, A), Unbind(address(99), B)]
    assert world.wait() == []
    assert world.routes == {address(98): C}


def test_a_forgotten_host_is_learned_again(world: World) -> None:
    world.learn(A)
    assert world.do(world.learner.forget(world.now, T)) == [Unbind(T, A)]
    assert world.do(world.learner.forget(world.now, T)) == []
    world.wait(1)
    assert world.learner.next_tick() is None
    world.learn(A)
    assert world.counted == {"learned": 2, "forgotten": 1}


def adopt(
    world: World, link: int, target: bytes = T, source: bytes | None = HOST, idle: float = 0
) -> list[Action]:
    """Have a route exist already."""
    routes = {**world.routes}
    world.routes.setdefault(target, link)
    done = world.learner.adopt(world.now, target, link, source, age=3600, idle=idle)
    if done and target in routes:
        world.routes = routes  # the second route of an address
        world.check()
        return done
    return world.do(done)


def test_routes_are_adopted(world: World) -> None:
    assert adopt(world, A, idle=60) == []
    host = world.learner.hosts[T]
    assert (host.ifindex, host.mac, host.since, host.seen) == (A, HOST, -2600, 940)
    assert adopt(world, A) == []
    assert adopt(world, B) == [Unbind(T, B)]
    world.nodes[A, T] = HOST
    world.dad(C, source=OTHER)
    world.wait()
    assert world.advertised == [(C, T)]
    assert world.counted == {"forgotten": 1, "defended": 1}


def test_a_route_is_adopted_during_a_search(world: World) -> None:
    world.use(A)
    world.use(B, address(99), OTHER)
    adopt(world, A)
    adopt(world, B, address(99), OTHER)
    assert world.use(A) == []
    done = world.wait()
    assert not any(isinstance(each, Bind) or each == Ask(B, T) for each in done)
    assert world.counted == {}


def test_a_route_cannot_be_younger_than_its_last_sign_of_life(world: World) -> None:
    world.routes[T] = A
    world.do(world.learner.adopt(world.now, T, A, idle=60))
    host = world.learner.hosts[T]
    assert (host.since, host.seen) == (940, 940)


def test_a_host_that_was_adopted_without_a_mac_moves(world: World) -> None:
    adopt(world, A, source=None)
    assert world.dad(B) == [Ask(UP, T), Ask(A, T), Ask(C, T)]
    assert world.wait()[-1] == Bind(T, B, A)
    adopt(world, A, address(99), None)
    world.dad(A, address(99))
    assert world.learner.hosts[address(99)].mac == HOST


@pytest.mark.parametrize(
    ("link", "target"),
    [(UP, T), (9, T)] + [(A, each) for each in (OWN, ROUTER, PREFIX.address, OUTSIDE, LINK_LOCAL)],
)
def test_routes_that_are_not_adopted(world: World, link: int, target: bytes) -> None:
    assert adopt(world, link, target) == [Unbind(target, link)]
    assert world.counted == {"forgotten": 1}


def test_no_more_routes_are_adopted_than_the_limits_allow() -> None:
    world = World(max_hosts=3, max_hosts_per_mac=2)
    for number in range(5):
        adopt(world, A, address(number + 99))
    for number in range(5):
        adopt(world, A, address(number + 199), None)
    assert len(world.routes) == 3
    assert world.counted == {"mac_limit": 3, "limit": 4}


# ---- expiry


def test_a_silent_host_expires(world: World) -> None:
    world.learn(A)
    world.nodes.clear()
    world.wait(596)
    before = len(world.done)
    done = world.wait(4.6)
    assert done == [Ask(A, T, HOST), Ask(A, T), Ask(A, T), Unbind(T, A)]
    times = [time - 1000.5 for time, _ in world.done[before:]]
    assert times == pytest.approx([597, 598, 599, 600], abs=0.6)
    assert world.counted == {"learned": 1, "expired": 1}
    assert world.learner.next_tick() is None


def test_a_host_that_answers_stays(world: World) -> None:
    world.learn(A)
    world.wait(3000)
    assert world.routes == {T: A}
    assert world.asked(T)[6:] == [(time, A, HOST) for time, _, _ in world.asked(T)[6:]]
    assert 4 <= len(world.asked(T)[6:]) <= 6
    assert world.learner.hosts[T].seen > world.now - 600


def test_a_host_with_another_mac_answers_the_second_question(world: World) -> None:
    world.learn(A)
    world.nodes[A, T] = OTHER
    world.wait(610)
    assert world.routes == {T: A}
    assert world.learner.hosts[T].mac == OTHER


def test_a_host_that_speaks_is_not_asked(world: World) -> None:
    world.learn(A)
    before = len(world.done)
    for _ in range(10):
        world.wait(590)
        world.use(A)
    assert len(world.done) == before


def test_a_host_that_speaks_between_two_questions_stays(world: World) -> None:
    world.learn(A)
    world.nodes.clear()
    world.wait(598.6)
    world.use(A)
    assert len(world.asked(T)) == 8
    world.wait(10)
    assert len(world.asked(T)) == 8
    assert T in world.routes


def test_hosts_expire_in_the_order_of_their_last_sign_of_life(world: World) -> None:
    for number, idle in enumerate((100, 500, 300)):
        adopt(world, A, address(number + 99), HOST, idle)
    world.wait(101)
    assert set(world.routes) == {address(99), address(101)}
    world.use(A, address(101))
    world.wait(400)
    assert set(world.routes) == {address(101)}


def test_idle_hosts_do_not_keep_the_daemon_busy() -> None:
    world = World(max_hosts=2048, max_hosts_per_mac=2048)
    world.check = lambda: None  # type: ignore[method-assign]
    for number in range(2048):
        adopt(world, A, address(number + 99), HOST, idle=number / 16)
        world.nodes[A, address(number + 99)] = HOST
    world.wait(600)
    assert len(world.routes) == 2048
    assert len(world.asked()) == 2048
    assert world.ticks < 4 * 2048 / 16 + 10
    before = len(world.done)
    for _ in range(9):
        world.learner.tick(world.now)
    world.now += 600
    for _ in range(9):
        world.do(world.learner.tick(world.now))
    assert len(world.done) - before <= 16


def test_thousands_of_hosts_are_not_asked_at_once() -> None:
    """Spread the questions after a start; no host is lost, the silent ones expire."""
    world = World(max_hosts=4096, max_hosts_per_mac=4096)
    world.check = lambda: None  # type: ignore[method-assign]
    for number in range(4096):
        adopt(world, A, address(number + 99), HOST, idle=590 if number % 2 else 300)
        if number % 8:
            world.nodes[A, address(number + 99)] = HOST
    asked: dict[float, int] = {}
    world.wait(620)
    for time, _, _ in world.asked():
        asked[time] = asked.get(time, 0) + 1
    assert max(asked.values()) <= 3 * 16
    assert len(world.routes) == 4096 - 512
    assert world.counted == {"expired": 512}
    World.check(world)


# ---- anything


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
