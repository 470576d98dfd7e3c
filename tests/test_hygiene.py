"""Own addresses stay deprecated when their lifetimes are set again, and nothing else changes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.netlink.addresses import FOREVER, OwnAddress, own_addresses, set_preferred
from ndxdp.netlink.link_monitor import LinkMonitor
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import AddressPattern, parse_pattern
from ndxdp.upstream.deprecate import Deprecator, changes
from tests.fixtures.network import HOST, UPLINK, Network, sh

OTHER, THIRD = "2001:db8::22", "2001:db8::33"
ON_LINK = parse_pattern("2001:db8::/64")
OUTSIDE = "2001:db8::1"


def only(text: str) -> AddressPattern:
    """Return the pattern of one address."""
    return AddressPattern(parse_address(text), 128)


def address(text: str) -> dict[str, Any]:
    """Return an address as `ip` prints it."""
    shown = json.loads(sh("ip", "-j", "-6", "address", "show", "dev", UPLINK))
    (found,) = (one for one in shown[0]["addr_info"] if one.get("local") == text)
    return dict(found)


def is_deprecated(text: str) -> bool:
    return bool(address(text).get("deprecated"))


def source() -> str:
    """Return the address from which the kernel would send."""
    shown = json.loads(sh("ip", "-j", "-6", "route", "get", "2001:db8:ffff::1"))
    return str(shown[0]["prefsrc"])


def add(text: str, options: str = "") -> None:
    sh("ip", "-6", "address", "add", f"{text}/64", "dev", UPLINK, *options.split())


@pytest.fixture
def host(net: Network) -> int:
    """Add addresses, so that the interface has HOST, OTHER and THIRD of a prefix."""
    add(OTHER, "nodad")
    add(THIRD, "nodad")
    return socket.if_nametoindex(UPLINK)


@contextlib.asynccontextmanager
async def keeping(hygiene: Deprecator) -> AsyncIterator[list[int]]:
    """Run `hygiene` as a daemon does; yield the number of events."""
    changed, events = asyncio.Event(), [0]
    loop = asyncio.get_running_loop()
    with contextlib.closing(LinkMonitor()) as monitor:

        def on_netlink() -> None:
            monitor.drain()
            events[0] += 1
            changed.set()

        loop.add_reader(monitor.fileno(), on_netlink)
        running = asyncio.create_task(hygiene.run(changed))
        try:
            yield events
            assert not running.done(), running
        finally:
            loop.remove_reader(monitor.fileno())
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def until(probe: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not probe():
            await asyncio.sleep(0.01)


# ---- addresses to change, pure
# --------------------------------------------------------------------


def own(text: str, *, preferred: int = FOREVER, link_local: bool = False) -> OwnAddress:
    return OwnAddress(parse_address(text), 64, 0x80, preferred, FOREVER, link_local)


def test_addresses_to_change() -> None:
    addresses = [
        own("fe80::2", link_local=True),
        own(HOST),
        own(OTHER),
        own(THIRD, preferred=0),
        own("2001:db8:9::1"),
    ]
    everything = [parse_pattern("::/0")]
    assert changes(addresses, []) == []
    assert changes(addresses, [ON_LINK], [only(HOST)]) == [(addresses[2], 0)]
    assert changes(addresses, [only(HOST)]) == [(addresses[1], 0)]
    assert [change.own for change in changes(addresses, everything, [only(OTHER)])] == [
        addresses[1],
        addresses[4],
    ]
    assert changes(addresses, [ON_LINK], [only(THIRD)]) == [
        (addresses[1], 0),
        (addresses[2], 0),
        (addresses[3], FOREVER),
    ]


def test_a_finite_life_is_preferred_to_its_end() -> None:
    short = OwnAddress(parse_address(HOST), 64, 0, 0, 1234)
    assert changes([short], [ON_LINK], [only(HOST)]) == [(short, 1234)]


def test_patterns_by_the_end_of_an_address() -> None:
    addresses = [own(f"2001:db8:{n}::{last}") for n in (1, 2) for last in (1, 2, 3)]
    ends = [parse_pattern("::1/-64"), parse_pattern("::2/-64")]
    found = changes(addresses, [parse_pattern("::/0")], ends)
    assert found == [(each, 0) for each in addresses if each.address[-1] == 3]
    assert changes(addresses, ends) == [(each, 0) for each in addresses if each.address[-1] != 3]
    # All 64 bits count: an address that only shares the last 16 bits is another one.
    assert changes([own("2001:db8:1::9:1")], ends) == []
    assert len(changes([own("2001:db8:1::9:1")], [parse_pattern("::1/-16")])) == 1


def test_addresses_that_the_kernel_needs_are_kept() -> None:
    needed = [own("::1"), own("fe80::2", link_local=True)]
    assert changes(needed, [parse_pattern("::/0"), parse_pattern("::1/-1")]) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2001:db8::1", "2001:db8::1"),
        ("2001:db8::1/128", "2001:db8::1"),
        ("2001:db8::1/-128", "2001:db8::1"),
        ("2001:db8::/64", "2001:db8::/64"),
        ("::1/-64", "::1/-64"),
        ("0::0:1/-064", "::1/-64"),
        ("::/0", "::/0"),
    ],
)
def test_patterns_are_written_in_one_way(text: str, shown: str) -> None:
    assert str(parse_pattern(text)) == shown
    assert parse_pattern(shown) == parse_pattern(text)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("::1/-0", "'::1/-0' has no suffix length from -1 to -128", "write it as in ::1/-64"),
        ("::1/-129", "'::1/-129' has no suffix length from -1 to -128", ""),
        ("::1/-", "'::1/-' has no suffix length from -1 to -128", ""),
        ("::1/--4", "'::1/--4' has no suffix length from -1 to -128", ""),
        (
            "2001:db8::1/-64",
            "'2001:db8::1/-64' has bits set before the last 64",
            "::1/-64 is the suffix, 2001:db8::1 the address alone",
        ),
        ("nonsense/-64", "'nonsense' is not an IPv6 address", ""),
        ("ff02::/16", "ff02::/16 is multicast", ""),
    ],
)
def test_invalid_patterns(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pattern(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_patterns_that_cover_others() -> None:
    def covers(a: str, b: str) -> bool:
        return parse_pattern(a).covers(parse_pattern(b))

    assert covers("::/0", "::1/-64")
    assert covers("2001:db8::/32", "2001:db8:1::/64")
    assert covers("2001:db8::/32", "2001:db8::1")
    assert covers("::1/-64", "2001:db8::1")
    assert covers("::1/-16", "::1/-64")
    assert not covers("::1/-64", "::1/-16")
    assert not covers("2001:db8::/32", "::1/-64")
    assert not covers("::1/-64", "2001:db8::/64")
    assert not covers("2001:db8:1::/64", "2001:db8::/32")


# ---- the kernel ----------------------------------------------------------------------------------


def test_one_is_preferred_and_used(host: int) -> None:
    for chosen in (THIRD, HOST, OTHER):
        hygiene = Deprecator(host, [ON_LINK], [only(chosen)])
        assert hygiene.apply() > 0
        preferred = [text for text in (HOST, OTHER, THIRD) if not is_deprecated(text)]
        assert preferred == [chosen]
        assert source() == chosen
        assert hygiene.apply() == 0


FLAGS = ["nodad", "noprefixroute", "mngtmpaddr", "home", "nodad noprefixroute mngtmpaddr"]
LIVES = ["", "valid_lft 5000 preferred_lft 4000"]


@pytest.mark.parametrize("life", LIVES, ids=["forever", "finite"])
@pytest.mark.parametrize("flags", FLAGS)
def test_nothing_else_changes(host: int, flags: str, life: str) -> None:
    text = "2001:db8:5::44"
    add(text, f"{flags} {life} metric 77")
    for _ in range(100):
        if not address(text).get("tentative"):
            break
        sh("sleep", "0.05")
    before, routes = address(text), sh("ip", "-6", "route", "show", "dev", UPLINK)
    assert Deprecator(host, [parse_pattern(text)]).apply() == 1
    after = address(text)
    assert after.pop("deprecated") is True
    assert after.pop("preferred_life_time") == 0
    before.pop("preferred_life_time")
    valid, valid_before = after.pop("valid_life_time"), before.pop("valid_life_time")
    assert valid_before - valid in (0, 1)
    assert after == before
    after_routes = sh("ip", "-6", "route", "show", "dev", UPLINK)
    assert _without_expiry(after_routes) == _without_expiry(routes)


def _without_expiry(routes: str) -> list[str]:
    return [line.partition(" expires")[0] for line in routes.splitlines()]


def test_a_host_address_with_a_peer(host: int) -> None:
    sh(*f"ip -6 address add 2001:db8:7::1 peer 2001:db8:7::2/128 dev {UPLINK} nodad".split())
    before = address("2001:db8:7::1")
    assert Deprecator(host, [parse_pattern("2001:db8:7::/48")]).apply() == 1
    after = address("2001:db8:7::1")
    assert after["deprecated"]
    assert after["address"] == before["address"] == "2001:db8:7::2"


def test_its_origin_stays(host: int) -> None:
    """Keep IFA_PROTO, which records who set an address; `ip` of Debian 12 cannot show it."""

    def one() -> OwnAddress:
        wanted = parse_address(HOST)
        (found,) = (own for own in own_addresses(host) if own.address == wanted)
        return found

    set_preferred(host, one()._replace(origin=2), FOREVER)
    assert one().origin == 2
    assert Deprecator(host, [ON_LINK]).apply() == 3
    assert (one().preferred, one().origin) == (0, 2)


def test_managers_set_it_again(host: int) -> None:
    hygiene = Deprecator(host, [ON_LINK], [only(HOST)])

    async def main() -> None:
        async with keeping(hygiene) as events:
            await until(lambda: is_deprecated(OTHER) and is_deprecated(THIRD))
            for _ in range(3):
                sh("ip", "-6", "address", "change", f"{OTHER}/64", "dev", UPLINK)
                assert not is_deprecated(OTHER)
                await until(lambda: is_deprecated(OTHER))
            sh("ip", "-6", "address", "delete", f"{OTHER}/64", "dev", UPLINK)
            add(OTHER, "nodad")
            await until(lambda: is_deprecated(OTHER))
            change = f"ip -6 address change {HOST}/64 dev {UPLINK} preferred_lft 0"
            sh(*change.split())
            await until(lambda: not is_deprecated(HOST))
            # No further event follows.
            await asyncio.sleep(0.3)
            applied, seen = hygiene.applied, events[0]
            await asyncio.sleep(0.7)
            assert (hygiene.applied, events[0]) == (applied, seen)
            assert applied == 2 + 3 + 1 + 1

    asyncio.run(main())


def test_a_missing_address_is_ignored(host: int) -> None:
    assert Deprecator(host, [parse_pattern("2001:db8:6::/64")], [only(OUTSIDE)]).apply() == 0
    assert Deprecator(9999, [ON_LINK]).apply() == 0


def test_refusal_is_a_sentence(host: int) -> None:
    (one,) = (own for own in own_addresses(host) if own.address == parse_address(HOST))
    with pytest.raises(NdxdpError, match="cannot set the lifetime of 2001:db8::2"):
        set_preferred(9999, one, 0)
