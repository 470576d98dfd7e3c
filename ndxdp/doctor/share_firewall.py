"""Firewall between the interfaces of a share: what it certainly drops, in both directions.

The firewall's check of one interface does not know by which other interface a packet leaves. Here
both are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Network

from ndxdp.doctor import firewall
from ndxdp.doctor.finding import Finding, failure, warning
from ndxdp.doctor.netfilter import Chain, Packet, Ruleset
from ndxdp.rules.prefix import Prefix

_HOOKS = ("forward",)
_PACKET_TOO_BIG = "packet-too-big"


def judge(
    ruleset: Ruleset, upstream: str, downstream: Iterable[str], prefixes: Iterable[Prefix]
) -> Iterator[Finding]:
    """Yield findings about packets that the firewall drops between the interfaces of a share.

    What the firewall drops of all packets of an interface is the finding of another check.

    Args:
        ruleset: The rules.
        upstream: The upstream interface.
        downstream: The other interfaces.
        prefixes: The shared prefixes.
    """
    kept = list(prefixes)
    for name in downstream:
        for comes_in, goes_out in ((upstream, name), (name, upstream)):
            found = _dropped(ruleset, comes_in, goes_out, kept, inward=goes_out == name)
            if found is not None:
                yield found


def discovery(ruleset: Ruleset, name: str) -> list[Finding]:
    """Return findings about Neighbor Discovery that the firewall drops on an interface.

    Args:
        ruleset: The rules.
        name: The interface.
    """
    return firewall.judge(firewall.Facts(name, ruleset, "", False, False, ()))


def _dropped(
    ruleset: Ruleset, comes_in: str, goes_out: str, prefixes: list[Prefix], *, inward: bool
) -> Finding | None:
    for prefix in prefixes:
        # A firewall that accepts only what hosts behind it have asked for is no mistake.
        packet = _packet(comes_in, goes_out, prefix, inward=inward)
        wide = {key: value for key, value in packet.items() if key not in _other(inward=inward)}
        if ruleset.dropping(_HOOKS, wide) is not None:
            return None
        chain = ruleset.dropping(_HOOKS, packet)
        if chain is not None:
            return failure(
                f"the firewall drops packets from {comes_in} to {goes_out}, in"
                f" {firewall.place_of(chain)}",
                f"hosts on {comes_in} and on {goes_out} do not reach each other, although ndxdp"
                " answers for them",
                _accept(chain, comes_in, goes_out, ""),
            )
        error: Packet = packet | {
            "meta l4proto": "ipv6-icmp",
            "ip6 nexthdr": "ipv6-icmp",
            "icmpv6 type": _PACKET_TOO_BIG,
            "icmpv6 code": 0,
            "ct state": "related",
        }
        chain = ruleset.dropping(_HOOKS, error)
        if chain is not None:
            return warning(
                f"the firewall drops ICMPv6 errors ({_PACKET_TOO_BIG}) from {comes_in} to"
                f" {goes_out}, in {firewall.place_of(chain)}",
                "connections stall at the first large packet: a router cannot report that it is too"
                " big for the path (RFC 4890 section 4.3.1)",
                _accept(chain, comes_in, goes_out, _PACKET_TOO_BIG),
            )
    return None


def _other(*, inward: bool) -> tuple[str, str]:
    """Return the fields of the interface that the check of the upstream interface leaves open."""
    return ("meta oifname", "meta oif") if inward else ("meta iifname", "meta iif")


def _packet(comes_in: str, goes_out: str, prefix: Prefix, *, inward: bool) -> dict[str, object]:
    network = IPv6Network((prefix.address, prefix.length))
    packet: dict[str, object] = {
        "meta iifname": comes_in,
        "meta iif": comes_in,
        "meta oifname": goes_out,
        "meta oif": goes_out,
        "meta nfproto": "ipv6",
        "meta protocol": "ip6",
        "ip6 daddr" if inward else "ip6 saddr": network,
    }
    if inward:
        packet["ct state"] = "established"
    return packet


def _accept(chain: Chain, comes_in: str, goes_out: str, kind: str) -> str:
    if firewall.by_iptables(chain):
        only = f" -p icmpv6 --icmpv6-type {kind}" if kind else ""
        return f"{firewall.insertion(chain)} -i {comes_in} -o {goes_out}{only} -j ACCEPT"
    only = f" icmpv6 type {kind}" if kind else ""
    return (
        f'nft \'insert rule {firewall.place_of(chain)} iifname "{comes_in}"'
        f' oifname "{goes_out}"{only} accept\''
    )
