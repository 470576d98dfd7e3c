"""AnyIP: a prefix that a local route delivers to the host itself needs no forwarding."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ndxdp.doctor import anyip
from ndxdp.doctor.anyip import Delivery
from ndxdp.doctor.finding import Level
from ndxdp.ndp.profile import Answer
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import Rule, owned_rule
from ndxdp.rules.ruleset import Rules
from tests.fixtures.doctor import bad, conf, follow, found_one, mends, notes
from tests.fixtures.network import (
    BEHIND,
    HOST,
    TARGET,
    UPLINK,
    Network,
    call,
    done,
    eventually,
    python,
    remove_instance,
    sh,
)

HERE = "2001:db8:0:0:a::/80"
SOME = "2001:db8::a:0:0:77"


@pytest.fixture
def host(net: Network) -> Iterator[Network]:
    """Yield a host that does not forward."""
    conf("forwarding", 0, "all")
    yield net
    remove_instance()
    for prefix in (HERE, BEHIND):
        for table in ("local", "main"):
            call("ip", "-6", "route", "delete", "local", prefix, "table", table)


def deliver(prefix: str, *more: str) -> None:
    sh("ip", "-6", "route", "add", "local", prefix, "dev", "lo", *more)


def own(address: str) -> None:
    """Give this host an address, and wait for the address's route."""
    sh("ip", "-6", "address", "add", address, "dev", "lo")
    eventually(lambda: f"local {address} " in sh("ip", "-6", "route", "show", "table", "local"))


def attach(*prefixes: str, answer: str = "always") -> None:
    named = [word for prefix in prefixes for word in ("-n", prefix)]
    done("attach", UPLINK, "--mode", "tc", *named, "--answer", answer)


def is_reached(net: Network, target: str) -> bool:
    return net.at_router("ping", "-c1", "-W2", target).code == 0


def test_no_forwarding_is_needed(host: Network) -> None:
    deliver(HERE)
    attach(HERE)
    assert is_reached(host, SOME)
    assert bad() == []
    assert f"AnyIP: {HERE} is delivered to this host; forwarding is not needed" in notes()


def test_before_anything_is_attached(host: Network) -> None:
    deliver(HERE)
    assert bad() == []
    assert f"AnyIP: {HERE} is delivered to this host; forwarding is not needed" in notes()


def test_a_route_in_another_table(host: Network) -> None:
    deliver(HERE, "table", "main")
    attach(HERE)
    assert is_reached(host, SOME)
    assert bad() == []


def test_two_halves_and_an_address(host: Network) -> None:
    deliver("2001:db8:0:0:a::/81")
    deliver("2001:db8:0:0:a:8000::/81")
    own(TARGET)
    try:
        attach(HERE, TARGET)
        assert is_reached(host, SOME)
        assert is_reached(host, TARGET)
        assert bad() == []
    finally:
        sh("ip", "-6", "address", "delete", TARGET, "dev", "lo")
        sh("ip", "-6", "route", "delete", "local", "2001:db8:0:0:a::/81")
        sh("ip", "-6", "route", "delete", "local", "2001:db8:0:0:a:8000::/81")


def test_neither_a_local_route_nor_forwarding(host: Network) -> None:
    attach(HERE)
    assert not is_reached(host, SOME)
    found = found_one("forwarding", "this host does not forward IPv6")
    other_way = f"ip -6 route add local {HERE} dev lo"
    assert found["why"].endswith(
        f"if this host itself has the addresses of {HERE}, instead: {other_way}"
    )
    follow(other_way)
    assert is_reached(host, SOME)
    assert bad() == []
    sh("ip", "-6", "route", "delete", "local", HERE)
    mends("forwarding", "this host does not forward IPv6")
    conf("forwarding", 0, "all")


def test_a_prefix_that_is_not_local(host: Network) -> None:
    """Require forwarding for the prefixes that no local route delivers."""
    deliver(HERE)
    attach(HERE, BEHIND)
    found = found_one("forwarding", "this host does not forward IPv6")
    assert f"instead: ip -6 route add local {BEHIND} dev lo" in found["why"]
    assert f"AnyIP: {HERE} is delivered to this host; forwarding is not needed there" in notes()


def test_other_answers_need_forwarding(host: Network) -> None:
    deliver(HERE)
    attach(HERE, answer="routed")
    found_one("forwarding", "this host does not forward IPv6")


def test_the_firewalls_forward_does_not_matter(host: Network) -> None:
    deliver(HERE)
    attach(HERE)
    sh("ip6tables", "-P", "FORWARD", "DROP")
    try:
        assert is_reached(host, SOME)
        assert bad() == []
    finally:
        sh("ip6tables", "-P", "FORWARD", "ACCEPT")


def test_programs_that_bind(host: Network) -> None:
    """Bind to any address of the prefix with ip_nonlocal_bind or IP_FREEBIND only."""
    deliver(HERE)
    bind = (
        "import socket, sys\ns = socket.socket(socket.AF_INET6)\n"
        "if sys.argv[1:]: s.setsockopt(socket.IPPROTO_IPV6, 78, 1)\n"  # IPV6_FREEBIND
        f"s.bind(('{SOME}', 8080))\n"
    )
    assert python(bind).code != 0
    assert python(bind, "free").code == 0
    sh("sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1")
    assert python(bind).code == 0
    sh("sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=0")


# ---- rules that need the local route -------------------------------------------------------------


@dataclass(frozen=True)
class Local:
    """A stand-in for the answer `local`, independent of its number."""

    name: str = "LOCAL"


def of(*rules: tuple[str, object]) -> Rules:
    return Rules.of({parse_prefix(prefix): Rule(answer) for prefix, answer in rules})  # type: ignore[arg-type]


def ifindex() -> int:
    return socket.if_nametoindex(UPLINK)


def test_a_local_rule_without_its_route(host: Network) -> None:
    delivery = anyip.gather(of((HERE, Local())), ifindex())
    (found,) = anyip.judge(delivery)
    assert found.level is Level.FAILURE
    assert found.what == f"there is no local route for {HERE}: its `local` rule answers nothing"
    assert not delivery.needs_forwarding
    follow(found.cure)
    delivery = anyip.gather(of((HERE, Local())), ifindex())
    assert delivery == Delivery((parse_prefix(HERE),), needs_forwarding=False)


def test_a_local_rule_of_which_a_part_is_here(host: Network) -> None:
    """Accept addresses on lo within a wide prefix: this may be intended."""
    own(SOME)
    try:
        delivery = anyip.gather(of((HERE, Local())), ifindex())
        assert anyip.judge(delivery) == []
    finally:
        sh("ip", "-6", "address", "delete", SOME, "dev", "lo")


def test_holes_and_never_rules_are_ignored(host: Network) -> None:
    deliver(HERE)
    rules = of((HERE, Answer.ALWAYS), (BEHIND, Answer.NEVER))
    rules |= {parse_prefix(HOST): owned_rule("own")}
    assert anyip.gather(rules, ifindex()) == Delivery((parse_prefix(HERE),), needs_forwarding=False)
