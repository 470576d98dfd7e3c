"""Rules of nftables and ebtables that eat neighbor discovery, or what is forwarded.

The kernel's own solicitations and answers pass the firewall; what a BPF program of ndxdp answers
does not. Conntrack does not track neighbor discovery (nf_conntrack_icmpv6), so that
`ct state established` does not let it in.
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
"""Why the rules could not be listed, where that has a remedy of its own."""

_PACKAGE_MANAGERS = {
    "apt-get": "apt install nftables",
    "dnf": "dnf install nftables",
    "zypper": "zypper install nftables",
    "apk": "apk add nftables",
    "pacman": "pacman -S nftables",
}

_LEGACY = Path("/proc/thread-self/net/ip6_tables_names")
_WITHIN = 0.8  # seconds for each listing of all rules
_PREFIXES_MAX = 8  # in a command; beyond them one would not read it any more
_LOOKED_AT = 16  # prefixes, one by one: each is led through all chains

_INTO, _OUT = ("prerouting", "input"), ("output", "postrouting")
"""The hooks that a packet for this host, or of this host, meets."""

_TYPES = "{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert }"


@dataclass(frozen=True, slots=True)
class Facts:
    """ruleset: None if it could not be read: then why says so.

    legacy: there are rules of ip6tables-legacy, which nft does not show. advertisements: the
    kernel takes those of routers. behind: prefixes that ndxdp answers for. port: the interface, if
    it is a bridge's port; bridged: it is one, or a bridge. way_back: the interface that leads to
    the Internet, '' if none does. quiet: the interface has no MAC address, so that neither this
    host nor its neighbours solicit there.
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
    """The interface that leads to the Internet, '' if none does."""
    with contextlib.suppress(OSError), Fib() as fib:
        return socket.if_indextoname(fib.route(INTERNET, 0).ifindex)
    return ""


def _list(bridged: bool) -> tuple[Ruleset | None, str]:
    """Terse: without the elements of named sets, of which there may be a million."""
    try:
        done = _run("nft", "--json", "--terse", "list", "ruleset")
    except FileNotFoundError:
        return None, NOT_INSTALLED
    except OSError as error:  # it may not be executed
        return None, f"nft: {(error.strerror or str(error)).lower()}"
    except subprocess.TimeoutExpired:
        return None, f"nft needs more than {_WITHIN} s"
    if done.returncode:
        said = done.stderr.decode(errors="replace").partition("\n")[0].strip()
        return None, ONLY_ROOT if os.geteuid() or "not permitted" in said else said
    try:
        ruleset = Ruleset.of(json.loads(done.stdout))
    except ValueError as error:
        log.debug("nft: %s", error)
        return None, "its output cannot be read"
    tables = {(family, chain.isupper()) for family, _, chain in ruleset.chains}
    commands = [("ip6", "ip6tables-save")] + ([("bridge", "ebtables-save")] if bridged else [])
    for family, command in commands:
        if (family, True) in tables:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                saved = _run(command)
                ruleset.refine(saved.stdout.decode(errors="replace"), family)
    return ruleset, ""


def _path() -> str:
    """Return the PATH for commands: a user's may be without the administrator's directories."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _to_list(why: str) -> tuple[str, str]:
    """Return a command and a hint for who could not list the rules."""
    if why == ONLY_ROOT:
        return "", "run this as root"
    if why != NOT_INSTALLED:
        return "nft list ruleset", ""
    if shutil.which("ip6tables", path=_path()):
        return "ip6tables -S", "ip6tables is there, and shows the rules that it made itself"
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
    found = []
    if facts.legacy:
        found.append(unseen("cannot look at rules of ip6tables-legacy", "ip6tables-legacy -S"))
    if facts.ruleset is None:
        cure, hint = _to_list(facts.why)
        found.append(unseen(f"cannot look at the firewall's rules: {facts.why}", cure, hint))
        return found
    found += _discovery(facts, facts.ruleset)
    if facts.behind:
        found += _forwarding(facts, facts.ruleset)
    return found


def _discovery(facts: Facts, ruleset: Ruleset) -> Iterator[Finding]:
    """One finding for each chain, with all that it eats."""
    cases = [
        (_INTO, "nd-neighbor-advert", "the host does not learn its neighbours, the gateway's MAC"),
        (_INTO, "nd-neighbor-solicit", "nobody learns the MAC of the host's own addresses"),
        (_OUT, "nd-neighbor-solicit", "the host cannot ask for its neighbours, the gateway"),
        (_OUT, "nd-neighbor-advert", "nobody learns the MAC of the host's own addresses"),
    ]
    if facts.quiet:
        cases = []
    if facts.advertisements:
        cases.append((_INTO, "nd-router-advert", "the default route is not renewed"))
    eaten: dict[tuple[str, str, str], tuple[Chain, list[str], str]] = {}
    for hooks, kind, why in cases:
        packet = _neighbor_discovery(facts.interface, hooks is _INTO, kind)
        chain = ruleset.dropping(hooks, packet)
        if chain is None and facts.bridged:
            frame = _bridged(facts.port, hooks is _INTO, kind)
            chain = ruleset.dropping(hooks, frame, BRIDGE)
        if chain is not None:
            eaten.setdefault(chain[:3], (chain, [], why))[1].append(kind)
    for chain, kinds, why in eaten.values():
        yield failure(
            f"the firewall drops {', '.join(kinds)} in {_where(chain)}", why, _let_in(chain)
        )


def _bridged(port: str, comes: bool, kind: str) -> Packet:
    """The same as a frame of the bridge; by which port is known only where that was named."""
    frame = _neighbor_discovery(port, comes, kind) | {"ether type": "ip6"}
    if not port:
        del frame["meta iifname" if comes else "meta oifname"]
        del frame["meta iif" if comes else "meta oif"]
    return frame


def _neighbor_discovery(interface: str, comes: bool, kind: str) -> dict[str, object]:
    return {
        "meta iifname" if comes else "meta oifname": interface,
        "meta iif" if comes else "meta oif": interface,
        STRICT: True,  # a neighbour: the way back is the link
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


def _where(chain: Chain) -> str:
    return f"{chain.family} {chain.table} {chain.name}"


def _by_iptables(chain: Chain) -> bool:
    """`ip6tables` or `ebtables` made it, and is confused by rules of another shape."""
    tables = ("filter", "raw", "mangle", "security")
    return chain.family in ("ip6", "bridge") and chain.table in tables and chain.name.isupper()


def _iptables(chain: Chain) -> str:
    if chain.family == "bridge":
        return f"ebtables -I {chain.name} -p IPv6"
    table = "" if chain.table == "filter" else f" -t {chain.table}"
    return f"ip6tables{table} -I {chain.name}"


def _let_in(chain: Chain) -> str:
    if _by_iptables(chain):
        if chain.family == "bridge":
            return f"{_iptables(chain)} --ip6-proto ipv6-icmp -j ACCEPT"
        return f"{_iptables(chain)} -p icmpv6 -m hl --hl-eq 255 -j ACCEPT"
    return f"nft 'insert rule {_where(chain)} icmpv6 type {_TYPES} accept'"


def _forwarding(facts: Facts, ruleset: Ruleset) -> Iterator[Finding]:
    """What certainly does not pass; even what belongs to a connection that was let through."""
    eaten: dict[tuple[bool, bool, tuple[str, str, str]], tuple[Chain, list[Prefix]]] = {}
    for comes in (True, False):
        for prefix in facts.behind[:_LOOKED_AT]:
            found = _dropped(ruleset, _forwarded(facts, prefix, comes), comes)
            if found is not None:
                chain, back = found
                eaten.setdefault((comes, back, chain[:3]), (chain, []))[1].append(prefix)
    for (comes, back, _), (chain, prefixes) in eaten.items():
        if not back:
            yield _eaten(facts, chain, prefixes, comes)
        elif facts.way_back:  # that there is none has its own finding
            yield _spoofed(facts, chain)


def _dropped(ruleset: Ruleset, packet: dict[str, object], comes: bool) -> tuple[Chain, bool] | None:
    """The chain, and whether it would not if the way back were by the same interface."""
    if not comes:  # by which interface it came in, nobody knows
        chain = ruleset.dropping(("forward", "postrouting"), packet)
        return (chain, False) if chain else None
    friendly = {STRICT: True, LOOSE: True}
    chain = ruleset.dropping(("prerouting", "forward"), packet)
    if chain is not None:
        return chain, DROP not in ruleset.outcomes(chain, packet | friendly)
    # ICMPv6 is often let pass before the way back is looked at. To drop TCP alone may be a wish.
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


def _eaten(facts: Facts, chain: Chain, prefixes: list[Prefix], comes: bool) -> Finding:
    way, option, flag, address = (
        ("iifname", "-i", "-d", "daddr") if comes else ("oifname", "-o", "-s", "saddr")
    )
    some = ", ".join(str(prefix) for prefix in prefixes[:_PREFIXES_MAX])
    if _by_iptables(chain):
        among = some.replace(", ", ",")
        cure = f"{_iptables(chain)} {option} {facts.interface} {flag} {among} -j ACCEPT"
    else:
        cure = (
            f'nft \'insert rule {_where(chain)} {way} "{facts.interface}"'
            f" ip6 {address} {{ {some} }} accept'"
        )
    way_to = "from" if comes else "to"
    what = f"all that is forwarded {way_to} {facts.interface}"
    if len(prefixes) < len(facts.behind[:_LOOKED_AT]):
        more = f" and {len(prefixes) - 1} more" if len(prefixes) > 1 else ""
        whom = "for" if comes else "by"
        what = f"what is forwarded {way_to} {facts.interface} {whom} {prefixes[0]}{more}"
    return failure(
        f"the firewall drops {what}, in {_where(chain)}",
        "solicitations are answered, but the packets that follow do not reach their target",
        cure,
    )


def _spoofed(facts: Facts, chain: Chain) -> Finding:
    """Reverse path filtering, which IPv6 has in the firewall only."""
    if _by_iptables(chain):
        cure = f"{_iptables(chain)} -i {facts.interface} -m rpfilter --loose -j ACCEPT"
    else:
        way = f'iifname "{facts.interface}" fib saddr oif exists'
        cure = f"nft 'insert rule {_where(chain)} {way} accept'"
    lasting = "; so that it stays, IPv6_rpfilter=loose in firewalld.conf"
    return failure(
        f"the firewall drops what the Internet sends by {facts.interface}, in {_where(chain)}:"
        f" the way back leads out of {facts.way_back}",
        "its reverse path filter takes such packets for spoofed; a loose one accepts any way back"
        f"{lasting if chain.table == 'firewalld' else ''}",
        cure,
    )
