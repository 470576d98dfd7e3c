"""A guest moves from one host to another, and the router follows: kernels as router and guest.

The figures in docs/announcing.md: `make test TESTS='-s tests/test_moving_guests.py'`.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lab import private
from lab.nodes import Pings
from lab.two_hosts import BEHIND, GUEST_ADDRESS, Host, TwoHosts
from ndxdp.ndp.frame import checksum_correct
from ndxdp.ndp.message import NONCE_LEN, probe, unsolicited
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.upstream.claims import claimed_target
from tests.fixtures.network import NDXDP, Running, eventually, remove_all_instances

INTERVAL = 0.05
"""Seconds between two pings."""

ANNOUNCE = "[interface.announce]\nneighbours = true"

MAC, OTHER_MAC = parse_mac("02:00:00:00:00:0a"), parse_mac("02:00:00:00:00:0b")
TARGET = parse_address(str(GUEST_ADDRESS))


class Pair:
    """Two hosts with a daemon each."""

    def __init__(self, lab: TwoHosts, folder: Path) -> None:
        self.lab, self._folder = lab, folder
        self.here, self.there = lab.hosts
        self._running: dict[str, Running] = {}

    def start(self, keys: str, mode: str = "tc") -> None:
        """Start both daemons, which answer for live neighbours behind them."""
        for host in self.lab.hosts:
            self.start_one(host, keys, mode)

    def start_one(self, host: Host, keys: str, mode: str = "tc") -> Running:
        """Start one daemon."""
        path = self._folder / f"{host.letter}.toml"
        path.write_text(
            f'[metrics]\nlisten = "[::1]:9877"\n'
            f'[[interface]]\nname = "{host.uplink}"\nmode = "{mode}"\non_stop = "detach"\n{keys}\n'
            f'[[interface.prefix]]\nprefix = "{BEHIND}"\nanswer = "neighbour"\n'
        )
        enter = ("nsenter", f"--net=/run/netns/{host.name}")
        self._running[host.name] = Running(("-c", str(path)), [*enter, *NDXDP])
        return self._running[host.name]

    def suspend(self, host: Host) -> None:
        """Stop a daemon by SIGSTOP."""
        self._running[host.name].process.send_signal(signal.SIGSTOP)

    def resume(self, host: Host) -> None:
        """Let a stopped daemon run on."""
        self._running[host.name].process.send_signal(signal.SIGCONT)

    def reached(self) -> None:
        """Wait until the router reaches the guest at the first host."""
        eventually(lambda: self.lab.router.ping(GUEST_ADDRESS), within=10)
        eventually(partial(self.is_at, self.here))

    def is_at(self, host: Host) -> bool:
        """Return True if the router has a host's MAC for the guest."""
        return self.lab.mac_at_router() == host.mac

    def known(self) -> list[tuple[object, ...]]:
        """Return what each host has of the guest: its neighbour entry and metrics."""
        names = ("ndxdp_announced_arrivals_total", "ndxdp_announced_neighbours")
        return [
            (
                host.name,
                host.neighbour(GUEST_ADDRESS, host.bridge),
                [self.metric(host, name) for name in names],
            )
            for host in self.lab.hosts
        ]

    def metric(self, host: Host, name: str) -> float:
        """Return a metric of a host's daemon."""
        text = host.run("curl", "-sg", "http://[::1]:9877/metrics").stdout
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name)))

    def close(self) -> None:
        for running in self._running.values():
            running.close()


@pytest.fixture
def pair(privacy: None, tmp_path: Path) -> Iterator[Pair]:
    assert private.inside(), "these tests need namespaces of their own: run `make test`"
    with TwoHosts() as lab:
        made = Pair(lab, tmp_path)
        try:
            yield made
        finally:
            made.close()
            remove_all_instances()


def moved(pair: Pair, source: Host, target: Host, within: float) -> Pings:
    """Move the guest while the router pings it; return what was lost once it is reached again."""
    with pair.lab.router.pinging(GUEST_ADDRESS, interval=INTERVAL) as outcome:
        time.sleep(1)
        pair.lab.move(source, target)
        with contextlib.suppress(AssertionError):
            eventually(partial(pair.is_at, target), within=within)
        time.sleep(1)
        return outcome()


def shown(what: str, pings: Pings) -> None:
    print(f"\n{what}: {len(pings.lost) * INTERVAL:.2f} s lost of {pings.sent * INTERVAL:.1f} s")


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_the_router_follows(pair: Pair, mode: str) -> None:
    """Move there, and back at once and later: the host that it left does not keep its packets.

    By themselves, the kernels would find that out after ten minutes.
    """
    pair.lab.slow_down()
    pair.start(ANNOUNCE, mode)
    pair.reached()
    for pause in (0, 4, 0):
        for source, target in ((pair.here, pair.there), (pair.there, pair.here)):
            pings = moved(pair, source, target, within=10)
            shown(f"with the key, {mode}", pings)
            assert pair.is_at(target), pair.known()
            assert len(pings.lost) * INTERVAL <= 1
            time.sleep(pause)
    assert pair.metric(pair.there, "ndxdp_announced_arrivals_total") == 3
    assert pair.metric(pair.here, "ndxdp_announced_neighbours") == 1


def test_without_the_key_the_router_does_not_follow(pair: Pair) -> None:
    """The guest is lost for as long as the router takes to doubt the former host."""
    pair.start("")
    pair.reached()
    pings = moved(pair, pair.here, pair.there, within=90)
    shown("without the key", pings)
    assert len(pings.lost) * INTERVAL > 2


def test_the_host_that_was_left_no_longer_answers(pair: Pair) -> None:
    """Its entry would have stayed valid for half a minute, and it would have answered meanwhile."""
    pair.start(ANNOUNCE)
    pair.reached()
    pair.lab.move(pair.here, pair.there)
    eventually(partial(pair.is_at, pair.there))
    state = partial(pair.here.neighbour, str(GUEST_ADDRESS), pair.here.bridge)
    eventually(lambda: state()[0] in ("", "INCOMPLETE", "FAILED"))
    words = ("explain", pair.here.uplink, str(GUEST_ADDRESS))
    explained = pair.here.run(*NDXDP, *words, check=False)
    assert "no_neighbour" in explained.stdout, explained


def test_the_host_that_was_left_ends_its_search(pair: Pair) -> None:
    """The kernel's own search would last for minutes, and in the end it would ignore the guest.

    So the daemon must not be needed to end it when the guest returns: here, it is stopped.
    """
    setting = f"net.ipv6.neigh.{pair.here.bridge}.retrans_time_ms=60000"
    pair.here.run("sysctl", "-qw", setting)
    pair.start(ANNOUNCE)
    pair.reached()
    pair.lab.move(pair.here, pair.there)
    eventually(partial(pair.is_at, pair.there))
    state = partial(pair.here.neighbour, str(GUEST_ADDRESS), pair.here.bridge)
    eventually(lambda: state() == ("", ""))
    pair.suspend(pair.here)
    pair.lab.move(pair.there, pair.here)
    assert state()[0] in ("STALE", "DELAY", "PROBE", "REACHABLE")
    pair.resume(pair.here)
    eventually(partial(pair.is_at, pair.here))


def test_a_scan_announces_nobody(pair: Pair) -> None:
    """Addresses that nobody has are solicited behind the host; a guest that comes is announced."""
    pair.start(ANNOUNCE)
    pair.reached()
    addresses = [str(BEHIND[0x10000 + number]) for number in range(60)]
    for target in addresses:
        pair.lab.router.run("ping", "-6", "-c1", "-W0.01", target, check=False)
    pair.lab.move(pair.here, pair.there)
    eventually(partial(pair.is_at, pair.there))
    assert pair.metric(pair.there, "ndxdp_announced_arrivals_total") == 1
    assert pair.metric(pair.there, "ndxdp_announced_neighbours") == 1


def test_a_start_announces_live_guests_once(pair: Pair) -> None:
    pair.here.run("ping", "-6", "-c1", str(GUEST_ADDRESS))
    pair.start_one(pair.here, f"{ANNOUNCE}\nadvertise = true")
    eventually(lambda: pair.metric(pair.here, "ndxdp_announcements_total") == 1)
    time.sleep(2.5)
    assert pair.metric(pair.here, "ndxdp_announcements_total") == 1, "no repetition"
    assert pair.metric(pair.here, "ndxdp_announced_arrivals_total") == 0


def test_a_stale_guest_that_has_gone_is_not_announced_at_a_start(pair: Pair) -> None:
    """It may live at another host by now; the kernel looks for it in vain."""
    entry = f"neighbour replace {GUEST_ADDRESS} lladdr 02:00:00:00:09:99 dev {pair.here.bridge}"
    pair.here.ip(f"{entry} nud stale")
    pair.start_one(pair.here, ANNOUNCE)
    state = partial(pair.here.neighbour, str(GUEST_ADDRESS), pair.here.bridge)
    eventually(lambda: state()[0] == "", within=20)
    assert pair.metric(pair.here, "ndxdp_announcements_total") == 0


# ---- claims of other nodes -----------------------------------------------------------------------


def advertisement(mac: bytes = OTHER_MAC, lladdr: bytes | None = None) -> bytes:
    return unsolicited(mac, TARGET, router=True, lladdr=lladdr)


def without_override(frame: bytes) -> bytes:
    """Clear the O flag, and correct the checksum."""
    flags = frame[58]
    changed = frame[:58] + bytes([flags & ~0x20]) + frame[59:]
    checksum = int.from_bytes(frame[56:58], "big") + ((flags & 0x20) << 8)
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    return changed[:56] + checksum.to_bytes(2, "big") + changed[58:]


@pytest.mark.parametrize(
    ("frame", "is_claim"),
    [
        pytest.param(advertisement(), True, id="another node's"),
        pytest.param(advertisement(MAC), False, id="reflected"),
        pytest.param(advertisement(OTHER_MAC, MAC), False, id="for this host's MAC"),
        pytest.param(without_override(advertisement()), False, id="a defence"),
        pytest.param(probe(OTHER_MAC, TARGET, bytes(NONCE_LEN)), False, id="a probe"),
        pytest.param(advertisement()[:-1], False, id="too short"),
        pytest.param(advertisement()[:21] + b"\x40" + advertisement()[22:], False, id="forwarded"),
        pytest.param(advertisement()[:-1] + b"\xff", False, id="bad checksum"),
        pytest.param(b"", False, id="empty"),
    ],
)
def test_claims(frame: bytes, is_claim: bool) -> None:
    assert claimed_target(frame, MAC) == (TARGET if is_claim else None)


def test_the_defence_is_a_valid_advertisement() -> None:
    """So that the table above shows the flag, not a broken checksum."""
    assert checksum_correct(without_override(advertisement()))
