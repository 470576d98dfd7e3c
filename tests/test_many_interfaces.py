"""A daemon with many interfaces: the cost of one interface does not depend on the others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ndxdp.daemon import service
from ndxdp.daemon.host_tables import Copies, HostTables
from ndxdp.kernel import abi, libbpf
from ndxdp.ndp.reason import Reason
from ndxdp.netlink.fib import Fib, NudState
from ndxdp.netlink.link_monitor import Changes, LinkMonitor
from ndxdp.netlink.neighbour_monitor import NeighbourChange, NeighbourMonitor
from ndxdp.rules.address import parse_address
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.difference import difference
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.session.kernel_tables import LinkNeighbours, alive
from ndxdp.session.rename import reconcile_renames
from ndxdp.store.directories import Trees
from ndxdp.store.maps import Maps
from ndxdp.store.records import Resolved
from tests.fixtures.network import Running, call, done, eventually, ndxdp, sh
from tests.fixtures.work import calls

PREFIX = "2001:db8:0:0:c::/80"
ADDRESS = "2001:db8:ffff::1"
ENTRY = ("lladdr", "02:00:00:00:00:99", "dev")


@pytest.fixture
def uplinks(privacy: None) -> Iterator[list[str]]:
    """Yield five Ethernet interfaces that are up."""
    names = [f"many{number}" for number in range(5)]
    for name in names:
        sh("ip", "link", "add", name, "up", "type", "veth", "peer", "name", f"{name}-end")
        sh("ip", "link", "set", f"{name}-end", "up")
    yield names
    for name in names:
        call("ip", "link", "delete", name)


# ---- beginnings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "free"])
def test_a_beginning_opens_no_pins_of_other_interfaces(
    uplinks: list[str], trees: Trees, attached: bool
) -> None:
    """Look for pins under a former name only where a program runs that needs an explanation."""
    one, *others = uplinks
    opened = []
    try:
        for names in ([others[0]], others[1:]):
            for name in names:
                done("attach", name, "--mode", "tc", "-n", PREFIX)
            if attached:
                done("attach", one, "--mode", "tc", "-n", PREFIX)
            reconcile = lambda: reconcile_renames(trees.pins, one)  # noqa: E731
            opened.append(calls(libbpf.get_pinned.__code__, reconcile))
    finally:
        for name in uplinks:
            call(sys.executable, "-m", "ndxdp", "detach", name)
    assert opened[0] == opened[1], opened


# ---- order --------------------------------------------------------------------------------------


def test_status_shows_interfaces_in_natural_order(trees: Trees, privacy: None) -> None:
    names = ["up1", "up2", "up10"]
    for name in reversed(names):
        sh("ip", "link", "add", name, "up", "type", "veth", "peer", "name", f"{name}-end")
        done("attach", name, "--mode", "tc", "-n", PREFIX)
    found = call(sys.executable, "-m", "ndxdp", "status", "--json").json()["interfaces"]
    done("detach", "--all")
    for name in names:
        sh("ip", "link", "delete", name)
    assert [each["interface"] for each in found] == names


# ---- what a daemon has open ---------------------------------------------------------------------

MOST_OPEN = {"tc": 7, "hashes": 7, "userspace": 8}
"""Descriptors of an interface without exact addresses, announcements and gateway care."""


def _interface(name: str, mode: str) -> str:
    """Return the table of an interface; `hashes` is tc with rules that need all kinds of maps."""
    if mode == "hashes":
        classes = "".join(
            f'[[interface.prefix]]\nprefix = "2001:db8:{n:x}::/64"\n'
            for n in range(1, abi.FIRST_RULE_CLASSES + 3)
        )
        return f'{_interface(name, "tc")}answer = "routed"\ndev = ["many*"]\n{classes}'
    prefix = f'[[interface.prefix]]\nprefix = "{PREFIX}"\n'
    return f'[[interface]]\nname = "{name}"\nmode = "{mode}"\non_stop = "detach"\n{prefix}'


def _follows(name: str) -> bool:
    """Return True if the daemon has followed the network once, to the last step, the groups."""
    found = ndxdp("status", name, "--json")
    return found.code == 0 and found.json()["interfaces"][0]["multicast"] is not None


def open_files(run: Running) -> list[str]:
    """Return what the descriptors of a process refer to."""
    found = []
    for entry in os.scandir(f"/proc/{run.process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry.path))
    return found


def settled_descriptors(run: Running) -> int:
    """Return the number of open descriptors once it has not changed for half a second."""

    def unchanged() -> int:
        before = len(open_files(run))
        time.sleep(0.5)
        return before if len(open_files(run)) == before else 0

    return eventually(unchanged, within=20)


@pytest.mark.parametrize("mode", MOST_OPEN)
def test_what_is_open_for_each_interface(uplinks: list[str], tmp_path: Path, mode: str) -> None:
    """Open at most MOST_OPEN descriptors for each interface, and one inotify instance for all."""
    taken = []
    for names in (uplinks[:1], uplinks):
        file = tmp_path / "ndxdp.toml"
        file.write_text("".join(_interface(name, mode) for name in names))
        with contextlib.closing(Running(("-c", str(file)))) as run:
            eventually(lambda: all(_follows(name) for name in names), within=20)  # noqa: B023
            eventually(lambda: open_files(run).count("anon_inode:inotify") == 1)
            taken.append(settled_descriptors(run))
            assert run.end().code == 0
    each = (taken[1] - taken[0]) / (len(uplinks) - 1)
    assert each <= MOST_OPEN[mode], taken


@contextlib.contextmanager
def few_descriptors() -> Iterator[None]:
    """Leave too few descriptors to open parked maps during the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_maps_are_parked_and_open_again(privacy: None) -> None:
    """Use one descriptor for parked maps, which are the same maps when opened again."""
    maps = Maps.create(1000)
    before = maps.rules()
    count = len(os.listdir("/proc/self/fd"))
    maps.park()
    assert len(os.listdir("/proc/self/fd")) == count - (len(abi.MAPS) - 2) + 1
    rules = Rules({Rule(): AddressSet.of([bytes(15) + b"\5"])})
    maps.apply(difference(rules, before), before)
    assert maps.rules() == rules
    with maps.opened(), maps.opened():
        assert maps.rules() == rules
    with few_descriptors():
        with pytest.raises(OSError, match="Too many open files"):
            maps.rules()
        maps.set_trace(0)  # the settings stay open
    assert maps.rules() == rules
    maps.close()
    table = 1  # of the exact addresses
    assert len(os.listdir("/proc/self/fd")) == count - len(abi.MAPS) - table


def test_files_are_parked_and_open_again(tmp_path: Path) -> None:
    """Use one descriptor for parked files, which are read and written as before."""
    maps = Maps.create_files(tmp_path)
    count = len(os.listdir("/proc/self/fd"))
    maps.park()
    parked = ("groups", "lease", "resolver")
    assert len(os.listdir("/proc/self/fd")) == count - len(parked) + 1
    rules = Rules({Rule(label="parked"): AddressSet.of([bytes(15) + b"\5"])})
    maps.apply(difference(rules, Rules()), Rules())
    maps.count_resolved(Resolved(asked=7))
    with Maps.open_files(tmp_path) as other:
        for each in (maps, other):
            assert each.rules() == rules
            assert each.resolved().asked == 7
    with few_descriptors():
        with pytest.raises(OSError, match="Too many open files"):
            maps.rule_classes()
        maps.file("reasons").add(Reason.ANSWERED, 1)  # this file stays open


def test_parked_files_that_are_removed_or_replaced(tmp_path: Path) -> None:
    """Keep the contents of parked files, and write them again where files were removed."""
    maps = Maps.create_files(tmp_path)
    rules = Rules({Rule(label="parked"): AddressSet.of([bytes(15) + b"\5"])})
    maps.apply(difference(rules, Rules()), Rules())
    maps.count_resolved(Resolved(asked=7))
    maps.park()
    (tmp_path / "resolver").unlink()
    (tmp_path / "resolver").write_bytes(b"another file")
    assert maps.resolved().asked == 7
    for file in tmp_path.iterdir():
        file.unlink()
    maps.restore_files()
    maps.count_resolved(Resolved(asked=1))
    with Maps.open_files(tmp_path) as other:
        assert other.rules() == maps.rules() == rules
        assert other.resolved().asked == 8


def test_neighbours_that_could_not_be_written(uplinks: list[str]) -> None:
    """Read all neighbours again once there are descriptors to open the maps."""
    ifindex = socket.if_nametoindex(uplinks[0])
    failures: list[None] = []
    on_changes: list[Callable[[list[NeighbourChange] | None], None]] = []

    def follow(_: int, call: Callable[[list[NeighbourChange] | None], None]) -> Callable[[], None]:
        on_changes.append(call)
        return lambda: None

    with Maps.create(1000) as maps, Fib() as fib:
        maps.park()
        failed = lambda: failures.append(None)  # noqa: E731
        neighbours = LinkNeighbours(maps, fib, follow, lambda macs: None, failed)

        def written() -> set[bytes]:
            return {key for key, _ in maps._maps["on_link"].items()}

        def present() -> set[bytes]:
            neighbours.follow(ifindex, frozenset(), solicit=False)
            return set(alive(fib.neighbours(ifindex)))

        sh("ip", "neighbour", "replace", "fe80::98", *ENTRY, uplinks[0])
        with few_descriptors(), pytest.raises(OSError, match="Too many open files"):
            present()
        assert len(present()) == len(written()) == 1
        sh("ip", "neighbour", "replace", "fe80::99", *ENTRY, uplinks[0])
        changed = NeighbourChange(ifindex, parse_address("fe80::99"), NudState.REACHABLE, bytes(6))
        with few_descriptors():
            on_changes[0]([changed])
        assert len(failures) == 1
        assert len(present()) == len(written()) == 2
        sh("ip", "neighbour", "flush", "dev", uplinks[0], "nud", "all")


# ---- events -------------------------------------------------------------------------------------


def changes_of(
    monitor: LinkMonitor, act: Callable[[], object], *, local_routes: bool = False
) -> Changes:
    """Return what a monitor reports of an action.

    Args:
        monitor: The monitor.
        act: The action.
        local_routes: Wait until local routes are reported: the kernel adds the one of an address
            some time after the address.
    """
    monitor.drain()
    act()
    changes = monitor.drain()
    if local_routes:
        eventually(lambda: _more(monitor, changes).local_routes)
    return changes


def _more(monitor: LinkMonitor, changes: Changes) -> Changes:
    """Add what a monitor reports now to changes."""
    more = monitor.drain()
    changes.interfaces |= more.interfaces
    changes.names |= more.names
    changes.local_routes |= more.local_routes
    changes.anything |= more.anything
    return changes


def test_changes_of_other_interfaces_concern_none(uplinks: list[str]) -> None:
    one, other = (frozenset({socket.if_nametoindex(name)}) for name in uplinks[:2])

    def ip(*words: str) -> Callable[[], object]:
        return lambda: sh("ip", "-6", *words)

    with contextlib.closing(LinkMonitor()) as monitor:
        for verb in ("add", "delete"):
            address = ip("address", verb, f"{ADDRESS}/128", "dev", uplinks[0], *_nodad(verb))
            changes = changes_of(monitor, address, local_routes=True)
            assert changes.concern(one)
            assert not changes.concern(other)
        for route in ("default", "2001:db8:fffe::/64"):
            route_of = (route, "dev", uplinks[0], "proto", "ra")
            for verb in ("add", "delete"):
                changes = changes_of(monitor, ip("route", verb, *route_of))
                assert changes.concern(one)
                assert not changes.concern(other)
                assert not changes.local_routes
        changes = changes_of(monitor, ip("route", "add", "local", ADDRESS, "dev", uplinks[1]))
        assert changes == Changes(local_routes=True)
        changes = changes_of(monitor, ip("route", "delete", "local", ADDRESS, "dev", uplinks[1]))
        assert changes == Changes(local_routes=True)


def _nodad(verb: str) -> tuple[str, ...]:
    return ("nodad",) if verb == "add" else ()


def test_a_route_with_several_next_hops(uplinks: list[str]) -> None:
    one, other, third = (frozenset({socket.if_nametoindex(name)}) for name in uplinks[:3])
    hops = [
        word
        for number, name in enumerate(uplinks[:2], 1)
        for word in ("nexthop", "via", f"fe80::{number}", "dev", name)
    ]
    with contextlib.closing(LinkMonitor()) as monitor:
        for verb in ("add", "delete"):
            changes = changes_of(monitor, lambda: sh("ip", "-6", "route", verb, "default", *hops))  # noqa: B023
            assert changes.concern(one)
            assert changes.concern(other)
            assert not changes.concern(third)


def test_a_route_that_replaces_one_of_another_interface(uplinks: list[str]) -> None:
    """Let the former interface look for its gateways: the kernel reports only the new one."""
    one, other = (frozenset({socket.if_nametoindex(name)}) for name in uplinks[:2])

    def replace(name: str) -> Callable[[], object]:
        return lambda: sh("ip", "-6", "route", "replace", "default", "via", "fe80::1", "dev", name)

    with contextlib.closing(LinkMonitor()) as monitor:
        changes_of(monitor, replace(uplinks[0]))
        changes = changes_of(monitor, replace(uplinks[1]))
        assert changes.concern(one)
        assert changes.concern(other)
        sh("ip", "-6", "route", "delete", "default")


def test_forwarding_is_a_change(uplinks: list[str]) -> None:
    one, other = (frozenset({socket.if_nametoindex(name)}) for name in uplinks[:2])
    sysctl = Path(f"/proc/sys/net/ipv6/conf/{uplinks[0]}/forwarding")
    with contextlib.closing(LinkMonitor()) as monitor:
        for value in ("1", "0"):
            changes = changes_of(monitor, lambda: sysctl.write_text(value))  # noqa: B023
            assert changes.concern(one)
            assert not changes.concern(other)


def test_names_come_with_the_change(uplinks: list[str]) -> None:
    """Look for a name only after a change that has it."""
    with contextlib.closing(LinkMonitor()) as monitor:
        alternative = ("ip", "link", "property", "add", "dev", uplinks[0], "altname")
        changes = changes_of(
            monitor, lambda: sh(*alternative, "wan", "altname", "a-long-name-of-it")
        )
        assert {uplinks[0], "wan", "a-long-name-of-it"} <= changes.names
        sh("ip", "link", "set", uplinks[0], "down")
        changes = changes_of(
            monitor, lambda: sh("ip", "link", "set", uplinks[0], "name", "renamed0")
        )
        assert "renamed0" in changes.names
        sh("ip", "link", "set", "renamed0", "name", uplinks[0])


@pytest.mark.parametrize("silent", [0, 1], ids=["routes notified", "skip_notify_on_dev_down"])
def test_no_change_of_local_routes_is_missed(uplinks: list[str], silent: int) -> None:
    """Compare what is reported with the table itself, also where the kernel reports less."""
    one, other = uplinks[:2]
    sysctls = Path("/proc/sys/net/ipv6")
    notify = sysctls / "route/skip_notify_on_dev_down"
    conf = sysctls / "conf" / one

    def ip(*words: str) -> Callable[[], object]:
        return lambda: sh("ip", "-6", *words)

    add = ip("address", "add", f"{ADDRESS}/64", "dev", one, "nodad")
    up = ip("link", "set", one, "up")
    actions = [
        add,
        ip("link", "set", one, "down"),
        up,
        add,
        lambda: (conf / "forwarding").write_text("1"),
        lambda: (conf / "forwarding").write_text("0"),
        lambda: (conf / "keep_addr_on_down").write_text("1"),
        ip("link", "set", one, "down"),
        up,
        lambda: (conf / "disable_ipv6").write_text("1"),
        lambda: (conf / "disable_ipv6").write_text("0"),
        add,
        ip("link", "set", one, "mtu", "1000"),  # less than IPv6 needs
        ip("link", "set", one, "mtu", "1500"),
        add,
        ip("route", "add", "local", "2001:db8:fffd::/48", "dev", other),
        ip("route", "delete", "local", "2001:db8:fffd::/48", "dev", other),
        ip("link", "delete", one),
        ip("address", "add", f"{ADDRESS}/64", "dev", other, "nodad"),
        ip("address", "flush", "dev", other),
    ]
    before = notify.read_text()
    notify.write_text(str(silent))
    changed = 0
    try:
        with contextlib.closing(LinkMonitor()) as monitor, Fib() as fib:
            for number, action in enumerate(actions):
                present = fib.local_prefixes()
                changes = changes_of(monitor, action)
                if fib.local_prefixes() != present:
                    _more(monitor, changes)
                    assert changes.local_routes or changes.anything, number
                    changed += 1
    finally:
        notify.write_text(before)
    assert changed >= 5


class FailingOnce(LinkMonitor):
    """A monitor whose first look at the network fails."""

    looks = 0

    def drain(self) -> Changes:
        self.looks += 1
        if self.looks == 1:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return super().drain()


def test_a_look_that_fails_is_repeated(uplinks: list[str], trees: Trees) -> None:
    async def main(executor: ThreadPoolExecutor) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        with contextlib.closing(FailingOnce()) as monitor:
            daemon = service._Daemon(
                trees,
                monitor,
                executor,
                lambda *_: None,
                None,
                lambda _: None,
                DaemonStatus(),
            )
            with daemon._signals_and_netlink():
                sh("ip", "link", "set", uplinks[0], "down")
                while monitor.looks < 2:
                    await asyncio.sleep(0.01)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        with ThreadPoolExecutor(1) as executor:
            asyncio.run(asyncio.wait_for(main(executor), 10))
    finally:  # the daemon leaves its signals blocked, and so would all children of this process
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Copy:
    """A reader of the host's tables that counts its calls."""

    def __init__(self, tables: HostTables, copies: Copies) -> None:
        self._tables, self.copies = tables, copies
        self.synced = 0
        self.routes: set[object] = set()

    def sync_tables(self) -> None:
        self.synced += 1
        self.routes = set(self._tables.local_routes.get())


def test_one_read_for_each_burst(privacy: None) -> None:
    """Read local routes once for all uplinks, and only if an answer depends on them."""

    async def call_here(function: Callable[[], None]) -> None:
        function()

    async def main() -> None:
        tables = HostTables(call_here)
        asking = [Copy(tables, Copies(local_routes=True)) for _ in range(3)]
        other = Copy(tables, Copies())
        with contextlib.ExitStack() as served:
            for each in (*asking, other):
                served.enter_context(tables.serving(each))
            for number in range(1, 4):
                for _ in range(100):
                    tables.network_changed(Changes({7}, local_routes=True))
                while asking[-1].synced < number:
                    await asyncio.sleep(0.01)
                assert [each.synced for each in asking] == [number] * 3
                assert tables.local_routes.looks == number
            before = tables.local_routes.get()
            tables.network_changed(Changes({7}, {"eth7"}))
            await asyncio.sleep(0.3)
            assert asking[0].synced == 3, "no local route has changed"
            tables.network_changed(Changes(anything=True))
            while asking[-1].synced < 4:
                await asyncio.sleep(0.01)
            assert tables.local_routes.get() is before
            assert (other.synced, tables.names.looks) == (0, 0)
        tables.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_neighbours_of_hundreds_of_interfaces(uplinks: list[str]) -> None:
    """Filter neighbours of many interfaces in the kernel; report all if there are too many."""
    one, other = (socket.if_nametoindex(name) for name in uplinks[:2])
    for count, expected in ((300, {one}), (3000, {one, other})):
        with contextlib.closing(NeighbourMonitor(*range(100_000, 100_000 + count), one)) as monitor:
            for name in uplinks[:2]:
                sh("ip", "neighbour", "replace", "fe80::99", *ENTRY, name)
            found = eventually(monitor.drain) or []
            assert {each.ifindex for each in found} == expected
            for name in uplinks[:2]:
                sh("ip", "neighbour", "delete", "fe80::99", "dev", name)
