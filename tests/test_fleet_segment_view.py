"""Reports of a segment, and what its decisions cost."""

from __future__ import annotations

from collections.abc import Callable

from ndxdp.fleet.decision import Decision
from ndxdp.fleet.records import Holder, Member
from ndxdp.fleet.segment import Segment
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.fleet.takeover_rate import TakeoverRate
from ndxdp.fleet.view import Holding
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from tests.fixtures.segment_host import (
    LEASE,
    OURS,
    THEIRS,
    Host,
    address,
)
from tests.fixtures.work import assert_in_proportion, work

# ---- reports -------------------------------------------------------------------------------------


def test_addresses_as_they_are_reported() -> None:
    host = Host("h2")
    host.put("a", 1, hosts=["h2", "h1"], failback=True)
    host.put("b", 2, hosts=["h8", "h9"])
    host.put("c", 3)
    host.put("d", 4)
    host.segment.view.put_shared("e", "why\n", 1, 1)
    host.hold("a", 1, "h2", THEIRS)
    host.hold("z", 9, "h2", THEIRS)
    host.decide()
    nobody = "none of its hosts is a member: h8, h9"
    assert list(host.segment.addresses()) == [
        ("a", "2001:db8::1", ("h2", "h1"), True, "h2", 1.0, ""),
        ("b", "2001:db8::2", ("h8", "h9"), False, "", 0.0, nobody),
        ("c", "2001:db8::3", (), False, "", 0.0, ""),
        ("d", "2001:db8::4", (), False, "", 0.0, ""),
        ("e", "", (), False, "", 0.0, "why\\n"),
    ]
    host.join("h8")
    host.segment.view.put_drained("h8")
    host.decide()
    problems = {each.name: each.problem for each in host.segment.addresses()}
    assert problems["b"] == "all of its hosts that are members are drained: h8"
    host.leave("h2", "h8")
    host.segment.set_joined(False)
    host.decide()
    problems = {each.name: each.problem for each in host.segment.addresses()}
    assert problems["c"] == "no host is a member of the segment"
    assert problems["a"] == ""


# ---- what it costs -------------------------------------------------------------------------------


def fleet(members: int, addresses: int) -> Segment:
    """Return the segment of h0, where each member holds as many addresses."""
    segment = Segment("vlan7", "h0", LEASE, TakeoverRate())
    segment.set_lease(OURS)
    segment.set_joined(True)
    view, rule = segment.view, Rule(origin="shared", label="vlan7")
    view.begin()
    for number in range(members):
        view.put_member(Member(f"h{number}", "", 0.0, ""))
    for number in range(addresses):
        prefix = Prefix(address(number), 128)
        view.put_shared(f"n{number}", SharedAddress(prefix, rule), number + 1, number + 1)
        owner = number % members
        holding = Holding(Holder(f"h{owner}", 0.0, str(prefix)), OURS + owner)
        view.put_holder(f"n{number}", holding, addresses + number)
    view.end(2 * addresses)
    assert segment.decide(1.0) == Decision([], [], None)
    segment.rules()
    return segment


def lose_a_member(segment: Segment, members: int, addresses: int) -> None:
    segment.view.delete_member("h1")
    for number in range(1, addresses, members):
        segment.view.delete_holder(f"n{number}", 2 * addresses + 1)
    segment.decide(2.0)
    segment.rules()


def test_the_loss_of_a_member_costs_its_addresses_only() -> None:
    def with_others(addresses: int) -> int:
        segment = fleet(addresses // 10, addresses)
        return work(lambda: lose_a_member(segment, addresses // 10, addresses))

    assert with_others(2000) < 1.5 * with_others(500)

    def its_own(addresses: int) -> Callable[[], object]:
        segment = fleet(10, addresses)
        return lambda: lose_a_member(segment, 10, addresses)

    assert_in_proportion(its_own, 500)


def test_one_more_key_costs_the_same_beside_many() -> None:
    def cost(addresses: int) -> int:
        segment = fleet(10, addresses)

        def add() -> None:
            value = SharedAddress(Prefix(address(addresses), 128), Rule())
            segment.view.put_shared("one", value, 2, 2)
            segment.decide(2.0)
            segment.rules()

        return work(add)

    assert cost(4000) <= cost(400) + 10


def test_a_member_that_joins_costs_what_this_host_holds() -> None:
    def cost(addresses: int) -> int:
        segment = fleet(addresses // 10, addresses)

        def join() -> None:
            segment.view.put_member(Member("new", "", 0.0, ""))
            segment.decide(2.0)

        return work(join)

    assert cost(4000) <= cost(400) + 10


def test_a_cold_start_costs_few_hashes_for_each_address() -> None:
    def prepare(addresses: int) -> Callable[[], object]:
        segment = fleet(addresses, addresses)
        segment.view.forget_holders()
        return lambda: segment.decide(2.0)

    assert_in_proportion(prepare, 300)
