"""The choice of the neighbours that are announced: tables of changes, without a kernel."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ndxdp.ndp.profile import DEFAULT_PROFILE, Profile
from ndxdp.netlink.fib import Neighbour, NudState
from ndxdp.upstream.guests import SETTLING, UNROUTED_MAX, Guests

NONE, REACHABLE, STALE = NudState.NONE, NudState.REACHABLE, NudState.STALE
PROBE, DELAY, FAILED = NudState.PROBE, NudState.DELAY, NudState.FAILED
PERMANENT, NOARP, INCOMPLETE = NudState.PERMANENT, NudState.NOARP, NudState.INCOMPLETE

BRIDGE, OTHER = 3, 4
MAC, OTHER_MAC = b"\2\0\0\0\1\1", b"\2\0\0\0\1\2"


def address(number: int) -> bytes:
    return bytes.fromhex("20010db800000000") + number.to_bytes(8, "big")


GUEST = address(1)


class World:
    """The kernel, the announcer and the clock of Guests."""

    def __init__(self, rate: float = 100, most: int = 1000) -> None:
        self.now = 0.0
        self.new = 0
        self.routes: dict[bytes, int] = {}
        self.default_route = BRIDGE
        self.uncovered: set[bytes] = set()
        self.entries: dict[bytes, Neighbour] = {}
        self.announced: list[bytes] = []
        self.once: list[bytes] = []
        self.forgotten: list[bytes] = []
        self.confirmed: list[bytes] = []
        self.searched: list[bytes] = []
        self.removed: list[bytes] = []
        self.guests = Guests(self, self, rate, lambda: self.now, most=most)

    # The kernel and the rules.

    def covers(self, address: bytes) -> bool:
        return address not in self.uncovered

    def profile(self, address: bytes, ifindex: int) -> Profile | None:
        routed = self.routes.get(address, self.default_route) == ifindex
        return DEFAULT_PROFILE if routed and self.covers(address) else None

    def entry(self, address: bytes, ifindex: int) -> Neighbour:
        return self.entries.get(address, Neighbour(address, NONE, None))

    def confirm(self, address: bytes, ifindex: int) -> None:
        self.confirmed.append(address)

    def search(self, address: bytes, ifindex: int) -> None:
        self.searched.append(address)
        self.guests.on_change(ifindex, address, NONE, None)

    # The announcer.

    def announce(
        self, addresses: Iterable[bytes], profile: Profile, *, transient: bool = False
    ) -> None:
        assert transient
        self.announced += addresses
        self.new += 1

    def announce_once(self, addresses: Iterable[bytes], profile: Profile) -> None:
        self.once += addresses

    def forget(self, *addresses: object) -> None:
        """Note a removed entry of the kernel, or addresses that the announcer forgets."""
        if isinstance(addresses[0], bytes):
            self.removed.append(addresses[0])
        else:
            self.forgotten += addresses[0]  # type: ignore[arg-type]

    # What happens.

    def change(
        self,
        state: NudState,
        mac: bytes | None = MAC,
        ifindex: int = BRIDGE,
        address: bytes = GUEST,
    ) -> None:
        self.guests.on_change(ifindex, address, state, mac)
        self.guests.work()

    def wait(self, seconds: float) -> None:
        """Let time pass, with all work that is due, and an announcer that has sent everything."""
        end = self.now + seconds
        while self.now < end:
            self.new = 0
            self.guests.work()
            self.now = min(end, self.now + 0.01)
        self.new = 0
        self.guests.work()

    def survey(
        self, *entries: tuple[int, Neighbour], lost: bool = False, again: bool = True
    ) -> None:
        self.guests.begin_survey()
        self.guests.end_survey(entries)
        for ifindex, entry in entries:
            self.guests.look(ifindex, entry, lost=lost, again=again)
        self.guests.work()


Change = tuple[NudState, bytes | None, int]


def at(state: NudState, mac: bytes | None = MAC, ifindex: int = BRIDGE) -> Change:
    return state, mac, ifindex


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        pytest.param([at(REACHABLE)], 1, id="new and confirmed"),
        pytest.param([at(STALE)], 1, id="new, by its own message"),
        pytest.param([at(PERMANENT)], 1, id="by the administrator"),
        pytest.param([at(NOARP)], 0, id="without resolution"),
        pytest.param([at(FAILED, None)], 0, id="nobody"),
        pytest.param([at(INCOMPLETE, None)], 0, id="asked for"),
        pytest.param([at(STALE, b"")], 0, id="without a MAC"),
        pytest.param(
            [at(STALE), at(DELAY), at(PROBE), at(REACHABLE), at(STALE)], 1, id="no change"
        ),
        pytest.param([at(REACHABLE), at(STALE, OTHER_MAC)], 2, id="a new MAC"),
        pytest.param([at(REACHABLE), at(FAILED, None), at(REACHABLE)], 2, id="a return"),
        pytest.param([at(REACHABLE), at(NONE), at(STALE)], 2, id="a return after removal"),
        pytest.param(
            [at(REACHABLE), at(FAILED, None, OTHER), at(REACHABLE)], 1, id="failed elsewhere"
        ),
        pytest.param([at(REACHABLE, MAC, OTHER)], 0, id="not where its route leads"),
    ],
)
def test_what_is_announced(changes: list[Change], times: int) -> None:
    world = World()
    for state, mac, ifindex in changes:
        world.change(state, mac, ifindex)
        world.wait(SETTLING)
    assert world.announced == [GUEST] * times
    assert world.guests.arrivals == times


@pytest.mark.parametrize("who", ["ff020000000000000000000000000001", "fe80" + "0" * 27 + "1"])
def test_never_announced(who: str) -> None:
    world = World()
    world.change(REACHABLE, address=bytes.fromhex(who))
    assert world.announced == []


def test_another_interface_is_a_move() -> None:
    world = World()
    world.change(REACHABLE)
    world.wait(SETTLING)
    world.routes[GUEST] = OTHER
    world.change(STALE, MAC, OTHER)
    assert world.announced == [GUEST, GUEST]
    world.change(STALE)
    world.wait(10)
    assert world.announced == [GUEST, GUEST], "the former entry ages"


def test_a_route_that_comes_later() -> None:
    world = World()
    world.routes[GUEST] = 0
    world.change(STALE)
    world.wait(1)
    world.routes[GUEST] = BRIDGE
    world.entries[GUEST] = Neighbour(GUEST, STALE, MAC)
    world.wait(0.2)
    assert world.announced == [GUEST]


def test_a_route_that_never_comes_costs_no_more_after_a_while() -> None:
    world = World()
    world.default_route = 0
    for number in range(2 * UNROUTED_MAX):
        world.guests.on_change(BRIDGE, address(number), STALE, MAC)
    world.wait(10)
    assert world.guests.work() is None
    assert (world.announced, world.guests.known) == ([], 0)


def test_one_that_flaps_is_announced_once_a_second() -> None:
    world = World()
    for number in range(50):
        world.change(STALE, bytes((2, 0, 0, 0, 2, number)))
        world.wait(0.1)
    assert 5 <= len(world.announced) <= 6
    world.wait(2)
    assert world.guests.waiting == 0


def test_the_announcer_is_not_flooded() -> None:
    """Only few guests wait there, so that the queue here decides who is next."""
    world = World()
    for number in range(500):
        world.guests.on_change(BRIDGE, address(number), STALE, MAC)
    world.guests.on_change(BRIDGE, address(999), STALE, OTHER_MAC)
    world.guests.work()
    assert len(world.announced) < 10
    assert address(999) in world.announced[:2]
    world.wait(5)
    assert len(set(world.announced)) == len(world.announced) == 501


def test_memory_is_bounded() -> None:
    world = World(most=100)
    for number in range(500):
        world.guests.on_change(BRIDGE, address(number), STALE, MAC)
    assert (world.guests.known, world.guests.ignored) == (100, 400)
    for number in range(100):
        world.guests.on_change(BRIDGE, address(number), FAILED, None)
    assert world.guests.known == 0
    world.guests.on_change(BRIDGE, address(450), STALE, MAC)
    world.wait(1)
    assert world.announced == [address(450)], "those that have gone are not announced"


def test_the_start() -> None:
    """Confirmed guests are announced once, stale ones once the kernel has found them."""
    world = World()
    stale, gone, other = address(2), address(3), address(4)
    world.uncovered.add(other)
    world.survey(
        (BRIDGE, Neighbour(GUEST, REACHABLE, MAC)),
        (BRIDGE, Neighbour(stale, STALE, MAC)),
        (BRIDGE, Neighbour(gone, STALE, MAC)),
        (BRIDGE, Neighbour(other, REACHABLE, MAC)),
        (BRIDGE, Neighbour(address(5), FAILED, None)),
        (OTHER, Neighbour(address(6), REACHABLE, MAC)),
    )
    world.wait(1)
    assert (world.once, world.confirmed) == ([GUEST], [stale, gone])
    assert world.removed == [address(5)]
    world.change(PROBE, address=stale)
    world.change(REACHABLE, address=stale)
    world.change(FAILED, None, address=gone)
    world.wait(1)
    assert world.once == [GUEST, stale]
    assert (world.announced, world.guests.known) == ([], 2)


def test_stale_guests_are_looked_for_at_the_rate() -> None:
    world = World(rate=10)
    world.survey(*((BRIDGE, Neighbour(address(n), STALE, MAC)) for n in range(100)))
    world.wait(1)
    assert 10 <= len(world.confirmed) <= 12


@pytest.mark.parametrize("again", [False, True])
def test_a_second_survey(again: bool) -> None:
    """Known guests are announced again only if that is wanted; those that have gone are not."""
    world = World()
    world.change(REACHABLE)
    world.change(REACHABLE, address=address(2))
    world.change(REACHABLE, address=address(3))
    world.uncovered.add(address(3))
    world.survey(
        (BRIDGE, Neighbour(GUEST, REACHABLE, MAC)),
        (BRIDGE, Neighbour(address(3), REACHABLE, MAC)),
        again=again,
    )
    assert world.once == [GUEST] * again
    assert sorted(world.forgotten) == [address(2), address(3)]
    assert world.guests.known == 1


def test_a_guest_that_appears_during_a_survey_stays() -> None:
    world = World()
    world.guests.begin_survey()
    world.change(STALE)
    world.guests.end_survey([])
    assert world.guests.known == 1


def test_lost_changes() -> None:
    """An unknown guest is new; a guest with another MAC has moved."""
    world = World()
    world.change(REACHABLE)
    world.survey(
        (BRIDGE, Neighbour(GUEST, STALE, OTHER_MAC)),
        (BRIDGE, Neighbour(address(2), STALE, MAC)),
        lost=True,
        again=False,
    )
    world.wait(2)
    assert world.announced == [GUEST, GUEST, address(2)] or world.announced == [
        GUEST,
        address(2),
        GUEST,
    ]


def test_a_claim_of_a_guest_that_has_moved() -> None:
    """The kernel looks for it; when it returns, it is announced, although nothing else is new."""
    world = World()
    world.change(REACHABLE)
    world.wait(10)
    world.guests.on_claim(GUEST)
    assert (world.searched, world.guests.known) == ([GUEST], 0)
    world.change(FAILED, None)
    assert world.removed == [GUEST]
    world.wait(1)
    world.change(STALE)
    assert world.announced == [GUEST, GUEST]


def test_no_quarrel_about_a_guest_that_is_here() -> None:
    """A guest that answers at once has not moved: another node has its address, or lies."""
    world = World()
    world.change(REACHABLE)
    world.wait(10)
    for _ in range(20):
        world.guests.on_claim(GUEST)
        world.change(REACHABLE)
        world.wait(0.6)
    assert world.announced == [GUEST]
    assert len(world.searched) == 20


def test_a_belated_claim_of_the_former_host() -> None:
    """A guest that has just come is announced again after the former host's last announcement."""
    world = World()
    world.change(STALE)
    world.wait(1)
    world.guests.on_claim(GUEST)
    world.change(REACHABLE)
    world.wait(1)
    assert world.announced == [GUEST, GUEST]
    assert world.guests.arrivals == 1


@pytest.mark.parametrize("returns", [True, False])
def test_a_search_in_vain_ends_before_the_kernel_gives_up(returns: bool) -> None:
    """A failed entry would make the kernel ignore what the guest says when it returns."""
    world = World()
    world.change(REACHABLE)
    world.guests.on_claim(GUEST)
    world.change(INCOMPLETE, None)
    world.wait(0.45)
    assert world.removed == []
    if returns:
        world.entries[GUEST] = Neighbour(GUEST, REACHABLE, MAC)
        world.change(REACHABLE)
    world.wait(0.1)
    assert world.removed == ([] if returns else [GUEST])
    world.wait(10)
    assert world.removed == ([] if returns else [GUEST])


def test_claims_in_a_row_cause_one_search() -> None:
    world = World()
    world.change(REACHABLE)
    for _ in range(100):
        world.guests.on_claim(GUEST)
        world.guests.on_change(BRIDGE, GUEST, REACHABLE, MAC)
    world.guests.on_claim(address(9))
    assert world.searched == [GUEST]


def test_a_port_that_leaves() -> None:
    world = World()
    world.change(REACHABLE)
    world.change(REACHABLE, OTHER_MAC, address=address(2))
    world.guests.on_departures({(BRIDGE, MAC), (OTHER, OTHER_MAC)})
    assert world.searched == [GUEST]
    assert world.guests.departures == 1


def test_a_host_that_a_share_has_learned_is_solicited() -> None:
    world = World()
    world.uncovered.add(address(2))
    for who in (GUEST, address(2)):
        world.guests.on_route(who, BRIDGE)
    assert world.confirmed == [GUEST]
    world.change(REACHABLE)
    world.guests.on_route(GUEST, BRIDGE)
    assert world.confirmed == [GUEST]
    assert world.announced == [GUEST]


def test_a_host_that_a_share_has_learned_and_the_kernel_knows_is_announced_at_once() -> None:
    """The entry came before the route, and is stale: the kernel would wait before it confirms."""
    world = World()
    world.default_route = 0
    for ifindex in (BRIDGE, OTHER):  # another interface on the same bridge hears it, too
        world.change(STALE, ifindex=ifindex)
    world.entries[GUEST] = Neighbour(GUEST, STALE, MAC)
    assert not world.announced
    world.routes[GUEST] = BRIDGE
    world.guests.on_route(GUEST, BRIDGE)
    world.guests.work()
    assert (world.announced, world.confirmed) == ([GUEST], [])
