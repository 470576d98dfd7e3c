"""The long tests of shares: `make test-share`.

    python -m tests.scenarios.sharing [--seconds SECONDS] [--seed SEED] [PART ...]

Parts:
    hosts   10, 100, 1000 and 4096 hosts on three links: the time to learn them all, memory, and
            processor time of an idle minute; a start with all routes, and one without any
    kills   a daemon that is killed, stopped, reloaded and started again at random moments, under
            100 pings a second in each direction; new clients come meanwhile
    moves   a guest that moves between two links, of which its kernel notices nothing
    floods  10 000 addresses from one MAC and from many, and a scan of the prefix from upstream;
            the pings of good clients go on, and new ones come

Prints a line for each result. Ends with 1 after the first claim that does not hold. Runs in
namespaces of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path

from lab import private
from lab.capture import packet_socket
from lab.commands import LabError, exit_code
from lab.nodes import LINK, Node
from lab.shared_prefix import GUESTS, INTERNET_ADDRESS, LAN0, LAN1, MACS, PREFIX, ROUTER, Prefix
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_mac
from tests.fixtures.crowd import Crowd, start_all
from tests.fixtures.network import eventually
from tests.fixtures.shared_link import SharedHost, one_test, reload, shared_link

LINKS = (LAN0, LAN1, GUESTS)
SIZES = (10, 100, 1000, 4096)
FIRST = 0x10_0000_0000
IDLE = 60.0
"""Seconds for which the processor time of an idle daemon is measured."""
_REACHED = 500
"""Hosts that are pinged."""
_NEIGHBOURS = (8192, 16384, 32768)
"""Sizes of the neighbour table that the parts need: gc_thresh1, 2 and 3. A kernel that forwards for
4096 hosts has an entry for each, and all namespaces of the machine share the table."""
_TICKS = os.sysconf("SC_CLK_TCK")


@exit_code
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.sharing")
    parser.add_argument(
        "--seconds", type=float, default=180, help="duration of the kills; default 180"
    )
    parser.add_argument("--seed", default=secrets.token_hex(4), help="default: a new one")
    parser.add_argument(
        "--raise-limits",
        action="store_true",
        help="enlarge the machine's neighbour table for the test, if it is too small",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not private.inside():
        print(f"seed {arguments.seed}", flush=True)
        words = ["--seed", arguments.seed, *sys.argv[1:]]
        with room_for_neighbours(arguments.raise_limits):
            return private.run([sys.executable, "-m", "tests.scenarios.sharing", *words])
    with tempfile.TemporaryDirectory() as folder, shared_link(Path(folder)) as network:
        for name in arguments.parts or PARTS:
            PARTS[name](network, random.Random(arguments.seed), arguments.seconds)
    return 0


@contextlib.contextmanager
def room_for_neighbours(may_raise: bool) -> Iterator[None]:
    """Make the machine's neighbour table large enough during the block.

    Raises:
        LabError: It is too small, and may not be changed.
    """
    files = [Path(f"/proc/sys/net/ipv6/neigh/default/gc_thresh{n}") for n in (1, 2, 3)]
    former = [file.read_text() for file in files]
    if all(int(size) >= wanted for size, wanted in zip(former, _NEIGHBOURS, strict=True)):
        yield
        return
    if not may_raise:
        settings = " ".join(
            f"net.ipv6.neigh.default.gc_thresh{n}={size}" for n, size in enumerate(_NEIGHBOURS, 1)
        )
        raise LabError(
            "The kernel's neighbour table is too small for 4096 hosts.",
            f"Give --raise-limits, or run: sysctl -w {settings}",
        )
    # The kernel refuses nothing here, so the order does not matter.
    for file, size in zip(files, _NEIGHBOURS, strict=True):
        file.write_text(str(size))
    try:
        yield
    finally:
        for file, text in zip(files, former, strict=True):
            file.write_text(text)


def report(line: str) -> None:
    print(line, flush=True)


# ---- many hosts ----------------------------------------------------------------------------------


def many_hosts(network: SharedHost, chance: random.Random, _: float) -> None:
    for size in SIZES:
        with one_test(network) as site:
            learn_hosts(site, chance, size)


def learn_hosts(site: SharedHost, chance: random.Random, size: int) -> None:
    """Start as many hosts at once, and measure."""
    # Routers advertise rarely, and each host has a MAC, so that no limit for a MAC applies.
    site.lab.advertise(Prefix(PREFIX), intervals=(198, 600))
    site.start()
    crowds = [
        Crowd(site.lab, link, [PREFIX[FIRST + n] for n in range(number, size, len(LINKS))], number)
        for number, link in enumerate(LINKS)
    ]
    with contextlib.ExitStack() as stack:
        for crowd in crowds:
            stack.callback(crowd.close)
        links = dict(zip(LINKS, crowds, strict=True))
        wanted = {address: link for link, crowd in links.items() for address in crowd.addresses}
        before = processor_time(site)
        seconds = wait_until_learned(site, crowds, wanted)
        report(f"{size} hosts: all learned after {seconds:.1f} s")
        report(f"{size} hosts: {processor_time(site) - before:.2f} s of processor time to learn")
        sample = chance.sample(sorted(wanted), min(size, _REACHED))
        answered = sum(site.lab.internet.ping(address) for address in sample)
        assert answered == len(sample), f"{answered} of {len(sample)} hosts answer"
        time.sleep(5)  # the report is written, pings have ended
        before = processor_time(site)
        time.sleep(IDLE)
        busy = (processor_time(site) - before) / IDLE
        report(f"{size} hosts: idle: {busy:.2%} of a processor, memory {memory(site)}")
        assert site.routes() == wanted
        site.kill()
        started = time.monotonic()
        site.start_again()
        site.await_adopted(wanted, within=60)
        report(f"{size} hosts: adopted {time.monotonic() - started:.1f} s after a start")
        site.kill()
        site.clean()
        started = time.monotonic()
        site.start_again()
        seconds = wait_until_learned(site, crowds, wanted)
        report(f"{size} hosts: all learned {seconds:.1f} s after a start without routes")
        assert site.lab.internet.ping(sample[0]) == 1


def wait_until_learned(
    site: SharedHost, crowds: list[Crowd], wanted: dict[IPv6Address, str]
) -> float:
    """Let all hosts begin; return the seconds until the kernel has the route of each."""
    known: set[IPv6Address] = set()
    stop = threading.Event()
    thread = threading.Thread(target=start_all, args=(crowds, known, 1000, stop))
    started = time.monotonic()
    thread.start()
    try:
        while len(known) < len(wanted):
            routes = site.routes()
            assert routes.items() <= wanted.items()
            known |= routes.keys()
            assert time.monotonic() < started + 180, f"{len(known)} of {len(wanted)}"
            time.sleep(0.1)
        return time.monotonic() - started
    finally:
        stop.set()
        thread.join()


def memory(site: SharedHost) -> str:
    """Return the memory of the daemon: its own pages, and all resident ones."""
    assert site.running
    text = Path(f"/proc/{site.running.process.pid}/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    own = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return f"{own / 1024:.1f} MB of its own, {sizes['Rss'] / 1024:.1f} MB resident"


def processor_time(site: SharedHost) -> float:
    """Return the seconds of processor time that the daemon has used."""
    assert site.running
    fields = Path(f"/proc/{site.running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


# ---- kills ---------------------------------------------------------------------------------------


def kills(network: SharedHost, chance: random.Random, seconds: float) -> None:
    with one_test(network) as site:
        lab = site.lab
        site.start("tc")
        a, b, g = (lab.client(name, link) for name, link in zip("abg", LINKS, strict=True))
        lab.wait_for_addresses(a, b, g)
        site.await_routes({n.slaac(PREFIX): k for n, k in zip((a, b, g), LINKS, strict=True)})
        pairs = [
            *((lab.internet, node.slaac(PREFIX)) for node in (a, b, g)),
            *((node, INTERNET_ADDRESS) for node in (a, b, g)),
            (lab.neighbour, a.slaac(PREFIX)),
            (a, lab.neighbour.slaac(PREFIX)),
            (a, b.slaac(PREFIX)),
            (b, g.slaac(PREFIX)),
        ]
        counts = dict.fromkeys(("killed", "stopped", "reloaded", "clients"), 0)
        until = time.monotonic() + seconds
        with pinging(pairs) as sent:
            while time.monotonic() < until:
                disturb(site, chance, counts)
        report(f"kills: {counts}, {sent()} pings, none lost")


def disturb(site: SharedHost, chance: random.Random, counts: dict[str, int]) -> None:
    """Do one thing to the daemon, or let a client come and go."""
    lab = site.lab
    time.sleep(chance.uniform(0, 2))
    what = chance.choice(("killed", "killed", "stopped", "reloaded", "clients"))
    counts[what] += 1
    if what == "clients":
        node = lab.client(f"new{counts[what]}", chance.choice(LINKS))
        lab.wait_for_addresses(node)
        assert lab.router.ping(node.slaac(PREFIX)) == 1, node.name
        lab.remove(node)
    elif what == "reloaded":
        assert site.running
        site.configure("tc", expire=chance.randint(100, 900))
        reload(site.running)
    else:
        site.kill() if what == "killed" else site.stop()
        time.sleep(chance.choice((0, 0, chance.uniform(0, 2))))
        # Sometimes the next one is killed before it is ready.
        if chance.random() < 0.3:
            site.start_and_kill(chance.uniform(0, 1))
        site.start_again()


@contextlib.contextmanager
def pinging(pairs: list[tuple[Node, IPv6Address]]) -> Iterator[Callable[[], int]]:
    """Ping each pair 100 times a second during the block; fail if a ping is lost."""
    total = 0
    with contextlib.ExitStack() as stack:
        for node, target in pairs:
            assert node.ping(target) == 1
        outcomes = [stack.enter_context(node.pinging(target)) for node, target in pairs]
        yield lambda: total
        for (node, target), outcome in zip(pairs, outcomes, strict=True):
            pings = outcome()
            assert pings.lost == [], f"{node.name} to {target}: {len(pings.lost)} of {pings.sent}"
            total += pings.sent


# ---- moves ---------------------------------------------------------------------------------------


def moves(network: SharedHost, chance: random.Random, _: float) -> None:
    """Move a guest between two links, whose kernel does not notice; it then speaks once."""
    with one_test(network) as site:
        lab = site.lab
        site.start()
        a = lab.client("a", LAN0)
        lab.wait_for_addresses(a)
        address = a.slaac(PREFIX)
        site.await_routes({address: LAN0})
        losses = []
        for number in range(8):
            link = (LAN1, LAN0)[number % 2]
            assert lab.internet.ping(address) == 1
            with lab.internet.pinging(address) as outcome:
                time.sleep(0.5)
                lab.move(a, link)
                a.ping(PREFIX[chance.getrandbits(32)], count=1, wait=0.1)
                time.sleep(12)  # the guest's kernel gives its old router up
                losses.append(len(outcome().lost) * 10)
            assert site.routes()[address] == link
        report(f"moves: {losses} ms of loss")
        assert max(losses) < 2000


# ---- floods --------------------------------------------------------------------------------------


def floods(network: SharedHost, chance: random.Random, _: float) -> None:
    attacks: dict[str, Callable[[SharedHost], None]] = {
        "10 000 addresses of one MAC": partial(claims, one_mac=True),
        "10 000 addresses of as many MACs": partial(claims, one_mac=False),
        "a scan from upstream, 1000 addresses a second": partial(scan, chance=chance),
    }
    for name, flood in attacks.items():
        with one_test(network) as site:
            lab = site.lab
            site.start()
            b, g = lab.client("b", LAN1), lab.client("g", GUESTS)
            lab.wait_for_addresses(b, g)
            good = {b.slaac(PREFIX): LAN1, g.slaac(PREFIX): GUESTS}
            site.await_routes(good)
            before, size = processor_time(site), memory(site)
            pairs = [(lab.internet, b.slaac(PREFIX)), (b, g.slaac(PREFIX)), (g, INTERNET_ADDRESS)]
            with pinging(pairs):
                started = time.monotonic()
                flood(site)
                seconds = time.monotonic() - started
                new = lab.client("new", LAN1)
                lab.wait_for_addresses(new)
                # Who fills the table keeps a new host out, until there is room for it again.
                eventually(lambda: lab.router.ping(new.slaac(PREFIX)) == 1, within=15)  # noqa: B023
            busy = (processor_time(site) - before) / seconds
            routes = site.routes()
            assert good.items() <= routes.items()
            assert len(routes) <= 4096
            time.sleep(6)  # until the report is written
            refused = {reason: count for reason, count in site.state().refused.items() if count}
            report(
                f"{name}: {len(routes)} routes, refused {refused}, {busy:.0%} of a processor, "
                f"memory {size} before, {memory(site)} after; no ping lost, "
                "a new client reached"
            )


def claims(site: SharedHost, *, one_mac: bool) -> None:
    """Claim 10 000 addresses, again and again for 20 s."""
    evil = site.lab.client("evil", LAN0, up=False)
    evil.sysctl(f"{LINK}.disable_ipv6=1")
    evil.ip(f"link set {LINK} up")
    own = parse_mac(evil.mac)
    router = site.lab.link_local(LAN0).packed
    frames = []
    for number in range(10_000):
        mac = own if one_mac else b"\x02\xee" + number.to_bytes(4, "big")
        address = PREFIX[FIRST + number].packed
        frames.append(solicit(mac, router, source=address, sllao=mac))
    with contextlib.closing(packet_socket("evil", LINK)) as wire:
        send(wire.send, frames, seconds=20, rate=2000)


def scan(site: SharedHost, chance: random.Random) -> None:
    """Solicit addresses without a host, as the router, for 20 s."""
    mac, source = parse_mac(MACS[ROUTER]), IPv6Address("fe80::1").packed
    frames = [
        solicit(mac, PREFIX[chance.getrandbits(64)].packed, source=source, sllao=mac)
        for _ in range(20_000)
    ]
    with contextlib.closing(packet_socket(ROUTER, LINK)) as wire:
        send(wire.send, frames, seconds=20, rate=1000)


def send(call: Callable[[bytes], int], frames: list[bytes], *, seconds: float, rate: int) -> None:
    """Send frames in turn at a rate per second."""
    started = time.monotonic()
    sent = 0
    while (now := time.monotonic() - started) < seconds:
        while sent < now * rate:
            with contextlib.suppress(BlockingIOError):
                call(frames[sent % len(frames)])
            sent += 1
        time.sleep(0.002)


PARTS: dict[str, Callable[[SharedHost, random.Random, float], None]] = {
    "hosts": many_hosts,
    "kills": kills,
    "moves": moves,
    "floods": floods,
}

if __name__ == "__main__":
    sys.exit(main())
