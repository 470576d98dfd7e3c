"""The fence: leased rules end with the host's lease, even if the process that renews it hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from ndxdp import boot_clock
from ndxdp.boot_clock import boot_ns
from ndxdp.daemon.lease_guard import LeaseGuard
from ndxdp.errors import NotAttached
from ndxdp.kernel import libbpf
from ndxdp.kernel.abi import Mode
from ndxdp.ndp.profile import Answer
from ndxdp.ndp.reason import Reason
from ndxdp.rules.address import parse_address
from ndxdp.rules.difference import difference
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.session.detach import detach_interface
from ndxdp.store.directories import Tree, Trees
from ndxdp.store.instance import open_instance
from ndxdp.store.maps import Maps
from ndxdp.store.records import Resolved
from tests import packets
from tests.fixtures.lease_holder import ANNOUNCED
from tests.fixtures.network import (
    REPOSITORY,
    UPLINK,
    Network,
    eventually,
    explain,
    sh,
    wait_for_link,
)
from tests.fixtures.pair import RECEIVER, Pair, pair
from tests.packets import CASES, HOST, INTERVAL
from tests.test_routed import AREA, DOWN, GUEST, KNOWN, behind, in_guest, routes

__all__ = ("behind", "routes")  # fixtures

FRAMES = {case.name: case for case in CASES}
PLAIN = FRAMES["ns from a link-local source, with its sllao"]
ONE, DAD, UNICAST, WIDE = (
    FRAMES[f"a leased {name}"] for name in ("rule", "rule, dad", "rule, unicast", "prefix")
)
LEASED_CASES = (ONE, DAD, UNICAST, WIDE)


@dataclass
class Holder:
    """A process that answers and renews the lease, and the link that it answers on."""

    process: subprocess.Popen[str]
    renewing: Path
    ends: Pair
    maps: Maps

    def reply(self, frame: bytes, *, nothing: bool = False) -> bytes | None:
        """Send a frame; return the answer."""
        self.ends.send(frame)
        found = self.ends.reply(nothing=nothing)
        self._drain()
        return found

    def _drain(self) -> None:
        while not self.ends.is_silent():
            self.ends.outcome()

    def is_answered(self, case: packets.Case) -> bool:
        return self.reply(case.frame, nothing=True) == case.reply

    def stop(self) -> None:
        """Stop the process by SIGSTOP, and wait until it is stopped."""
        self.process.send_signal(signal.SIGSTOP)
        eventually(lambda: _state_of(self.process.pid) == "T")

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def count(self, reason: Reason) -> int:
        return self.maps.reasons()[reason]


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@contextmanager
def holding(trees: Trees, mode: Mode, where: Path, task: str = "answer") -> Iterator[Holder]:
    """Start a process that answers on the receiver of a link, and renews its lease."""
    renewing = where / "renewing"
    renewing.touch()
    tree: Tree = trees.files if mode is Mode.USERSPACE else trees.pins
    with (
        pair(HOST.mac) as ends,
        started(trees, mode, renewing, task) as process,
        open_instance(tree, RECEIVER) as instance,
    ):
        yield Holder(process, renewing, ends, instance.maps)


@contextmanager
def started(trees: Trees, mode: Mode, renewing: Path, task: str) -> Iterator[subprocess.Popen[str]]:
    """Run tests.fixtures.lease_holder during the block; then detach."""
    command = (sys.executable, "-m", "tests.fixtures.lease_holder", mode.name, renewing, task)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
        with suppress(NotAttached):
            detach_interface(trees, RECEIVER)


each_mode = pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.label)


@each_mode
def test_a_stopped_process_stops_the_answers(trees: Trees, mode: Mode, tmp_path: Path) -> None:
    """Answer by leased rules until the lease lapses, and by the other rules after that."""
    with holding(trees, mode, tmp_path) as holder:
        for case in LEASED_CASES:
            eventually(lambda case=case: holder.is_answered(case))  # type: ignore[misc]
        holder.stop()
        eventually(holder.maps.has_lapsed, within=10)
        lapsed = holder.count(Reason.LAPSED)
        for case in LEASED_CASES:
            assert holder.reply(case.frame, nothing=True) is None, case.name
        if mode is not Mode.USERSPACE:  # there, the process answers
            assert holder.reply(PLAIN.frame) == PLAIN.reply
            assert holder.count(Reason.LAPSED) == lapsed + len(LEASED_CASES)
        holder.resume()
        for case in LEASED_CASES:
            eventually(lambda case=case: holder.is_answered(case))  # type: ignore[misc]


def test_frames_that_wait_for_a_stopped_process(trees: Trees, tmp_path: Path) -> None:
    """Answer no frame that arrived before the lapse, when the process continues after it."""
    with holding(trees, Mode.USERSPACE, tmp_path) as holder:
        for _ in range(3):  # so that the process has templates of the answers
            eventually(lambda: holder.is_answered(ONE))
        holder.renewing.unlink()
        holder.stop()
        lapsed = holder.count(Reason.LAPSED)
        assert not holder.maps.has_lapsed(), "the machine was too slow for this test"
        for case in LEASED_CASES:
            holder.ends.send(case.frame)
        holder.ends.send(PLAIN.frame)
        eventually(holder.maps.has_lapsed, within=10)
        for _ in range(len(LEASED_CASES) + 1):
            assert holder.ends.passed()
        holder.resume()
        assert holder.ends.reply() == PLAIN.reply
        eventually(lambda: holder.count(Reason.LAPSED) == lapsed + len(LEASED_CASES))
        assert holder.ends.is_silent()


def test_announcements_of_a_stopped_process(trees: Trees, tmp_path: Path) -> None:
    """Announce nothing after the lapse of the lease, when the process continues."""
    with holding(trees, Mode.TC, tmp_path, "announce") as holder:
        sent = 0
        while sent < 10:
            reply = holder.ends.reply()
            sent += reply is not None
        holder.renewing.unlink()
        holder.stop()
        eventually(holder.maps.has_lapsed, within=10)
        holder._drain()
        holder.resume()
        assert holder.process.stdout
        assert holder.process.stdout.readline() == "done\n"
        assert holder.ends.is_silent(), "an announcement was sent after the lapse"
        assert sent < ANNOUNCED


# ---- the map -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.TC, Mode.USERSPACE], ids=lambda mode: mode.label)
def test_no_lease_is_a_lapsed_one(trees: Trees, mode: Mode, tmp_path: Path) -> None:
    with holding(trees, mode, tmp_path) as holder:
        eventually(lambda: holder.is_answered(ONE))
        holder.renewing.unlink()
        eventually(holder.maps.has_lapsed, within=10)
        for until, answered in ((0, False), (boot_ns() + INTERVAL, True), (1, False)):
            holder.maps.write_lease(until)
            assert holder.maps.lease() == until
            assert holder.maps.has_lapsed() is not answered
            found = holder.reply(ONE.frame, nothing=not answered)
            assert found == (ONE.reply if answered else None)


def test_files_that_are_older_than_the_process(trees: Trees, tmp_path: Path) -> None:
    """Answer by no lease of an earlier process: its files may be of another boot."""
    with holding(trees, Mode.USERSPACE, tmp_path) as holder:
        eventually(lambda: holder.is_answered(ONE))
        holder.renewing.unlink()
        eventually(holder.maps.has_lapsed, within=10)
        holder.maps.write_lease(boot_ns() + INTERVAL)
        assert holder.reply(ONE.frame) == ONE.reply
        holder.process.kill()
        holder.process.wait()
        with started(trees, Mode.USERSPACE, holder.renewing, "answer"):
            assert holder.reply(PLAIN.frame) == PLAIN.reply
            assert holder.reply(ONE.frame, nothing=True) is None
            assert holder.maps.lease() == 0
            holder.renewing.touch()
            eventually(lambda: holder.is_answered(ONE))


def test_renewals_lose_nothing_of_other_writers(trees: Trees, tmp_path: Path) -> None:
    """Write the lease while a thread writes rules and settings."""
    with holding(trees, Mode.TC, tmp_path) as holder, ThreadPoolExecutor(1) as thread:
        holder.renewing.unlink()
        maps, rules = holder.maps, holder.maps.rules()
        more = rules | {parse_prefix("2001:db8:77::1"): Rule(label="more")}

        def write() -> None:
            for _ in range(100):
                maps.apply(difference(more, rules), rules)
                maps.beat(3.0)
                maps.apply(difference(rules, more), more)

        writing = thread.submit(write)
        count = 0
        while not writing.done():
            count += 1
            maps.write_lease(count)
            assert maps.lease() == count
        writing.result()
        assert count > 100
        assert maps.rules() == rules
        assert maps.settings().heartbeat_timeout == 3_000_000_000


def test_one_system_call(trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the lease by one call, after the first one also where descriptors are parked."""
    with holding(trees, Mode.TC, tmp_path) as holder:
        with open_instance(trees.pins, RECEIVER) as instance:
            before = len(os.listdir("/proc/self/fd"))
            instance.maps.park()
            parked = len(os.listdir("/proc/self/fd"))
            assert parked < before
            instance.maps.write_lease(0)
            assert len(os.listdir("/proc/self/fd")) == parked
            instance.maps.write_lease(1)
            assert len(os.listdir("/proc/self/fd")) == parked + 1
            calls: list[str] = []
            call = libbpf.call

            def counted(name: str, *arguments: object) -> int:
                calls.append(name)
                return call(name, *arguments)

            monkeypatch.setattr("ndxdp.kernel.bpf_maps.call", counted)
            instance.maps.write_lease(2)
            assert calls == ["bpf_map_update_elem"]
        holder.renewing.unlink()


def test_the_clock_is_the_kernels_in_a_time_namespace(privacy: None) -> None:
    code = "import time; from ndxdp.boot_clock import boot_ns; print(boot_ns())"
    words = ("unshare", "--time", "--boottime", "86400", "--fork", sys.executable, "-c", code)
    before = boot_ns()
    inside = int(sh(*words))
    assert before < inside < boot_ns()
    assert boot_clock._offset() == 0
    shifted = code.replace("boot_ns())", "time.clock_gettime_ns(time.CLOCK_BOOTTIME))")
    assert int(sh(*words[:-1], shifted)) > inside + 86_000 * 10**9


# ---- frames that the daemon sends itself ---------------------------------------------------------


class Lease:
    """Maps of which only the lease is read."""

    lapsed = False
    fails = False

    def has_lapsed(self) -> bool:
        if self.fails:
            raise OSError
        return self.lapsed


SHARED = Rule(origin="shared", label="s", leased=True)
GUARDED = Rules.of(
    {
        parse_prefix("2001:db8::/64"): Rule(),
        parse_prefix("2001:db8::1"): SHARED,
        parse_prefix("2001:db8::2"): Rule(Answer.NEVER, origin="shared", label="s"),
        parse_prefix("2001:db8::f:0/112"): SHARED,
        parse_prefix("2001:db8::f:1"): Rule(),
        parse_prefix("2001:db8::f:2"): Rule(origin="shared", leased=True, owned=True),
    }
)


@pytest.mark.parametrize(
    ("address", "may_send", "holds", "may_send_lapsed"),
    [
        ("2001:db8::9", True, False, True),  # a broader rule that is not leased
        ("2001:db8::1", True, True, False),
        ("2001:db8::2", True, False, True),  # another host's: announcements of it have ended
        ("2001:db8::f:9", True, True, False),
        ("2001:db8::f:1", True, False, True),
        ("2001:db8::f:2", True, False, False),
        ("2001:db8:1::1", True, False, True),  # without a rule, such as the host's own
    ],
)
def test_what_may_be_sent(address: str, may_send: bool, holds: bool, may_send_lapsed: bool) -> None:
    lease, packed = Lease(), parse_address(address)
    guard = LeaseGuard(lease)  # type: ignore[arg-type]
    assert (guard.may_send(packed), guard.holds(packed)) == (True, False)
    guard.follow(GUARDED, GUARDED.where(lambda rule: rule.leased))
    assert (guard.may_send(packed), guard.holds(packed)) == (may_send, holds)
    lease.lapsed = True
    assert (guard.may_send(packed), guard.holds(packed)) == (may_send_lapsed, False)
    lease.lapsed, lease.fails = False, True
    assert (guard.may_send(packed), guard.holds(packed)) == (may_send_lapsed, False)
    without = GUARDED.where(lambda rule: not rule.leased)
    guard.follow(without, Rules())
    assert (guard.may_send(packed), guard.holds(packed)) == (True, False)


@pytest.mark.parametrize("lapses", [False, True], ids=["lasts", "lapses"])
@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_late_answers_of_the_resolver(
    routes: Network, mode: str, lapses: bool, tmp_path: Path
) -> None:
    """Send no late answer once the lease has lapsed, though the guest is found by then."""
    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[[interface]]\nname = "{UPLINK}"\nmode = "{mode}"\non_stop = "detach"\n'
        f'[[interface.prefix]]\nprefix = "{AREA}"\nanswer = "neighbour"\n'
        "[interface.resolve]\ndeadline = 30\n"
    )
    running = routes.run("-c", str(file))
    tree: Tree = Trees().files if mode == "userspace" else Trees().pins
    in_guest(f"ip -6 address delete {KNOWN}/64 dev eth0")
    sh("ip", "-6", "neighbour", "flush", "dev", DOWN, "nud", "all")
    try:
        with open_instance(tree, UPLINK) as instance, ThreadPoolExecutor(1) as thread:
            maps, rules = instance.maps, instance.maps.rules()
            leased = Rule(Answer.NEIGHBOUR, origin="test", label="leased", leased=True)
            more = rules | {parse_prefix(KNOWN): leased}
            with tree.lock.exclusive():
                maps.apply(difference(more, rules), rules)
            os.utime(tree.path(UPLINK))

            def renewed() -> Literal[True]:
                """Renew the lease. A daemon without shared addresses ends it once, at some time."""
                maps.write_lease(boot_ns() + INTERVAL)
                return True

            eventually(lambda: renewed() and explain(KNOWN)["reason"] == "no_neighbour", within=20)
            asked = thread.submit(routes.ask, KNOWN, wait=10)

            def is_searched() -> bool:
                nonlocal asked
                renewed()
                if asked.done():  # the daemon ended the lease in the moment of the solicitation
                    asked = thread.submit(routes.ask, KNOWN, wait=10)
                return maps.resolved().asked == 1

            # The resolver searches for 5 s, of which a command would take too much.
            eventually(is_searched, within=60)
            if lapses:
                maps.write_lease(boot_ns())
            in_guest(f"ip -6 address replace {KNOWN}/64 dev eth0 nodad")
            wait_for_link("eth0", KNOWN, namespace=GUEST)
            while not asked.done():
                time.sleep(0.05)
                if not lapses:
                    renewed()
            answered = asked.result()
            assert (answered is None) == lapses, answered
            assert maps.resolved() == Resolved(asked=1, answered=0 if lapses else 1)
            with tree.lock.exclusive():
                maps.apply(difference(rules, more), more)
    finally:
        in_guest(f"ip -6 address replace {KNOWN}/64 dev eth0 nodad")
        wait_for_link("eth0", KNOWN, namespace=GUEST)
        running.end()
