"""Interfaces of a share: the usual mistakes on each of them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ndxdp.config.toml_text import quoted
from ndxdp.doctor import listeners
from ndxdp.doctor.finding import Finding, failure, note, warning
from ndxdp.doctor.listeners import Listener
from ndxdp.doctor.manager import Manager
from ndxdp.doctor.share_case import LinkBehind
from ndxdp.ndp.profile import Answer
from ndxdp.netlink import onlink, sysctl
from ndxdp.netlink.addresses import FOREVER, OwnAddress
from ndxdp.netlink.fib import Fib, NudState
from ndxdp.rules.address import address_text
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import SHARE_ORIGIN
from ndxdp.rules.ruleset import Rules

_GROUPS = Path("/proc/thread-self/net/igmp6")
_ALL_ROUTERS = "ff020000000000000000000000000002"

ADVERTISERS = ("radvd", "dnsmasq", "systemd-network", "odhcpd", "corerad", "bird", "zebra")
"""Process names of programs that send router advertisements; the kernel cuts them at 15 bytes."""

_SHOWN_MAX = 3  # addresses in a finding


@dataclass(frozen=True, slots=True)
class Member:
    """An interface of a share.

    Attributes:
        name: The name.
        ifindex: The index.
        quiet: The interface has no MAC.
        mac: The MAC; empty without one.
        forwarding: The sysctl forwarding.
        accept_ra: The sysctl accept_ra.
        on_link: The prefixes that are on-link there.
        own: The addresses, except link-local ones.
        soliciting: Processes that receive router solicitations there, as senders of router
            advertisements do.
        proxied: Addresses (16 bytes) of the kernel's proxy_ndp entries.
        macs: The MACs of live neighbours, by address (16 bytes).
        default_by_ra: A default route leaves here, and came with a router advertisement.
        disabled: The sysctl disable_ipv6.
    """

    name: str
    ifindex: int = 0
    quiet: bool = False
    mac: bytes = b""
    forwarding: bool = True
    accept_ra: int = 0
    on_link: frozenset[Prefix] = frozenset()
    own: tuple[OwnAddress, ...] = ()
    soliciting: int = 0
    proxied: tuple[bytes, ...] = ()
    macs: Mapping[bytes, bytes] | None = None
    default_by_ra: bool = False
    disabled: bool = False


def gather(
    name: str, ifindex: int, mac: bytes, addresses: Iterable[OwnAddress], *, default_by_ra: bool
) -> Member:
    """Read the facts about an interface of a share.

    Args:
        name: The name.
        ifindex: The index.
        mac: The MAC; empty without one.
        addresses: The addresses of the interface.
        default_by_ra: A default route leaves here, and came with a router advertisement.

    Raises:
        OSError: The kernel refused a request.
    """
    forwarding = bool(sysctl.conf(name, "forwarding"))
    with Fib() as fib:
        macs = {
            each.address: each.mac
            for each in fib.neighbours(ifindex)
            if each.mac and each.state.is_valid and each.state is not NudState.NOARP
        }
    return Member(
        name,
        ifindex,
        not mac,
        mac,
        forwarding,
        sysctl.conf(name, "accept_ra"),
        onlink.read((ifindex,)).prefixes,
        tuple(own for own in addresses if not own.link_local),
        # The kernel itself joins the group on an interface that forwards (dev_forward_change()).
        max(_joined(name, _ALL_ROUTERS) - forwarding, 0),
        tuple(listeners.proxied(ifindex)),
        macs,
        default_by_ra,
        bool(sysctl.conf(name, "disable_ipv6")),
    )


def _joined(interface: str, group: str) -> int:
    """Return how often a multicast group is joined on an interface.

    Args:
        interface: The interface.
        group: The group, as 32 hexadecimal digits.
    """
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:  # no /proc
        return 0
    for line in lines:  # index, interface, group, users, flags, timer
        fields = line.split()
        if fields[1:3] == [interface, group]:
            return int(fields[3])
    return 0


# ---- findings -----------------------------------------------------------------------------------


def winner(prefix: Prefix, ifindex: int) -> str:
    """Return the interface of the route that the kernel uses for a prefix; "" without one.

    Args:
        prefix: The prefix.
        ifindex: The interface by which a packet arrives.

    Raises:
        OSError: The kernel refused the request.
    """
    last = int.from_bytes(prefix.address, "big") | (1 << (128 - prefix.length)) - 1
    with Fib() as fib:
        # The last address of a prefix is hardly a host's, which may have a route of its own.
        found = fib.route(last.to_bytes(16, "big"), ifindex, matched=True).ifindex
    try:
        return socket.if_indextoname(found)
    except (OSError, OverflowError):
        return ""


def both_sides(
    upstream: Member, downstream: Iterable[Member], winners: Mapping[Prefix, str]
) -> Iterator[Finding]:
    """Yield findings about the connected routes of the shared prefixes.

    Args:
        upstream: The upstream interface.
        downstream: The other interfaces.
        winners: The interface whose route the kernel uses, for each shared prefix; "" for none.
    """
    for prefix, used in winners.items():
        for member in downstream:
            if prefix in member.on_link and prefix in upstream.on_link:
                yield _competing(upstream, member, prefix, used)
        if prefix not in upstream.on_link:
            yield warning(
                f"no route says that {prefix} is on the link of {upstream.name}",
                f"packets for hosts on {upstream.name} go to the router, and ndxdp answers for none"
                " of them downstream; add the route unless the router advertises the prefix"
                " without the L flag, which --probe shows",
                f"ip -6 route add {prefix} dev {upstream.name}",
            )


def _competing(upstream: Member, member: Member, prefix: Prefix, used: str) -> Finding:
    """Return a finding about two connected routes to one prefix."""
    loser, first = (member, upstream) if used != member.name else (upstream, member)
    own = [each for each in member.own if each.length == prefix.length]
    inside = [each for each in own if Prefix.around(each.address, each.length) == prefix]
    cure = " && ".join(
        f"ip -6 address delete {text}/{prefix.length} dev {member.name}"
        f" && ip -6 address add {text}/128 dev {member.name}"
        for text in (address_text(each.address) for each in inside)
    )
    made = (
        f"make the address on {member.name} a /128"
        if len(inside) == 1
        else f"make the addresses on {member.name} /128"
    )
    return failure(
        f"{prefix} is on-link on {upstream.name} and on {member.name}: two routes compete, and the"
        f" one by {first.name} wins now",
        f"hosts on {loser.name} are unreachable as long as they have no route of their own; "
        + (made if inside else f"remove the route by {member.name}")
        + ", because the share brings a route for each host there",
        cure or f"ip -6 route delete {prefix} dev {member.name}",
    )


def expiring(upstream: Member, prefixes: Iterable[Prefix], *, by_ra: bool) -> Iterator[Finding]:
    """Yield a finding if the prefix of a router advertisement is not renewed.

    Args:
        upstream: The upstream interface.
        prefixes: The shared prefixes.
        by_ra: The default route came with an advertisement: the check of forwarding reports it.
    """
    # systemd-networkd sets accept_ra to 0 and renews by itself.
    if by_ra or not upstream.forwarding or upstream.accept_ra != 1:
        return
    for own in upstream.own:
        around = Prefix.around(own.address, own.length)
        if own.valid != FOREVER and around in set(prefixes):
            yield failure(
                f"{address_text(own.address)} and the route to {around} expire in {own.valid} s",
                "a host that forwards renews what a router advertises only with accept_ra=2 on"
                f" {upstream.name}",
                sysctl.cure(sysctl.setting(upstream.name, "accept_ra", 2)),
            )
            return


def outside(
    upstream: str,
    links: Iterable[LinkBehind],
    prefixes: Iterable[Prefix],
    rules: Rules,
    file: str,
) -> Iterator[Finding]:
    """Yield findings about parts of the shared prefixes on links that are not in the share.

    Args:
        upstream: The upstream interface.
        links: The interfaces behind this host that are not in the share.
        prefixes: The shared prefixes.
        rules: The rules of the upstream interface.
        file: The configuration file; "" without one.
    """
    kept = list(prefixes)
    own = rules.where(lambda rule: rule.origin != SHARE_ORIGIN and rule.answer is not Answer.NEVER)
    answered = [*own.wider, *(Prefix(address, 128) for address in own.addresses)]
    for link in links:
        parts = [
            part
            for part in (*link.prefixes, *link.hosts)
            if any(each.covers(part) and each != part for each in kept)
            and not any(each.covers(part) or part.covers(each) for each in answered)
        ]
        if parts:
            more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
            yield warning(
                f"{parts[0]}{more} of the shared prefix is on {link.name}, which is not in the"
                f" share of {upstream}",
                f"nothing answers for hosts there: add {quoted(link.name)} to `downstream`"
                + (", or a table [[interface.docker]]" if link.by_engine else ""),
                f"editor {file}" if file else f"ip -6 route show dev {link.name}",
            )


def on_downstream(member: Member) -> Iterator[Finding]:
    """Yield findings about the sysctls of a downstream interface."""
    name = member.name
    if member.disabled:
        yield failure(
            f"IPv6 is disabled on {name}",
            "hosts there are neither heard nor reached. Incus, LXD and libvirt disable it on a"
            " bridge of theirs without an IPv6 address, and do so again: use a bridge of your own",
            sysctl.cure(sysctl.setting(name, "disable_ipv6", 0)),
        )
        return
    if not member.forwarding:
        yield failure(
            f"forwarding is off on {name}",
            f"ndxdp answers nothing on {name}: hosts there do not reach the others",
            sysctl.cure(sysctl.setting(name, "forwarding", 1)),
        )
    if member.default_by_ra:
        yield failure(
            f"a router advertisement from a host on {name} has brought a default route",
            f"packets to the Internet may leave by {name}, to that host",
            f"{sysctl.cure(sysctl.setting(name, 'accept_ra', 0))} && ip -6 route flush default"
            f" proto ra dev {name}",
        )
    elif member.accept_ra == 2 or (member.accept_ra == 1 and not member.forwarding):
        yield warning(
            f"{name} accepts router advertisements from the hosts behind it: accept_ra is"
            f" {member.accept_ra}",
            "any host there can take this host's default route over",
            sysctl.cure(sysctl.setting(name, "accept_ra", 0)),
        )


def proxies(member: Member, prefixes: Iterable[Prefix]) -> Iterator[Finding]:
    """Yield a finding about the kernel's proxy_ndp entries for addresses of the shared prefixes."""
    kept = list(prefixes)
    inside = [
        address
        for address in member.proxied
        if any(each.covers(Prefix(address, 128)) for each in kept)
    ]
    if inside:
        shown = ", ".join(map(address_text, inside[:_SHOWN_MAX]))
        more = f" and {len(inside) - _SHOWN_MAX} more" if len(inside) > _SHOWN_MAX else ""
        yield warning(
            f"the kernel's proxy_ndp answers on {member.name} for {shown}{more}",
            "it answers wherever the host really lives, also for Duplicate Address Detection; the"
            " share answers for living hosts by itself",
            f"ip -6 neighbour flush proxy dev {member.name}",
        )


def advertisers(
    member: Member,
    running: Iterable[Listener],
    manager: Manager | None,
    *,
    relay: bool,
) -> Iterator[Finding]:
    """Yield findings about other senders of router advertisements on a downstream interface.

    Args:
        member: The interface.
        running: The processes with ICMPv6 sockets.
        manager: The program that configures the interface.
        relay: The share relays router advertisements.
    """
    senders = [each for each in running if each.name in ADVERTISERS and each.raw]
    if not member.soliciting:
        if not relay and not member.quiet:
            yield note(
                f"no program sends router advertisements on {member.name}, and the share does not"
                " relay them: hosts there get no address and no default route by themselves"
            )
        return
    if not relay:
        return
    called = " or ".join(f"{each.name} (pid {each.pid})" for each in senders) or "another program"
    yield warning(
        f"{called} sends router advertisements on {member.name}, where the share relays those of"
        " the upstream router",
        "hosts there take two routers, with two sets of lifetimes; to keep the other sender, write"
        ' router_advertisements = "off" in the table [[share]]',
        _stop(member.name, senders, manager),
    )


def _stop(interface: str, senders: list[Listener], manager: Manager | None) -> str:
    """Return the command that ends, or shows, the sending of router advertisements."""
    names = {each.name for each in senders}
    if names == {"radvd"} or names == {"odhcpd"} or names == {"corerad"}:
        return " && ".join(
            dict.fromkeys(
                f"systemctl disable --now {each.unit}" if each.unit else f"kill {each.pid}"
                for each in senders
            )
        )
    if "systemd-network" in names and manager and manager.name == "systemd-networkd":
        folder = f"/etc/systemd/network/{Path(manager.file).name}.d"
        return (
            f"mkdir -p {folder} && printf '[Network]\\nIPv6SendRA=no\\n' > {folder}/no-ra.conf"
            f" && networkctl reload && networkctl reconfigure {interface}"
        )
    if "dnsmasq" in names:
        return "grep -rnE 'enable-ra|ra-(only|stateless|names)|constructor:' /etc/dnsmasq*"
    return "ss -lwp6"
