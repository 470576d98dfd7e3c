"""Learning hosts on a share: lookups, the links and routes of the host, and expiry."""

from __future__ import annotations

import pytest

from ndxdp.ndp.message import Solicitation
from ndxdp.rules.prefix import parse_prefix
from ndxdp.sharing.actions import Action, Advertise, Ask, Bind, Unbind
from ndxdp.sharing.searches import LOOKUPS
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
    ip,
    mac,
)

# ---- lookups -------------------------------------------------------------------------------------


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
        assert world.look_up(A) + world.wait() == []
    world.wait(2)
    assert world.look_up(A)


def test_an_address_that_has_left_the_upstream_link_is_searched(world: World) -> None:
    """A node that solicits it twice has had no answer; the node that had it does not ask."""
    for solicitors, searched in (
        ((GATEWAY, GATEWAY), True),
        ((OTHER,), True),
        ((GATEWAY,), False),
    ):
        world.use(UP, source=OTHER)
        for source in solicitors[:-1]:
            assert world.look_up(UP, source=source) == []
            world.wait()
        assert bool(world.look_up(UP, source=solicitors[-1])) == searched
        world.wait(10)


def test_solicitors_that_ask_once_each_find_an_address_upstream(world: World) -> None:
    world.use(UP, source=OTHER)
    for number in range(50):
        ns = Solicitation(address(number + 99), T, mac(number + 99), mac(number + 99))
        assert world.do(world.learner.solicited(world.now, UP, ns)) == []


@pytest.mark.parametrize("link", [UP, A])
def test_a_claim_ends_what_was_remembered(world: World, link: int) -> None:
    world.look_up(link)
    world.wait()
    world.use(UP)
    world.learn(B)
    world.do(world.learner.forget(world.now, T))
    assert world.look_up(link)


# ---- the network, and routes that exist ----------------------------------------------------------


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
    assert not any(isinstance(each, Ask) and each.ifindex == A for each in asked)
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


# ---- expiry --------------------------------------------------------------------------------------


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
