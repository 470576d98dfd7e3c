"""Rules and verdicts, as text for people and as data for `--json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.frame import destination_of, eth_source_of, source_of, target_of
from ndxdp.ndp.message import decode_own
from ndxdp.ndp.profile import DEFAULT_PROFILE, NaSource, Profile
from ndxdp.ndp.reason import Reason
from ndxdp.netlink.fib import RouteType
from ndxdp.rules.address import address_text, mac_text
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import SHARED_ORIGIN, Rule
from ndxdp.store.explanation import Explanation, Forwarding

_PLACE = "@"
"""Text in the place of the prefix, which is the first value of a rule's JSON."""


def profile_data(profile: Profile) -> dict[str, Any]:
    """Return a profile as data; addresses and MACs are text."""
    source = profile.source
    return {
        "source": source.value if isinstance(source, NaSource) else address_text(source),
        "router": profile.router,
        "override": profile.override,
        "dad": "defend" if profile.defend else "ignore",
        "lladdr": mac_text(profile.lladdr) if profile.lladdr else None,
    }


def rule_data(prefix: Prefix, rule: Rule) -> dict[str, Any]:
    """Return a rule as JSON objects have it; `held`, `via` and `source` are former names."""
    return {
        "prefix": str(prefix),
        "answer": rule.answer.name.lower(),
        "owned": rule.owned,
        "paused": rule.paused,
        "leased": rule.leased,
        "dev": list(rule.dev),
        "origin": rule.origin,
        "label": rule.label,
        "profile": profile_data(rule.profile),
        "held": rule.owned,
        "via": list(rule.dev),
        "source": rule.origin,
    }


def rule_text(prefix: Prefix, rule: Rule) -> str:
    """Format a rule: `2001:db8::/64 always (manual)`, with its differences from the defaults."""
    return _listed(str(prefix), rule, _words(rule))


def _listed(prefix: str, rule: Rule, words: str) -> str:
    label = f", {rule.label}" if rule.label and rule.label != prefix else ""
    return f"{prefix} {words} ({rule.origin}{label})"


def _words(rule: Rule) -> str:
    """Return what the text of a rule has between its prefix and its origin."""
    data = profile_data(rule.profile)
    usual = profile_data(DEFAULT_PROFILE)
    words = [rule.answer.name.lower()]
    if rule.dev:
        words.append(f"dev={','.join(rule.dev)}")
    words += [f"{key}={str(value).lower()}" for key, value in data.items() if value != usual[key]]
    if rule.paused:
        words.append("[paused]")
    if rule.origin == SHARED_ORIGIN:
        words.append(
            "[while this host's lease lasts]" if rule.leased else "[not held by this host]"
        )
    if rule.owned:
        words.append("[owned: an address of this host or of its gateway]")
    return " ".join(words)


def rules_text(rules: Iterable[tuple[Prefix, Rule]]) -> Iterator[str]:
    """Yield the text of each rule; what neighbours of one rule share is formatted once."""
    for rule, items in groupby(rules, itemgetter(1)):
        words = _words(rule)
        for prefix, _ in items:
            yield _listed(str(prefix), rule, words)


def rules_json(rules: Iterable[tuple[Prefix, Rule]]) -> Iterator[str]:
    """Yield the parts of a JSON array of all rules, laid out as by print_json()."""
    before = "[\n"
    for rule, items in groupby(rules, itemgetter(1)):
        data = rule_data(Prefix(UNSPECIFIED, 0), rule) | {"prefix": _PLACE}
        head, _, tail = json.dumps([data], indent=2)[2:-2].partition(_PLACE)
        for prefix, _ in items:
            yield f"{before}{head}{prefix}{tail}"
            before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def explanation_data(explanation: Explanation) -> dict[str, Any]:
    """Return an explanation as data; frames are hexadecimal text, absent parts are None."""
    verdict = explanation.verdict
    matched = None
    if verdict.rule and verdict.prefix_len is not None:
        matched = rule_data(_matched(explanation, verdict.prefix_len), verdict.rule)
    reply = None
    if explanation.reply:
        na = decode_own(explanation.reply)
        reply = {
            "eth_source": mac_text(na.eth_source),
            "eth_destination": mac_text(na.eth_destination),
            "source": address_text(na.source),
            "destination": address_text(na.destination),
            "hop_limit": na.hop_limit,
            "router": na.router,
            "solicited": na.solicited,
            "override": na.override,
            "target": address_text(na.target),
            "tllao": mac_text(na.tllao),
            "checksum": na.checksum,
            "checksum_correct": na.checksum_correct,
            "frame": explanation.reply.hex(),
        }
    return {
        "solicitation": explanation.solicitation.hex(),
        "reason": verdict.reason.label,
        "rule": matched,
        "forwarding": _forwarding_data(explanation.forwarding),
        "advertisement": reply,
    }


def _forwarding_data(forwarding: Forwarding | None) -> dict[str, Any] | None:
    if forwarding is None:
        return None
    return {
        "forwards": forwarding.forwards,
        "type": forwarding.type.name.lower(),
        "prefix": str(forwarding.route.prefix) if forwarding.route else None,
        "table": forwarding.route.table if forwarding.route else None,
        "interface": forwarding.interface or None,
        "gateway": address_text(forwarding.route.gateway)
        if forwarding.route and forwarding.route.gateway
        else None,
        "neighbour": forwarding.state.name.lower(),
    }


def _forwarding_text(forwarding: Forwarding) -> str:
    """Format a route as `ip` does: `2001:db8:c::/64 dev docker0 table 254, neighbour reachable`."""
    words = [] if forwarding.type is RouteType.UNICAST else [forwarding.type.name.lower()]
    if forwarding.route:
        words.append(str(forwarding.route.prefix))
        if forwarding.route.gateway:
            words.append(f"via {address_text(forwarding.route.gateway)}")
    if forwarding.interface:
        words.append(f"dev {forwarding.interface}")
    if forwarding.route:
        words.append(f"table {forwarding.route.table}")
    text = " ".join(words)
    if forwarding.type is RouteType.UNICAST:
        text += f", neighbour {forwarding.state.name.lower()}"
    return text if forwarding.forwards else f"{text}; forwarding is off"


def explanation_text(explanation: Explanation) -> Iterator[str]:
    """Yield the lines of an explanation: one about each step, then the advertisement."""
    ns, verdict = explanation.solicitation, explanation.verdict
    yield (
        f"target   {address_text(target_of(ns))} from {address_text(source_of(ns))}"
        f" ({mac_text(eth_source_of(ns))}) to {address_text(destination_of(ns))}"
    )
    if verdict.rule and verdict.prefix_len is not None:
        yield f"rule     {rule_text(_matched(explanation, verdict.prefix_len), verdict.rule)}"
    else:
        yield "rule     none" if verdict.reason is Reason.NO_RULE else "rule     not looked up"
    if explanation.forwarding:
        yield f"route    {_forwarding_text(explanation.forwarding)}"
    yield f"reason   {verdict.reason.label}: {_MEANING[verdict.reason]}"
    if explanation.reply:
        na = decode_own(explanation.reply)
        flags = f"R={na.router:d} S={na.solicited:d} O={na.override:d}"
        checksum = f"{na.checksum:#06x} ({'correct' if na.checksum_correct else 'WRONG'})"
        yield f"answer   Ethernet  {mac_text(na.eth_source)} > {mac_text(na.eth_destination)}"
        yield (
            f"         IPv6      {address_text(na.source)} > {address_text(na.destination)},"
            f" hop limit {na.hop_limit}"
        )
        yield f"         NA        {flags} target {address_text(na.target)}, checksum {checksum}"
        yield f"         TLLAO     {mac_text(na.tllao)}"


def _matched(explanation: Explanation, length: int) -> Prefix:
    return Prefix.around(target_of(explanation.solicitation), length)


_MEANING = {
    Reason.NOT_NS: "not a Neighbor Solicitation",
    Reason.OTHER_VLAN: "the frame has the tag of a VLAN, whose own interface answers",
    Reason.OWN_FRAME: "the frame has this interface's own MAC as its source",
    Reason.OTHER_HOST: "the Ethernet destination is another host's",
    Reason.BAD_HOP_LIMIT: "the hop limit is not 255",
    Reason.BAD_CODE: "the ICMPv6 code is not 0",
    Reason.BAD_LENGTH: "the length is too short, or longer than the frame",
    Reason.BAD_OPTION: "an option is malformed",
    Reason.BAD_CHECKSUM: "the checksum is wrong",
    Reason.BAD_TARGET: "the target is no unicast address",
    Reason.BAD_SOURCE: "the source address is not allowed in this solicitation",
    Reason.PAUSED: "answering is paused on this interface",
    Reason.NO_RULE: "no prefix covers the target",
    Reason.DENIED: "the rule says never, or the host or its gateway owns the target",
    Reason.EXPIRED: "the daemon that wrote the rule has stopped",
    Reason.LAPSED: "the rule is leased, and this host's lease has lapsed",
    Reason.NOT_LOCAL: "the kernel does not deliver packets for the target to this host",
    Reason.NOT_FORWARDING: "the interface does not forward: its sysctl `forwarding` is 0",
    Reason.NO_ROUTE: "the kernel has no route to the target",
    Reason.ROUTE_LOCAL: "the route to the target ends at this host",
    Reason.ROUTE_BLACKHOLE: "the route to the target has the type blackhole",
    Reason.ROUTE_UNREACHABLE: "the route to the target has the type unreachable",
    Reason.ROUTE_PROHIBIT: "the route to the target has the type prohibit",
    Reason.ROUTE_BACK: "the route to the target leads back out of this interface",
    Reason.ROUTE_ELSEWHERE: "the route leaves by an interface that does not match the rule's dev",
    Reason.ROUTE_ENCAP: "the route enters a lightweight tunnel with an unknown output interface",
    Reason.ROUTE_GATEWAY: "the route leads to another router, so the target is no neighbour",
    Reason.NO_NEIGHBOUR: "the kernel has no live neighbour entry for the target",
    Reason.DAD_IGNORED: "the rule ignores Duplicate Address Detection",
    Reason.DAD_ON_LINK: "a node of this link may have the address, so ndxdp does not defend it",
    Reason.RATE_LIMITED: "the soliciting or the answered MAC, or the interface, exceeds its rate;"
    " the frame is dropped",
    Reason.GATEWAY_LIMITED: "the gateway exceeds its rate; the frame is passed to the kernel",
    Reason.RESIZE_FAILED: "the driver left no room for the answer",
    Reason.SEND_FAILED: "the interface did not take the answer",
    Reason.ANSWERED: "the solicitor gets an advertisement",
    Reason.ANSWERED_DAD: "all nodes get an advertisement: the address is in use",
}
