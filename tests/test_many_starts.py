"""The start of a daemon on many interfaces: failures and kills amid it, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import pytest

from ndxdp.daemon import shared_descriptors
from ndxdp.daemon.admission import Admission
from ndxdp.daemon.lifecycle import Answering, Lifecycle
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.kernel import abi, bpf_maps
from ndxdp.kernel.abi import MapSpec
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.ndp.profile import Answer
from ndxdp.netlink import rtnetlink
from ndxdp.netlink.addresses import FOREVER, own_addresses
from ndxdp.netlink.fib import Fib
from ndxdp.netlink.neighbour_monitor import NeighbourChange, NeighbourMonitor
from ndxdp.rules.address import address_text
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import CONFIG_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime import report
from ndxdp.runtime.daemon_status import DaemonStatus, InterfaceStatus
from ndxdp.session.detach import detach_interface
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.store import tree_lock
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_instance
from tests.fixtures.network import Running, call, done, eventually, sh
from tests.fixtures.work import calls

MAC = "02:00:00:00:00:99"
PREFIX = "2001:db8:0:0:c::/80"
MANY = 20
"""More interfaces than are treated one by one by the report and by the filter of neighbours."""


@pytest.fixture
def names(privacy: None) -> Iterator[list[str]]:
    """Yield the names of MANY Ethernet interfaces that are up."""
    found = [f"start{number}" for number in range(MANY)]
    batch = [
        command
        for name in found
        for command in (
            f"link add {name} up type veth peer name {name}-end",
            f"link set {name}-end up",
        )
    ]
    sh("ip", "-batch", "-", stdin="\n".join(batch))
    yield found
    for name in found:
        call("ip", "link", "delete", name)


def _file(folder: Path, names: list[str], more: str = "") -> Path:
    """Write a configuration that answers on these interfaces, in their order."""
    path = folder / "ndxdp.toml"
    path.write_text(
        "".join(
            f'[[interface]]\nname = "{name}"\nmode = "tc"\n{more}'
            f'[[interface.prefix]]\nprefix = "{PREFIX}"\n'
            for name in names
        )
    )
    return path


def _status() -> dict[str, Any]:
    """Return `ndxdp status --json` by the interfaces' names."""
    return {each["interface"]: each for each in json.loads(done("status", "--json"))["interfaces"]}


# ---- failures -----------------------------------------------------------------------------------


def test_one_that_fails_does_not_stop_the_others(names: list[str], tmp_path: Path) -> None:
    """Start on all interfaces but an absent one and one that another process has."""
    absent, taken = "absent0", names[3]
    with contextlib.closing(Running((taken, "--mode", "tc", "-n", PREFIX))) as other:
        order = [*names[:2], absent, *names[2:]]
        with contextlib.closing(Running(("-c", str(_file(tmp_path, order))))) as run:
            lines = [run.ready] + [run.process.stdout.readline() for _ in range(MANY - 2)]  # type: ignore[union-attr]
            ready = {line.split()[1] for line in lines}
            assert ready == {*names} - {taken}
            problems = {name: each["problem"] for name, each in _reported().items()}
            assert "there is no interface" in problems[absent]
            assert "locked" in problems[taken]
            assert not any(problems[name] for name in ready), problems
            assert other.end().code == 0
            # The lock is free, so the daemon's next attempt succeeds.
            assert run.process.stdout.readline().split()[1] == taken  # type: ignore[union-attr]
            run.end_cleanly()
    done("detach", "--all")


def _reported() -> dict[str, dict[str, Any]]:
    """Return what the daemon reports of each interface."""
    (found,) = [each for each in report.daemons(Trees().files.root) if each.config]
    return {each["interface"]: each for each in found.interfaces}


def test_a_kill_amid_the_start(names: list[str], trees: Trees, tmp_path: Path) -> None:
    """Start again after a kill, whatever it has interrupted: on all interfaces, without rests."""
    file = _file(tmp_path, names)
    for count in (2, 7, 13):
        with contextlib.closing(Running(("-c", str(file)))) as run:
            for _ in range(count):
                run.process.stdout.readline()  # type: ignore[union-attr]
            run.process.send_signal(signal.SIGKILL)
            run.wait()
    with contextlib.closing(Running(("-c", str(file)))) as run:
        for _ in range(MANY - 1):
            assert run.process.stdout.readline().startswith("ready")  # type: ignore[union-attr]
        status = _status()
        assert {name for name, each in status.items() if each["attached"]} == {*names}
        assert {each["program"]["tag"] for each in status.values()}
        run.end_cleanly()
    done("detach", "--all")
    assert trees.interfaces() == []
    for name in names:
        assert "tcx" not in sh("bpftool", "net", "show", "dev", name).partition("tc:")[2]


def test_the_program_asks_as_long_as_a_daemon_searches(
    names: list[str], trees: Trees, tmp_path: Path
) -> None:
    """Let the program ask for neighbours from the start of the daemon to its end."""
    name = names[0]
    file = _file(tmp_path, [name])

    def asks() -> bool:
        with open_instance(trees.pins, name) as instance:
            return bool(instance.maps.settings().resolve_interval)

    with contextlib.closing(Running(("-c", str(file)))) as run:
        assert asks()
        run.end_cleanly()
    assert not asks()
    with contextlib.closing(Running(("-c", str(file)))) as run:
        assert asks()
        sh("ip", "link", "delete", name)
        eventually(lambda: not asks())
        run.end_cleanly()
    done("detach", "--all")


# ---- reports ------------------------------------------------------------------------------------


def test_many_changes_are_reported_together(tmp_path: Path, monkeypatch: Any) -> None:
    """Write one report for the changes of many interfaces, and at once what a command waits for."""
    written: list[bytes] = []
    write = report.Publisher._write

    def counted(self: report.Publisher, data: bytes) -> None:
        written.append(data)
        write(self, data)

    monkeypatch.setattr(report.Publisher, "_write", counted)
    noted: list[None] = []
    for count, together in ((3, False), (MANY, True)):
        state = DaemonStatus(interfaces={f"eth{n}": InterfaceStatus() for n in range(count)})
        with (
            report.Publisher(tmp_path / "run", 1, None, state) as publisher,
            publisher.gathering(lambda: noted.append(None)),
        ):
            written.clear()
            for name in list(state.interfaces):
                state.note_problem(name, "absent", answered=False)
            assert (len(written), len(noted)) == ((0, count) if together else (count, 0))
            if together:
                publisher.update()
                assert len(written) == 1
            (found,) = report.daemons(tmp_path / "run")
            assert {each["problem"] for each in found.interfaces} == {"absent"}
            written.clear()
            state.note_reload_begun()
            assert len(written) == 1, "`ndxdp reload` waits for this"


# ---- what is asked ------------------------------------------------------------------------------


def test_an_attach_asks_as_much_beside_others(names: list[str], trees: Trees) -> None:
    """Ask the kernel as often, and list no directory more often, with others there than alone."""
    request = AttachRequest(names[0], options=AttachOptions(mode=abi.Mode.TC))
    exchange, scan = rtnetlink.Rtnetlink.exchange.__code__, tree_lock.TreeLock._make_base.__code__

    def attach() -> None:
        Session.attach(trees, request).close()
        detach_interface(trees, names[0])

    attach()
    asked, locked = calls(exchange, attach), calls(scan, attach)
    for name in names[1:8]:
        done("attach", name, "--mode", "tc", "-n", PREFIX)
    assert (calls(exchange, attach), calls(scan, attach)) == (asked, locked)
    assert asked <= 20, asked
    done("detach", "--all")


def test_a_beginning_reads_routes_and_addresses_once(names: list[str], trees: Trees) -> None:
    """Read what a daemon's beginning needs of the network once, and hand it on."""
    rules = Rules.of({parse_prefix(PREFIX): Rule(Answer.ALWAYS, origin=CONFIG_ORIGIN)})
    spec = InterfaceSpec(names[0], AttachOptions(mode=abi.Mode.TC), rules)
    begun: list[Answering] = []

    with ThreadPoolExecutor(1) as executor, Shared(executor) as shared:
        lifecycle = Lifecycle(trees, shared, Admission())
        begin = lambda: begun.append(lifecycle.begin(spec, patient=True)[1])  # noqa: E731
        for code in (Fib.routes_by.__code__, own_addresses.__code__):
            assert calls(code, begin) == 1
            lifecycle.end(begun.pop(), lost=False, detach=True)


def test_a_thread_locks_once(trees: Trees) -> None:
    """Take the lock once for blocks in blocks; another thread waits for the outer one's end."""
    lock, events = trees.files.lock, list[str]()
    taken = tree_lock.TreeLock._acquire.__code__

    def nested() -> None:
        with lock.exclusive():
            with lock.if_usable(urgent=True), lock.exclusive():
                pass
            waiting = other.submit(wait)
            assert not wait_for([waiting], 0.2).done
            events.append("inner blocks have ended")
        waiting.result(10)

    def wait() -> None:
        with lock.exclusive():
            events.append("another thread has the lock")

    with ThreadPoolExecutor(1) as other:
        assert calls(taken, nested) == 1
    assert events == ["inner blocks have ended", "another thread has the lock"]


def test_directories_made_under_the_lock_are_not_looked_at(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look at all directories only if another process may have made some."""
    scans: list[Path] = []
    scandir = os.scandir

    def counted(path: Path) -> Any:
        scans.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    tree = trees.files
    with tree.lock.exclusive():
        tree.make("one0")
    scans.clear()
    with tree.lock.exclusive():
        assert not scans
    (tree.base / "two0").mkdir(mode=0o777)
    with tree.lock.exclusive():
        assert scans == [tree.base]
        assert (tree.base / "two0").stat().st_mode & 0o777 == tree_lock.TRAVERSED
        tree.remove("one0")
        tree.remove("two0")


def test_maps_are_read_in_growing_pieces(privacy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return all entries of a hash, whose pieces begin small, and may be less than one bucket."""
    spec = MapSpec("many", 1, 4, 8, 4096, 0)
    opened = KernelMap.create(spec)
    with contextlib.closing(opened):
        wanted = {number.to_bytes(4): number.to_bytes(8) for number in range(3000)}
        opened.update(b"".join(wanted), b"".join(wanted.values()))
        for few, growth in ((64, 8), (1, 2), (4096, 8)):
            monkeypatch.setattr(bpf_maps, "_FEW", few)
            monkeypatch.setattr(bpf_maps, "_GROWTH", growth)
            pieces = list(opened.pieces())
            assert len(pieces) > 1 or few == 4096
            assert dict(opened.items()) == wanted
            assert sum(len(keys) for keys, _ in pieces) == 4 * len(wanted)


# ---- neighbours ---------------------------------------------------------------------------------


def test_neighbours_while_many_interfaces_begin(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Report each change from the first moment, by few filters, and then filter in the kernel."""
    monkeypatch.setattr(shared_descriptors, "_FILTERED_AT_ONCE", 2)
    monkeypatch.setattr(shared_descriptors, "_NARROWING", 0.3)
    filters: list[int] = []
    limit_to = NeighbourMonitor.limit_to

    def counted(self: NeighbourMonitor, *ifindexes: int) -> None:
        filters.append(len(ifindexes))
        limit_to(self, *ifindexes)

    monkeypatch.setattr(NeighbourMonitor, "limit_to", counted)
    found: list[NeighbourChange] = []

    async def main(executor: ThreadPoolExecutor) -> None:
        with Shared(executor) as shared:
            for name in names:
                shared.follow_neighbours(
                    socket.if_nametoindex(name), lambda changes: found.extend(changes or ())
                )
                sh("ip", "neighbour", "replace", "fe80::99", "lladdr", MAC, "dev", name)
            assert filters == [1, 1, 2, 0]  # of the socket, of two interfaces, and of none
            while filters[-1] != MANY:
                await asyncio.sleep(0.01)
            wanted = {socket.if_nametoindex(name) for name in names}
            while {each.ifindex for each in found} != wanted:
                await asyncio.sleep(0.01)
            assert len(filters) == 5

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(asyncio.wait_for(main(executor), 20))


# ---- addresses ----------------------------------------------------------------------------------


def test_addresses_are_read_as_ip_shows_them(names: list[str]) -> None:
    """Read addresses with and without a peer, a metric, a lifetime and a flag."""
    name = names[0]
    for words in (
        "2001:db8::1/64",
        "2001:db8::2 peer 2001:db8::9/128 metric 77",
        "2001:db8::3/128 valid_lft 4000 preferred_lft 0 noprefixroute nodad",
    ):
        sh("ip", "address", "add", *words.split(), "dev", name)
    (shown,) = json.loads(sh("ip", "-j", "-6", "address", "show", "dev", name))
    expected = {
        each["local"]: (
            each.get("address"),
            each["prefixlen"],
            each["scope"] == "link",
            each.get("metric", 0),
            bool(each.get("deprecated")),
            bool(each.get("noprefixroute")),
        )
        for each in shown["addr_info"]
    }
    assert len(expected) == 4  # and the link-local one
    assert expected == {
        address_text(each.address): (
            address_text(each.peer) if each.peer else None,
            each.length,
            each.link_local,
            each.metric,
            bool(each.flags & 0x20),  # IFA_F_DEPRECATED
            bool(each.flags & 0x200),  # IFA_F_NOPREFIXROUTE
        )
        for each in own_addresses(socket.if_nametoindex(name))
    }
    lifetimes = {each.address[-1]: each for each in own_addresses(socket.if_nametoindex(name))}
    assert (lifetimes[1].valid, lifetimes[3].preferred) == (FOREVER, 0)
    assert 3900 < lifetimes[3].valid <= 4000
    assert own_addresses(99_999) == []
