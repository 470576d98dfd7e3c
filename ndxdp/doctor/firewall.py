"""Rules of nftables that eat neighbor discovery, or what is forwarded.

The kernel's own solicitations and answers pass the firewall; what a BPF program of ndxdp answers
does not. Conntrack does not track neighbor discovery (nf_conntrack_icmpv6), so that
`ct state established` does not let it in.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ndxdp.doctor.finding import Finding, failure, unseen
from ndxdp.doctor.netfilter import Chain, Packet, Ruleset
from ndxdp.ndp import Answer
from ndxdp.policy import Prefix, Rules

log = logging.getLogger(__name__)

_LEGACY = Path("/proc/thread-self/net/ip6_tables_names")
_WITHIN = 0.8  # seconds for each listing of all rules
_PREFIXES_MAX = 8  # in a command; beyond them one would not read it any more

_TYPES = "{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert }"


@dataclass(frozen=True, slots=True)
class Facts:
    """ruleset: None if it could not be read: then why says so.

    legacy: there are rules of ip6tables-legacy, which nft does not show. advertisements: the
    kernel takes those of routers. behind: prefixes that ndxdp answers for.
    """

    interface: str
    ruleset: Ruleset | None
    why: str
    legacy: bool
    advertisements: bool
    behind: tuple[Prefix, ...]


def gather(interface: str, advertisements: bool, rules: Rules) -> Facts:
    ruleset, why = _list()
    behind = tuple(
        sorted(prefix for prefix, rule in rules.items() if rule.answer is not Answer.NEVER)
    )
    return Facts(interface, ruleset, why, _has_legacy(), advertisements, behind)


def _list() -> tuple[Ruleset | None, str]:
    """Terse: without the elements of named sets, of which there may be a million."""
    try:
        done = _run("nft", "--json", "--terse", "list", "ruleset")
    except FileNotFoundError:
        return None, "nft is not installed"
    except subprocess.TimeoutExpired:
        return None, f"nft needs more than {_WITHIN} s"
    if done.returncode:
        said = done.stderr.decode(errors="replace").partition("\n")[0].strip()
        return None, "only root may list them" if os.geteuid() else said
    try:
        ruleset = Ruleset.of(json.loads(done.stdout))
    except ValueError as error:
        log.debug("nft: %s", error)
        return None, "what nft says makes no sense"
    if any(chain[:2] == ("ip6", "filter") for chain in ruleset.chains.values()):
        with contextlib.suppress(FileNotFoundError, subprocess.TimeoutExpired):
            saved = _run("ip6tables-save", "-t", "filter")
            ruleset.refine(saved.stdout.decode(errors="replace"))
    return ruleset, ""


def _run(*command: str) -> subprocess.CompletedProcess[bytes]:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return subprocess.run(
        command,
        capture_output=True,
        env=os.environ | {"PATH": path},
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
        found.append(unseen("rules of ip6tables-legacy", "ip6tables-legacy -S"))
    if facts.ruleset is None:
        found.append(unseen(f"the firewall's rules: {facts.why}", "nft list ruleset"))
        return found
    found += _discovery(facts, facts.ruleset)
    if facts.behind:
        found += _forwarding(facts, facts.ruleset)
    return found


def _discovery(facts: Facts, ruleset: Ruleset) -> Iterator[Finding]:
    """One finding for each chain, with all that it eats."""
    cases = [
        (
            "input",
            "nd-neighbor-advert",
            "the host does not learn its neighbours, the gateway's MAC",
        ),
        ("input", "nd-neighbor-solicit", "nobody learns the MAC of the host's own addresses"),
        ("output", "nd-neighbor-solicit", "the host cannot ask for its neighbours, the gateway"),
        ("output", "nd-neighbor-advert", "nobody learns the MAC of the host's own addresses"),
    ]
    if facts.advertisements:
        cases.append(("input", "nd-router-advert", "the default route is not renewed"))
    eaten: dict[tuple[str, str, str], tuple[Chain, list[str], str]] = {}
    for hook, kind, why in cases:
        chain = ruleset.dropping(hook, _neighbor_discovery(facts.interface, hook, kind))
        if chain is not None:
            eaten.setdefault(chain[:3], (chain, [], why))[1].append(kind)
    for chain, kinds, why in eaten.values():
        yield failure(
            f"the firewall drops {', '.join(kinds)} in {_where(chain)}", why, _let_in(chain)
        )


def _neighbor_discovery(interface: str, hook: str, kind: str) -> Packet:
    return {
        "meta iifname" if hook == "input" else "meta oifname": interface,
        "meta iif" if hook == "input" else "meta oif": interface,
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
    """`ip6tables` made it, and is confused by rules of another shape."""
    return chain.family == "ip6" and chain.table == "filter" and chain.name.isupper()


def _let_in(chain: Chain) -> str:
    if _by_iptables(chain):
        return f"ip6tables -I {chain.name} -p icmpv6 -m hl --hl-eq 255 -j ACCEPT"
    return f"nft 'insert rule {_where(chain)} icmpv6 type {_TYPES} accept'"


def _forwarding(facts: Facts, ruleset: Ruleset) -> Iterator[Finding]:
    """Even what belongs to a connection that was let through in the other direction."""
    for way, option, address, state in (
        ("iifname", "-i", "daddr", "established"),
        ("oifname", "-o", "saddr", None),
    ):
        packet: dict[str, object] = {
            f"meta {way}": facts.interface,
            f"meta {way.removesuffix('name')}": facts.interface,
            "meta nfproto": "ipv6",
            "meta protocol": "ip6",
        }
        if state:
            packet["ct state"] = state
        chain = ruleset.dropping("forward", packet)
        if chain is None:
            continue
        some = ", ".join(str(prefix) for prefix in facts.behind[:_PREFIXES_MAX])
        if _by_iptables(chain):
            flag = "-d" if way == "iifname" else "-s"
            among = some.replace(", ", ",")
            cure = f"ip6tables -I {chain.name} {option} {facts.interface} {flag} {among} -j ACCEPT"
        else:
            cure = (
                f'nft \'insert rule {_where(chain)} {way} "{facts.interface}"'
                f" ip6 {address} {{ {some} }} accept'"
            )
        direction = "from" if way == "iifname" else "to"
        yield failure(
            f"the firewall drops all that is forwarded {direction} {facts.interface},"
            f" in {_where(chain)}",
            "solicitations are answered, but what then comes does not reach its target",
            cure,
        )
