"""An interface to answer on and a router that asks there: the two ends of a veth.

    [this namespace] up0 ---- eth0 [netns router]

`network()` builds it in the private namespaces of lab.private and takes it away again; what of
ndxdp is still there then is a test's failure. Every question about the state of the kernel goes
to the kernel, by `ip`, `tc`, `bpftool` or bpf(2), never through ndxdp.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lab import private, topology
from lab.capture import packet_socket
from lab.topology import build_xdp_pass
from ndxdp import report
from tests import forked

UPLINK = "up0"
ROUTER = "router"
ROUTER_LINK = "eth0"
MTU = 2000  # XDP has to attach beyond a page's worth of frame, too

HOST_MAC, ROUTER_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
HOST, HOST_LINK_LOCAL = "2001:db8::2", "fe80::2"
GATEWAY, ROUTER_LINK_LOCAL = "2001:db8::1", "fe80::1"
OTHER_GATEWAY = "2001:db8::ff"  # the router's too, but no default route leads there

BEHIND = "2001:db8:0:0:c::/80"
"""What is behind the host: on-link for the router."""
TARGET = "2001:db8::c:0:0:99"

BPFFS = Path("/sys/fs/bpf")
PINS = BPFFS / "ndxdp"
FILES = Path("/run/ndxdp")
"""What the userspace path keeps."""
REPOSITORY = Path(__file__).resolve().parent.parent
NDXDP = [sys.executable, "-m", "ndxdp"]

_RULES = ("addresses", "prefixes", "groups", "settings")  # maps that only commands write

PATIENCE = float(os.environ.get("NDXDP_TEST_PATIENCE", "1"))
"""How many times longer than usual something may take that is waited for: an emulated machine is
slow. What must not happen is waited for no longer."""

_T = TypeVar("_T")


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


class Neighbour(NamedTuple):
    """An answer to ndisc6: the link-layer address in it, and the address that sent it."""

    lladdr: str
    source: str


def ndxdp(*args: str, stdin: str | bytes = b"", env: dict[str, str] | None = None) -> Done:
    server = _server()
    if env or not server.is_like_us:
        return call(*NDXDP, *args, stdin=stdin, env=env)
    raw = stdin.encode() if isinstance(stdin, str) else stdin
    code, out, err = server.run(args, raw, 60 * PATIENCE)
    return Done(code, out.decode(errors="replace"), err.decode(errors="replace"))


@functools.cache
def _server() -> forked.Server:
    return forked.Server()


def done(*args: str, stdin: str | bytes = b"") -> str:
    """Run ndxdp; it has to succeed without a word on stderr. Returns its stdout."""
    result = ndxdp(*args, stdin=stdin)
    assert (result.code, result.err) == (0, ""), f"ndxdp {' '.join(args)}: {result}"
    return result.out


def timeless(status: str) -> str:
    """A text of `ndxdp status` that is the same a moment later."""
    return re.sub(r"\d+ s ago", "N s ago", status)


def python(code: str, *args: str) -> Done:
    """Run a few lines of Python, for what no command offers."""
    return call(sys.executable, "-c", code, *args)


def call(*args: str, stdin: str | bytes = b"", env: dict[str, str] | None = None) -> Done:
    ended = subprocess.run(
        args,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=60 * PATIENCE,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | (env or {}),
    )
    out, err = (text.decode(errors="replace") for text in (ended.stdout, ended.stderr))
    return Done(ended.returncode, out, err)


def sh(*args: str, stdin: str = "") -> str:
    """Run a system command that has to succeed."""
    result = call(*args, stdin=stdin)
    assert result.code == 0, f"{' '.join(args)}: {result.err.strip()}"
    return result.out


def eventually(look: Callable[[], _T], *, within: float = 5) -> _T:
    """The first true thing that `look` returns."""
    give_up = time.monotonic() + within * PATIENCE
    while not (found := look()):
        assert time.monotonic() < give_up, f"not within {within} s, but: {found!r}"
        time.sleep(0.02)
    return found


class Running:
    """An `ndxdp run` that has said that it is ready.

    command: how to start ndxdp, in the process that this one starts.
    """

    def __init__(
        self, args: tuple[str, ...], command: Sequence[str] = NDXDP, *, wait: bool = True
    ) -> None:
        self.process = subprocess.Popen(
            [*command, "run", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        self.ready = ""
        if not wait:
            return
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], 20 * PATIENCE)
        self.ready = self.process.stdout.readline() if readable else ""
        if not self.ready:
            self.process.kill()
            raise AssertionError(f"it did not get ready: {self.process.communicate()}")

    def end(self, number: int = signal.SIGTERM) -> Done:
        """Send a signal, and wait for the end. `out` is without the line that said `ready`."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, within: float = 10) -> Done:
        try:
            out, err = self.process.communicate(timeout=within * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"still running after {within} s: {out} {err}") from None
        return Done(self.process.returncode, out, err)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


class Network:
    """The two ends. `at_router` runs things at the far one."""

    def __init__(self) -> None:
        self._running: list[Running] = []

    # ---- the router's end

    def at_router(self, *args: str) -> Done:
        # Not `ip netns exec`: that mounts a new /sys, which hides the bpffs.
        return call("nsenter", f"--net=/run/netns/{ROUTER}", *args)

    def ask(
        self, target: str, *, source: str | None = None, wait: float = 2, link: str = ROUTER_LINK
    ) -> Neighbour | None:
        """One solicitation, and the first answer within `wait` seconds."""
        if wait >= 0.5:  # less is for who must not answer
            wait *= PATIENCE
        options = ["-1", "-n", "-v", "-r", "1", "-w", str(round(wait * 1000))]
        if source:
            options += ["-s", source]
        result = self._solicit(*options, target, link)
        found = re.search(r"address: (\S+)\n from (\S+)", result.out)
        return Neighbour(found[1].lower(), found[2]) if found else None

    def _solicit(self, *words: str) -> Done:
        """Run ndisc6, again while the kernel has no room for a neighbour.

        The table is one for all namespaces, and others' floods may have filled it for a moment.
        """
        give_up = time.monotonic() + 30 * PATIENCE
        while True:
            result = self.at_router("ndisc6", *words)
            if result.code in (0, 2):
                return result
            assert "Invalid argument" in result.err, result
            assert time.monotonic() < give_up, result
            time.sleep(0.05)

    def answers(self, target: str = TARGET) -> bool:
        """The host answers, from the target itself and with its own MAC."""
        return self.ask(target) == (HOST_MAC, target)

    def silent(self, target: str = TARGET) -> bool:
        return self.ask(target, wait=0.15) is None

    @contextlib.contextmanager
    def asked_all_the_while(
        self, only: str = TARGET, *, link: str = ROUTER_LINK
    ) -> Iterator[list[str]]:
        """Ask again and again during the block; what was not answered is in the list."""
        missed: list[str] = []
        stop = threading.Event()
        asked = 0

        def keep_asking() -> None:
            nonlocal asked
            while not stop.is_set():
                asked += 1
                if self.ask(only, wait=0.5, link=link) is None:
                    missed.append(only)
                    return
                time.sleep(0.002)

        thread = threading.Thread(target=keep_asking)
        thread.start()
        try:
            yield missed
        finally:
            stop.set()
            thread.join()
        assert asked > 10 / PATIENCE

    @contextlib.contextmanager
    def advertisements(self) -> Iterator[list[bytes]]:
        """The frames with an NA that reached the router in the block; filled at its end."""
        frames: list[bytes] = []
        with packet_socket(ROUTER, ROUTER_LINK) as packets:
            packets.setblocking(False)
            yield frames
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, address = packets.recvfrom(65536)
                    incoming = address[2] != 4  # PACKET_OUTGOING
                    if incoming and frame[12:14] == b"\x86\xdd" and frame[54:55] == b"\x88":
                        frames.append(frame)

    def pass_at_router(self) -> None:
        """What veth wants at the far end for native XDP at this one (lab/topology.py)."""
        program = str(build_xdp_pass())
        options = ("link", "set", "dev", ROUTER_LINK, "xdp", "obj", program, "sec", "xdp")
        assert self.at_router("ip", *options).code == 0

    # ---- processes

    def run(self, *args: str, command: Sequence[str] = NDXDP) -> Running:
        """Start `ndxdp run` and wait until it is ready."""
        running = Running(args, command)
        self._running.append(running)
        return running

    def close(self) -> None:
        while self._running:
            self._running.pop().close()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Build the two ends; at the end nothing of ndxdp may be left on them."""
    assert private.inside(), "these tests need namespaces of their own: run `make test`"
    sh("ip", "netns", "add", ROUTER)
    made = Network()
    try:
        connect()
        yield made
        made.close()
        # The kernel takes a link off some time after its last pin has gone (bpf_link_put()).
        with contextlib.suppress(AssertionError):
            eventually(lambda: not leftovers())
        left = leftovers()
        assert left == [], left
        report.remove_stale(FILES)  # of daemons that were killed
        assert not PINS.exists()
        assert not FILES.exists(), list(FILES.rglob("*"))
    finally:
        made.close()
        call("ip", "link", "delete", UPLINK)
        call("ip", "netns", "delete", ROUTER)
        shutil.rmtree(PINS, ignore_errors=True)
        shutil.rmtree(FILES, ignore_errors=True)


def connect() -> None:
    """Join the two ends, and give them their addresses; again, once the link was deleted."""
    # Addresses are `nodad`, and links make none of their own.
    commands = f"""
        link add {UPLINK} address {HOST_MAC} mtu {MTU} type veth
            peer name {ROUTER_LINK} address {ROUTER_MAC} mtu {MTU} netns {ROUTER}
        link set lo up
        link set {UPLINK} addrgenmode none up
        address add {HOST_LINK_LOCAL}/64 dev {UPLINK} nodad
        address add {HOST}/64 dev {UPLINK} nodad
    """
    sh("ip", "-6", "-batch", "-", stdin=re.sub(r"\s+peer", " peer", commands))
    far = f"""
        link set lo up
        link set {ROUTER_LINK} addrgenmode none up
        address add {ROUTER_LINK_LOCAL}/64 dev {ROUTER_LINK} nodad
        address add {GATEWAY}/64 dev {ROUTER_LINK} nodad
        address add {OTHER_GATEWAY}/64 dev {ROUTER_LINK} nodad
    """
    sh("nsenter", f"--net=/run/netns/{ROUTER}", "ip", "-6", "-batch", "-", stdin=far)
    sh("ip", "-6", "route", "add", "default", "via", GATEWAY, "dev", UPLINK)
    wait_for_link(UPLINK, HOST_LINK_LOCAL, HOST)
    wait_for_link(ROUTER_LINK, ROUTER_LINK_LOCAL, GATEWAY, OTHER_GATEWAY, namespace=ROUTER)


def wait_for_link(name: str, *addresses: str, namespace: str = "") -> None:
    """Wait until a link sends, and answers solicitations for its addresses."""
    enter = ("nsenter", f"--net=/run/netns/{namespace}") if namespace else ()
    command = (*enter, "ip", "-6", "-batch", "-")
    wanted = [IPv6Address(address) for address in addresses]
    eventually(lambda: topology.is_ready(sh(*command, stdin=topology.show(name)), wanted))


@contextlib.contextmanager
def a_way_behind() -> Iterator[None]:
    """Forwarding, and a route to what is behind the host: else DAD is not defended for it."""
    Path(f"/proc/sys/net/ipv6/conf/{UPLINK}/forwarding").write_text("1")
    sh("ip", "-6", "route", "add", "blackhole", BEHIND)
    try:
        yield
    finally:
        sh("ip", "-6", "route", "delete", "blackhole", BEHIND)


@contextlib.contextmanager
def without_gateway() -> Iterator[None]:
    """The router as any neighbour: gateways have limits of their own."""
    default = ("default", "via", GATEWAY, "dev", UPLINK)
    sh("ip", "-6", "route", "delete", *default)
    try:
        yield
    finally:
        sh("ip", "-6", "route", "add", *default)


# ---- the state of the kernel ---------------------------------------------------------------------


def link_state(name: str = UPLINK) -> dict[str, Any]:
    """What the kernel says of a link: `flags`, `allmulti`, `xdp` where there is one, …"""
    found: list[dict[str, Any]] = json.loads(sh("ip", "-j", "-d", "link", "show", "dev", name))
    return found[0]


def has_allmulti(name: str = UPLINK) -> bool:
    """The administrator's flag; processes' memberships are only in the count `allmulti`."""
    return "ALLMULTI" in link_state(name)["flags"]


def allmulti_count(name: str = UPLINK) -> int:
    """Who wants all multicast: the administrator, and processes."""
    return _allmulti_count(link_state(name))


def _allmulti_count(link: dict[str, Any]) -> int:
    if "allmulti" in link:
        return int(link["allmulti"])
    # Before 6.0 nobody is told how many; that there is one, sysfs says.
    show = 'mount -t sysfs sysfs /sys && cat "/sys/class/net/$0/flags"'
    flags = sh("unshare", "--mount", "sh", "-c", show, link["ifname"])
    return int(flags, 16) >> 9 & 1  # IFF_ALLMULTI


def xdp_ids(name: str = UPLINK) -> list[int]:
    """Ids of the XDP programs on a link."""
    return _xdp_ids(link_state(name))


def _xdp_ids(link: dict[str, Any]) -> list[int]:
    xdp = link.get("xdp")
    if not xdp:
        return []
    return [entry["prog"]["id"] for entry in xdp.get("attached", [xdp])]


def tc_ids(name: str = UPLINK) -> list[int]:
    """Ids of the programs at a link's tc ingress, whichever way the kernel has for it.

    (bpftool 7.1 does not know tcx.)
    """
    found = [re.search(r" id (\d+)", line) for line in filters(name)]
    return [*_tcx_ids(link_state(name)["ifindex"]), *(int(each[1]) for each in found if each)]


def _tcx_ids(ifindex: int) -> list[int]:
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    ids = (ctypes.c_uint32 * 16)()
    tcx_ingress, prog_query = 46, 16
    attributes = bytearray(128)
    struct.pack_into(
        "=IIIIQI", attributes, 0, ifindex, tcx_ingress, 0, 0, ctypes.addressof(ids), len(ids)
    )
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, prog_query, ctypes.byref(buffer), len(attributes)) != 0:
        if ctypes.get_errno() == errno.EINVAL:  # before 6.6 there is no tcx
            return []
        raise OSError(ctypes.get_errno(), "BPF_PROG_QUERY")
    (count,) = struct.unpack_from("=I", attributes, 24)
    return list(ids[:count])


def clsact(name: str = UPLINK) -> bool:
    """The link has a clsact qdisc."""
    return "clsact" in sh("tc", "qdisc", "show", "dev", name)


def filters(name: str = UPLINK) -> list[str]:
    """The filters at clsact ingress, a line each."""
    if not clsact(name):
        return []
    return sh("tc", "filter", "show", "dev", name, "ingress").splitlines()


def program_id(interface: str = UPLINK) -> int:
    """The id of the pinned program."""
    (path,) = PINS.glob(f"v*/{interface.replace(chr(46), chr(58))}/program")
    shown: dict[str, Any] = json.loads(sh("bpftool", "-j", "prog", "show", "pinned", str(path)))
    found: int = shown["id"]
    return found


def pins() -> list[str]:
    """Everything below the BPF file system, by path."""
    return sorted(
        os.path.join(where, name)
        for where, directories, files in os.walk(BPFFS)
        for name in directories + files
        if not name.endswith(".debug")  # the kernel's own
    )


def leftovers(name: str = UPLINK) -> list[str]:
    """What of ndxdp is still there."""
    directory = name.replace(".", ":")
    found = [str(path) for root in (PINS, FILES) for path in root.glob(f"*/{directory}")]
    shown = call("ip", "-j", "-d", "link", "show", "dev", name)
    if shown.code == 0:
        link = shown.json()[0]
        found += [f"XDP program {number}" for number in _xdp_ids(link)]
        found += [f"tcx program {number}" for number in _tcx_ids(link["ifindex"])]
        found += ["clsact"] if clsact(name) else []
        found += ["allmulti"] if _allmulti_count(link) else []
    return found


def snapshot() -> dict[str, Any]:
    """All state that ndxdp could change: links, filters, pins, and the rules in the maps."""
    links: list[dict[str, Any]] = json.loads(sh("ip", "-j", "-d", "link"))
    state: dict[str, Any] = {
        link["ifname"]: [
            link.get(key)
            for key in ("ifindex", "flags", "mtu", "address", "promiscuity", "allmulti", "xdp")
        ]
        for link in links
    }
    qdiscs = state["qdiscs"] = sh("tc", "qdisc", "show")
    state["tcx"] = [_tcx_ids(link["ifindex"]) for link in links]
    state["filters"] = filters() if "clsact" in qdiscs else []
    state["pins"] = [(path, os.stat(path).st_ino, os.stat(path).st_mode) for path in pins()]
    maps = [path for path in pins() if path.startswith(str(PINS)) and Path(path).name in _RULES]
    for path in maps:
        said = call("bpftool", "-j", "map", "dump", "pinned", path)
        state[path] = hashlib.sha256(said.out.encode()).hexdigest()
    return state


def counts() -> dict[str, int]:
    """Solicitations by reason that were counted, from the map; reasons without any are left out."""
    names = reason_names()
    (path,) = PINS.glob(f"v*/{UPLINK}/reasons")
    dump: list[dict[str, Any]] = json.loads(sh("bpftool", "-j", "map", "dump", "pinned", str(path)))
    found = {}
    for entry in dump:
        total = sum(_number(cpu["value"]) for cpu in entry["values"])
        if total:
            found[names[_number(entry["key"])]] = total
    return found


def reason_names() -> dict[int, str]:
    """The header's reasons, by number, as ndxdp writes them."""
    header = (REPOSITORY / "bpf" / "ndp_abi.h").read_text()
    enum = header.partition("enum ndp_reason {")[2].partition("}")[0]
    return {int(number): name.lower() for name, number in re.findall(r"NDP_(\w+) = (\d+)", enum)}


def is_answered(address: str) -> bool | None:
    """What the map says of an exact address; None if it is not there."""
    (path,) = PINS.glob(f"v*/{UPLINK}/addresses")
    key = " ".join(str(byte) for byte in socket.inet_pton(socket.AF_INET6, address))
    look = f"-j map lookup pinned {path} key {key}"
    result = call("bpftool", *look.split())
    if result.code:
        return None
    value = [int(byte, 16) for byte in json.loads(result.out)["value"]]
    return value[2] == 1 and value[3] == 0  # ndp_rule.answer, and .flags: not held


def _number(value: list[str]) -> int:
    return int.from_bytes((int(byte, 16) for byte in value), sys.byteorder)


def status(interface: str = UPLINK) -> dict[str, Any]:
    """What `ndxdp status --json` says of an interface."""
    found: list[dict[str, Any]] = ndxdp("status", interface, "--json").json()["interfaces"]
    assert [entry["interface"] for entry in found] == [interface]
    return found[0]


def rules() -> dict[str, dict[str, Any]]:
    """What `ndxdp prefix list --json` says, by prefix."""
    listed: list[dict[str, Any]] = ndxdp("prefix", "list", "--json").json()
    found = {rule["prefix"]: rule for rule in listed}
    assert len(found) == len(listed)
    return found


def explain(*args: str) -> dict[str, Any]:
    found: dict[str, Any] = ndxdp("explain", "--json", *args).json()
    return found


def take_off(interface: str = UPLINK) -> None:
    """Take an instance away by hand, where `ndxdp detach` is not what is tested."""
    for path in PINS.glob(f"v*/{interface.replace('.', ':')}"):
        shutil.rmtree(path)
    report.remove_stale(FILES)
    with contextlib.suppress(OSError):
        for path in (*PINS.glob("v*"), *PINS.glob("lock"), PINS):
            path.rmdir()
    call("tc", "qdisc", "delete", "dev", interface, "clsact")  # where there are no tcx links
    call("ip", "link", "set", interface, "allmulticast", "off")
