"""The links between the daemon's host and the router, their targets, and the configuration."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab.programs import build_xdp_pass
from ndxdp.rules.prefix import parse_prefix
from tests.fixtures.fake_engine import Fake, container, network
from tests.fixtures.network import sh
from tests.soak.router import ROUTER, Group, Link

LINKS = 4
SWITCHED = 6
"""The number of prefixes of each link that come and go in the file, as many by hand, and as many
containers."""

MODES = ("native", "tc", "generic", "userspace")
METRICS = "[::1]:9877"


@dataclass
class Uplink:
    """A link: the router's end, and the configuration of the host's end.

    listed, manual, containers: groups of one prefix each that can be switched on and off.
    """

    number: int
    link: Link
    mac: bytes
    mode: str
    listed: dict[str, Group] = field(default_factory=dict)
    manual: dict[str, Group] = field(default_factory=dict)
    containers: dict[str, Group] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.link.name

    @property
    def prefix(self) -> str:
        return f"2001:db8:0:{self.number:x}"

    @property
    def switched(self) -> dict[str, Group]:
        return self.listed | self.manual | self.containers


def uplink(number: int) -> Uplink:
    """Describe a link, without creating anything."""
    far_mac = bytes.fromhex(f"0200000001{number:02x}")
    mac = bytes.fromhex(f"0200000002{number:02x}")
    link = Link(f"up{number}", f"eth{number}", far_mac, mac)
    found = Uplink(number, link, mac, MODES[number % len(MODES)])
    steady = Group("steady", within(f"{found.prefix}:a::/80", 32), answered=True, share=12)
    outside = Group("outside", within(f"{found.prefix}:b::/80", 32), answered=False)
    # Inside the steady prefix, whose solicited targets have only 32 random bits.
    holes = Group("holes", within(f"{found.prefix}:a:f::/96", 16), answered=False)
    owned = Group("gateway", within(f"{found.prefix}::1/128", 0), answered=False, share=0.2)
    link.groups = [steady, outside, holes, owned]
    for each in range(SWITCHED):
        for letter, groups in (("c", found.listed), ("d", found.manual)):
            prefix = str(parse_prefix(f"{found.prefix}:{letter}:{each:x}::/96"))
            groups[prefix] = Group(prefix, within(prefix, 16), answered=False, share=0.5)
        address = str(parse_prefix(f"{found.prefix}:e::{each + 1:x}"))
        found.containers[address] = Group(address, within(address, 0), answered=False, share=0.2)
    link.groups += found.switched.values()
    return found


def within(prefix: str, bits: int) -> Callable[[random.Random], bytes]:
    """Return a function that picks an address of a prefix, with that many random bits."""
    first = int.from_bytes(parse_prefix(prefix).address, "big")

    def pick(rng: random.Random) -> bytes:
        return (first | rng.getrandbits(bits + 1) >> 1).to_bytes(16, "big")

    return pick


@contextlib.contextmanager
def world(folder: Path) -> Iterator[tuple[list[Uplink], Fake]]:
    """Build the router, all links and a scripted Docker engine."""
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "netns", "add", ROUTER)
    sh("nsenter", f"--net=/run/netns/{ROUTER}", "ip", "link", "set", "lo", "up")
    uplinks = [uplink(number) for number in range(LINKS)]
    for each in uplinks:
        connect(each)
    engine = Fake(folder / "docker.sock")
    engine.networks = [network("six", "2001:db8::/32")]
    try:
        yield uplinks, engine
    finally:
        engine.close()
        for each in uplinks:
            each.link.close()


def connect(uplink: Uplink) -> None:
    """Create a link, with addresses at both ends, and begin to solicit there."""
    link, name = uplink.link, uplink.name
    peer = f"peer name {link.far} address {link.far_mac.hex(':')} netns {ROUTER}"
    sh(*f"ip link add {name} address {uplink.mac.hex(':')} type veth {peer}".split())
    far = f"""
        link set {link.far} addrgenmode none up
        address add fe80::1/64 dev {link.far} nodad
        address add {uplink.prefix}::1/64 dev {link.far} nodad
    """
    at_router = ("nsenter", f"--net=/run/netns/{ROUTER}", "ip")
    sh(*at_router, "-6", "-batch", "-", stdin=far)
    # Native XDP at this end needs a program at the other (lab/topology.py).
    sh(*at_router, *f"link set dev {link.far} xdp obj {build_xdp_pass()} sec xdp".split())
    sh("ip", "link", "set", name, "addrgenmode", "none")
    bring_up(uplink)
    link.open()


def bring_up(uplink: Uplink) -> None:
    """Set the host's end up, with the addresses that it loses when it goes down."""
    name = uplink.name
    near = f"""
        link set {name} up
        address replace fe80::2/64 dev {name} nodad
        address replace {uplink.prefix}::2/64 dev {name} nodad
        route replace default via {uplink.prefix}::1 dev {name} metric {uplink.number + 1}
    """
    sh("ip", "-6", "-batch", "-", stdin=near)


def configuration(uplinks: list[Uplink], listed: dict[str, set[str]], engine: Path) -> str:
    """Write the daemon's file; listed: for each interface, the switched prefixes to include."""
    parts = [f'[metrics]\nlisten = "{METRICS}"\n[docker]\nsocket = "{engine}"\n']
    for each in uplinks:
        parts.append(f'[[interface]]\nname = "{each.name}"\nmode = "{each.mode}"\n')
        prefixes = [f"{each.prefix}:a::/80", *sorted(listed[each.name])]
        parts += [f'[[interface.prefix]]\nprefix = "{prefix}"\n' for prefix in prefixes]
        hole = f"{each.prefix}:a:f::/96"
        parts.append(f'[[interface.prefix]]\nprefix = "{hole}"\nanswer = "never"\n')
        parts.append(f'[[interface.docker]]\ncontainer_label = "link={each.name}"\n')
    return "\n".join(parts)


def listed_container(uplink: Uplink, address: str) -> dict[str, object]:
    """Describe a running container as the engine lists it."""
    found = container(1, "six", link=uplink.name)
    found["Names"] = [f"/{address}"]
    found["NetworkSettings"]["Networks"]["six"]["GlobalIPv6Address"] = address
    return found


def wait_until(link: Link, mac: bytes, within: float) -> bool:
    """Wait until a solicitation that is sent from now on has been answered with this MAC."""
    since, deadline = time.monotonic(), time.monotonic() + within
    while not link.is_answered(mac, since):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
