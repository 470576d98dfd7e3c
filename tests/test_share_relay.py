"""Router advertisements of a share: renumbering, and each relayed message as tshark sees it."""

from __future__ import annotations

import contextlib
import operator
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from typing import NamedTuple

from lab.capture import packet_socket
from lab.nodes import LINK, Node
from lab.shared_prefix import (
    GATEWAY_LINK_LOCAL,
    LAN0,
    LAN1,
    MACS,
    NEIGHBOUR,
    OTHER_PREFIX,
    PREFIX,
    ROUTER,
    ULA,
    Prefix,
)
from ndxdp.ndp.frame import TYPE_NA, TYPE_NS, TYPE_RA, TYPE_RS, eth_source_of, icmpv6_type_of
from ndxdp.rules.address import parse_mac
from tests.fixtures.advertisements import complaints, dissect, fields
from tests.fixtures.network import eventually
from tests.fixtures.shared_link import shared_link


def test_the_prefix_changes(privacy: None, tmp_path: Path) -> None:
    """Clients follow a new prefix at once; the old addresses are reached until their time is up.

    Beside that, a client vanishes: it is forgotten, and the others, however silent, are not.
    """
    with shared_link(tmp_path, Prefix(PREFIX, 14, 7), Prefix(ULA)) as site:
        lab = site.lab
        site.start(expire=10)
        a, b, gone = lab.client("a", LAN0), lab.client("b", LAN1), lab.client("gone", LAN0)
        for network in (PREFIX, ULA):
            lab.wait_for_addresses(a, b, gone, network=network)
        site.await_routes({gone.slaac(ULA): LAN0})
        lab.remove(gone)
        for node, link in ((a, LAN0), (b, LAN1)):
            site.await_routes({node.slaac(network): link for network in (PREFIX, ULA)})
            for network in (PREFIX, ULA):
                assert site.reaches(lab.router, node.slaac(network))
        assert a.ping(b.slaac(ULA), source=a.slaac(ULA)) == 1
        lab.advertise(Prefix(OTHER_PREFIX), Prefix(ULA))
        lab.wait_for_addresses(a, b, network=OTHER_PREFIX)
        site.await_routes({a.slaac(OTHER_PREFIX): LAN0, b.slaac(OTHER_PREFIX): LAN1})
        assert site.reaches(lab.internet, a.slaac(OTHER_PREFIX))
        old = a.slaac(PREFIX)
        assert site.reaches(lab.internet, old), "the old address is still valid"
        with lab.router.pinging(old, interval=0.1) as outcome:
            eventually(lambda: a.dad(old) == "", within=25)
            pings = outcome()
        # A kernel removes an address up to a second after its lifetime; the share does so at once.
        assert [number for number in pings.lost if number < pings.sent - 20] == []
        eventually(lambda: not any(a in PREFIX for a in site.routes()), within=10)
        site.await_count("counters", "expired", within=10)
        links = ((a, LAN0), (b, LAN1))
        assert site.routes() == {
            node.slaac(network): link for node, link in links for network in (OTHER_PREFIX, ULA)
        }
        assert site.reaches(lab.internet, a.slaac(OTHER_PREFIX))


OPTIONS = """
    AdvManagedFlag off; AdvOtherConfigFlag on; AdvLinkMTU 1480; AdvCurHopLimit 61;
    AdvReachableTime 30000; AdvRetransTimer 1000; AdvDefaultPreference high;
    AdvDefaultLifetime 900;
    RDNSS 2001:db8:53::53 2001:db8:53::54 { AdvRDNSSLifetime 77; };
    DNSSL example.org lan.example.net { AdvDNSSLLifetime 78; };
    route 2001:db8:77::/48 { AdvRoutePreference low; AdvRouteLifetime 79; };
"""


@contextlib.contextmanager
def recorded(namespace: str) -> Iterator[list[bytes]]:
    """Record the Neighbor Discovery frames that reach a node; the block's end fills the list."""
    frames: list[bytes] = []
    with packet_socket(namespace, LINK) as packets:
        packets.setblocking(False)
        yield frames
        time.sleep(0.1)
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = packets.recvfrom(65536)
                incoming = address[2] != socket.PACKET_OUTGOING
                if incoming and icmpv6_type_of(frame) in (TYPE_RS, TYPE_RA, TYPE_NS, TYPE_NA):
                    frames.append(frame)


def test_what_tshark_sees(privacy: None, tmp_path: Path) -> None:
    """A relayed advertisement differs from the original in what makes it this host's own.

    RFC 4389 section 4.1.3.3 asks for the MAC in the option and the P flag. The source is this
    host's link-local address, because it is the router there. All other messages of the daemon on
    all links are without a fault, too.
    """
    with shared_link(tmp_path, Prefix(PREFIX), Prefix(ULA, 7200, 0)) as site:
        lab = site.lab
        lab.advertise(Prefix(PREFIX), Prefix(ULA, 7200, 0), options=OPTIONS)
        site.start()
        a, b = lab.client("a", LAN0), lab.client("b", LAN1)
        with recorded(NEIGHBOUR) as upstream, recorded("a") as at_a, recorded("b") as at_b:
            before = site.state().counters["relayed"]
            lab.wait_for_addresses(a, b)
            for node in (lab.internet, lab.neighbour, a):
                assert site.reaches(node, b.slaac(PREFIX))
            for node, address in ((a, b.slaac(PREFIX)), (lab.neighbour, a.slaac(PREFIX))):
                node.ip(f"address add {address}/64 dev {LINK}")
                eventually(partial(has_failed, node, address))
            b.ping(PREFIX[0xAB5E], count=1, wait=0.5)
            site.await_count("counters", "relayed", before + 3, within=20)
        originals = advertisements(upstream, MACS[ROUTER])
        assert len(originals) >= 2
        original = originals[0]
        assert all(each == original for each in originals)
        for link, frames in ((LAN0, at_a), (LAN1, at_b)):
            expected = expected_difference(lab.link_local(link), link)
            relayed = advertisements(frames, MACS[link])
            at_once = [each for each in relayed if each.names == original.names]
            assert len(at_once) >= len(originals) - 1
            assert [difference(original, each) for each in at_once] == [expected] * len(at_once)
            # The answers to solicitations come later than the original, by so much less they last.
            for each in relayed:
                age = int(original.lifetime) - int(each.lifetime)
                assert 0 <= age <= 4
                assert difference(original.older(age), each.in_order()) == expected
        macs = {parse_mac(mac) for mac in MACS.values()} - {parse_mac(MACS[ROUTER])}
        sent = [frame for frame in upstream + at_a + at_b if eth_source_of(frame) in macs]
        kinds = Counter(icmpv6_type_of(frame) for frame in sent)
        assert {TYPE_RA, TYPE_NS, TYPE_NA} <= kinds.keys(), kinds
        assert [complaints(layers) for layers in dissect(sent)] == [[]] * len(sent)
        (cut_short,) = dissect([sent[0][:70]])
        assert complaints(cut_short) != [], "tshark complains where there is a reason to"


def has_failed(node: Node, address: IPv6Address) -> bool:
    return node.dad(address) == "failed"


Facts = tuple[tuple[str, str], ...]
_LIFETIME = "icmpv6.nd.ra.router_lifetime"


class Seen(NamedTuple):
    """A router advertisement as tshark shows it: names and values.

    Attributes:
        head: The source and the header, without the checksum.
        options: The options.
    """

    head: Facts
    options: tuple[Facts, ...]

    @property
    def names(self) -> list[str]:
        """The names of all fields, in their order."""
        return [name for part in (self.head, *self.options) for name, _ in part]

    @property
    def lifetime(self) -> str:
        """The router lifetime."""
        return dict(self.head)[_LIFETIME]

    def in_order(self) -> Seen:
        """Return the same with the options in the order of their types and prefixes."""
        key = operator.itemgetter("icmpv6.opt.type", "icmpv6.opt.prefix")
        default = {"icmpv6.opt.prefix": ""}
        return self._replace(
            options=tuple(sorted(self.options, key=lambda option: key(default | dict(option))))
        )

    def older(self, seconds: int) -> Seen:
        """Return the same in order, with lifetimes that are shorter by some seconds."""

        def aged(part: Facts) -> Facts:
            return tuple(
                (name, str(max(0, int(value) - seconds)) if "lifetime" in name else value)
                for name, value in part
            )

        return Seen(aged(self.head), tuple(map(aged, self.options))).in_order()


def advertisements(frames: list[bytes], mac: str) -> list[Seen]:
    """Return what tshark sees in each router advertisement of a node."""
    kind = (TYPE_RA, parse_mac(mac))
    wanted = [each for each in frames if (icmpv6_type_of(each), eth_source_of(each)) == kind]
    found = []
    for layers in dissect(wanted):
        options = layers["icmpv6"].pop("icmpv6.opt")
        head = [each for each in fields(layers["icmpv6"]) if "checksum" not in each[0]]
        source = ("ipv6.src", layers["ipv6"]["ipv6.src"])
        found.append(Seen((source, *head), tuple(tuple(fields(option)) for option in options)))
    return found


def difference(original: Seen, relayed: Seen) -> set[tuple[str, str, str]]:
    """Return field, original and relayed value of each difference."""
    assert relayed.names == original.names
    parts = zip((original.head, *original.options), (relayed.head, *relayed.options), strict=True)
    return {
        (name, before, after)
        for one, other in parts
        for (name, before), (_, after) in zip(one, other, strict=True)
        if before != after
    }


def expected_difference(link_local: IPv6Address, link: str) -> set[tuple[str, str, str]]:
    mac = MACS[link]
    return {
        ("ipv6.src", str(GATEWAY_LINK_LOCAL), str(link_local)),
        ("icmpv6.opt.linkaddr", MACS[ROUTER], mac),
        ("icmpv6.opt.src_linkaddr", MACS[ROUTER], mac),
        ("icmpv6.nd.ra.flag", "0x48", "0x4c"),
        ("icmpv6.nd.ra.flag.p", "0", "1"),
    }
