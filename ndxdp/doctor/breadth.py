"""Rules that are too broad: they answer for, and defend, addresses of other nodes of the uplink."""

from __future__ import annotations

from dataclasses import dataclass

from ndxdp.doctor.finding import Finding, note, warning
from ndxdp.ndp.profile import Answer
from ndxdp.netlink import onlink
from ndxdp.rules import breadth
from ndxdp.rules.address import address_text
from ndxdp.rules.breadth import BroadRule
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import CONFIG_ORIGIN, MANUAL_ORIGIN, RESERVED_ORIGINS, SHARE_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules


@dataclass(frozen=True, slots=True)
class Facts:
    """Broad rules of an interface.

    Attributes:
        interface: The interface.
        broad: The rules that answer for other nodes, and the prefixes behind the host in each.
        left_out: Prefixes whose rule the daemon left out for that reason, with the rule and the
            prefixes behind the host.
        neighbours: Addresses (16 bytes) that an exact rule answers for and that a neighbour has,
            with the rule and the neighbour's MAC.
    """

    interface: str
    broad: tuple[tuple[BroadRule, tuple[Prefix, ...]], ...] = ()
    left_out: tuple[tuple[Prefix, Rule, tuple[Prefix, ...]], ...] = ()
    neighbours: tuple[tuple[bytes, Rule, bytes], ...] = ()


def gather(interface: str, ifindexes: tuple[int, int], rules: Rules) -> Facts:
    """Read an interface's on-link prefixes and its neighbours.

    Args:
        interface: The name of the interface.
        ifindexes: The interface, and the one that has its addresses: the bridge of a port.
        rules: The rules of the interface. Those of a share are left out: it has none for other
            nodes, but one for each link-local address of this host on its other links.
    """
    rules = rules.where(lambda rule: rule.origin != SHARE_ORIGIN)
    here = onlink.read(ifindexes)

    def behind(prefix: Prefix) -> tuple[Prefix, ...]:
        return tuple(onlink.behind(prefix, here.ifindexes))

    known = onlink.neighbours(ifindexes[1]) if rules.exact else {}
    return Facts(
        interface,
        tuple((broad, behind(broad.prefix)) for broad in breadth.find_all(rules, here.prefixes)),
        tuple(
            (prefix, rule, behind(prefix))
            for prefix, rule in sorted(rules.wider.items())
            if breadth.is_left_out(rule)
        ),
        tuple(
            (address, rules[Prefix(address, 128)], known[address])
            for address in breadth.at_neighbours(rules, known)
        ),
    )


def judge(facts: Facts) -> list[Finding]:
    """Return a warning about each rule that harms other nodes, a note if it defends nothing."""
    found = [_of_broad(facts.interface, broad, behind) for broad, behind in facts.broad]
    for prefix, rule, behind in facts.left_out:
        hint = BroadRule(prefix, rule, prefix).hint(behind, in_file=rule.origin == CONFIG_ORIGIN)
        found.append(
            warning(
                f"the daemon left the rule for {prefix} out: it would answer for the other nodes on"
                f" {facts.interface}, too",
                f"ndxdp does not answer for the prefix; {hint}",
                "editor /etc/ndxdp/ndxdp.toml" if rule.origin == CONFIG_ORIGIN else "",
            )
        )
    for address, rule, mac in facts.neighbours:
        text = address_text(address)
        found.append(
            warning(
                f"{text} is a neighbour on {facts.interface}, with MAC {mac.hex(':')}, and a rule"
                " answers for it, too",
                "ndxdp redirects the neighbour's packets to this host, and defends the address"
                " against the neighbour",
                f"ndxdp prefix del {facts.interface} {text} --origin {rule.origin}",
            )
        )
    return found


def _of_broad(interface: str, broad: BroadRule, behind: tuple[Prefix, ...]) -> Finding:
    sentence = f"{broad.sentence(interface)} (origin '{broad.rule.origin}')"
    if not broad.rule.profile.defend:
        return note(f"{sentence}; it ignores Duplicate Address Detection")
    why = (
        "the rule defends the addresses of other nodes: a node that configures one detects a"
        " duplicate"
    )
    if broad.rule.origin not in RESERVED_ORIGINS:
        return warning(sentence, why, _instead(interface, broad, behind))
    hint = broad.hint(behind, in_file=broad.rule.origin == CONFIG_ORIGIN)
    cure = "editor /etc/ndxdp/ndxdp.toml" if broad.rule.origin == CONFIG_ORIGIN else ""
    return warning(sentence, f"{why}; {hint}", cure)


def _instead(interface: str, broad: BroadRule, behind: tuple[Prefix, ...]) -> str:
    """Return the command that replaces a rule, written by a command, by narrower ones."""
    where = f"-i {interface}"
    if broad.rule.origin != MANUAL_ORIGIN:
        where += f" --origin {broad.rule.origin}"
    delete = f"ndxdp prefix del {broad.prefix} {where}"
    if broad.covers == breadth.LINK_LOCAL:
        return delete
    narrower = " ".join(map(str, behind)) or f"{broad.prefix} --answer {Answer.NEIGHBOUR.name}"
    return f"{delete} && ndxdp prefix add {narrower.lower()} {where}"
