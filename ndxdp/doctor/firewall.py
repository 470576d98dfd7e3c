"""Rules of nftables and ebtables that drop neighbor discovery or forwarded packets.

The kernel's own solicitations and answers traverse the firewall; the answers of a BPF program of
ndxdp do not. Conntrack does not track neighbor discovery (nf_conntrack_icmpv6), so
`ct state established` does not accept it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Network
from pathlib import Path

from ndxdp.doctor.finding import Finding, failure, unseen
from ndxdp.doctor.netfilter import BRIDGE, DROP, LOOSE, STRICT, Chain, Packet, Ruleset
from ndxdp.doctor.source import INTERNET
from ndxdp.ndp.profile import Answer
from ndxdp.netlink.fib import Fib
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.ruleset import Rules

log = logging.getLogger(__name__)

NOT_INSTALLED = "nft is not installed"
ONLY_ROOT = "only root may list them"
"""Reasons why the rules could not be listed that have a remedy of their own."""

_PACKAGE_MANAGERS = {
    "apt-get": "apt install nftables",
    "dnf": "dnf install nftables",
    "zypper": "zypper install nftables",
    "apk": "apk add nftables",
    "pacman": "pacman -S nftables",
}

_LEGACY = Path("/proc/thread-self/net/ip6_tables_names")
_WITHIN = 0.8  # seconds for each listing of all rules
_PREFIXES_MAX = 8  # in a command, which would be unreadable with more
_CHECKED_MAX = 16  # prefixes that are checked: each traverses all chains

_INTO, _OUT = ("prerouting", "input"), ("output", "postrouting")
"""Hooks that a packet to this host, or from this host, traverses."""

_TYPES = "{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert }"


@dataclass(frozen=True, slots=True)
class Facts:
    """Firewall of an interface.

    Attributes:
        interface: The interface that has the addresses: the bridge of a port.
        ruleset: The rules; None if they could not be read.
        why: Why they could not be read.
        legacy: ip6tables-legacy has rules, which nft does not show.
        advertisements: The kernel has a default route from router advertisements.
        behind: Prefixes that ndxdp answers for.
        port: The interface on which ndxdp answers, if it is a port of a bridge; else "".
        bridged: The interface is a bridge or a port of one.
        way_back: The interface that leads to the Internet; "" if none does.
        quiet: The interface has no MAC address, so no node solicits there.
    """

    interface: str
    ruleset: Ruleset | None
    why: str
    legacy: bool
    advertisements: bool
    behind: tuple[Prefix, ...]
    port: str = ""
    bridged: bool = False
    way_back: str = ""
    quiet: bool = False


def gather(
    interface: str,
    advertisements: bool,
    rules: Rules,
    *,
    port: str = "",
    bridged: bool = False,
    quiet: bool = False,
) -> Facts:
    """Collect the rules of the firewall, and which of the host's traffic they concern.

    Args:
        interface: The interface that has the addresses: the bridge of a port.
        advertisements: The kernel has a default route from router advertisements.
        rules: The rules of ndxdp.
        port: The interface on which ndxdp answers, if it is a port of a bridge; else "".
        bridged: The interface is a bridge or a port of one.
        quiet: The interface has no MAC address, so no node solicits there.
    """
    ruleset, why = _list(bridged)
    behind = tuple(sorted(rules.where(lambda rule: rule.answer is not Answer.NEVER)))
    return Facts(
        interface,
        ruleset,
        why,
        _has_legacy(),
        advertisements,
        behind,
        port,
        bridged,
        _way_back(),
        quiet,
    )


def _way_back() -> str:
    """Return the interface that leads to the Internet; "" if none does."""
    with contextlib.suppress(OSError), Fib() as fib:
        return socket.if_indextoname(fib.route(INTERNET, 0).ifindex)
    return ""


def _list(bridged: bool) -> tuple[Ruleset | None, str]:
    """List the rules, without the elements of named sets, of which there may be a million.

    Returns:
        The rules, or None and the reason why they could not be listed.
    """
    try:
        done = _run("nft", "--json", "--terse", "list", "ruleset")
    except FileNotFoundError:
        return None, NOT_INSTALLED
    except OSError as error:  # no permission to execute nft
        return None, f"nft: {(error.strerror or str(error)).lower()}"
    except subprocess.TimeoutExpired:
        return None, f"nft needs more than {_WITHIN} s"
    if done.returncode:
        message = done.stderr.decode(errors="replace").partition("\n")[0].strip()
        return None, ONLY_ROOT if os.geteuid() or "not permitted" in message else message
    try:
        ruleset = Ruleset.of(json.loads(done.stdout))
    except ValueError as error:
        log.debug("nft: %s", error)
        return None, "nft's output cannot be parsed"
    tables = {(family, chain.isupper()) for family, _, chain in ruleset.chains}
    commands = [("ip6", "ip6tables-save")] + ([("bridge", "ebtables-save")] if bridged else [])
    for family, command in commands:
        if (family, True) in tables:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                saved = _run(command)
                ruleset.refine(saved.stdout.decode(errors="replace"), family)
    return ruleset, ""


def _path() -> str:
    """Return the PATH for commands, with the directories of the administrator's commands."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _to_list(why: str) -> tuple[str, str]:
    """Return a command and a hint for a reason why the rules could not be listed."""
    if why == ONLY_ROOT:
        return "", "run this as root"
    if why != NOT_INSTALLED:
        return "nft list ruleset", ""
    if shutil.which("ip6tables", path=_path()):
        return "ip6tables -S", "ip6tables is installed, and shows the rules that it created itself"
    managers = (name for name in _PACKAGE_MANAGERS if shutil.which(name, path=_path()))
    manager = next(managers, None)
    return _PACKAGE_MANAGERS[manager] if manager else "", "doctor reads the rules with nft"


def _run(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command,
        capture_output=True,
        env=os.environ | {"PATH": _path()},
        timeout=_WITHIN,
        check=False,
    )


def _has_legacy() -> bool:
    try:
        return bool(_LEGACY.read_text().split())
    except OSError:
        return False


def judge(facts: Facts) -> list[Finding]:
    """Return findings about rules that drop neighbor discovery or answered prefixes' traffic."""
    found = []
    if facts.legacy:
        found.append(unseen("cannot check rules of ip6tables-legacy", "ip6tables-legacy -S"))
    if facts.ruleset is None:
        cure, hint = _to_list(facts.why)
        found.append(unseen(f"cannot check the firewall's rules: {facts.why}", cure, hint))
        return found
    found += _discovery(facts, facts.ruleset)
    if facts.behind:
        found += _forwarding(facts, facts.ruleset)
    return found


def _discovery(facts: Facts, ruleset: Ruleset) -> Iterator[Finding]:
    """Yield a finding about each chain that drops neighbor discovery, with all types it drops."""
    unknown_gateway = "the host does not learn the MAC of its neighbours, such as the gateway"
    unknown_host = "the neighbours do not learn the MAC of the host's own addresses"
    cases = [
        (_INTO, "nd-neighbor-advert", unknown_gateway),
        (_INTO, "nd-neighbor-solicit", unknown_host),
        (_OUT, "nd-neighbor-solicit", unknown_gateway),
        (_OUT, "nd-neighbor-advert", unknown_host),
    ]
    if facts.quiet:
        cases = []
    if facts.advertisements:
        cases.append((_INTO, "nd-router-advert", "the kernel does not renew the default route"))
    dropped: dict[tuple[str, str, str], tuple[Chain, list[str], str]] = {}
    for hooks, kind, why in cases:
        packet = _neighbor_discovery(facts.interface, hooks is _INTO, kind)
        chain = ruleset.dropping(hooks, packet)
        if chain is None and facts.bridged:
            frame = _bridged(facts.port, hooks is _INTO, kind)
            chain = ruleset.dropping(hooks, frame, BRIDGE)
        if chain is not None:
            dropped.setdefault(chain[:3], (chain, [], why))[1].append(kind)
    for chain, kinds, why in dropped.values():
        yield failure(
            f"the firewall drops {', '.join(kinds)} in {place_of(chain)}", why, _let_in(chain)
        )


def _bridged(port: str, comes: bool, kind: str) -> Packet:
    """Return a packet of neighbor discovery as a frame of the bridge.

    Args:
        port: The port by which the frame comes or leaves; "" if not known.
        comes: The frame comes in.
        kind: The ICMPv6 type.
    """
    frame = _neighbor_discovery(port, comes, kind) | {"ether type": "ip6"}
    if not port:
        del frame["meta iifname" if comes else "meta oifname"]
        del frame["meta iif" if comes else "meta oif"]
    return frame


def _neighbor_discovery(interface: str, comes: bool, kind: str) -> dict[str, object]:
    return {
        "meta iifname" if comes else "meta oifname": interface,
        "meta iif" if comes else "meta oif": interface,
        STRICT: True,  # the source is a neighbour, and the way back is the link
        LOOSE: True,
        "meta nfproto": "ipv6",
        "meta protocol": "ip6",
        "meta l4proto": "ipv6-icmp",
        "ip6 nexthdr": "ipv6-icmp",
        "ip6 hoplimit": 255,
        "icmpv6 type": kind,
        "icmpv6 code": 0,
        "ct state": "untracked",
    }


def place_of(chain: Chain) -> str:
    """Return family, table and name of a chain, as nft's commands have them."""
    return f"{chain.family} {chain.table} {chain.name}"


def by_iptables(chain: Chain) -> bool:
    """Return whether `ip6tables` or `ebtables` manages a chain; other rules would confuse them."""
    tables = ("filter", "raw", "mangle", "security")
    return chain.family in ("ip6", "bridge") and chain.table in tables and chain.name.isupper()


def insertion(chain: Chain) -> str:
    """Return the beginning of the command that inserts a rule into a chain of by_iptables()."""
    if chain.family == "bridge":
        return f"ebtables -I {chain.name} -p IPv6"
    table = "" if chain.table == "filter" else f" -t {chain.table}"
    return f"ip6tables{table} -I {chain.name}"


def _let_in(chain: Chain) -> str:
    if by_iptables(chain):
        if chain.family == "bridge":
            return f"{insertion(chain)} --ip6-proto ipv6-icmp -j ACCEPT"
        return f"{insertion(chain)} -p icmpv6 -m hl --hl-eq 255 -j ACCEPT"
    return f"nft 'insert rule {place_of(chain)} icmpv6 type {_TYPES} accept'"


def _forwarding(facts: Facts, ruleset: Ruleset) -> Iterator[Finding]:
    """Report forwarded traffic that the ruleset certainly drops, replies included."""
    dropped: dict[tuple[bool, bool, tuple[str, str, str]], tuple[Chain, list[Prefix]]] = {}
    for comes in (True, False):
        for prefix in facts.behind[:_CHECKED_MAX]:
            found = _dropped(ruleset, _forwarded(facts, prefix, comes), comes)
            if found is not None:
                chain, back = found
                dropped.setdefault((comes, back, chain[:3]), (chain, []))[1].append(prefix)
    for (comes, back, _), (chain, prefixes) in dropped.items():
        if not back:
            yield _judge_dropped(facts, chain, prefixes, comes)
        elif facts.way_back:  # a missing way back has its own finding
            yield _judge_spoofed(facts, chain)


def _dropped(ruleset: Ruleset, packet: dict[str, object], comes: bool) -> tuple[Chain, bool] | None:
    """Return the chain that drops a packet, and whether its reverse path filter does.

    None if no chain certainly drops the packet. A reverse path filter would accept the packet if
    the way back were by the same interface.
    """
    if not comes:  # the interface by which the packet came in is not known
        chain = ruleset.dropping(("forward", "postrouting"), packet)
        return (chain, False) if chain else None
    friendly = {STRICT: True, LOOSE: True}
    chain = ruleset.dropping(("prerouting", "forward"), packet)
    if chain is not None:
        return chain, DROP not in ruleset.outcomes(chain, packet | friendly)
    # Rules often accept ICMPv6 before the reverse path filter, so TCP is checked as well. A chain
    # that drops TCP for another reason may do so on purpose.
    packet = packet | {"meta l4proto": "tcp"}
    chain = ruleset.dropping(("prerouting",), packet)
    if chain is not None and DROP not in ruleset.outcomes(chain, packet | friendly):
        return chain, True
    return None


def _forwarded(facts: Facts, prefix: Prefix, comes: bool) -> dict[str, object]:
    way = "iif" if comes else "oif"
    network = IPv6Network((prefix.address, prefix.length))
    packet: dict[str, object] = {
        f"meta {way}name": facts.interface,
        f"meta {way}": facts.interface,
        "meta nfproto": "ipv6",
        "meta protocol": "ip6",
        "ip6 daddr" if comes else "ip6 saddr": network,
    }
    if comes:
        packet |= {
            "ct state": "established",
            STRICT: facts.way_back == facts.interface,
            LOOSE: bool(facts.way_back),
        }
    return packet


def _judge_dropped(facts: Facts, chain: Chain, prefixes: list[Prefix], comes: bool) -> Finding:
    way, option, flag, address = (
        ("iifname", "-i", "-d", "daddr") if comes else ("oifname", "-o", "-s", "saddr")
    )
    some = ", ".join(str(prefix) for prefix in prefixes[:_PREFIXES_MAX])
    if by_iptables(chain):
        among = some.replace(", ", ",")
        cure = f"{insertion(chain)} {option} {facts.interface} {flag} {among} -j ACCEPT"
    else:
        cure = (
            f'nft \'insert rule {place_of(chain)} {way} "{facts.interface}"'
            f" ip6 {address} {{ {some} }} accept'"
        )
    way_to = "from" if comes else "to"
    what = f"all packets forwarded {way_to} {facts.interface}"
    if len(prefixes) < len(facts.behind[:_CHECKED_MAX]):
        more = f" and {len(prefixes) - 1} more" if len(prefixes) > 1 else ""
        whom = "for" if comes else "by"
        what = f"packets forwarded {way_to} {facts.interface} {whom} {prefixes[0]}{more}"
    return failure(
        f"the firewall drops {what}, in {place_of(chain)}",
        "ndxdp answers solicitations, but the packets that follow do not reach their target",
        cure,
    )


def _judge_spoofed(facts: Facts, chain: Chain) -> Finding:
    """Return a finding about a reverse path filter, which IPv6 has in the firewall only."""
    if by_iptables(chain):
        cure = f"{insertion(chain)} -i {facts.interface} -m rpfilter --loose -j ACCEPT"
    else:
        way = f'iifname "{facts.interface}" fib saddr oif exists'
        cure = f"nft 'insert rule {place_of(chain)} {way} accept'"
    lasting = "; to make this permanent, set IPv6_rpfilter=loose in firewalld.conf"
    return failure(
        f"the firewall drops packets from the Internet that come in by {facts.interface}, in"
        f" {place_of(chain)}: the way back leads out of {facts.way_back}",
        "its reverse path filter treats such packets as spoofed; a loose filter accepts any way"
        f" back{lasting if chain.table == 'firewalld' else ''}",
        cure,
    )
