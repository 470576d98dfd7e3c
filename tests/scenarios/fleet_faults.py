"""Faults of a fleet, and what the judge at the router has seen of each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from lab.fleet import KEYS, SEGMENT, Fleet, shared_address, shared_name
from lab.fleet_host import PREFIX, FleetHost
from lab.judge import Judge
from lab.nodes import LINK, wait_until
from lab.verdict import Gap, Report, changes, gaps, wrong_announcements

SLACK = 1.0
"""Seconds beyond the lease within which another host answers after a failure."""
ORDERLY = 0.2
"""Seconds without an answer that an orderly handover may take."""
OWN = [PREFIX[0xD000 + number] for number in range(100)]
"""Addresses that single hosts answer for."""
_BEFORE = 0.25
"""Seconds before a fault from which the judge's report begins: all was well then."""
_ANSWERED = 0.1  # seconds
_SETTLED = 60.0  # seconds within which all is well again after any fault


class Bound(Enum):
    """The bound of a fault's cost."""

    TAKEOVER = "another host answers within the lease and a second"
    ORDERLY = "at most 200 ms without an answer"
    NOTHING = "no solicitation stays without an answer"
    NONE = "no bound"


class Outcome(NamedTuple):
    """The cost of a fault.

    Attributes:
        fault: Its name.
        takeovers: Seconds from the fault to the first answer of another host, for each address of
            the host that failed.
        silences: Seconds without an answer of each address concerned; 0 for one without a gap.
        others: The gaps of addresses that the fault does not concern; their begin is in seconds
            from the fault.
        problems: Sentences about what must never happen.
    """

    fault: str
    takeovers: list[float]
    silences: list[float]
    others: list[Gap]
    problems: list[str]


class Faults:
    """Faults of a fleet, made one at a time; after each of them, all is well again."""

    def __init__(self, fleet: Fleet, judge: Judge, lease: float, chance: random.Random) -> None:
        self._fleet, self._judge, self._lease, self._chance = fleet, judge, lease, chance

    def make(self, name: str) -> Outcome:
        """Make a fault, undo it, and judge the answers of that time."""
        holders = self._fleet.settle(_SETTLED)
        time.sleep(self._chance.uniform(0.3, 1.5))
        began = time.monotonic()
        concerned = FAULTS[name][0](self, holders)
        self._fleet.undo_all()
        wait_until(self._all_answered, "not every address is answered for", _SETTLED)
        time.sleep(1)
        return self._judged(name, holders, concerned, began)

    def _judged(
        self, name: str, holders: dict[str, str], concerned: dict[str, float], began: float
    ) -> Outcome:
        """Return the outcome.

        Args:
            name: Of the fault.
            holders: The holders before it.
            concerned: For each address that the fault concerns, by name, when that began.
            began: When the fault began.
        """
        report = self._judge.report(began - _BEFORE)
        addresses = {name_of(address): address for address in report.spans}
        first_change: dict[str, float] = {}
        for change in changes(report):
            key = name_of(change.target)
            if key in concerned and change.before == self._mac(holders[key]):
                first_change.setdefault(key, change.first - concerned[key])
        longest: dict[str, float] = {}
        found = gaps(report)
        for gap in found:
            longest[gap.target] = max(longest.get(gap.target, 0.0), gap.seconds)
        silent = {key: longest.get(address, 0.0) for key, address in addresses.items()}
        return Outcome(
            name,
            list(first_change.values()),
            [silent[key] for key in concerned if key in silent],
            [
                g._replace(begin=g.begin - began)
                for g in found
                if name_of(g.target) not in concerned
            ],
            problems(report),
        )

    def _mac(self, host: str) -> str:
        return self._fleet.host(host).mac if host else ""

    # ---- helpers

    def _all_answered(self) -> bool:
        """Return True if every address that has a holder was answered for shortly ago.

        A host holds its addresses in etcd until their lease ends there, and may not have a lease.
        """
        latest = self._judge.latest()
        addresses = [shared_address(int(name[1:])) for name in self._fleet.holders()]
        return all(latest.get(address, ("", 9.0))[1] < _ANSWERED for address in addresses)

    def _victim(self, holders: dict[str, str]) -> FleetHost:
        """Return one of the hosts that hold an address."""
        return self._fleet.host(self._chance.choice(sorted(set(holders.values()))))

    def _of(self, host: FleetHost, holders: dict[str, str], began: float) -> dict[str, float]:
        return {name: began for name, held_by in holders.items() if held_by == host.name}

    def _taken_over(self, victim: FleetHost) -> None:
        """Wait until the victim holds nothing, and others hold everything."""
        every = self._fleet.shared()
        self._fleet.await_holders(
            lambda found: set(found) == every and victim.name not in found.values(),
            f"not all addresses of {victim.name} were taken over",
            self._lease + 30,
        )
        time.sleep(0.5)

    def _failed(
        self, holders: dict[str, str], fail: Callable[[FleetHost], object], *, takeover: bool = True
    ) -> dict[str, float]:
        victim = self._victim(holders)
        began = time.monotonic()
        fail(victim)
        if takeover:
            self._taken_over(victim)
        return self._of(victim, holders, began)

    # ---- failures of a host

    def kill(self, holders: dict[str, str]) -> dict[str, float]:
        """SIGKILL."""
        return self._failed(holders, FleetHost.kill)

    def suspend(self, holders: dict[str, str]) -> dict[str, float]:
        """SIGSTOP, for longer than the lease."""
        concerned = self._failed(holders, FleetHost.suspend)
        time.sleep(self._chance.uniform(0, 2))
        return concerned

    def suspend_shortly(self, holders: dict[str, str]) -> dict[str, float]:
        """SIGSTOP, for about as long as the lease: the host may lose its lease or not."""
        victim = self._victim(holders)
        began = time.monotonic()
        victim.suspend()
        time.sleep(self._lease * self._chance.uniform(0.3, 1.3))
        victim.resume()
        return self._of(victim, holders, began)

    def cut_from_etcd(self, holders: dict[str, str]) -> dict[str, float]:
        """The host cannot reach etcd."""
        return self._failed(holders, FleetHost.cut_from_etcd)

    def cut_from_segment(self, holders: dict[str, str]) -> dict[str, float]:
        """The uplink has no carrier."""
        return self._failed(holders, FleetHost.cut_from_segment)

    def power_off(self, holders: dict[str, str]) -> dict[str, float]:
        """Cut both links of a host and kill its daemon, as without power."""

        def fail(host: FleetHost) -> None:
            host.cut_from_segment()
            host.cut_from_etcd()
            host.kill()

        return self._failed(holders, fail)

    def kill_and_start(self, holders: dict[str, str]) -> dict[str, float]:
        """SIGKILL, and a start at once, before the lease ends."""
        victim = self._victim(holders)
        began = time.monotonic()
        victim.kill()
        victim.start()
        return self._of(victim, holders, began)

    # ---- handovers

    def stop(self, holders: dict[str, str]) -> dict[str, float]:
        """SIGTERM."""
        return self._failed(holders, FleetHost.end)

    def drain(self, holders: dict[str, str]) -> dict[str, float]:
        """`ndxdp fleet drain`."""
        victim = self._victim(holders)
        began = time.monotonic()
        victim.drain()
        self._taken_over(victim)
        victim.undrain()
        return self._of(victim, holders, began)

    def move(self, holders: dict[str, str]) -> dict[str, float]:
        """`ndxdp fleet move`."""
        name = self._chance.choice(sorted(holders))
        others = [host for host in self._fleet.hosts if host.name != holders[name]]
        target, via = self._chance.choice(others), self._chance.choice(self._fleet.hosts)
        began = time.monotonic()
        self._fleet.move(int(name[1:]), target, via)
        return {name: began}

    def pause(self, holders: dict[str, str]) -> dict[str, float]:
        """`ndxdp pause`, and `ndxdp resume` later."""
        victim = self._victim(holders)
        began = time.monotonic()
        victim.ndxdp("pause", LINK)
        self._taken_over(victim)
        victim.ndxdp("resume", LINK)
        return self._of(victim, holders, began)

    def reload(self, holders: dict[str, str]) -> dict[str, float]:
        """Each daemon reads its file again: another rule of its own, and the rule is removed."""
        began = time.monotonic()
        for host in self._fleet.hosts:
            text = host.file.read_text()
            rule = f'[[interface.prefix]]\nprefix = "{OWN[host.number]}"\n'
            for words in (text + rule, text):
                host.file.write_text(words)
                host.ndxdp("reload", "-c", str(host.file))
        return dict.fromkeys(holders, began)

    # ---- keys

    def rewrite(self, holders: dict[str, str]) -> dict[str, float]:
        """A shared address is deleted, and written again at once or later."""
        name = self._chance.choice(sorted(holders))
        value = self._fleet.value_of(name)
        began = time.monotonic()
        self._fleet.delete(name)
        time.sleep(self._chance.choice((0, self._chance.uniform(0, 0.2), 1)))
        self._fleet.put(name, value)
        return {name: began}

    def rename(self, holders: dict[str, str]) -> dict[str, float]:
        """A shared address gets another name, and its former one again."""
        name = self._chance.choice(sorted(holders))
        value = self._fleet.value_of(name)
        began = time.monotonic()
        for former, latter in ((name, "renamed"), ("renamed", name)):
            self._fleet.put(latter, value)
            self._fleet.delete(former)
            self._fleet.await_holders(
                lambda found, name=latter: name in found,  # type: ignore[misc]
                f"{latter} has no holder",
            )
        return {name: began}

    def restart_all(self, holders: dict[str, str]) -> dict[str, float]:
        """All daemons, one after the other, by SIGTERM."""
        began = time.monotonic()
        for host in self._fleet.hosts:
            host.end()
            host.start()
            self._fleet.settle(_SETTLED)
        return dict.fromkeys(holders, began)

    # ---- etcd

    def kill_leader(self, holders: dict[str, str]) -> dict[str, float]:
        """The leader of etcd is killed, and started again later."""
        began = time.monotonic()
        self._fleet.etcd.leader().kill()
        time.sleep(self._chance.uniform(1, self._lease * 2))
        return dict.fromkeys(holders, began)

    def suspend_leader(self, holders: dict[str, str]) -> dict[str, float]:
        """The leader of etcd is stopped, replaced, and goes on."""
        began = time.monotonic()
        leader = self._fleet.etcd.leader()
        leader.suspend()
        time.sleep(self._chance.uniform(0.5, self._lease * 2))
        leader.start([])
        return dict.fromkeys(holders, began)

    def kill_etcd_shortly(self, holders: dict[str, str]) -> dict[str, float]:
        """All of etcd is killed, and started again at once."""
        began = time.monotonic()
        self._fleet.etcd.kill()
        self._fleet.etcd.start()
        return dict.fromkeys(holders, began)

    def kill_etcd(self, holders: dict[str, str]) -> dict[str, float]:
        """All of etcd is killed for longer than the lease: no host answers at last."""
        began = time.monotonic()
        self._fleet.etcd.kill()
        wait_until(
            lambda: not any(self._judge.answering(shared_address(int(n[1:]))) for n in holders),
            "addresses are still answered for without etcd",
            self._lease + 5,
        )
        time.sleep(self._chance.uniform(0, self._lease))
        self._fleet.etcd.start()
        return dict.fromkeys(holders, began)

    def compact(self, holders: dict[str, str]) -> dict[str, float]:
        """Former revisions are compacted while keys change, and a host is cut from etcd."""
        began = time.monotonic()
        host = self._chance.choice(self._fleet.hosts)
        host.cut_from_etcd()
        time.sleep(self._lease * 0.3)
        for number in range(20):
            self._fleet.etcd.put(f"{KEYS}hosts/nobody/{SEGMENT}/{number}", {"prefix": "::"})
        self._fleet.etcd.compact()
        host.join_etcd()
        return self._of(host, holders, began)

    # ---- several at once

    def several(self, holders: dict[str, str]) -> dict[str, float]:
        """Two hosts fail in different ways, and perhaps etcd's leader."""
        began = time.monotonic()
        ways = (
            FleetHost.kill,
            FleetHost.suspend,
            FleetHost.cut_from_etcd,
            FleetHost.cut_from_segment,
        )
        if self._chance.random() < 0.4:
            self._fleet.etcd.leader().kill()
        for host in self._chance.sample(self._fleet.hosts, 2):
            self._chance.choice(ways)(host)
            time.sleep(self._chance.uniform(0, self._lease))
        time.sleep(self._chance.uniform(0, self._lease + 2))
        return dict.fromkeys(holders, began)


FAULTS: dict[str, tuple[Callable[[Faults, dict[str, str]], dict[str, float]], Bound, int]] = {
    "kill -9": (Faults.kill, Bound.TAKEOVER, 3),
    "SIGSTOP": (Faults.suspend, Bound.TAKEOVER, 3),
    "SIGSTOP, about a lease": (Faults.suspend_shortly, Bound.NONE, 2),
    "cut from etcd": (Faults.cut_from_etcd, Bound.TAKEOVER, 3),
    "cut from the segment": (Faults.cut_from_segment, Bound.TAKEOVER, 3),
    "power off": (Faults.power_off, Bound.TAKEOVER, 2),
    "kill -9, start at once": (Faults.kill_and_start, Bound.NOTHING, 2),
    "orderly stop": (Faults.stop, Bound.ORDERLY, 3),
    "drain": (Faults.drain, Bound.ORDERLY, 3),
    "move": (Faults.move, Bound.ORDERLY, 4),
    "pause": (Faults.pause, Bound.TAKEOVER, 1),
    "reload": (Faults.reload, Bound.NOTHING, 1),
    "deleted, written again": (Faults.rewrite, Bound.NONE, 2),
    "renamed": (Faults.rename, Bound.NONE, 1),
    "restart of all daemons": (Faults.restart_all, Bound.ORDERLY, 1),
    "etcd: leader killed": (Faults.kill_leader, Bound.NOTHING, 2),
    "etcd: leader stopped": (Faults.suspend_leader, Bound.NONE, 2),
    "etcd: all restarted": (Faults.kill_etcd_shortly, Bound.NONE, 1),
    "etcd: all gone": (Faults.kill_etcd, Bound.NONE, 1),
    "etcd: compacted": (Faults.compact, Bound.NOTHING, 2),
    "several at once": (Faults.several, Bound.NONE, 2),
}
"""For each fault: the function, what it may cost, and how often it comes."""


def problems(report: Report) -> list[str]:
    """Return a sentence for each thing that must never be seen."""
    found = [
        f"{each.target}: an answer of {each.mac} without a question, while another host answers"
        for each in wrong_announcements(report)
    ]
    if report.dropped:
        found.append(f"the judge has lost {report.dropped} frames")
    if report.odd:
        found.append(f"{report.odd} answers for another target than the solicited one")
    return found


def name_of(address: str) -> str:
    """Return the name in etcd of a shared address."""
    return shared_name(int(address.rpartition(":")[2], 16))
