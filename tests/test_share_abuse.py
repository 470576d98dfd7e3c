"""A share under abuse: forged claims, forged and broken router advertisements, floods and scans.

In every test the router's side pings a client and a client pings another one on a second inner
link; no ping may be lost.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import pytest

from lab.capture import packet_socket
from lab.nodes import LINK, Node
from lab.shared_prefix import (
    GATEWAY,
    GATEWAY_LINK_LOCAL,
    GUESTS,
    LAN0,
    LAN1,
    MACS,
    OUTER,
    PREFIX,
    ROUTER,
)
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.message import solicit, unsolicited
from ndxdp.rules.address import parse_mac
from tests.fixtures.advertisements import (
    INFINITE,
    lladdr_option,
    prefix_option,
    router_advertisement,
)
from tests.fixtures.network import eventually
from tests.fixtures.shared_link import SharedHost, shared_link

MAX_HOSTS, MAX_PER_MAC = 48, 12
FORGED = IPv6Network("2001:db8:bad::/64")


class Attacker:
    """A node without an address that sends any frame.

    Attributes:
        mac: The MAC of its interface, 6 bytes.
    """

    def __init__(self, node: Node) -> None:
        self.mac = parse_mac(node.mac)
        self._socket = packet_socket(node.name, LINK)

    def close(self) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._socket.send(frame)

    def claim(self, how: str, address: IPv6Address, mac: bytes | None = None) -> None:
        """Claim an address.

        Args:
            how: `dad`; `lookup`, a solicitation from it; or `advertisement`.
            address: The address.
            mac: The source MAC; None for its own.
        """
        mac = mac or self.mac
        if how == "advertisement":
            self.send(unsolicited(mac, address.packed, router=False))
        elif how == "dad":
            self.send(solicit(mac, address.packed, source=UNSPECIFIED))
        else:
            self.send(solicit(mac, PREFIX[0xA5].packed, source=address.packed, sllao=mac))


@pytest.fixture(scope="module")
def network(privacy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedHost]:
    """Return the network with a daemon and two good clients.

    None is on lan0, where an attacker can mislead its own neighbours without anybody's help.
    """
    with shared_link(Path(tmp_path_factory.mktemp("share"))) as made:
        made.start(max_hosts=MAX_HOSTS, max_hosts_per_mac=MAX_PER_MAC)
        lab = made.lab
        lab.wait_for_addresses(lab.client("g", GUESTS), lab.client("b", LAN1))
        made.await_routes(good_hosts(made))
        yield made
        log = made.stop()
        assert len(log.splitlines()) < 300, log


def good_hosts(site: SharedHost) -> dict[IPv6Address, str]:
    clients = site.lab.clients
    return {clients["g"].slaac(PREFIX): GUESTS, clients["b"].slaac(PREFIX): LAN1}


@pytest.fixture
def site(network: SharedHost) -> Iterator[SharedHost]:
    """Return the network; fail if a ping of its good nodes is lost, or a good host forgotten."""
    lab = network.lab
    g, b = lab.clients["g"], lab.clients["b"]
    with contextlib.ExitStack() as stack:
        outcomes = [
            stack.enter_context(node.pinging(target, interval=0.02))
            for node, target in ((lab.internet, g.slaac(PREFIX)), (g, b.slaac(PREFIX)))
        ]
        yield network
        assert [outcome().lost for outcome in outcomes] == [[], []]
    assert {each: dev for each, dev in network.routes().items() if each in good_hosts(network)} == (
        good_hosts(network)
    )
    assert len(network.routes()) <= MAX_HOSTS
    assert is_alive(network)


@pytest.fixture
def attackers(network: SharedHost) -> Iterator[dict[str, Attacker]]:
    """Return an attacker on each link; what they have claimed is forgotten at the end."""
    lab = network.lab
    nodes = {link: lab.client(f"evil-{link}", link, up=False) for link in (OUTER, LAN0, LAN1)}
    for node in nodes.values():
        node.sysctl(f"{LINK}.disable_ipv6=1")
        node.ip(f"link set {LINK} up")
    for node in nodes.values():  # otherwise the link drops the first frames
        eventually(partial(is_up, node))
    made = {link: Attacker(node) for link, node in nodes.items()}
    try:
        yield made
    finally:
        for link, attacker in made.items():
            attacker.close()
            lab.remove(nodes[link])
        eventually(lambda: forget_others(network), within=15)


def is_up(node: Node) -> bool:
    return " state UP " in node.run("ip", "link", "show", "dev", LINK).stdout


def forget_others(site: SharedHost) -> bool:
    """Let the daemon forget all but the good hosts; return True if there are no others."""
    others = [(a, dev) for a, dev in site.routes().items() if a not in good_hosts(site)]
    for address, dev in others:
        site.lab.host.run("ip", "-6", "route", "delete", f"{address}/128", "dev", dev)
    return not others and site.state().hosts == good_hosts(site)


def is_alive(site: SharedHost) -> bool:
    return site.running is not None and site.running.process.poll() is None


CLAIMS = ("dad", "lookup", "advertisement")


def total(counts: dict[str, int], *names: str) -> int:
    return sum(counts.get(name, 0) for name in names)


# ---- claims --------------------------------------------------------------------------------------


def test_forged_claims(site: SharedHost, attackers: dict[str, Attacker]) -> None:
    """An address that belongs to somebody else, or to no prefix of the share, is not learned."""
    lab, evil = site.lab, attackers[LAN0]
    forged = (
        GATEWAY,
        lab.neighbour.slaac(PREFIX),
        lab.clients["b"].slaac(PREFIX),
        lab.host.slaac(PREFIX),
        FORGED[1],
    )
    before = site.state()
    for how in CLAIMS:
        for address in forged:
            evil.claim(how, address)
        time.sleep(1)  # until the checks have ended
    assert {a for a in site.routes() if a in forged} == {lab.clients["b"].slaac(PREFIX)}
    assert lab.router.ping(lab.clients["b"].slaac(PREFIX)) == 1

    def more(*names: str) -> int:
        """Return how often claims were refused for some reasons since the beginning."""
        return total(site.state().refused, *names) - total(before.refused, *names)

    def defended() -> int:
        return site.state().counters["defended"] - before.counters["defended"]

    # DAD is answered, and not also refused.
    eventually(lambda: more("router", "elsewhere", "own_address") + defended() >= 12, within=20)
    eventually(lambda: more("outside") >= 3, within=20)
    assert more("router", "elsewhere") >= 6
    assert more("own_address") >= 2


@pytest.mark.parametrize("macs", ["one MAC", "many MACs"])
def test_too_many_claims(site: SharedHost, attackers: dict[str, Attacker], macs: str) -> None:
    """The table stays bounded, and a client that comes during the flood gets its addresses."""
    evil = attackers[LAN0]
    reasons = ("mac_limit", "limit", "rate")
    before = total(site.state().refused, *reasons)
    stop_at = time.monotonic() + 3
    number = 0
    while time.monotonic() < stop_at:
        for _ in range(10):
            number += 1
            mac = b"\x02\xee" + number.to_bytes(4, "big") if macs == "many MACs" else evil.mac
            evil.claim(CLAIMS[number % 3], PREFIX[0xF100D0000 + number], mac)
        time.sleep(0.01)
    eventually(lambda: total(site.state().refused, *reasons) - before > 100, within=20)
    hosts = [address for address in site.routes() if address not in good_hosts(site)]
    assert len(hosts) <= (MAX_PER_MAC if macs == "one MAC" else MAX_HOSTS)


def test_a_host_that_moves_all_the_time(site: SharedHost, attackers: dict[str, Attacker]) -> None:
    """An address that two links claim in turn is counted, and costs nobody else anything."""
    address = PREFIX[0x40B]
    before = site.state()
    for number in range(40):
        attackers[(LAN0, LAN1)[number % 2]].claim("lookup", address)
        time.sleep(0.6)
        if site.state().refused["unstable"] > before.refused["unstable"]:
            break
    site.await_count("refused", "unstable", before.refused["unstable"] + 1)
    assert site.state().counters["moved"] - before.counters["moved"] <= 8


# ---- router advertisements -----------------------------------------------------------------------


def advertisement(mac: bytes, *options: bytes, source: str = "fe80::bad", **fields: int) -> bytes:
    text = mac.hex(":")
    return router_advertisement(source, text, lladdr_option(text), *options, **fields)


def test_an_advertisement_from_downstream(site: SharedHost, attackers: dict[str, Attacker]) -> None:
    """The advertisement is neither believed nor relayed, upstream or to another inner link."""
    lab, evil = site.lab, attackers[LAN0]
    before = site.state().ignored["downstream"]
    for _ in range(3):
        evil.send(advertisement(evil.mac, prefix_option(FORGED)))
        time.sleep(0.2)
    site.await_count("ignored", "downstream", before + 3)
    time.sleep(1)
    for node in (lab.neighbour, lab.clients["b"], lab.host):
        assert [e for e in node.address_objects() if IPv6Address(e["local"]) in FORGED] == []
    assert all("2001:db8:bad" not in each["prefix"] for each in site.report()["prefixes"])
    assert [route["gateway"] for route in lab.host.routes("default")] == [str(GATEWAY_LINK_LOCAL)]


BAD_OPTION = prefix_option(FORGED)[:1] + b"\0" + prefix_option(FORGED)[2:]


BAD_ADVERTISEMENTS = (
    ("hop_limit", "fe80::bad", prefix_option(FORGED), 254),
    ("source", "2001:db8:1::bad", prefix_option(FORGED), 255),
    ("invalid", "fe80::bad", BAD_OPTION, 255),
    ("invalid", "fe80::bad", prefix_option(FORGED)[:24], 255),
    ("prefix", "fe80::bad", prefix_option(IPv6Network("fe80::/64")), 255),
    # This host's kernel takes the prefix, so it is one that leads nobody astray.
    ("prefix", "fe80::bad", prefix_option(IPv6Network("3000::/16")), 255),
)


def test_bad_advertisements_from_upstream(site: SharedHost, attackers: dict[str, Attacker]) -> None:
    """The advertisements are counted by their reason, and no client hears of their prefixes."""
    lab, evil = site.lab, attackers[OUTER]
    before = site.state().ignored
    for _, source, option, hop_limit in BAD_ADVERTISEMENTS:
        frame = advertisement(evil.mac, option, source=source, lifetime=0, hop_limit=hop_limit)
        evil.send(frame)
    for reason, times in Counter(reason for reason, *_ in BAD_ADVERTISEMENTS).items():
        site.await_count("ignored", reason, before[reason] + times)
    for name in ("g", "b"):
        shown = lab.clients[name].address_objects()
        assert [e for e in shown if IPv6Address(e["local"]) in FORGED] == []
    shared = {each["prefix"] for each in site.report()["prefixes"]}
    assert shared == {str(PREFIX)}


def test_extreme_lifetimes(site: SharedHost, attackers: dict[str, Attacker]) -> None:
    """A prefix for ever is shared until it is withdrawn; a /65 gives no client an address."""
    lab, evil = site.lab, attackers[OUTER]
    g = lab.clients["g"]
    forever = IPv6Network("2001:db8:66::/64")
    narrow = IPv6Network("2001:db8:67::/65")
    options = (
        prefix_option(forever, valid=INFINITE, preferred=INFINITE),
        prefix_option(narrow, valid=60, preferred=60),
    )
    evil.send(advertisement(evil.mac, *options, lifetime=0))

    def until() -> dict[str, float | None]:
        return {each["prefix"]: each["until"] for each in site.report()["prefixes"]}

    eventually(lambda: str(forever) in until(), within=15)
    assert until()[str(forever)] is None
    lab.wait_for_addresses(g, network=forever)
    assert g.addresses(narrow) == []
    assert lab.neighbour.ping(g.slaac(forever)) == 1
    ends = (prefix_option(forever, valid=0, preferred=0), prefix_option(narrow, valid=0))
    evil.send(advertisement(evil.mac, *ends, lifetime=0))
    eventually(lambda: str(forever) not in until() and str(narrow) not in until(), within=15)
    eventually(lambda: not any(each in forever for each in site.routes()), within=15)


# ---- floods --------------------------------------------------------------------------------------


def test_a_scan_from_upstream(site: SharedHost) -> None:
    """The router solicits 1000 addresses a second, which nobody has: nothing grows."""
    assert site.running
    chance = random.Random(1)
    before = site.routes()
    memory = resident_bytes(site.running.process.pid)
    counted = unanswered(site)
    with contextlib.closing(packet_socket(ROUTER, LINK)) as router:
        sent = scan(router, chance, seconds=3, rate=1000)
        assert site.lab.router.ping(site.lab.clients["b"].slaac(PREFIX)) == 1
    assert sent > 2000
    assert unanswered(site) - counted >= sent
    assert site.routes() == before
    assert resident_bytes(site.running.process.pid) - memory < 8 << 20


def unanswered(site: SharedHost) -> int:
    """Return how many solicitations on the upstream link were for addresses that have no route."""
    (link,) = site.ndxdp("status", LINK, "--json").json()["interfaces"]
    return int(link["reasons"]["route_back"])


def scan(router: socket.socket, chance: random.Random, *, seconds: float, rate: int) -> int:
    """Solicit random addresses of the prefix as the router; return how many."""
    mac, source = parse_mac(MACS[ROUTER]), GATEWAY_LINK_LOCAL.packed
    started = time.monotonic()
    sent = 0
    while (now := time.monotonic() - started) < seconds:
        while sent < now * rate:
            target = PREFIX[chance.getrandbits(64)].packed
            router.send(solicit(mac, target, source=source, sllao=mac))
            sent += 1
        time.sleep(0.005)
    return sent


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def test_broken_frames(site: SharedHost, attackers: dict[str, Attacker]) -> None:
    """Frames with random bytes changed end nothing, on any link."""
    chance = random.Random(2)
    for link, evil in attackers.items():
        target = PREFIX[0xB40]
        originals = [
            solicit(evil.mac, target.packed),
            solicit(evil.mac, target.packed, source=PREFIX[0xB41].packed, sllao=evil.mac),
            unsolicited(evil.mac, target.packed),
            advertisement(evil.mac, prefix_option(FORGED), lifetime=0),
        ]
        for _ in range(500):
            frame = bytearray(chance.choice(originals))
            for _ in range(chance.randint(1, 3)):
                frame[chance.randrange(14, len(frame))] = chance.getrandbits(8)
            evil.send(bytes(frame[: chance.choice((len(frame), chance.randint(14, len(frame))))]))
        assert is_alive(site), link
    attackers[LAN0].claim("lookup", PREFIX[0xB42])
    site.await_routes({PREFIX[0xB42]: LAN0})
