"""Conversion of odhcpd's relay mode (OpenWrt) into a draft with a share. Pure.

odhcpd reads the sections `dhcp` of /etc/config/dhcp: `ndp 'relay'` on the network with `master '1'`
and on others makes a proxy between them, `ra 'relay'` relays router advertisements. A section names
an OpenWrt network; /etc/config/network has the network's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ndxdp.convert import uci_syntax
from ndxdp.convert.draft import Draft, DraftShare, Note
from ndxdp.convert.uci_syntax import Section
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.printable import printable
from ndxdp.rules.interface_name import INTERFACE_MAX, check_interface

_MODES = ("disabled", "server", "relay", "hybrid")
_RELAYS = ("relay", "hybrid")

_WITHOUT_COUNTERPART = {
    "dns": "router advertisements are relayed with the name servers that they came with",
    "ndproxy_slave": "hosts of all downstream interfaces are learned",
}
_OVER_PPP = ("pppoe", "pppoa", "pptp", "l2tp", "3g")


@dataclass(frozen=True, slots=True)
class _Member:
    """An OpenWrt network that odhcpd works on.

    Attributes:
        network: The name of the network.
        device: The name of its device; "" if it is unknown.
        section: The section that names the network.
    """

    network: str
    device: str
    section: Section

    @property
    def name(self) -> str:
        """The name of the interface in the converted file."""
        return self.device or self.network

    def relays(self, service: str) -> bool:
        """Return True if `ndp`, `ra` or `dhcpv6` is relayed."""
        return self.section.value(service) in _RELAYS


def convert(files: Sequence[tuple[str, str]]) -> Draft:
    """Return the draft that corresponds to OpenWrt's files.

    Args:
        files: The name and the text of /etc/config/dhcp, and of /etc/config/network if it is known.

    Raises:
        NdxdpError: libuci or odhcpd refuses a file, or odhcpd relays nothing.
    """
    sections: list[Section] = []
    networks: list[Section] = []
    named = ""
    for path, text in files:
        found = uci_syntax.parse(text, printable(path))
        networks += [each for each in found if each.type == "interface"]
        dhcp = [each for each in found if each.type == "dhcp"]
        if dhcp and sections:
            raise NdxdpError(
                f"{printable(path)} and {named} both have sections of type dhcp",
                "give one /etc/config/dhcp, and /etc/config/network",
            )
        sections, named = (dhcp, printable(path)) if dhcp else (sections, named)
    if not sections:
        raise NdxdpError(
            f"{printable(files[0][0])} has no section of type dhcp",
            "odhcpd's relays are in /etc/config/dhcp: ndxdp convert /etc/config/dhcp",
        )
    return _draft(sections, networks, named)


def _draft(sections: list[Section], networks: list[Section], path: str) -> Draft:
    draft = Draft(lines_of=path)
    members = [
        member for section in sections for member in _members(section, networks, path, draft.notes)
    ]
    proxied = [member for member in members if member.relays("ndp")]
    masters = [member for member in proxied if member.section.is_on("master")]
    slaves = [member for member in proxied if member not in masters]
    _refuse_no_relay(masters, slaves, path)
    upstream = masters[0]
    share = DraftShare(upstream.name)
    for member in masters[1:]:
        if member.name != upstream.name:
            sentence = (
                f"{member.network} is left out: a share has one upstream, here {share.upstream}"
            )
            share.notes.append(Note(member.section.line_of("master"), sentence))
    downstream = [member for member in slaves if member.name != upstream.name]
    share.downstream = list(dict.fromkeys(member.name for member in downstream))
    if not share.downstream:
        raise NdxdpError(
            f"{path}: all networks with ndp 'relay' are on {share.upstream}",
            "a share is between several interfaces",
        )
    _relay(share, upstream, downstream)
    for member in (upstream, *downstream):
        _note_member(share, member)
    for member in members:
        if member.relays("ra") and not member.relays("ndp"):
            sentence = (
                f"{member.network} is left out: with ra 'relay' and without ndp 'relay', its hosts"
                " have addresses, and nobody answers for them"
            )
            share.notes.append(Note(member.section.line_of("ra"), sentence))
    _explain_names(share, (upstream, *downstream), known=bool(networks))
    draft.shares.append(share)
    return draft


def _members(
    section: Section, networks: list[Section], path: str, notes: list[Note]
) -> list[_Member]:
    """Return the networks that a section is for."""
    for service in ("ra", "ndp", "dhcpv6"):
        mode = section.value(service, "disabled")
        if mode not in _MODES:
            raise NdxdpError(
                f"{path}:{section.line_of(service)}: '{mode}' is not one of {', '.join(_MODES)}",
                "odhcpd does not work on this network",
            )
    if not any(section.value(service) in _RELAYS for service in ("ra", "ndp")):
        return []
    option = section.options.get("interface")
    names = option.values if option else [section.name] if section.name else []
    if not names:
        notes.append(Note(section.line, "this section names no interface: odhcpd ignores it"))
    found = []
    for name in names:
        device = section.value("ifname") or _device(name, networks, path)
        member = _Member(name, device, section)
        try:
            check_interface(member.name)
        except UsageError as error:
            line = section.line_of("interface")
            raise NdxdpError(f"{path}:{line}: {error.message}", error.hint) from None
        if len(member.name.encode()) > INTERFACE_MAX:
            raise NdxdpError(
                f"{path}:{section.line_of('interface')}: {member.name} is longer than"
                f" {INTERFACE_MAX} bytes, so it is no device",
                "give /etc/config/network, too: it has the network's device",
            )
        found.append(member)
    return found


def _device(network: str, networks: list[Section], path: str) -> str:
    """Return the device of a network; "" if it is unknown."""
    known = {section.name: section for section in networks}
    seen: set[str] = set()
    while network in known and network not in seen:
        seen.add(network)
        section = known[network]
        if section.value("type") == "bridge":
            return f"br-{network}"
        if section.value("proto") in _OVER_PPP:
            return f"{section.value('proto')}-{network}"
        if section.value("proto") == "wireguard":
            return network
        words = section.value("device", section.value("ifname")).split()
        if len(words) != 1:
            return ""
        if not words[0].startswith("@"):
            return words[0]
        network = words[0].removeprefix("@")
    return ""


def _refuse_no_relay(masters: list[_Member], slaves: list[_Member], path: str) -> None:
    """Raise NdxdpError if odhcpd is no proxy between networks."""
    if not masters and not slaves:
        raise NdxdpError(
            f"{path}: no section has ndp 'relay', so odhcpd is no proxy",
            "a prefix that is delegated to this host, and served by odhcpd, needs no ndxdp",
        )
    if not masters:
        raise NdxdpError(
            f"{path}: no section with ndp 'relay' has master '1', so odhcpd relays nothing",
            "write option master '1' into the section of the upstream network, as in wan6",
        )
    if not slaves:
        raise NdxdpError(
            f"{path}: only master sections have ndp 'relay', so odhcpd relays nothing",
            "write option ndp 'relay' into the section of a network behind the router, as in lan",
        )


def _relay(share: DraftShare, upstream: _Member, downstream: list[_Member]) -> None:
    """Set whether the share relays router advertisements."""
    relaying = [member for member in downstream if member.relays("ra")]
    share.relay = upstream.relays("ra") and bool(relaying)
    if not share.relay:
        share.comments.append(
            "off: odhcpd does not relay router advertisements here; another program, such as radvd,"
            " has to send them downstream"
        )
        if relaying:
            sentence = f"ra 'relay' has no effect without ra 'relay' of {upstream.network}"
            share.notes.append(Note(relaying[0].section.line_of("ra"), sentence))
        return
    for member in downstream:
        if member not in relaying:
            mode = member.section.value("ra", "disabled")
            sentence = (
                f"{member.network} has ra '{mode}', but a share relays to all of its interfaces:"
                " remove it from downstream if that is not wanted"
            )
            share.notes.append(Note(member.section.line_of("ra"), sentence))


def _note_member(share: DraftShare, member: _Member) -> None:
    """Note the options of a network that have no counterpart."""
    section = member.section
    if member.relays("dhcpv6"):
        sentence = (
            "dhcpv6 'relay' is left out: ndxdp relays no DHCPv6; hosts choose their addresses by"
            " router advertisements, or a relay such as dhcrelay -6 runs beside ndxdp"
        )
        share.notes.append(Note(section.line_of("dhcpv6"), sentence))
    for service in ("ndp", "ra"):
        if section.value(service) == "hybrid":
            sentence = (
                f"{service} 'hybrid' is taken for relay, which it is while no prefix is delegated"
                " to the upstream network"
            )
            share.notes.append(Note(section.line_of(service), sentence))
    if section.value("ndproxy_routing") in ("0", "no", "off", "false", "disabled"):
        sentence = "ndproxy_routing '0' is left out: a share sets a route to each host"
        share.notes.append(Note(section.line_of("ndproxy_routing"), sentence))
    for key, why in _WITHOUT_COUNTERPART.items():
        if key in section.options and section.value(key) not in ("0", "no", "off", "false"):
            share.notes.append(Note(section.line_of(key), f"{key} has no counterpart: {why}"))


def _explain_names(share: DraftShare, members: Sequence[_Member], *, known: bool) -> None:
    """Comment on names that are no devices, or devices of another machine."""
    for member in members:
        if not member.device:
            where = (
                "is not in /etc/config/network, or has no device there"
                if known
                else ("is the name of an OpenWrt network")
            )
            share.notes.append(
                Note(
                    member.section.line,
                    f"{member.network} {where}: write the name of its device instead (uci get"
                    f" network.{member.network}.device), or give convert /etc/config/network, too",
                )
            )
    share.comments.append("the interfaces have OpenWrt's names; those of this host: ip -br link")
    pppoe = [m.name for m in members if m.name.partition("-")[0] in _OVER_PPP]
    if share.upstream in pppoe:
        share.comments.append(
            f"{share.upstream} is a PPP link, where no router solicits: ndxdp cannot share it"
        )
