"""Two hosts that take over from each other by keepalived, as docs/vrrp.md describes.

A router solicits the virtual address 20 times a second, and notes which host's MAC each answer has.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lab import private
from lab.capture import packet_socket
from lab.commands import enter
from lab.nodes import LINK
from lab.two_hosts import BEHIND, ROUTER, ROUTER_MAC, Host, TwoHosts
from ndxdp.ndp.frame import TYPE_NA, eth_source_of, flags_of, icmpv6_type_of, target_of
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac
from tests.fixtures.network import NDXDP, REPOSITORY, Running, eventually, remove_all_instances

VIP = "2001:db8:1::20"
OTHER = str(BEHIND[0x99])
PERIOD = 0.05  # seconds between two solicitations
SOLICITED = 0x40

DOCUMENT = (REPOSITORY / "docs" / "vrrp.md").read_text()


class Answer(NamedTuple):
    """An advertisement that the router has received.

    Attributes:
        time: In s of CLOCK_MONOTONIC.
        host: The letter of the host whose MAC it has.
        solicited: It answers a solicitation; otherwise it is an announcement.
    """

    time: float
    host: str
    solicited: bool


class Watcher:
    """The router: solicits the virtual address, and notes who answers."""

    def __init__(self, wire: socket.socket, hosts: tuple[Host, ...]) -> None:
        self.answers: list[Answer] = []
        self._wire, self._hosts = wire, {parse_mac(host.mac): host.letter for host in hosts}
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._ask, self._receive)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        frame = solicit(
            parse_mac(ROUTER_MAC),
            parse_address(VIP),
            source=parse_address("2001:db8:1::1"),
            sllao=parse_mac(ROUTER_MAC),
        )
        while not self._stopped.wait(PERIOD):
            self._wire.send(frame)

    def _receive(self) -> None:
        self._wire.settimeout(0.1)
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                frame, address = self._wire.recvfrom(2000)
                if address[2] == socket.PACKET_OUTGOING or icmpv6_type_of(frame) != TYPE_NA:
                    continue
                host = self._hosts.get(eth_source_of(frame))
                if host and target_of(frame) == parse_address(VIP):
                    is_answer = bool(flags_of(frame) & SOLICITED)
                    self.answers.append(Answer(time.monotonic(), host, is_answer))

    def last(self, count: int = 5) -> set[str]:
        """Return which hosts sent the last answers."""
        return {each.host for each in [a for a in self.answers if a.solicited][-count:]}

    def settled(self, letter: str, within: float = 60) -> None:
        """Wait until a host, and no other, has answered for a second."""
        answering: set[str] = set()

        def is_settled() -> bool:
            since = time.monotonic() - 1
            answering.clear()
            answering.update(a.host for a in self.answers if a.solicited and a.time > since)
            return answering == {letter}

        try:
            eventually(is_settled, within=within)
        except AssertionError:
            raise AssertionError(f"{sorted(answering)} answer, not only {letter}") from None

    def overlap(self, since: float) -> float:
        """Return for how long both hosts answered, in s; 0 if one ended before the other began."""
        times: dict[str, list[float]] = {}
        for each in self.answers:
            if each.solicited and each.time >= since:
                times.setdefault(each.host, []).append(each.time)
        if len(times) < 2:
            return 0.0
        return max(0.0, min(max(some) for some in times.values()) - max(map(min, times.values())))

    def gap(self, since: float) -> float:
        """Return the longest time without an answer, in s."""
        found = [each.time for each in self.answers if each.solicited and each.time >= since]
        times = [since, *found]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


class Pair:
    """Two hosts with ndxdp and keepalived."""

    def __init__(self, lab: TwoHosts, folder: Path) -> None:
        self.lab, self._folder = lab, folder
        self.here, self.there = lab.hosts
        self._daemons: dict[str, Running] = {}
        self._keepalived: dict[str, subprocess.Popen[bytes]] = {}

    def start_ndxdp(self, host: Host) -> None:
        path = self._folder / f"{host.letter}.toml"
        path.write_text(
            f'[[interface]]\nname = "{host.uplink}"\nmode = "tc"\n'
            f"[interface.announce]\nadvertise = true\n"
            f'[[interface.prefix]]\nprefix = "{VIP}"\n[[interface.prefix]]\nprefix = "{BEHIND}"\n'
        )
        words = ["nsenter", f"--net=/run/netns/{host.name}", *NDXDP]
        self._daemons[host.letter] = Running(("-c", str(path)), words)

    def kill_ndxdp(self, host: Host) -> None:
        self._daemons.pop(host.letter).kill()

    def start_keepalived(self, host: Host, priority: int, more: str = "") -> None:
        """Start keepalived with the documented configuration."""
        path = self._folder / f"{host.letter}.conf"
        path.write_text(self._configuration(host, priority, more))
        path.chmod(0o600)
        names = ("-p", "main.pid"), ("-r", "vrrp.pid")
        pids = [word for flag, name in names for word in (flag, f"{path}.{name}")]
        with (self._folder / f"{host.letter}.log").open("a") as log:
            self._keepalived[host.letter] = subprocess.Popen(
                enter(host.name, ("keepalived", "-n", "-l", "-P", "-f", str(path), *pids)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _configuration(self, host: Host, priority: int, more: str) -> str:
        """Return the configuration of docs/vrrp.md for a host of the lab."""
        found = re.search(r"```text\n(global_defs.*?)```", DOCUMENT, re.DOTALL)
        assert found
        text = found[1]
        for old, new in (
            ("/etc/keepalived/ndxdp-notify", str(self._script(host))),
            ("/run/keepalived-ndxdp", str(self._folder / f"{host.letter}.fifo")),
            ("interface eth0", f"interface {host.uplink}"),
            ("advert_int 0.5", "advert_int 1"),  # a busy machine misses shorter ones
            ("priority 150", f"priority {priority}\n{more}"),
        ):
            assert old in text
            text = text.replace(old, new)
        return text

    def _script(self, host: Host) -> Path:
        """Write the documented script for a host; it also notes in a log when it does what."""
        found = re.search(r"```sh\n(#!/bin/sh\ntrap.*?)```", DOCUMENT, re.DOTALL)
        assert found
        text, log = found[1], self._folder / "script.log"
        for word in ("pause", "resume"):
            documented = f"/usr/bin/ndxdp {word} eth0 -n 2001:db8:0:1::20"
            assert documented in text
            text = text.replace(
                documented,
                f"echo {word} {host.letter} $(date +%s.%N) >> {log};"
                f" {' '.join(NDXDP)} {word} {host.uplink} -n {VIP} 2>> {log}",
            )
        script = self._folder / f"notify-{host.letter}"
        script.write_text(text)
        script.chmod(0o755)
        return script

    def stop_keepalived(self, host: Host) -> None:
        """End keepalived in order, as systemd does: its script pauses, then ExecStopPost does."""
        process = self._keepalived.pop(host.letter)
        process.terminate()
        process.wait(15)
        assert "\nExecStopPost=/usr/bin/ndxdp pause eth0 -n 2001:db8:0:1::20\n" in DOCUMENT
        host.run(*NDXDP, "pause", host.uplink, "-n", VIP, check=False)

    def kill_keepalived(self, host: Host) -> None:
        """Kill keepalived, and its child, so that it can run no script."""
        process = self._keepalived.pop(host.letter)
        child = int((self._folder / f"{host.letter}.conf.vrrp.pid").read_text())
        with contextlib.suppress(ProcessLookupError):
            for pid in (process.pid, child):
                os.kill(pid, signal.SIGSTOP)
            for pid in (process.pid, child):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)
        for path in self._folder.glob(f"{host.letter}.conf.*.pid"):
            path.unlink()

    def await_backup(self, host: Host) -> None:
        """Wait until keepalived on a host is a backup."""
        log = self._folder / f"{host.letter}.log"

        def is_backup() -> bool:
            found = re.findall(r"Entering (\w+) STATE", log.read_text())
            return bool(found) and found[-1] == "BACKUP"

        eventually(is_backup, within=30)

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._folder.glob("*.log")))

    def close(self) -> None:
        for host in self.lab.hosts:
            if host.letter in self._keepalived:
                self.stop_keepalived(host)
        for running in self._daemons.values():
            running.close()


@pytest.fixture
def pair(privacy: None, tmp_path: Path) -> Iterator[Pair]:
    assert private.inside(), "these tests need namespaces of their own: run `make test`"
    with TwoHosts() as lab:
        made = Pair(lab, tmp_path)
        try:
            for host in lab.hosts:
                made.start_ndxdp(host)
                host.run(*NDXDP, "pause", host.uplink, "-n", VIP)
            yield made
        finally:
            made.close()
            print(made.logs())  # pytest shows it after a failure
            remove_all_instances()


@contextlib.contextmanager
def watching(pair: Pair) -> Iterator[Watcher]:
    with packet_socket(ROUTER, LINK) as wire:
        watcher = Watcher(wire, pair.lab.hosts)
        try:
            yield watcher
        finally:
            watcher.close()


def took_over(watcher: Watcher, host: Host, since: float, what: str) -> None:
    """Wait until a host answers alone, and has announced the address; print how long it took."""
    watcher.settled(host.letter)

    def announced() -> set[str]:
        return {a.host for a in watcher.answers if not a.solicited and a.time >= since}

    eventually(lambda: host.letter in announced(), within=30)
    print(f"\n{what}: {watcher.gap(since):.2f} s without, {watcher.overlap(since):.2f} s with two")


def start_both(pair: Pair, watcher: Watcher) -> None:
    """Start keepalived on both hosts: `here` is the master, `there` its backup."""
    pair.start_keepalived(pair.here, 150)
    watcher.settled(pair.here.letter)
    pair.start_keepalived(pair.there, 100)
    pair.await_backup(pair.there)


def test_failover_and_failback(pair: Pair) -> None:
    """The master ends in order, and comes back; then the same with the roles exchanged."""
    here, there = pair.here, pair.there
    with watching(pair) as watcher:
        pair.start_keepalived(here, 150)
        watcher.settled(here.letter)
        pair.start_keepalived(there, 100)
        for master, backup, priority in ((here, there, 150), (there, here, 200)):
            pair.await_backup(backup)
            since = time.monotonic()
            pair.stop_keepalived(master)
            took_over(watcher, backup, since, "failover")
            since = time.monotonic()
            pair.start_keepalived(master, priority)
            took_over(watcher, master, since, "failback")
            # The backup becomes the next master.
            if master is here:
                pair.stop_keepalived(there)
                pair.start_keepalived(there, 200)
                watcher.settled(there.letter)
        assert there.letter in watcher.last()


def test_the_other_addresses_are_answered_by_both(pair: Pair) -> None:
    """Only the virtual address is paused."""
    with watching(pair) as watcher:
        pair.start_keepalived(pair.here, 150)
        watcher.settled(pair.here.letter)
        pair.start_keepalived(pair.there, 100)
    for host, address, reason in (
        (pair.here, VIP, "answered"),
        (pair.there, VIP, "paused"),
        (pair.here, OTHER, "answered"),
        (pair.there, OTHER, "answered"),
    ):
        shown = host.run(*NDXDP, "explain", host.uplink, address, check=False).stdout
        assert f"reason   {reason}" in shown, (shown, pair.logs())


def test_ndxdp_is_killed(pair: Pair) -> None:
    """The kernel goes on answering at the master, and the backup stays paused when it restarts."""
    with watching(pair) as watcher:
        pair.start_keepalived(pair.here, 150)
        watcher.settled(pair.here.letter)
        pair.start_keepalived(pair.there, 100)
        since = time.monotonic()
        for host in pair.lab.hosts:
            pair.kill_ndxdp(host)
        time.sleep(1)
        for host in pair.lab.hosts:
            pair.start_ndxdp(host)
        time.sleep(1)
        watcher.settled(pair.here.letter)
        assert {a.host for a in watcher.answers if a.time >= since} == {pair.here.letter}


def test_keepalived_is_killed(pair: Pair) -> None:
    """The former master answers, too, until its keepalived starts again: no script pauses it."""
    with watching(pair) as watcher:
        start_both(pair, watcher)
        since = time.monotonic()
        pair.kill_keepalived(pair.here)
        eventually(lambda: watcher.overlap(since) > 0, within=60)
        pair.start_keepalived(pair.here, 50)
        watcher.settled(pair.there.letter)


def test_the_outer_link_fails(pair: Pair) -> None:
    """The script pauses; the other host takes over."""
    with watching(pair) as watcher:
        start_both(pair, watcher)
        since = time.monotonic()
        pair.here.run("ip", "link", "set", pair.here.uplink, "down")
        took_over(watcher, pair.there, since, "link down")
        since = time.monotonic()
        pair.here.run("ip", "link", "set", pair.here.uplink, "up")
        watcher.settled(pair.here.letter)
