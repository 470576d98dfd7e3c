"""The table of packets: each incoming frame, the reason for its result, and the outgoing frame.

The table drives ndp.py, the kernel programs by BPF_PROG_TEST_RUN, and real frames over veth. Scapy
builds both sides; the reply never comes from ndp.py. All cases hold at once for one instance with
HOST's addresses and RULES; a case that needs another setting names it in a field.

Frames are 15 to 1522 bytes long: a link must have an MTU above 1500 to carry all of them.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, replace
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Padding, Raw

from ndxdp.boot_clock import boot_ns
from ndxdp.ndp.message import Host
from ndxdp.ndp.profile import Answer, NaSource, Profile
from ndxdp.ndp.reason import Reason
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import Rule, owned_rule
from ndxdp.rules.ruleset import Rules
from ndxdp.store.records import Settings

# ---- nodes on the link --------------------------------------------------------------------------

MAC = "02:00:5e:10:00:01"
LINK_LOCAL = "fe80::5eff:fe10:1"
HOST = Host(bytes.fromhex("02005e100001"), parse_address(LINK_LOCAL))

ROUTER = "fe80::5eff:fe10:fe"  # the upstream router, which solicits
ROUTER_MAC = "02:00:5e:10:00:fe"
GLOBAL = "2001:db8:0:1::feed"  # a soliciting neighbour with a global address
OTHER_MAC = "02:00:5e:10:00:77"
NOWHERE = "2001:db8:0:ffff::1"  # no rule covers it
ALL_NODES_MAC = "33:33:00:00:00:01"

# ---- targets -------------------------------------------------------------------------------------

FIXED_SOURCE = "2001:db8:0:3::5"
FIXED_LLADDR = "02:00:5e:10:aa:aa"

A, B = "2001:db8:0:1::a", "2001:db8:0:1::b"  # covered by the /64 and by nothing else
EXACT = "2001:db8:0:1::e"
NEVER = "2001:db8:0:1::bad"
HELD = "2001:db8:0:1::1"
GATEWAY = "2001:db8:0:1::2"
DYNAMIC = "2001:db8:0:1::dd"
DYNAMIC_NO_DAD = "2001:db8:0:1::de"
LEASED = "2001:db8:0:1::1ea5"
LEASED_NO_DAD = "2001:db8:0:1::1ea6"
LEASED_NEVER = "2001:db8:0:1::1ea7"
LEASED_DYNAMIC = "2001:db8:0:1::1ea8"
IN_LEASED = "2001:db8:0:1::1ea:1"

_NO_DAD = Profile(defend=False)

RULES = Rules.of(
    {
        parse_prefix(prefix): rule if rule.label else replace(rule, label=prefix)
        for prefix, rule in {
            "2001:db8:0:1::/64": Rule(),
            "2001:db8:0:1::d:0/112": Rule(profile=Profile(override=True)),
            EXACT: Rule(profile=Profile(router=False), origin="config"),
            NEVER: Rule(Answer.NEVER),
            "2001:db8:0:1::f:0/112": Rule(Answer.NEVER),
            "2001:db8:0:1::f:1": Rule(),
            HELD: Rule(owned=True),
            GATEWAY: owned_rule("gateway"),
            DYNAMIC: Rule(origin="docker", label="ipv6exposed", dynamic=True),
            DYNAMIC_NO_DAD: Rule(profile=_NO_DAD, origin="docker", label="quiet", dynamic=True),
            LEASED: Rule(origin="shared", label="leased", leased=True),
            LEASED_NO_DAD: Rule(profile=_NO_DAD, origin="shared", label="quiet", leased=True),
            LEASED_NEVER: Rule(Answer.NEVER, origin="shared", label="never", leased=True),
            LEASED_DYNAMIC: Rule(origin="shared", label="both", dynamic=True, leased=True),
            "2001:db8:0:1::1ea:0/112": Rule(origin="shared", label="wide", leased=True),
            "2001:db8:0:2::/64": Rule(profile=Profile(source=NaSource.LINK_LOCAL)),
            "2001:db8:0:3::/64": Rule(profile=Profile(source=parse_address(FIXED_SOURCE))),
            "2001:db8:0:4::/64": Rule(profile=Profile(lladdr=bytes.fromhex("02005e10aaaa"))),
            "2001:db8:0:5::/64": Rule(profile=_NO_DAD),
            "2001:db8:0:6::/64": Rule(
                profile=Profile(
                    NaSource.LINK_LOCAL,
                    router=False,
                    override=True,
                    lladdr=bytes.fromhex("02005e10aaaa"),
                )
            ),
            "2001:db8:0:10::/60": Rule(),
            "2001:db8:0:30::2/127": Rule(),
            "2001:db8:0:7::/64": Rule(Answer.LOCAL),
            "fe80::d003": Rule(),
            "fe80:0:0:1::/64": Rule(),
            "::2": Rule(),
        }.items()
    }
)

BY_TABLES = {each for each in Reason if Reason.NOT_FORWARDING <= each <= Reason.NO_NEIGHBOUR}
"""Reasons that depend on the kernel's tables, which packets cannot show: see tests/test_routed.py.
"""

BURST = 3
"""Answers in a row that the limiter admits to one soliciting MAC if `rate_exceeded` is set."""

INTERVAL = 3_600_000_000_000
"""ns, the limiter's interval in these cases: so long that no slow test earns another answer."""

CREDIT = (BURST - 1) * INTERVAL

_TIMEOUT = 10_000_000_000
"""ns without a heartbeat, shorter than the uptime of a fresh virtual machine."""


# ---- builders of packets ------------------------------------------------------------------------


def group(target: str) -> str:
    """Return the solicited-node group of an address (RFC 4291 2.7.1)."""
    low = socket.inet_pton(socket.AF_INET6, target)[13:]
    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex("ff0200000000000000000001ff") + low)


def group_mac(address: str) -> str:
    """Return a group's MAC: 33:33 and the group's last 32 bits (RFC 2464 7)."""
    return "33:33:" + socket.inet_pton(socket.AF_INET6, address)[12:].hex(":")


def to_group(
    target: str, src: str = ROUTER, *, eth_src: str = ROUTER_MAC, hlim: int = 255
) -> Packet:
    """Return the headers of a solicitation to the target's group."""
    return Ether(src=eth_src, dst=group_mac(group(target))) / IPv6(
        src=src, dst=group(target), hlim=hlim
    )


def dad(target: str) -> Packet:
    """Return the headers of Duplicate Address Detection."""
    return to_group(target, "::")


def unicast(dst: str, src: str = ROUTER, *, eth_dst: str = MAC) -> Packet:
    """Return the headers of a probe to an address that is believed reachable (NUD)."""
    return Ether(src=ROUTER_MAC, dst=eth_dst) / IPv6(src=src, dst=dst, hlim=255)


def ns(target: str, **fields: Any) -> Packet:
    return ICMPv6ND_NS(tgt=target, **fields)


def asks(target: str) -> Packet:
    """Return the router's solicitation of a target by multicast, with the router's MAC."""
    return to_group(target) / ns(target) / sllao()


def asks_dad(target: str) -> Packet:
    """Return the solicitation of Duplicate Address Detection."""
    return dad(target) / ns(target)


def sllao(mac: str = ROUTER_MAC) -> Packet:
    return ICMPv6NDOptSrcLLAddr(lladdr=mac)


def tllao(mac: str = MAC) -> Packet:
    return ICMPv6NDOptDstLLAddr(lladdr=mac)


def option(kind: int, units: int = 1, *, data: bytes | None = None) -> Packet:
    """Return an option that Scapy has no name for, of `units` of 8 bytes."""
    if data is None:
        data = b"\xa5" * (units * 8 - 2)
    return ICMPv6NDOptUnknown(type=kind, len=units, data=data)


NONCE = ICMPv6NDOptUnknown(type=14, len=1, data=b"nonce!")  # RFC 3971 5.3.2, as RFC 7527 sends it


def options(count: int, kind: int = 14) -> Packet:
    """Return `count` unknown options of one unit each."""
    packet: Packet = Raw(b"".join(bytes((kind, 1)) + b"\x5a" * 6 for _ in range(count)))
    return packet


def padded(packet: Packet, length: int, fill: bytes = b"\0") -> Packet:
    """Return the frame padded to `length` bytes; payload_len does not cover the padding."""
    return packet / Padding(fill * (length - len(bytes(packet))))


def cut(packet: Packet, length: int) -> bytes:
    """Return the frame's first bytes, with unchanged headers."""
    return bytes(packet)[:length]


def claiming(packet: Packet, payload_len: int) -> bytes:
    """Return the frame with another payload_len and an unchanged checksum."""
    frame = bytes(packet)
    return frame[:18] + payload_len.to_bytes(2, "big") + frame[20:]


def flipped(packet: Packet, at: int, bits: int = 1) -> bytes:
    """Return the finished frame with bits of one byte inverted."""
    frame = bytearray(bytes(packet))
    frame[at] ^= bits
    return bytes(frame)


def with_checksum(packet: Packet, checksum: int, *, add: bool = False) -> bytes:
    """Return the finished frame with another checksum, or with `checksum` added to its own."""
    frame = bytes(packet)
    if add:
        checksum += int.from_bytes(frame[56:58], "big")
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
    return frame[:56] + checksum.to_bytes(2, "big") + frame[58:]


def na(
    target: str,
    *,
    src: str | None = None,
    dst: str = ROUTER,
    eth_dst: str = ROUTER_MAC,
    R: int = 1,
    O: int = 0,  # noqa: E741 - the flag's name in RFC 4861 4.4, as R and S
    lladdr: str = MAC,
) -> Packet:
    """Return a solicited advertisement."""
    return (
        Ether(src=MAC, dst=eth_dst)
        / IPv6(src=src or target, dst=dst, hlim=255)
        / ICMPv6ND_NA(R=R, S=1, O=O, tgt=target)
        / ICMPv6NDOptDstLLAddr(lladdr=lladdr)
    )


def na_dad(
    target: str,
    *,
    src: str | None = None,
    R: int = 1,
    O: int = 0,  # noqa: E741
    lladdr: str = MAC,
) -> Packet:
    """Return the advertisement to all nodes that the target is in use (RFC 4861 7.2.4)."""
    return (
        Ether(src=MAC, dst=ALL_NODES_MAC)
        / IPv6(src=src or target, dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(R=R, S=0, O=O, tgt=target)
        / ICMPv6NDOptDstLLAddr(lladdr=lladdr)
    )


@dataclass(frozen=True, slots=True)
class Case:
    """A frame and its expected result.

    Attributes:
        name: The name of the case.
        ns: Scapy's packet, or the bytes if the frame is damaged after it was built.
        reason: The expected reason.
        na: The expected answer. None: the frame comes out unchanged (for RATE_LIMITED: dropped).
        paused: Answering is paused.
        no_link_local: The interface has no link-local address.
        daemon_dead: The heartbeat is older than its timeout. In all other cases it is fresh.
        rate_exceeded: A limit of one answer for each INTERVAL and BURST in a row is set, and the
            frame has come BURST times before. In all other cases there is no limit.
        gateway: The soliciting MAC is a gateway's.
        lapsed: The host's lease has lapsed. In all other cases it ends much later.
    """

    name: str
    ns: Packet | bytes
    reason: Reason
    na: Packet | None = None
    paused: bool = False
    no_link_local: bool = False
    daemon_dead: bool = False
    rate_exceeded: bool = False
    gateway: bool = False
    lapsed: bool = False

    @property
    def gateways(self) -> frozenset[bytes]:
        """The gateways' MACs."""
        return frozenset((self.frame[6:12],) if self.gateway else ())

    @property
    def frame(self) -> bytes:
        return bytes(self.ns)

    @property
    def reply(self) -> bytes | None:
        return None if self.na is None else bytes(self.na)

    @property
    def host(self) -> Host:
        """HOST with the case's settings."""
        link_local = bytes(16) if self.no_link_local else HOST.link_local
        return replace(HOST, paused=self.paused, link_local=link_local)

    @property
    def lease(self) -> int:
        """The end of the host's lease, in ns of boot_ns()."""
        return boot_ns() + (0 if self.lapsed else INTERVAL)

    def settings(self, present: Settings) -> Settings:
        """Return `present` with the settings of this case."""
        now = time.monotonic_ns()
        return replace(
            present,
            mac=HOST.mac,
            link_local=self.host.link_local,
            paused=self.paused,
            heartbeat=now - _TIMEOUT - 1 if self.daemon_dead else now,
            heartbeat_timeout=_TIMEOUT,
            rate_interval=INTERVAL if self.rate_exceeded else 0,
            rate_credit=CREDIT,
            gateway_interval=INTERVAL,
            gateway_credit=CREDIT,
        )


def show(frame: bytes) -> str:
    """Format a frame as a Scapy expression and as hex."""
    packet = Raw(frame) if len(frame) < 14 else Ether(frame)
    return f"{packet.command()}\n    {len(frame)} bytes: {frame.hex()}"


# ---- the table ----------------------------------------------------------------------------------

_PLAIN = [
    Case(
        "ns from a link-local source, with its sllao",
        Ether(src="02:00:5e:10:00:fe", dst="33:33:ff:00:00:0a")
        / IPv6(src="fe80::5eff:fe10:fe", dst="ff02::1:ff00:a", hlim=255)
        / ICMPv6ND_NS(tgt="2001:db8:0:1::a")
        / ICMPv6NDOptSrcLLAddr(lladdr="02:00:5e:10:00:fe"),
        Reason.ANSWERED,
        Ether(src="02:00:5e:10:00:01", dst="02:00:5e:10:00:fe")
        / IPv6(src="2001:db8:0:1::a", dst="fe80::5eff:fe10:fe", hlim=255)
        / ICMPv6ND_NA(R=1, S=1, O=0, tgt="2001:db8:0:1::a")
        / ICMPv6NDOptDstLLAddr(lladdr="02:00:5e:10:00:01"),
    ),
    Case(
        "ns from a global source",
        to_group(A, GLOBAL) / ns(A) / sllao(),
        Reason.ANSWERED,
        na(A, dst=GLOBAL),
    ),
    Case("ns without options grows", to_group(A) / ns(A), Reason.ANSWERED, na(A)),
    Case(
        "ns whose sllao is not its ethernet source: the answer goes to the sllao",
        to_group(A) / ns(A) / sllao(OTHER_MAC),
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "ns through a bridge's mac without an sllao: the answer goes to the ethernet source",
        to_group(A, eth_src=OTHER_MAC) / ns(A),
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "ns with traffic class and flow label: the answer has neither",
        Ether(src=ROUTER_MAC, dst=group_mac(group(A)))
        / IPv6(src=ROUTER, dst=group(A), hlim=255, tc=0xC0, fl=0xABCDE)
        / ns(A)
        / sllao(),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "ns with reserved bits set: ignored on reception",
        to_group(A) / ns(A, res=0xFFFFFFFF) / sllao(),
        Reason.ANSWERED,
        na(A),
    ),
    Case("ns for a link-local target", asks("fe80::d003"), Reason.ANSWERED, na("fe80::d003")),
    Case(
        "ns to all nodes, not to the target's group",
        Ether(src=ROUTER_MAC, dst=ALL_NODES_MAC)
        / IPv6(src=ROUTER, dst="ff02::1", hlim=255)
        / ns(A)
        / sllao(),
        Reason.ANSWERED,
        na(A),
    ),
    Case("ns to another target's group", to_group(B) / ns(A) / sllao(), Reason.ANSWERED, na(A)),
]

_PROBES = [
    Case(
        "nud probe to the target, with sllao", unicast(A) / ns(A) / sllao(), Reason.ANSWERED, na(A)
    ),
    Case("nud probe to the target, without sllao", unicast(A) / ns(A), Reason.ANSWERED, na(A)),
    Case(
        "nud probe from a global source",
        unicast(A, GLOBAL) / ns(A),
        Reason.ANSWERED,
        na(A, dst=GLOBAL),
    ),
    Case(
        "ns to the host's own link-local address for another target",
        unicast(LINK_LOCAL) / ns(A) / sllao(),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "ns to the group in a frame to our mac",
        unicast(group(A)) / ns(A) / sllao(),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "nud probe to another host's mac",
        unicast(A, eth_dst=OTHER_MAC) / ns(A) / sllao(),
        Reason.OTHER_HOST,
    ),
    Case(
        "nud probe to a mac that differs from the host's in the first byte only",
        unicast(A, eth_dst="00:00:5e:10:00:01") / ns(A),
        Reason.OTHER_HOST,
    ),
    Case(
        "nud probe to a mac that differs from the host's in the last byte only",
        unicast(A, eth_dst="02:00:5e:10:00:00") / ns(A),
        Reason.OTHER_HOST,
    ),
    Case(
        "ns in an ethernet broadcast",
        unicast(group(A), eth_dst="ff:ff:ff:ff:ff:ff") / ns(A) / sllao(),
        Reason.OTHER_HOST,
    ),
    Case(
        "ns in a frame to another group's mac",
        unicast(group(A), eth_dst=group_mac(group(B))) / ns(A) / sllao(),
        Reason.OTHER_HOST,
    ),
    Case(
        "ns in a frame to a group's mac that differs in its third byte only",
        unicast(group(A), eth_dst="33:33:fe:00:00:0a") / ns(A),
        Reason.OTHER_HOST,
    ),
    Case(
        "ns in a frame to 33:32 and the group",
        unicast(group(A), eth_dst="33:32:ff:00:00:0a") / ns(A),
        Reason.OTHER_HOST,
    ),
    Case(
        "ns to a unicast address in a frame to that address's 33:33 mac",
        unicast(A, eth_dst=group_mac(A)) / ns(A) / sllao(),
        Reason.OTHER_HOST,
    ),
    Case(
        "ns to a unicast address in a frame to its group's mac",
        unicast(A, eth_dst=group_mac(group(A))) / ns(A) / sllao(),
        Reason.OTHER_HOST,
    ),
    Case("own ns come back", to_group(A, eth_src=MAC) / ns(A) / sllao(MAC), Reason.OWN_FRAME),
    Case(
        "own ns come back with a bad hop limit",
        to_group(A, eth_src=MAC, hlim=64) / ns(A),
        Reason.OWN_FRAME,
    ),
    Case(
        "own ns come back, to another host",
        Ether(src=MAC, dst=OTHER_MAC) / IPv6(src=LINK_LOCAL, dst=A, hlim=255) / ns(A),
        Reason.OWN_FRAME,
    ),
    Case(
        "ns from a mac next to the host's",
        to_group(A, eth_src="02:00:5e:10:00:00") / ns(A),
        Reason.ANSWERED,
        na(A, eth_dst="02:00:5e:10:00:00"),
    ),
]

_DAD = [
    Case("dad", asks_dad(A), Reason.ANSWERED_DAD, na_dad(A)),
    Case("dad with a nonce (RFC 7527)", dad(A) / ns(A) / NONCE, Reason.ANSWERED_DAD, na_dad(A)),
    Case(
        "dad in a frame to our mac", unicast(group(A), "::") / ns(A), Reason.ANSWERED_DAD, na_dad(A)
    ),
    Case("dad with an sllao", dad(A) / ns(A) / sllao(), Reason.BAD_SOURCE),
    Case(
        "dad with an sllao of zeros", dad(A) / ns(A) / sllao("00:00:00:00:00:00"), Reason.BAD_SOURCE
    ),
    Case("dad with a nonce and an sllao", dad(A) / ns(A) / NONCE / sllao(), Reason.BAD_SOURCE),
    Case("dad to another target's group", dad(B) / ns(A), Reason.BAD_SOURCE),
    Case(
        "dad to a group that differs in the target's 24th last bit only",
        dad("2001:db8:0:1::80:a") / ns(A),
        Reason.BAD_SOURCE,
    ),
    Case(
        "dad to the solicited-node group's low bits in another scope",
        Ether(src=ROUTER_MAC, dst=group_mac(group(A)))
        / IPv6(src="::", dst="ff05::1:ff00:a", hlim=255)
        / ns(A),
        Reason.BAD_SOURCE,
    ),
    Case(
        "dad to all nodes",
        Ether(src=ROUTER_MAC, dst=ALL_NODES_MAC) / IPv6(src="::", dst="ff02::1", hlim=255) / ns(A),
        Reason.BAD_SOURCE,
    ),
    Case("dad to the target itself", unicast(A, "::") / ns(A), Reason.BAD_SOURCE),
    Case("dad that the rule ignores", asks_dad("2001:db8:0:5::a"), Reason.DAD_IGNORED),
    Case(
        "ns where the rule ignores dad",
        asks("2001:db8:0:5::a"),
        Reason.ANSWERED,
        na("2001:db8:0:5::a"),
    ),
    Case(
        "dad for a link-local address that only a prefix covers",
        asks_dad("fe80:0:0:1::a"),
        Reason.DAD_ON_LINK,
    ),
    Case(
        "dad for a link-local address with a rule of its own",
        asks_dad("fe80::d003"),
        Reason.ANSWERED_DAD,
        na_dad("fe80::d003"),
    ),
    Case(
        "ns for a link-local address that only a prefix covers",
        to_group("fe80:0:0:1::a") / ns("fe80:0:0:1::a"),
        Reason.ANSWERED,
        na("fe80:0:0:1::a"),
    ),
]

_ADVERTISED_MACS = [
    Case(
        "nud probe to the mac that the rule advertises",
        unicast("2001:db8:0:4::a", eth_dst=FIXED_LLADDR) / ns("2001:db8:0:4::a") / sllao(),
        Reason.ANSWERED,
        na("2001:db8:0:4::a", lladdr=FIXED_LLADDR),
    ),
    Case(
        "nud probe to it for a target of another rule with the same mac",
        unicast("2001:db8:0:6::a", eth_dst=FIXED_LLADDR) / ns("2001:db8:0:6::a"),
        Reason.ANSWERED,
        na("2001:db8:0:6::a", src=LINK_LOCAL, R=0, O=1, lladdr=FIXED_LLADDR),
    ),
    Case(
        "nud probe to it for a target whose rule advertises ours",
        unicast(A, eth_dst=FIXED_LLADDR) / ns(A),
        Reason.OTHER_HOST,
    ),
    Case(
        "nud probe to it for a target without a rule",
        unicast(NOWHERE, eth_dst=FIXED_LLADDR) / ns(NOWHERE),
        Reason.OTHER_HOST,
    ),
    Case(
        "nud probe to a third mac for a target whose rule advertises another",
        unicast("2001:db8:0:4::a", eth_dst=OTHER_MAC) / ns("2001:db8:0:4::a"),
        Reason.OTHER_HOST,
    ),
    Case(
        "nud probe to the mac that the rule advertises, hop limit 64",
        Ether(src=ROUTER_MAC, dst=FIXED_LLADDR)
        / IPv6(src=ROUTER, dst="2001:db8:0:4::a", hlim=64)
        / ns("2001:db8:0:4::a"),
        Reason.BAD_HOP_LIMIT,
    ),
    Case(
        "nud probe to the mac that the rule advertises, cut before its target's end",
        cut(unicast("2001:db8:0:4::a", eth_dst=FIXED_LLADDR) / ns("2001:db8:0:4::a"), 77),
        Reason.OTHER_HOST,
    ),
]

_HEADERS = [
    Case("hop limit 254", to_group(A, hlim=254) / ns(A) / sllao(), Reason.BAD_HOP_LIMIT),
    Case("hop limit 0", to_group(A, hlim=0) / ns(A) / sllao(), Reason.BAD_HOP_LIMIT),
    Case("code 1", to_group(A) / ns(A, code=1) / sllao(), Reason.BAD_CODE),
    Case("code 255", to_group(A) / ns(A, code=255), Reason.BAD_CODE),
    Case("multicast target", asks("ff02::1"), Reason.BAD_TARGET),
    Case(
        "target in the lowest multicast prefix",
        to_group("ff00::1") / ns("ff00::1"),
        Reason.BAD_TARGET,
    ),
    Case("target right below multicast", to_group("feff::1") / ns("feff::1"), Reason.NO_RULE),
    Case("target ::", asks("::"), Reason.BAD_TARGET),
    Case("target ::1", asks("::1"), Reason.BAD_TARGET),
    Case("target ::2 is no loopback", to_group("::2") / ns("::2"), Reason.ANSWERED, na("::2")),
    Case("target 1:: is no loopback", to_group("1::") / ns("1::"), Reason.NO_RULE),
    Case("source multicast", to_group(A, "ff02::2") / ns(A) / sllao(), Reason.BAD_SOURCE),
    Case("source the target's own group", to_group(A, group(A)) / ns(A), Reason.BAD_SOURCE),
    Case("source ::1", to_group(A, "::1") / ns(A) / sllao(), Reason.BAD_SOURCE),
    Case("source ::1, to the target", unicast(A, "::1") / ns(A), Reason.BAD_SOURCE),
    Case(
        "source ::2 is no loopback",
        to_group(A, "::2") / ns(A) / sllao(),
        Reason.ANSWERED,
        na(A, dst="::2"),
    ),
    Case("source v4-mapped", to_group(A, "::ffff:192.0.2.1") / ns(A), Reason.BAD_SOURCE),
    Case(
        "source right below v4-mapped",
        to_group(A, "::fffe:c000:201") / ns(A),
        Reason.ANSWERED,
        na(A, dst="::fffe:c000:201"),
    ),
]

_LENGTHS = [
    Case("payload_len 0", claiming(to_group(A) / ns(A), 0), Reason.BAD_LENGTH),
    Case("payload_len 4", claiming(to_group(A) / ns(A), 4), Reason.BAD_LENGTH),
    Case("payload_len 16", claiming(asks(A), 16), Reason.BAD_LENGTH),
    Case("payload_len 23", claiming(to_group(A) / ns(A), 23), Reason.BAD_LENGTH),
    Case(
        "payload_len 24, and an sllao behind it is padding",
        to_group(A) / ns(A) / Padding(bytes(sllao(OTHER_MAC))),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "payload_len one beyond the frame, without options",
        claiming(to_group(A) / ns(A), 25),
        Reason.BAD_LENGTH,
    ),
    Case("payload_len one beyond the frame", claiming(asks(A), 33), Reason.BAD_LENGTH),
    Case("payload_len 65535", claiming(to_group(A) / ns(A), 65535), Reason.BAD_LENGTH),
    Case("payload_len 280 is not 24", claiming(to_group(A) / ns(A), 24 + 256), Reason.BAD_LENGTH),
    Case("padded by 1", padded(to_group(A) / ns(A), 79), Reason.ANSWERED, na(A)),
    Case("padded to the answer's length", padded(to_group(A) / ns(A), 86), Reason.ANSWERED, na(A)),
    Case("padded past the answer's length by 1", padded(asks(A), 87), Reason.ANSWERED, na(A)),
    Case(
        "padded to 128 with bytes that are not zero",
        padded(asks(A), 128, b"\xff"),
        Reason.ANSWERED,
        na(A),
    ),
    Case("dad padded to 1500", padded(asks_dad(A), 1500, b"\x01"), Reason.ANSWERED_DAD, na_dad(A)),
    Case("padded to 1514", padded(to_group(A) / ns(A), 1514), Reason.ANSWERED, na(A)),
    Case("padded to 1515", padded(to_group(A) / ns(A), 1515), Reason.BAD_LENGTH),
    Case("padded to 1522", padded(asks(A), 1522), Reason.BAD_LENGTH),
    Case("cut to 15", cut(to_group(A) / ns(A), 15), Reason.NOT_NS),
    Case("cut to 53, in the ipv6 header", cut(to_group(A) / ns(A), 53), Reason.NOT_NS),
    Case("cut to 54, behind the ipv6 header", cut(to_group(A) / ns(A), 54), Reason.NOT_NS),
    Case("cut to 57, in the icmpv6 header", cut(to_group(A) / ns(A), 57), Reason.NOT_NS),
    Case("cut to 58, behind the icmpv6 header", cut(to_group(A) / ns(A), 58), Reason.BAD_LENGTH),
    Case("cut to 62, before the target", cut(to_group(A) / ns(A), 62), Reason.BAD_LENGTH),
    Case("cut to 77, in the target", cut(to_group(A) / ns(A), 77), Reason.BAD_LENGTH),
    Case("cut to 78, before its option", cut(asks(A), 78), Reason.BAD_LENGTH),
    Case("cut to 85, in its option", cut(asks(A), 85), Reason.BAD_LENGTH),
    Case(
        "cut to 77 with a payload_len to match",
        claiming(to_group(A) / ns(A), 23)[:77],
        Reason.BAD_LENGTH,
    ),
]

_OPTIONS = [
    Case(
        "nonce before the sllao",
        to_group(A) / ns(A) / NONCE / sllao(OTHER_MAC),
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "nonce behind the sllao",
        to_group(A) / ns(A) / sllao(OTHER_MAC) / NONCE,
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "a tllao has no business in an ns: ignored",
        to_group(A) / ns(A) / tllao(OTHER_MAC),
        Reason.ANSWERED,
        na(A),
    ),
    Case("an option of type 0", to_group(A) / ns(A) / option(0), Reason.ANSWERED, na(A)),
    Case(
        "an option of type 255 and 3 units",
        to_group(A) / ns(A) / option(255, 3) / sllao(OTHER_MAC),
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "the bytes of an sllao inside another option",
        to_group(A) / ns(A) / option(253, 2, data=b"\0" * 6 + bytes(sllao(OTHER_MAC))),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "the bytes of an option of length 0 inside another option",
        to_group(A) / ns(A) / option(253, 3, data=bytes(22)),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "3 options, the sllao in the middle",
        to_group(A) / ns(A) / NONCE / sllao(OTHER_MAC) / option(200),
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "7 options, the sllao last",
        to_group(A) / ns(A) / options(6) / Raw(bytes(sllao(OTHER_MAC))),
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "two sllaos: the first wins",
        to_group(A) / ns(A) / sllao(OTHER_MAC) / sllao(),
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "two sllaos: the first wins though it is all zeros",
        to_group(A) / ns(A) / sllao("00:00:00:00:00:00") / sllao(OTHER_MAC),
        Reason.ANSWERED,
        na(A, eth_dst="00:00:00:00:00:00"),
    ),
    Case("an sllao of 2 units", to_group(A) / ns(A) / option(1, 2), Reason.BAD_OPTION),
    Case(
        "an sllao of 2 units behind a good one, which is not examined",
        to_group(A) / ns(A) / sllao(OTHER_MAC) / option(1, 2),
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "a good sllao behind one of 2 units",
        to_group(A) / ns(A) / option(1, 2) / sllao(),
        Reason.BAD_OPTION,
    ),
    Case(
        "an option of length 0",
        to_group(A) / ns(A) / option(14, 0, data=b"nonce!"),
        Reason.BAD_OPTION,
    ),
    Case(
        "an sllao of length 0",
        to_group(A) / ns(A) / option(1, 0, data=bytes.fromhex("02005e1000fe")),
        Reason.BAD_OPTION,
    ),
    Case(
        "an option of length 0 behind a good one",
        to_group(A) / ns(A) / sllao() / option(14, 0, data=b"nonce!"),
        Reason.BAD_OPTION,
    ),
    Case(
        "an option of length 0 before good ones",
        to_group(A) / ns(A) / option(14, 0, data=b"nonce!") / sllao() / NONCE,
        Reason.BAD_OPTION,
    ),
    Case(
        "an option overhanging by 8",
        to_group(A) / ns(A) / option(14, 2, data=b"nonce!"),
        Reason.BAD_OPTION,
    ),
    Case(
        "an option overhanging by 8 into the padding",
        to_group(A) / ns(A) / option(14, 2, data=b"nonce!") / Padding(bytes(8)),
        Reason.BAD_OPTION,
    ),
    Case(
        "an option of 255 units that overhangs behind a good one",
        to_group(A) / ns(A) / sllao() / option(14, 255, data=b"nonce!"),
        Reason.BAD_OPTION,
    ),
    *(
        Case(
            f"{count} bytes behind the target",
            to_group(A) / ns(A) / Raw(b"\x0e\x01nonce"[:count]),
            Reason.BAD_OPTION,
        )
        for count in range(1, 8)
    ),
    Case("1 byte behind an sllao", to_group(A) / ns(A) / sllao() / Raw(b"\x0e"), Reason.BAD_OPTION),
    Case(
        "7 bytes behind an sllao, and padding that would complete them",
        to_group(A) / ns(A) / sllao() / Raw(b"\x0e\x01nonce") / Padding(b"!"),
        Reason.BAD_OPTION,
    ),
]

# The pseudo-header's length word and next header are the only two whose sum can overflow 32 bits in
# a little-endian program: if the length's low byte is 0xc6 or more. These counts reach that.
_LONG = [
    Case(
        f"{count} options, payload_len {24 + 8 * count}",
        to_group(A) / ns(A) / options(count),
        Reason.ANSWERED,
        na(A),
    )
    for count in (21, 22, 28, 29, 54, 60, 177)
] + [
    Case(
        "22 options and a checksum off by the carry of payload_len and next header",
        with_checksum(to_group(A) / ns(A) / options(22), 0x0100, add=True),
        Reason.BAD_CHECKSUM,
    ),
    Case(
        "179 options, the most that fit, the sllao last: 1510 bytes",
        to_group(A) / ns(A) / options(178) / Raw(bytes(sllao(OTHER_MAC))),
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "179 options, the most that fit, padded to 1514",
        padded(to_group(A) / ns(A) / options(179), 1514, b"\xee"),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "one option of 178 units and the sllao: 1510 bytes",
        to_group(A) / ns(A) / option(253, 178) / sllao(OTHER_MAC),
        Reason.ANSWERED,
        na(A, eth_dst=OTHER_MAC),
    ),
    Case(
        "1510 bytes of options, the last of length 0",
        to_group(A) / ns(A) / options(178) / Raw(bytes(8)),
        Reason.BAD_OPTION,
    ),
    Case(
        "1510 bytes of options, the last overhanging by 8",
        to_group(A) / ns(A) / options(178) / Raw(b"\x0e\x02nonce!"),
        Reason.BAD_OPTION,
    ),
    Case(
        "1514 bytes, of which 4 are no option",
        to_group(A) / ns(A) / options(179) / Raw(b"\x0e\x01no"),
        Reason.BAD_OPTION,
    ),
    Case(
        "1510 bytes of options, one bit of the last flipped",
        flipped(to_group(A) / ns(A) / options(179), 1509),
        Reason.BAD_CHECKSUM,
    ),
    Case("180 options: 1518 bytes", to_group(A) / ns(A) / options(180), Reason.BAD_LENGTH),
]

_CHECKSUMS = [
    Case("checksum too high by 1", with_checksum(asks(A), 1, add=True), Reason.BAD_CHECKSUM),
    Case("checksum too low by 1", with_checksum(asks(A), 0xFFFE, add=True), Reason.BAD_CHECKSUM),
    Case("checksum 0", to_group(A) / ns(A, cksum=0) / sllao(), Reason.BAD_CHECKSUM),
    Case("checksum 0xffff", to_group(A) / ns(A, cksum=0xFFFF) / sllao(), Reason.BAD_CHECKSUM),
    Case("a flipped bit of the target", flipped(asks(A), 77), Reason.BAD_CHECKSUM),
    Case("a flipped bit of the ipv6 source", flipped(asks(A), 22), Reason.BAD_CHECKSUM),
    Case("a flipped bit of the sllao's last byte", flipped(asks(A), 85), Reason.BAD_CHECKSUM),
    Case(
        "a flipped bit of the reserved field",
        flipped(to_group(A) / ns(A), 58, 0x80),
        Reason.BAD_CHECKSUM,
    ),
    Case(
        "a flipped bit of the traffic class, which no checksum covers",
        flipped(asks(A), 15, 0x10),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "a checksum over the padding, too",
        with_checksum(
            padded(to_group(A) / ns(A), 86, b"\x11"),
            int.from_bytes(bytes(to_group(A) / ns(A) / Raw(b"\x11" * 8))[56:58], "big"),
        ),
        Reason.BAD_CHECKSUM,
    ),
    Case(
        "a right checksum that is 0",
        to_group(A) / ns(A) / option(14, data=bytes.fromhex("00000000e241")),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "a right checksum that is 0, written as 0xffff",
        to_group(A) / ns(A, cksum=0xFFFF) / option(14, data=bytes.fromhex("00000000e241")),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "an advertisement whose checksum is 0",
        asks("2001:db8:0:1::4ec7"),
        Reason.ANSWERED,
        na("2001:db8:0:1::4ec7"),
    ),
]


def tagged(packet: Packet, vlan: int, prio: int = 0, kind: type[Packet] = Dot1Q) -> Packet:
    """Return the frame with a VLAN tag behind its MACs; vlan 0 is a tag with only a priority."""
    ether = Ether(src=packet.src, dst=packet.dst)
    return ether / kind(vlan=vlan, prio=prio) / packet.payload


_TAGS = [
    Case("vlan tag (802.1Q)", tagged(asks(A), 7), Reason.OTHER_VLAN),
    Case("vlan 4095 with a priority", tagged(to_group(A) / ns(A), 4095, 7), Reason.OTHER_VLAN),
    Case("provider tag (802.1ad)", tagged(asks(A), 7, kind=Dot1AD), Reason.OTHER_VLAN),
    Case(
        "vlan tag, of which nothing else is looked at",
        tagged(unicast(A, eth_dst=OTHER_MAC) / ns(A, code=1), 1),
        Reason.OTHER_VLAN,
    ),
    Case(
        "vlan tag on a frame that is no ns",
        tagged(unicast(A) / ICMPv6EchoRequest(data=b"x" * 32), 7),
        Reason.NOT_NS,
    ),
    Case("priority tag (802.1Q, vlan 0)", tagged(asks(A), 0, 6), Reason.ANSWERED, na(A)),
    Case("priority tag, priority 0", tagged(to_group(A) / ns(A), 0), Reason.ANSWERED, na(A)),
    Case(
        "priority tag (802.1ad, vlan 0)", tagged(asks(A), 0, 5, kind=Dot1AD), Reason.ANSWERED, na(A)
    ),
    Case("priority tag, dad", tagged(dad(A) / ns(A) / NONCE, 0, 7), Reason.ANSWERED_DAD, na_dad(A)),
    Case(
        "priority tag, nud probe",
        tagged(unicast(A, GLOBAL) / ns(A), 0, 1),
        Reason.ANSWERED,
        na(A, dst=GLOBAL),
    ),
    Case(
        "priority tag, and options up to 1514 bytes without it",
        tagged(padded(to_group(A) / ns(A) / options(179), 1514), 0, 3),
        Reason.ANSWERED,
        na(A),
    ),
    Case(
        "priority tag, and 1515 bytes without it",
        tagged(padded(to_group(A) / ns(A) / options(179), 1515), 0, 3),
        Reason.BAD_LENGTH,
    ),
    Case("priority tag, no rule", tagged(to_group(NOWHERE) / ns(NOWHERE), 0, 6), Reason.NO_RULE),
    Case("priority tag, paused", tagged(asks(A), 0, 6), Reason.PAUSED, paused=True),
    Case(
        "priority tag, hop limit 254",
        tagged(to_group(A, hlim=254) / ns(A), 0, 6),
        Reason.BAD_HOP_LIMIT,
    ),
    Case(
        "priority tag, dad ignored", tagged(asks_dad("2001:db8:0:5::7"), 0, 6), Reason.DAD_IGNORED
    ),
    Case(
        "priority tag on a frame that is no ns",
        tagged(unicast(A) / ICMPv6EchoRequest(data=b"x" * 32), 0, 6),
        Reason.NOT_NS,
    ),
    Case(
        "vlan tag behind a priority tag",
        Ether(src=ROUTER_MAC, dst=group_mac(group(A)))
        / Dot1Q(vlan=0, prio=6)
        / Dot1Q(vlan=7)
        / IPv6(src=ROUTER, dst=group(A), hlim=255)
        / ns(A),
        Reason.NOT_NS,
    ),
    Case(
        "vlan tag behind a provider tag",
        Ether(src=ROUTER_MAC, dst=group_mac(group(A)))
        / Dot1AD(vlan=7)
        / Dot1Q(vlan=7)
        / IPv6(src=ROUTER, dst=group(A), hlim=255)
        / ns(A),
        Reason.NOT_NS,
    ),
]

_NOT_NS = [
    Case("hop-by-hop header", to_group(A) / IPv6ExtHdrHopByHop() / ns(A), Reason.NOT_NS),
    Case("fragment header", to_group(A) / IPv6ExtHdrFragment(id=1) / ns(A), Reason.NOT_NS),
    Case("version 4 in an ipv6 ethertype", flipped(asks(A), 14, 0x20), Reason.NOT_NS),
    Case("version 7 in an ipv6 ethertype", flipped(asks(A), 14, 0x10), Reason.NOT_NS),
    Case(
        "ns in an ipv4 ethertype",
        Ether(src=ROUTER_MAC, dst=group_mac(group(A)), type=0x0800)
        / IPv6(src=ROUTER, dst=group(A), hlim=255)
        / ns(A)
        / sllao(),
        Reason.NOT_NS,
    ),
    Case(
        "ipv4",
        Ether(src=ROUTER_MAC, dst=MAC) / IP(src="192.0.2.1", dst="192.0.2.2", ttl=255) / UDP(),
        Reason.NOT_NS,
    ),
    Case(
        "arp",
        padded(
            Ether(src=ROUTER_MAC, dst="ff:ff:ff:ff:ff:ff")
            / ARP(hwsrc=ROUTER_MAC, psrc="192.0.2.1", hwdst="00:00:00:00:00:00", pdst="192.0.2.2"),
            60,
        ),
        Reason.NOT_NS,
    ),
    Case("na", unicast(A) / ICMPv6ND_NA(R=1, S=1, O=0, tgt=A) / tllao(ROUTER_MAC), Reason.NOT_NS),
    Case(
        "rs",
        Ether(src=ROUTER_MAC, dst="33:33:00:00:00:02")
        / IPv6(src=ROUTER, dst="ff02::2", hlim=255)
        / ICMPv6ND_RS()
        / sllao(),
        Reason.NOT_NS,
    ),
    Case("echo request", unicast(A) / ICMPv6EchoRequest(data=b"x" * 32), Reason.NOT_NS),
    Case(
        "udp with 0x87 where an ns has its type",
        unicast(A) / UDP(sport=0x8700, dport=53) / Raw(bytes(24)),
        Reason.NOT_NS,
    ),
    Case(
        "own frame that is no ns",
        Ether(src=MAC, dst=MAC)
        / IPv6(src=LINK_LOCAL, dst=A, hlim=255)
        / ICMPv6EchoRequest(data=b"x" * 32),
        Reason.NOT_NS,
    ),
]

_RULES = [
    Case("no rule", asks(NOWHERE), Reason.NO_RULE),
    Case("no rule, dad", asks_dad(NOWHERE), Reason.NO_RULE),
    Case(
        "the /64's last address",
        to_group("2001:db8:0:1:ffff:ffff:ffff:ffff") / ns("2001:db8:0:1:ffff:ffff:ffff:ffff"),
        Reason.ANSWERED,
        na("2001:db8:0:1:ffff:ffff:ffff:ffff"),
    ),
    Case(
        "the /64's first address",
        to_group("2001:db8:0:1::") / ns("2001:db8:0:1::"),
        Reason.ANSWERED,
        na("2001:db8:0:1::"),
    ),
    Case(
        "the address before the /64",
        to_group("2001:db8::ffff:ffff:ffff:ffff") / ns("2001:db8::ffff:ffff:ffff:ffff"),
        Reason.NO_RULE,
    ),
    Case(
        "the /60's last address",
        to_group("2001:db8:0:1f:ffff:ffff:ffff:ffff") / ns("2001:db8:0:1f:ffff:ffff:ffff:ffff"),
        Reason.ANSWERED,
        na("2001:db8:0:1f:ffff:ffff:ffff:ffff"),
    ),
    Case(
        "the address behind the /60",
        to_group("2001:db8:0:20::") / ns("2001:db8:0:20::"),
        Reason.NO_RULE,
    ),
    Case(
        "the /127's last address",
        to_group("2001:db8:0:30::3") / ns("2001:db8:0:30::3"),
        Reason.ANSWERED,
        na("2001:db8:0:30::3"),
    ),
    Case(
        "the address before the /127",
        to_group("2001:db8:0:30::1") / ns("2001:db8:0:30::1"),
        Reason.NO_RULE,
    ),
    Case(
        "the address behind the /127",
        to_group("2001:db8:0:30::4") / ns("2001:db8:0:30::4"),
        Reason.NO_RULE,
    ),
    Case(
        "a /112 inside the /64 wins",
        asks("2001:db8:0:1::d:3"),
        Reason.ANSWERED,
        na("2001:db8:0:1::d:3", O=1),
    ),
    Case(
        "right behind the /112 the /64 holds",
        asks("2001:db8:0:1::e:0"),
        Reason.ANSWERED,
        na("2001:db8:0:1::e:0"),
    ),
    Case(
        "an exact rule wins over the /64: router off", asks(EXACT), Reason.ANSWERED, na(EXACT, R=0)
    ),
    Case("a hole in the /64", asks(NEVER), Reason.DENIED),
    Case("a hole in the /64, dad", asks_dad(NEVER), Reason.DENIED),
    Case("a hole in the /64, nud probe", unicast(NEVER) / ns(NEVER), Reason.DENIED),
    Case("a prefix that is a hole in the /64", asks("2001:db8:0:1::f:2"), Reason.DENIED),
    Case(
        "an exact address to answer in a prefix that is a hole",
        asks("2001:db8:0:1::f:1"),
        Reason.ANSWERED,
        na("2001:db8:0:1::f:1"),
    ),
    Case("a held address, though its rule says always", asks(HELD), Reason.DENIED),
    Case("a held address, dad", asks_dad(HELD), Reason.DENIED),
    Case("the gateway's hole", asks(GATEWAY), Reason.DENIED),
]

_LOCAL = [
    Case("a local rule, and nothing is delivered here", asks("2001:db8:0:7::a"), Reason.NOT_LOCAL),
    Case(
        "a local rule, and nothing is delivered here, dad",
        asks_dad("2001:db8:0:7::a"),
        Reason.NOT_LOCAL,
    ),
]

_PROFILES = [
    Case(
        "source link-local",
        asks("2001:db8:0:2::a"),
        Reason.ANSWERED,
        na("2001:db8:0:2::a", src=LINK_LOCAL),
    ),
    Case(
        "source link-local, dad",
        asks_dad("2001:db8:0:2::a"),
        Reason.ANSWERED_DAD,
        na_dad("2001:db8:0:2::a", src=LINK_LOCAL),
    ),
    Case(
        "source link-local where the interface has none: the target",
        asks("2001:db8:0:2::a"),
        Reason.ANSWERED,
        na("2001:db8:0:2::a"),
        no_link_local=True,
    ),
    Case(
        "a source of its own",
        asks("2001:db8:0:3::a"),
        Reason.ANSWERED,
        na("2001:db8:0:3::a", src=FIXED_SOURCE),
    ),
    Case(
        "a source of its own, dad",
        asks_dad("2001:db8:0:3::a"),
        Reason.ANSWERED_DAD,
        na_dad("2001:db8:0:3::a", src=FIXED_SOURCE),
    ),
    Case(
        "a lladdr of its own: in the tllao, not in the ethernet header",
        asks("2001:db8:0:4::a"),
        Reason.ANSWERED,
        na("2001:db8:0:4::a", lladdr=FIXED_LLADDR),
    ),
    Case("router off, dad", asks_dad(EXACT), Reason.ANSWERED_DAD, na_dad(EXACT, R=0)),
    Case(
        "override on, dad",
        asks_dad("2001:db8:0:1::d:3"),
        Reason.ANSWERED_DAD,
        na_dad("2001:db8:0:1::d:3", O=1),
    ),
    Case(
        "everything otherwise: link-local, router off, override on, a lladdr of its own",
        to_group("2001:db8:0:6::a", GLOBAL) / ns("2001:db8:0:6::a") / sllao(OTHER_MAC),
        Reason.ANSWERED,
        na(
            "2001:db8:0:6::a",
            src=LINK_LOCAL,
            dst=GLOBAL,
            eth_dst=OTHER_MAC,
            R=0,
            O=1,
            lladdr=FIXED_LLADDR,
        ),
    ),
    Case(
        "everything otherwise, dad",
        asks_dad("2001:db8:0:6::a"),
        Reason.ANSWERED_DAD,
        na_dad("2001:db8:0:6::a", src=LINK_LOCAL, R=0, O=1, lladdr=FIXED_LLADDR),
    ),
]

_SETTINGS = [
    Case("paused", asks(A), Reason.PAUSED, paused=True),
    Case("paused, dad", asks_dad(A), Reason.PAUSED, paused=True),
    Case("a dynamic rule, the daemon alive", asks(DYNAMIC), Reason.ANSWERED, na(DYNAMIC)),
    Case(
        "a dynamic rule, the daemon dead: the /64 does not step in",
        asks(DYNAMIC),
        Reason.EXPIRED,
        daemon_dead=True,
    ),
    Case(
        "a dynamic rule, the daemon alive, dad",
        asks_dad(DYNAMIC),
        Reason.ANSWERED_DAD,
        na_dad(DYNAMIC),
    ),
    Case(
        "a dynamic rule, the daemon dead, dad", asks_dad(DYNAMIC), Reason.EXPIRED, daemon_dead=True
    ),
    Case("a leased rule", asks(LEASED), Reason.ANSWERED, na(LEASED)),
    Case(
        "a leased rule, the lease lapsed: the /64 does not step in",
        asks(LEASED),
        Reason.LAPSED,
        lapsed=True,
    ),
    Case("a leased rule, dad", asks_dad(LEASED), Reason.ANSWERED_DAD, na_dad(LEASED)),
    Case("a leased rule, the lease lapsed, dad", asks_dad(LEASED), Reason.LAPSED, lapsed=True),
    Case(
        "a leased rule, unicast",
        unicast(LEASED) / ns(LEASED) / sllao(),
        Reason.ANSWERED,
        na(LEASED),
    ),
    Case(
        "a leased rule, the lease lapsed, unicast",
        unicast(LEASED) / ns(LEASED) / sllao(),
        Reason.LAPSED,
        lapsed=True,
    ),
    Case("a leased prefix", asks(IN_LEASED), Reason.ANSWERED, na(IN_LEASED)),
    Case(
        "a leased prefix, the lease lapsed: the /64 does not step in",
        asks(IN_LEASED),
        Reason.LAPSED,
        lapsed=True,
    ),
    Case(
        "a rule without lease, the lease lapsed",
        to_group(A) / ns(A),
        Reason.ANSWERED,
        na(A),
        lapsed=True,
    ),
    Case(
        "a leased rule, the daemon's heartbeat missing: it does not matter",
        asks(LEASED),
        Reason.ANSWERED,
        na(LEASED),
        daemon_dead=True,
    ),
    Case("a dynamic and leased rule", asks(LEASED_DYNAMIC), Reason.ANSWERED, na(LEASED_DYNAMIC)),
    Case(
        "a dynamic and leased rule, the lease lapsed",
        asks(LEASED_DYNAMIC),
        Reason.LAPSED,
        lapsed=True,
    ),
    Case("a static rule, the daemon dead", asks(A), Reason.ANSWERED, na(A), daemon_dead=True),
    Case(
        "over its rate",
        to_group(A, eth_src="02:00:5e:20:00:01") / ns(A),
        Reason.RATE_LIMITED,
        rate_exceeded=True,
    ),
    Case(
        "over its rate, with the sllao of another node",
        to_group(A, eth_src="02:00:5e:20:00:02") / ns(A) / sllao(OTHER_MAC),
        Reason.RATE_LIMITED,
        rate_exceeded=True,
    ),
    Case(
        "over its rate, dad",
        Ether(src="02:00:5e:20:00:03", dst=group_mac(group(A)))
        / IPv6(src="::", dst=group(A), hlim=255)
        / ns(A),
        Reason.RATE_LIMITED,
        rate_exceeded=True,
    ),
    Case(
        "over its rate, behind a priority tag",
        tagged(to_group(A, eth_src="02:00:5e:20:00:09") / ns(A), 0, 6),
        Reason.RATE_LIMITED,
        rate_exceeded=True,
    ),
    Case(
        "a gateway over its share",
        to_group(A, eth_src="02:00:5e:20:00:0a") / ns(A),
        Reason.GATEWAY_LIMITED,
        rate_exceeded=True,
        gateway=True,
    ),
    Case(
        "a gateway over its share, behind a priority tag",
        tagged(to_group(A, eth_src="02:00:5e:20:00:0b") / ns(A), 0, 6),
        Reason.GATEWAY_LIMITED,
        rate_exceeded=True,
        gateway=True,
    ),
    Case(
        "a gateway's mac, over its rate, with the sllao of another node",
        to_group(A, eth_src="02:00:5e:20:00:0c") / ns(A) / sllao("02:00:5e:20:00:0d"),
        Reason.RATE_LIMITED,
        rate_exceeded=True,
        gateway=True,
    ),
    Case(
        "over its rate, nud probe",
        Ether(src="02:00:5e:20:00:04", dst=MAC) / IPv6(src=ROUTER, dst=A, hlim=255) / ns(A),
        Reason.RATE_LIMITED,
        rate_exceeded=True,
    ),
]

# A case has two faults, in the order of validation (docs/wire.md); the earlier one is the reason.
_PRECEDENCE = [
    Case(
        "vlan tag before own frame",
        Ether(src=MAC, dst=MAC) / Dot1Q(vlan=1) / IPv6(src=ROUTER, dst=A, hlim=255) / ns(A),
        Reason.OTHER_VLAN,
    ),
    Case("own frame before code", to_group(A, eth_src=MAC) / ns(A, code=1), Reason.OWN_FRAME),
    Case(
        "other host before hop limit",
        Ether(src=ROUTER_MAC, dst=OTHER_MAC) / IPv6(src=ROUTER, dst=A, hlim=64) / ns(A),
        Reason.OTHER_HOST,
    ),
    Case("hop limit before code", to_group(A, hlim=64) / ns(A, code=1), Reason.BAD_HOP_LIMIT),
    Case("code before length", claiming(to_group(A) / ns(A, code=1), 23), Reason.BAD_CODE),
    Case(
        "length before option",
        claiming(to_group(A) / ns(A) / option(14, 0, data=b"nonce!"), 40),
        Reason.BAD_LENGTH,
    ),
    Case(
        "option before checksum",
        to_group(A) / ns(A, cksum=0) / option(14, 0, data=b"nonce!"),
        Reason.BAD_OPTION,
    ),
    Case(
        "option before source: dad with an sllao of 2 units",
        dad(A) / ns(A) / option(1, 2),
        Reason.BAD_OPTION,
    ),
    Case(
        "checksum before target", to_group("ff02::1") / ns("ff02::1", cksum=0), Reason.BAD_CHECKSUM
    ),
    Case("target before source", to_group("ff02::1", "ff02::2") / ns("ff02::1"), Reason.BAD_TARGET),
    Case(
        "target before source: dad with an sllao",
        dad("::1") / ns("::1") / sllao(),
        Reason.BAD_TARGET,
    ),
    Case("source before paused", to_group(A, "ff02::2") / ns(A), Reason.BAD_SOURCE, paused=True),
    Case("source before no rule", dad(NOWHERE) / ns(NOWHERE) / sllao(), Reason.BAD_SOURCE),
    Case("paused before no rule", to_group(NOWHERE) / ns(NOWHERE), Reason.PAUSED, paused=True),
    Case("paused before denied", to_group(NEVER) / ns(NEVER), Reason.PAUSED, paused=True),
    Case(
        "paused before expired",
        to_group(DYNAMIC) / ns(DYNAMIC),
        Reason.PAUSED,
        paused=True,
        daemon_dead=True,
    ),
    Case(
        "denied before rate",
        to_group(NEVER, eth_src="02:00:5e:20:00:05") / ns(NEVER),
        Reason.DENIED,
        rate_exceeded=True,
    ),
    Case(
        "no rule before rate",
        to_group(NOWHERE, eth_src="02:00:5e:20:00:06") / ns(NOWHERE),
        Reason.NO_RULE,
        rate_exceeded=True,
    ),
    Case(
        "denied before lapsed",
        to_group(LEASED_NEVER) / ns(LEASED_NEVER),
        Reason.DENIED,
        lapsed=True,
    ),
    Case(
        "paused before lapsed",
        to_group(LEASED) / ns(LEASED),
        Reason.PAUSED,
        paused=True,
        lapsed=True,
    ),
    Case(
        "expired before lapsed",
        to_group(LEASED_DYNAMIC) / ns(LEASED_DYNAMIC),
        Reason.EXPIRED,
        daemon_dead=True,
        lapsed=True,
    ),
    Case("lapsed before dad ignored", asks_dad(LEASED_NO_DAD), Reason.LAPSED, lapsed=True),
    Case("its twin, the lease valid: dad ignored", asks_dad(LEASED_NO_DAD), Reason.DAD_IGNORED),
    Case(
        "lapsed before rate",
        to_group(LEASED, eth_src="02:00:5e:20:00:1f") / ns(LEASED),
        Reason.LAPSED,
        lapsed=True,
        rate_exceeded=True,
    ),
    Case("expired before dad ignored", asks_dad(DYNAMIC_NO_DAD), Reason.EXPIRED, daemon_dead=True),
    Case("its twin, the daemon alive: dad ignored", asks_dad(DYNAMIC_NO_DAD), Reason.DAD_IGNORED),
    Case(
        "expired before rate",
        to_group(DYNAMIC, eth_src="02:00:5e:20:00:07") / ns(DYNAMIC),
        Reason.EXPIRED,
        daemon_dead=True,
        rate_exceeded=True,
    ),
    Case(
        "dad ignored before rate",
        Ether(src="02:00:5e:20:00:08", dst=group_mac(group("2001:db8:0:5::a")))
        / IPv6(src="::", dst=group("2001:db8:0:5::a"), hlim=255)
        / ns("2001:db8:0:5::a"),
        Reason.DAD_IGNORED,
        rate_exceeded=True,
    ),
]

CASES = [
    *_PLAIN,
    *_PROBES,
    *_DAD,
    *_ADVERTISED_MACS,
    *_HEADERS,
    *_LENGTHS,
    *_OPTIONS,
    *_LONG,
    *_CHECKSUMS,
    *_NOT_NS,
    *_TAGS,
    *_RULES,
    *_LOCAL,
    *_PROFILES,
    *_SETTINGS,
    *_PRECEDENCE,
]
