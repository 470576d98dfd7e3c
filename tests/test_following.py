"""`ndxdp run -c` in a network that changes under it: names, links, MACs, rules by hand."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import SO_RCVBUFFORCE, packet_socket
from lab.programs import build_xdp_pass
from ndxdp.ndp.frame import (
    TYPE_NA,
    TYPE_NS,
    eth_source_of,
    flags_of,
    icmpv6_type_of,
    lladdr_of,
    target_of,
)
from ndxdp.netlink.neighbours import confirm_neighbour
from ndxdp.rules.address import parse_address, parse_mac
from tests.fixtures.features import needs
from tests.fixtures.network import (
    BEHIND,
    HOST_MAC,
    PATIENCE,
    PINS,
    REPOSITORY,
    ROUTER,
    ROUTER_LINK,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    Running,
    allmulti_count,
    done,
    eventually,
    ndxdp,
    rules,
    sh,
    status,
    tc_ids,
    xdp_ids,
)
from tests.fixtures.segment import (
    BEHIND_LINK,
    GATEWAY_BYTES,
    ROUTER_MAC_BYTES,
    SWITCH,
    Segment,
    at,
    segment,
)
from tests.test_announce import PROVIDER
from tests.test_gateway import DEAF, traffic

OTHER = "2001:db8:0:0:d::/80"
OTHER_TARGET = "2001:db8::d:0:0:99"
RENAMED = "wan0"
FLOODED = parse_address(BEHIND.partition("/")[0])[:12]
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h: with two integers of 64 bits, on 64-bit kernels


def configuration(path: Path, keys: str = "", **interfaces: str) -> str:
    """Write a configuration that answers on each interface for one prefix; return its name."""
    path.write_text(
        "".join(
            f'[[interface]]\nname = "{name}"\n{keys}\n[[interface.prefix]]\nprefix = "{prefix}"\n'
            for name, prefix in interfaces.items()
        )
    )
    return str(path)


@contextlib.contextmanager
def daemon(net: Network, tmp_path: Path, **interfaces: str) -> Iterator[Running]:
    """Run a daemon on interfaces that need not exist."""
    run = Running(("-c", configuration(tmp_path / "ndxdp.toml", **interfaces)), wait=False)
    try:
        yield run
        if run.process.poll() is None:
            assert run.end()[0] == 0
    finally:
        run.close()
        for name in interfaces:
            ndxdp("-q", "detach", name)


def rename(old: str, new: str) -> None:
    """Rename an interface while it is up, as kernels since 6.2 allow."""
    sh("ip", "link", "set", old, "name", new)


def answered(net: Network, target: str = TARGET) -> None:
    eventually(lambda: net.ask(target, wait=0.2) == (HOST_MAC, target), within=10)


def is_free(name: str) -> bool:
    """Return True if the device has nothing of ndxdp."""
    return not (tc_ids(name) or xdp_ids(name) or allmulti_count(name))


class Flood:
    """Solicitations of the router at a fixed rate, each for another target of BEHIND."""

    def __init__(self, rate: int = 5000) -> None:
        self._rate = rate
        self.sent = self.unanswered = 0
        self.missing: set[int] = set()

    def __enter__(self) -> Flood:
        words = ("-m", "tests.fixtures.flood", ROUTER_LINK, "--mac", ROUTER_MAC)
        self._process = subprocess.Popen(
            [
                *("nsenter", f"--net=/run/netns/{ROUTER}", sys.executable, *words),
                *("--prefix", BEHIND.partition("/")[0], "--rate", str(self._rate), "--list"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert self._process.stderr is not None
        assert "soliciting" in self._process.stderr.readline()
        time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.3)
        self._process.terminate()
        found = json.loads(self._process.communicate(timeout=30)[0])
        self.sent, self.unanswered = found["sent"], found["unanswered"]
        self.missing = set(found["missing"])


# ---- names --------------------------------------------------------------------------------------


@needs("rename")
def test_renamed_away_and_back(net: Network, tmp_path: Path) -> None:
    """Detach from a device when it gets a name that is not configured."""
    with daemon(net, tmp_path, up0=BEHIND):
        answered(net)
        done("prefix", "add", OTHER)
        rename(UPLINK, RENAMED)
        eventually(lambda: is_free(RENAMED))
        assert net.silent()
        assert status()["attached"] is False
        rename(RENAMED, UPLINK)
        answered(net)
        assert net.answers(OTHER_TARGET), "rules by hand are still there"


@needs("rename")
def test_the_configured_name_appears_by_rename(net: Network, tmp_path: Path) -> None:
    with daemon(net, tmp_path, wan0=BEHIND):
        assert net.silent()
        rename(UPLINK, RENAMED)
        answered(net)
        rename(RENAMED, UPLINK)
        eventually(lambda: is_free(UPLINK))


@needs("rename")
def test_one_configured_name_becomes_another(net: Network, tmp_path: Path) -> None:
    """Apply the rules of a name to the device that has it."""
    with daemon(net, tmp_path, up0=BEHIND, wan0=OTHER):
        answered(net)
        assert net.silent(OTHER_TARGET)
        rename(UPLINK, RENAMED)
        answered(net, OTHER_TARGET)
        assert net.silent()
        assert len(tc_ids(RENAMED)) == 1
        rename(RENAMED, UPLINK)
        answered(net)
        assert net.silent(OTHER_TARGET)
        assert len(tc_ids(UPLINK)) == 1


@pytest.fixture
def other(net: Network) -> Iterator[str]:
    """Add a second interface, which leads nowhere."""
    sh("ip", "link", "add", "other0", "up", "type", "veth", "peer", "name", "other0-end")
    yield "other0"
    sh("ip", "link", "delete", "other0-end")


def swap(one: str, two: str) -> None:
    for old, new in ((one, "tmp0"), (two, one), ("tmp0", two)):
        rename(old, new)


def each_has_its_own(*names: str) -> bool:
    """Return True if each device has one program, under the pins of its name."""
    return all(
        len(tc_ids(name)) == 1
        and status(name)["attached"]
        and status(name)["ifindex"] == socket.if_nametoindex(name)
        for name in names
    )


@needs("rename")
@pytest.mark.parametrize("looks", [True, False], ids=["running", "killed"])
def test_names_are_swapped(net: Network, tmp_path: Path, other: str, looks: bool) -> None:
    """Follow swapped names, also if the swap happened while no daemon ran."""
    names = {UPLINK: BEHIND, other: OTHER}
    with daemon(net, tmp_path, **names) as run:
        eventually(lambda: each_has_its_own(*names))
        if looks:
            swap(*names)
            answered(net, OTHER_TARGET)
        else:
            run.process.kill()
            run.process.wait(10)
            swap(*names)
            assert net.answers(TARGET), "no process detaches it"
            with contextlib.closing(Running(("-c", str(tmp_path / "ndxdp.toml")))):
                answered(net, OTHER_TARGET)
        assert net.silent()
        eventually(lambda: each_has_its_own(*names))
        swap(*names)
        if looks:
            answered(net)


@needs("rename")
def test_renamed_and_reconfigured_while_it_was_stopped(net: Network, tmp_path: Path) -> None:
    """Move the pins to the new name without losing an answer."""
    with daemon(net, tmp_path, up0=BEHIND) as first:
        answered(net)
        done("prefix", "add", OTHER)
        first.process.kill()
        first.process.wait(10)
        with contextlib.ExitStack() as second:
            with net.solicited_continuously() as missed:
                rename(UPLINK, RENAMED)
                second.enter_context(daemon(net, tmp_path, wan0=BEHIND))
                eventually(lambda: [path.name for path in PINS.glob("v*/*")] == [RENAMED])
                eventually(lambda: status(RENAMED)["held_by"] == "run")
            assert missed == []
            assert OTHER in rules()
        rename(RENAMED, UPLINK)


# ---- modes --------------------------------------------------------------------------------------

MODES = ("native", "tc", "generic", "userspace")


def test_mode_and_loader_are_reloaded_under_a_flood(net: Network, tmp_path: Path) -> None:
    """Change between all modes on reload; rules by hand and the pause are carried over."""
    net.pass_at_router()
    file = tmp_path / "ndxdp.toml"
    pairs = [(one, two) for one in MODES for two in MODES if one != two]
    lost = {}

    def reload(mode: str, loader: str = "prebuilt") -> None:
        configuration(file, f'mode = "{mode}"\nloader = "{loader}"', up0=BEHIND)
        run.process.send_signal(signal.SIGHUP)
        eventually(lambda: (status()["mode"], status()["held_by"]) == (mode, "run"), within=20)
        eventually(lambda: len(ndxdp("status", "--json").json()["interfaces"]) == 1)

    with daemon(net, tmp_path, up0=BEHIND) as run:
        answered(net)
        done("prefix", "add", OTHER)
        for one, two in pairs:
            reload(one)
            # A packet socket's queue holds 340 frames: so many may arrive while it gets no
            # processor.
            with Flood(1000 if "userspace" in (one, two) else 5000) as flood:
                reload(two)
            assert flood.sent > 500
            lost[one, two] = flood.unanswered
        assert lost == dict.fromkeys(pairs, 0), lost
        assert rules()[OTHER]["source"] == "manual"
        assert net.answers(OTHER_TARGET)

        done("pause", UPLINK)
        for mode in ("tc", "userspace", "native"):
            reload(mode)
            assert status()["paused"] is True
        done("resume", UPLINK)

        with Flood() as flood:
            reload("native", "bcc")
            eventually(lambda: status()["loader"] == "bcc", within=20)
        assert (flood.unanswered, flood.sent > 500) == (0, True)


def test_an_unavailable_mode_leaves_the_old_one(net: Network, tmp_path: Path) -> None:
    """Keep the old mode if `auto` finds no better one after a reload."""
    file = tmp_path / "ndxdp.toml"
    configuration(file, 'mode = "generic"', up0=BEHIND)
    with contextlib.ExitStack() as stack:
        run = Running(("-c", str(file)), wait=False)
        stack.callback(lambda: ndxdp("-q", "detach", UPLINK))
        stack.callback(run.close)
        answered(net)
        foreign = str(build_xdp_pass())
        with net.solicited_continuously() as missed:
            configuration(file, 'mode = "auto"', up0=BEHIND)
            run.process.send_signal(signal.SIGHUP)
            eventually(lambda: status()["mode"] == "tc")
            sh("ip", "link", "set", UPLINK, "xdpgeneric", "obj", foreign, "sec", "xdp")
            configuration(file, 'mode = "native"', up0=BEHIND)
            run.process.send_signal(signal.SIGHUP)
            assert run.process.stderr is not None
            while "answering continues as before" not in (output := run.process.stderr.readline()):
                pass
        assert missed == []
        assert "ndxdp does not replace" in output
        assert status()["mode"] == "tc"
        sh("ip", "link", "set", UPLINK, "xdpgeneric", "off")
        assert run.end()[0] == 0


# ---- rules by hand ------------------------------------------------------------------------------

EXACT, LATER = "2001:db8::d:0:0:7", "2001:db8::d:0:0:8"
GROUP = "ff0200000000000000000001ff000007"


def advertisements(wire: socket.socket) -> Iterator[tuple[str, int]]:
    """Yield target and flags of each advertisement that reaches the router."""
    wire.settimeout(5 * PATIENCE)
    while True:
        frame, address = wire.recvfrom(65536)
        incoming = address[2] != socket.PACKET_OUTGOING
        if incoming and icmpv6_type_of(frame) == TYPE_NA:
            yield socket.inet_ntop(socket.AF_INET6, target_of(frame)), flags_of(frame)


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_addresses_by_hand_are_joined_and_announced(
    net: Network, tmp_path: Path, mode: str
) -> None:
    """Join and announce addresses by hand as configured ones; forget them when removed."""
    file = tmp_path / "ndxdp.toml"
    keys = f'mode = "{mode}"\n[interface.announce]\nadvertise = true\ninterval = 1'
    run = net.run("-c", configuration(file, keys, up0=BEHIND))
    groups = Path("/proc/net/igmp6").read_text
    try:
        with packet_socket(ROUTER, ROUTER_LINK) as wire:
            heard = advertisements(wire)
            done("prefix", "add", "--no-router", EXACT)
            assert next(heard) == (EXACT, 0x20), "O=1; R=0 as the rule says"
            eventually(lambda: GROUP in groups())
            done("prefix", "del", EXACT)
            eventually(lambda: GROUP not in groups())
            # The daemon leaves the group first and forgets EXACT before it announces LATER.
            done("prefix", "add", LATER)
            assert (LATER, 0xA0) in heard
            # Each interval of a second would announce EXACT, too.
            assert [next(heard) for _ in range(3)] == [(LATER, 0xA0)] * 3
        assert run.end()[0] == 0
    finally:
        run.close()
        ndxdp("-q", "detach", UPLINK)


# ---- links --------------------------------------------------------------------------------------


class Witness:
    """The solicitations that reached the uplink, and their times, according to a tap before tc.

    A missing solicitation did not arrive, because there was no link.
    """

    def __init__(self) -> None:
        self._taps: list[socket.socket] = []
        self._changing: list[tuple[float, float]] = []
        self.open_tap()

    def open_tap(self) -> None:
        """Open a tap on the current interface."""
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        tap.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        tap.bind((UPLINK, 3))
        tap.setblocking(False)
        self._taps.append(tap)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Change the link in the block: solicitations that arrive then may be lost."""
        began = time.time()
        yield
        self._changing.append((began, time.time()))

    def arrived(self) -> set[int]:
        """Return the numbers of solicitations that arrived on a working link; close the taps."""
        found = set()
        for tap in self._taps:
            with tap, contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        frame, ancillary, _, _ = tap.recvmsg(100, 64)
                    except BlockingIOError:
                        raise
                    except OSError:  # reported once, when the link goes down
                        continue
                    seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
                    at = seconds + nanoseconds / 1e9
                    if (
                        icmpv6_type_of(frame) == TYPE_NS
                        and target_of(frame)[:12] == FLOODED
                        and not any(began <= at <= ended for began, ended in self._changing)
                    ):
                        found.add(int.from_bytes(target_of(frame)[12:], "big"))
        return found


def test_flapping_link_under_a_flood(net: Network, tmp_path: Path) -> None:
    with daemon(net, tmp_path, up0=BEHIND):
        answered(net)
        with Flood() as flood:
            witness = Witness()
            for _ in range(3):
                for state in ("down", "up"):
                    with witness.changing():
                        sh("ip", "link", "set", UPLINK, state)
                    time.sleep(0.3)
        arrived = witness.arrived()
        missed = set(range(1, flood.sent + 1)) - arrived
        assert len(arrived) > 1000
        assert len(missed) > 1000, "the link was never down"
        assert arrived & flood.missing == set()


def test_recreated_link_under_a_flood(net: Network, tmp_path: Path) -> None:
    """Attach to a recreated interface before it is up, and answer the first solicitation."""
    far_end = f"peer name {ROUTER_LINK} address {ROUTER_MAC} netns {ROUTER}"
    with daemon(net, tmp_path, up0=BEHIND):
        answered(net)
        with Flood() as flood:
            witness = Witness()
            for _ in range(2):
                with witness.changing():
                    sh("ip", "link", "delete", UPLINK)
                    sh("ip", *f"link add {UPLINK} address {HOST_MAC} type veth {far_end}".split())
                eventually(lambda: each_has_its_own(UPLINK))
                witness.open_tap()
                with witness.changing():
                    assert net.at_router("ip", "link", "set", ROUTER_LINK, "up").code == 0
                    sh("ip", "link", "set", UPLINK, "up")
                time.sleep(0.5)
        arrived = witness.arrived()
        assert len(arrived) > 1000
        assert arrived & flood.missing == set()


def test_the_mac_changes_under_a_flood(net: Network, tmp_path: Path) -> None:
    """Switch to the new MAC once for all answers, and announce it."""
    mac = "02:00:00:00:00:33"
    old, new = parse_mac(HOST_MAC), parse_mac(mac)
    file = tmp_path / "ndxdp.toml"
    more = f'[interface.announce]\nadvertise = true\n[[interface.prefix]]\nprefix = "{EXACT}"'
    run = net.run("-c", configuration(file, more, up0=BEHIND))
    try:
        answered(net)
        with net.advertisements() as heard, Flood(100) as flood:
            sh("ip", "link", "set", UPLINK, "address", mac)
            eventually(lambda: status()["mac"] == mac)
        assert flood.missing == set()
        found = [
            (eth_source_of(frame), lladdr_of(frame))
            for frame in heard
            if target_of(frame)[:12] == FLOODED
        ]
        turn = found.index((new, new))
        assert turn > 0
        assert set(found[:turn]) == {(old, old)}
        assert set(found[turn:]) == {(new, new)}
        unsolicited = [frame for frame in heard if target_of(frame) == parse_address(EXACT)]
        assert {flags_of(frame) & 0x60 for frame in unsolicited} == {0x20}, "O=1, S=0"
        assert lladdr_of(unsolicited[-1]) == new
        assert run.end()[0] == 0
    finally:
        run.close()
        ndxdp("-q", "detach", UPLINK)
        sh("ip", "link", "set", UPLINK, "address", HOST_MAC)


# ---- upstreams ----------------------------------------------------------------------------------


@contextlib.contextmanager
def at_work(tmp_path: Path, keys: str) -> Iterator[Running]:
    """Run a daemon for one address behind the uplink; detach at the end."""
    run = Running(("-c", configuration(tmp_path / "ndxdp.toml", keys, up0=f"{EXACT}/128")))
    try:
        yield run
        assert run.end()[0] == 0
    finally:
        run.close()
        ndxdp("-q", "detach", UPLINK)


@pytest.mark.parametrize("announcing", [True, False])
def test_provider_that_delivers_only_after_a_solicitation(
    wired: Segment, tmp_path: Path, announcing: bool
) -> None:
    """Announce to a provider that solicits, but delivers only after an announcement."""
    at(SWITCH, "nft", "-f", "-", stdin=PROVIDER.replace(BEHIND, OTHER))
    sh("ip", "-6", "route", "add", OTHER, "dev", BEHIND_LINK)
    wired.behind(EXACT)
    keys = "[interface.announce]\nsolicit_gateway = true" if announcing else ""
    with at_work(tmp_path, keys):
        time.sleep(0.5)
        assert wired.ping(EXACT, count=3) == (3 if announcing else 0)
        # The router knows an announced address, and does not solicit.
        assert announcing or status()["reasons"]["answered"] > 0


@pytest.mark.parametrize("caring", [True, False])
def test_upstream_that_ignores_the_host(privacy: None, tmp_path: Path, caring: bool) -> None:
    """Send traffic for NDXDP_TRAFFIC_SECONDS; then change the gateway's MAC."""
    seconds = float(os.environ.get("NDXDP_TRAFFIC_SECONDS", "6"))
    keys = f"[interface.gateway]\nkeep = {str(caring).lower()}\ninterval = 1"
    with segment(reachable_ms=500) as made:
        at(SWITCH, "nft", "-f", "-", stdin=DEAF)
        made.behind(EXACT)
        with at_work(tmp_path, keys):
            if not caring:
                confirm_neighbour(made.ifindex(), GATEWAY_BYTES, ROUTER_MAC_BYTES, router=True)
            eventually(lambda: made.entry() == ("REACHABLE", ROUTER_MAC))
            sent, arrived = traffic(seconds)
            if not caring:
                assert 0 < arrived < sent
                assert made.entry()[0] in ("FAILED", "INCOMPLETE")
                return
            assert arrived == sent
            moved = "02:00:00:00:00:aa"
            at(ROUTER, "ip", "link", "set", ROUTER_LINK, "address", moved)
            eventually(lambda: made.entry()[1] == moved)
            sent, arrived = traffic(1)
            assert arrived == sent
