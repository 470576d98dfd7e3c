"""A guest moves from the share of one host to that of another: kernels as router, hosts and guest.

All kernels would keep their neighbour entries for minutes, so that the router follows only because
of what ndxdp does. Figures of docs/sharing.md: `make test TESTS='-s tests/test_share_moves.py'`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab import private
from lab.capture import packet_socket
from lab.nodes import LINK
from lab.two_hosts import GUEST_ADDRESS, GUEST_MAC, PREFIX, ROUTER, Host, TwoHosts
from ndxdp.ndp.message import unsolicited
from ndxdp.netlink.host_routes import PROTOCOL
from ndxdp.rules.address import parse_mac
from tests.fixtures.network import FILES, NDXDP, Running, eventually, remove_all_instances

INTERVAL = 0.02
"""Seconds between two pings."""

WITHIN = 20
"""Seconds in which everything happens, on a busy machine, too."""

ANNOUNCE = "[interface.announce]\nadvertise = true\nneighbours = true"


class Shares:
    """Two hosts with a daemon each, whose share is one bridge for guests."""

    def __init__(self, lab: TwoHosts, folder: Path) -> None:
        self.lab, self._folder = lab, folder
        self.here, self.there = lab.hosts
        self._running: list[Running] = []
        lab.slow_down()

    def start(self, mode: str = "tc", more: str = "") -> None:
        """Start both daemons; return once the router reaches the guest at the first host."""
        for host in self.lab.hosts:
            path = self._folder / f"{host.letter}.toml"
            path.write_text(
                f'[[share]]\nupstream = "{host.uplink}"\ndownstream = ["{host.bridge}"]\n'
                f'prefixes = ["{PREFIX}"]\n'
                f'[[interface]]\nname = "{host.uplink}"\nmode = "{mode}"\n{more}\n'
                f'[[interface]]\nname = "{host.bridge}"\nmode = "{mode}"\n'
            )
            enter = ("nsenter", f"--net=/run/netns/{host.name}")
            self._running.append(Running(("-c", str(path)), [*enter, *NDXDP]))
        eventually(lambda: self.lab.router.ping(GUEST_ADDRESS), within=WITHIN)
        eventually(lambda: self.has_guest(self.here), within=WITHIN)
        eventually(partial(self.is_at, self.here), within=WITHIN)

    def is_at(self, host: Host) -> bool:
        """Return True if the router has a host's MAC for the guest."""
        return self.lab.mac_at_router() == host.mac

    def has_guest(self, host: Host) -> bool:
        """Return True if a host's share has learned the guest."""
        return bool(host.routes(str(GUEST_ADDRESS), "proto", str(PROTOCOL)))

    def is_without_guest(self, host: Host) -> bool:
        """Return True if a host's share has not learned the guest, or has forgotten it."""
        return not self.has_guest(host)

    def counters(self, host: Host) -> dict[str, int]:
        """Return the counters of a host's share."""
        inode = os.stat(f"/run/netns/{host.name}").st_ino
        found: dict[str, Any] = json.loads(
            (FILES / f"share-{inode}-{host.uplink}.json").read_text()
        )
        return dict(found["counters"])

    def explained(self, host: Host) -> str:
        """Return what a host's program does with a solicitation for the guest."""
        return host.run(*NDXDP, "explain", host.uplink, str(GUEST_ADDRESS), check=False).stdout

    def move(self, source: Host, target: Host, *, announces: bool) -> float:
        """Move the guest while the router pings it; return the seconds that were lost."""
        with self.lab.router.pinging(GUEST_ADDRESS, interval=INTERVAL) as outcome:
            time.sleep(0.5)
            self.lab.move(source, target, announces=announces)
            eventually(partial(self.is_at, target), within=WITHIN)
            eventually(lambda: self.lab.router.ping(GUEST_ADDRESS, wait=0.5), within=WITHIN)
            pings = outcome()
        assert pings.lost, "nothing moved"
        return len(pings.lost) * INTERVAL

    def close(self) -> None:
        for running in self._running:
            if running.process.poll() is None:
                running.process.kill()
            print(running.process.communicate()[1])  # pytest shows it after a failure


@pytest.fixture
def shares(privacy: None, tmp_path: Path) -> Iterator[Shares]:
    assert private.inside(), "these tests need namespaces of their own: run `make test`"
    with TwoHosts(routed=False) as lab:
        made = Shares(lab, tmp_path)
        try:
            yield made
        finally:
            made.close()
            remove_all_instances()


# ---- moves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "more"), [("tc", ""), ("tc", ANNOUNCE), ("userspace", "")], ids=str
)
def test_the_router_follows(shares: Shares, mode: str, more: str) -> None:
    """Move there and back, with announcements of the guest and without a word of it."""
    shares.start(mode, more)
    here, there = shares.here, shares.there
    moves = ((here, there, True), (there, here, False), (here, there, False), (there, here, True))
    for source, target, announces in moves:
        lost = shares.move(source, target, announces=announces)
        how = "announces itself" if announces else "is silent"
        print(f"{mode}: {lost:.2f} s lost, to {target.name}; the guest {how}")
        eventually(partial(shares.is_without_guest, source), within=WITHIN)
        assert shares.has_guest(target)
    assert "answered" not in shares.explained(there)
    # Belated announcements of the former host would have taken the guest there by now.
    time.sleep(2.5)
    assert shares.is_at(here)


def test_a_guest_that_returns_at_once(shares: Shares) -> None:
    shares.start()
    for source, target in ((shares.here, shares.there), (shares.there, shares.here)):
        shares.lab.move(source, target)
    eventually(lambda: shares.has_guest(shares.here) and shares.is_at(shares.here), within=WITHIN)
    time.sleep(2.5)
    assert shares.is_at(shares.here)
    assert shares.lab.router.ping(GUEST_ADDRESS)


def test_a_paused_host_announces_nothing(shares: Shares) -> None:
    """It learns the guest, and leaves it to another host to answer for it."""
    shares.start()
    there = shares.there
    there.run(*NDXDP, "pause", there.uplink)
    shares.lab.move(shares.here, there)
    eventually(lambda: shares.has_guest(there), within=WITHIN)
    time.sleep(2.5)
    assert not shares.is_at(there)
    assert shares.counters(there).get("announced") == 0


# ---- the host that is left -----------------------------------------------------------------------


def test_a_port_that_leaves_its_bridge_ends_the_answers(shares: Shares) -> None:
    """The entry would be good for ten minutes; the port that comes back needs no word of it."""
    shares.start()
    here = shares.here
    assert "answered" in shares.explained(here)
    here.ip("link set v-guest nomaster")
    eventually(lambda: "no_neighbour" in shares.explained(here), within=WITHIN)
    assert shares.has_guest(here), "another host may be asked, but nobody has claimed it"
    here.ip(f"link set v-guest master {here.bridge}")
    eventually(lambda: shares.lab.router.ping(GUEST_ADDRESS), within=WITHIN)


def test_a_guest_whose_mac_the_bridge_forgets_stays(shares: Shares) -> None:
    """As a bridge does when a guest was silent for 5 minutes."""
    shares.start()
    here = shares.here
    asked = shares.counters(here)["asked"]
    with shares.lab.router.pinging(GUEST_ADDRESS) as outcome:
        for _ in range(5):
            here.run("bridge", "fdb", "delete", GUEST_MAC, "dev", "v-guest", "master")
            time.sleep(0.3)
        pings = outcome()
    assert pings.lost == []
    assert shares.has_guest(here)
    eventually(lambda: shares.counters(here)["asked"] > asked)


@pytest.mark.parametrize("more", ["", ANNOUNCE], ids=["plain", "announces"])
def test_forged_claims_silence_no_live_guest(shares: Shares, more: str) -> None:
    """The host asks the guest, which answers; a flood of claims costs few questions."""
    shares.start(more=more)
    here = shares.here
    asked = shares.counters(here)["asked"]
    stop = threading.Event()
    sent = 0

    def forge() -> None:
        """Send claims to the host only: a router would believe them."""
        nonlocal sent
        with packet_socket(ROUTER, LINK) as wire:
            while not stop.is_set():
                mac = b"\x02\x66" + sent.to_bytes(4, "big")
                frame = unsolicited(mac, GUEST_ADDRESS.packed)
                wire.send(parse_mac(here.mac) + frame[6:])
                sent += 1
                time.sleep(0.002)

    thread = threading.Thread(target=forge)
    with shares.lab.router.pinging(GUEST_ADDRESS) as outcome:
        thread.start()
        stayed = []
        for _ in range(10):
            time.sleep(0.3)
            stayed.append(shares.has_guest(here))
        stop.set()
        thread.join()
        pings = outcome()
    assert all(stayed)
    assert pings.lost == []
    assert sent > 100
    time.sleep(1)  # the report is written
    # Each check asks the guest and its group, twice; then no claim counts for a second.
    assert shares.counters(here)["asked"] - asked <= 4 * (3 + 2) < sent
    assert shares.lab.router.ping(GUEST_ADDRESS)
    assert shares.is_at(here)
