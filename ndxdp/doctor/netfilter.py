"""Evaluation of an nftables ruleset for a packet that is known only in part.

A rule matches, does not match, or may match: with named sets, extensions of iptables, and
expressions that this module does not evaluate. A rule that may match has both outcomes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network
from typing import Any, NamedTuple

Packet = Mapping[str, object]
"""Known fields of a packet, by their names in nft: `icmpv6 type`, `meta iifname`, `ct state`, …

An address is an IPv6Network, which stands for any of its addresses. `fib oif saddr,iif` is true if
there is a way back to the source by the same interface, `fib oif saddr` if there is any.
"""

IP, IPV4, BRIDGE = ("ip6", "inet"), ("ip", "inet"), ("bridge",)
"""Families of the chains for IPv6 packets, for IPv4 packets, and for frames of a bridge."""

STRICT, LOOSE = "fib oif saddr,iif", "fib oif saddr"

Statement = dict[str, Any]
"""Statement of a rule, from `expr` in the output of `nft -j`: `{"match": {…}}`, `{"accept": null}`,
…"""

ACCEPT, DROP, END, NEXT = "accept", "drop", "end", "next"
"""Outcomes of a chain or a statement: NEXT is the next statement, END the end of the chain."""

_DEPTH = 16  # of jumps, as in the kernel (NFT_JUMP_STACK_SIZE)

_VERDICTS = {"accept": ACCEPT, "drop": DROP, "reject": DROP, "return": END}

_SILENT = ("counter", "log", "mangle", "set", "map", "notrack", "flow", "dup", "ct helper")
"""Statements that neither match nor decide."""

_XT = {"REJECT": DROP, "LOG": NEXT, "NFLOG": NEXT, "MARK": NEXT, "CONNMARK": NEXT, "TCPMSS": NEXT}
"""Targets of iptables of which nft shows only the name."""

_TRANSPORTS = ("tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmpv6", "esp")
"""Transport headers; a packet has at most one of them."""

_TYPES = {
    "133": "nd-router-solicit",
    "134": "nd-router-advert",
    "135": "nd-neighbor-solicit",
    "136": "nd-neighbor-advert",
}

_EBTABLES_TYPES = {
    "router-solicitation": "nd-router-solicit",
    "router-advertisement": "nd-router-advert",
    "neighbour-solicitation": "nd-neighbor-solicit",
    "neighbour-advertisement": "nd-neighbor-advert",
}

_ANYTHING = frozenset((ACCEPT, DROP, NEXT))


class Chain(NamedTuple):
    """Chain of nftables. hook: "" if the chain is reached by jumps only."""

    family: str
    table: str
    name: str
    hook: str
    policy: str
    rules: list[list[Statement]]


@dataclass(slots=True)
class Ruleset:
    """Ruleset of nftables. chains: by family, table and name."""

    chains: dict[tuple[str, str, str], Chain] = field(default_factory=dict)

    @classmethod
    def of(cls, output: Any) -> Ruleset:
        """Return the ruleset in the output of `nft -j list ruleset`.

        Raises:
            ValueError: The output is something else.
        """
        made = cls()
        try:
            for entry in output["nftables"]:
                if "chain" in entry:
                    chain = entry["chain"]
                    key = chain["family"], chain["table"], chain["name"]
                    hook, policy = chain.get("hook", ""), chain.get("policy", ACCEPT)
                    made.chains[key] = Chain(*key, hook, policy, [])
                elif "rule" in entry:
                    rule = entry["rule"]
                    key = rule["family"], rule["table"], rule["chain"]
                    made.chains[key].rules.append(rule["expr"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no ruleset of nft: {error!r}") from None
        return made

    def refine(self, saved: str, family: str = "ip6") -> None:
        """Complete the matches of which nft shows only the name.

        Args:
            saved: The output of `ip6tables-save`, or of `ebtables-save` for the family `bridge`.
            family: The family of the chains to complete.
        """
        lines: dict[tuple[str, str], list[str]] = {}
        table = ""
        for line in saved.splitlines():
            if line.startswith("*"):
                table = line[1:].strip()
            elif line.startswith("-A "):
                lines.setdefault((table, line.split()[1]), []).append(line)
        for chain in self.chains.values():
            texts = lines.get((chain.table, chain.name), [])
            if chain.family == family and len(texts) == len(chain.rules):
                for rule, line in zip(chain.rules, texts, strict=True):
                    rule[:] = [one for statement in rule for one in _refined(statement, line)]

    def dropping(
        self, hooks: Iterable[str], packet: Packet, families: Container[str] = IP
    ) -> Chain | None:
        """Return the first base chain at one of these hooks that certainly drops a packet."""
        for hook in hooks:
            for chain in self.chains.values():
                if chain.hook != hook or chain.family not in families:
                    continue
                if self.outcomes(chain, packet) == {DROP}:
                    return chain
        return None

    def outcomes(self, chain: Chain, packet: Packet) -> frozenset[str]:
        """Return the possible outcomes of a packet at a base chain: ACCEPT, DROP."""
        outcomes = self._run(chain, packet, 0)
        return outcomes - {END} | {chain.policy} if END in outcomes else outcomes

    def _run(self, chain: Chain, packet: Packet, depth: int) -> frozenset[str]:
        """Return the possible outcomes of a chain: ACCEPT, DROP, END."""
        outcomes: frozenset[str] = frozenset()
        for rule in chain.rules:
            found, goes_on = self._apply(chain, rule, packet, depth)
            outcomes |= found
            if not goes_on:
                return outcomes
        return outcomes | {END}

    def _apply(
        self, chain: Chain, rule: list[Statement], packet: Packet, depth: int
    ) -> tuple[frozenset[str], bool]:
        """Return the possible verdicts of a rule, and whether the packet may reach the next one."""
        is_certain = True
        for statement in rule:
            if "match" in statement:
                matched = _match(statement["match"], packet)
                if matched is False:
                    return frozenset(), True
                is_certain = is_certain and matched is True
                continue
            if statement.get("xt", {}).get("type") == "match" or "limit" in statement:
                is_certain = False
                continue
            verdicts = self._verdicts(chain, statement, packet, depth)
            if verdicts != {NEXT}:
                return verdicts - {NEXT}, not is_certain or NEXT in verdicts
        return frozenset(), True

    def _verdicts(
        self, chain: Chain, statement: Statement, packet: Packet, depth: int
    ) -> frozenset[str]:
        """Return the possible outcomes of a statement that is no condition."""
        if len(statement) != 1:
            return _ANYTHING
        ((kind, inner),) = statement.items()
        if kind in _VERDICTS:
            return frozenset((_VERDICTS[kind],))
        if kind in _SILENT:
            return frozenset((NEXT,))
        if kind == "xt":
            return frozenset((_XT[inner["name"]],)) if inner.get("name") in _XT else _ANYTHING
        if kind in ("jump", "goto"):
            target = self.chains.get((chain.family, chain.table, inner["target"]))
            if target is None or depth >= _DEPTH:
                return _ANYTHING
            outcomes = self._run(target, packet, depth + 1)
            if kind == "jump" and END in outcomes:
                return outcomes - {END} | {NEXT}
            return outcomes
        if kind == "vmap":
            return self._mapped(chain, inner, packet, depth)
        return _ANYTHING

    def _mapped(self, chain: Chain, vmap: Statement, packet: Packet, depth: int) -> frozenset[str]:
        name = _name(vmap["key"])
        listed = vmap["data"]["set"] if isinstance(vmap["data"], dict) else None
        if listed is None or name not in packet:
            return _ANYTHING
        verdicts: frozenset[str] = frozenset()
        for key, statement in listed:
            is_it = _equals(packet[name], key)
            if is_it is not False:
                verdicts |= self._verdicts(chain, statement, packet, depth)
            if is_it:
                return verdicts
        return verdicts | {NEXT}


def _refined(statement: Statement, line: str) -> list[Statement]:
    """Return a statement, completed by the line of its rule.

    Return it unchanged if the line has options that this module does not evaluate.
    """
    if statement.get("xt", {}).get("type") != "match":
        return [statement]
    name = statement["xt"]["name"]
    if name in ("conntrack", "state"):
        found = re.findall(r"(! )?--(?:ct)?state (\S+)", line)
        if len(found) == 1 and len(re.findall(r" --ct", line)) <= 1:
            ((negated, states),) = found
            match = {
                "op": "!=" if negated else "in",
                "left": {"ct": {"key": "state"}},
                "right": states.lower().split(","),
            }
            return [{"match": match}]
    if name == "icmp6":
        found = re.findall(r"(! )?--icmpv6-type (\d+)(?= |$)", line)
        if len(found) == 1:
            ((negated, number),) = found
            right = [_TYPES.get(number, f"type {number}")]
            return [_comparison("icmpv6", "type", right, bool(negated))]
    if name == "rpfilter" and "--accept-local" not in line and line.count(" -m rpfilter") == 1:
        flags = ["saddr"] if "--loose" in line else ["saddr", "iif"]
        left = {"fib": {"result": "oif", "flags": flags}}
        return [{"match": {"op": "==", "left": left, "right": "--invert" not in line}}]
    if name == "ip6":
        return _of_ebtables(line) or [statement]
    return [statement]


def _of_ebtables(line: str) -> list[Statement]:
    """Return the conditions of `ebtables -p IPv6`; none if one of them is not supported here."""
    found = []
    for option, negated, value in re.findall(r"--ip6-(\S+) (! )?(\S+)", line):
        if option == "proto" and value == "ipv6-icmp":
            found.append(_comparison("ip6", "nexthdr", value, bool(negated)))
        elif option == "icmp-type" and value in _EBTABLES_TYPES:
            found.append(_comparison("icmpv6", "type", _EBTABLES_TYPES[value], bool(negated)))
        elif option in ("src", "dst") and re.fullmatch(r"[0-9a-f:]+(/\d+)?", value):
            address, _, length = value.partition("/")
            right = {"prefix": {"addr": address, "len": int(length or 128)}}
            found.append(_comparison("ip6", f"{option[0]}addr", right, bool(negated)))
        else:
            return []
    return found


def _comparison(protocol: str, field: str, right: object, negated: bool) -> Statement:
    left = {"payload": {"protocol": protocol, "field": field}}
    return {"match": {"op": "!=" if negated else "==", "left": left, "right": right}}


def _name(expression: Any) -> str:
    """Return the name of the field on the left side, as in Packet; "" if it is not supported."""
    if isinstance(expression, dict) and len(expression) == 1:
        ((kind, inner),) = expression.items()
        if kind in ("meta", "ct") and "dir" not in inner:
            return f"{kind} {inner.get('key')}"
        if kind == "payload" and "protocol" in inner:
            return f"{inner['protocol']} {inner.get('field')}"
        if kind == "fib":
            # The mark of a packet is not known; most packets have none.
            flags = [flag for flag in inner.get("flags", ()) if flag != "mark"]
            return f"fib {inner.get('result')} {','.join(sorted(flags, reverse=True))}"
    return ""


def _match(match: Statement, packet: Packet) -> bool | None:
    name = _name(match["left"])
    # nft checks first that the packet has the header.
    protocol = name.partition(" ")[0]
    absent = ("ip6", "icmpv6") if packet.get("meta nfproto") == "ipv4" else ("ip",)
    if protocol in (*absent, "arp"):
        return False
    transport = packet.get("meta l4proto")
    if transport == "ipv6-icmp":
        transport = "icmpv6"
    if protocol in _TRANSPORTS and transport is not None and protocol != transport:
        return False
    if name not in packet:
        return None
    found = _equals(packet[name], match["right"])
    if found is None or match["op"] in ("==", "in"):
        return found
    return not found if match["op"] == "!=" else None


def _equals(value: object, right: Any) -> bool | None:
    """Return whether a value equals the right side or is in its set; None if not known."""
    if isinstance(right, dict) and list(right) == ["set"]:
        right = right["set"]
    if isinstance(right, list):
        each = [_equals(value, one) for one in right]
        return True if True in each else None if None in each else False
    if isinstance(value, bool):
        return value != (right in (False, "0", 0)) if not isinstance(right, dict) else None
    if isinstance(value, IPv6Network):
        return _within(value, right)
    if isinstance(right, dict):
        first, last = right.get("range", (None, None))
        if isinstance(value, int) and isinstance(first, int) and isinstance(last, int):
            return first <= value <= last
        return None
    if isinstance(right, str) and isinstance(value, str):
        if right.startswith("@"):
            return None
        return fnmatch.fnmatchcase(value, right) if right.endswith("*") else value == right
    return value == right if isinstance(right, int) and isinstance(value, int) else None


def _within(addresses: IPv6Network, right: Any) -> bool | None:
    """Return whether the right side contains all addresses; False if none, None if some."""
    try:
        if isinstance(right, str):
            first = last = IPv6Address(right)
        elif "prefix" in right:
            network = IPv6Network((right["prefix"]["addr"], right["prefix"]["len"]), strict=False)
            first, last = network[0], network[-1]
        else:
            first, last = map(IPv6Address, right["range"])
    except (ValueError, KeyError, TypeError):  # a named set, an expression
        return None
    if addresses[-1] < first or last < addresses[0]:
        return False
    return True if first <= addresses[0] and addresses[-1] <= last else None
