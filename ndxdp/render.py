"""What the commands print: the same facts as text for people and as data for `--json`."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ndxdp import ladder, ndp
from ndxdp.instance import Explanation, Instance, Pinned
from ndxdp.kernel import libbpf
from ndxdp.kernel.abi import Mode
from ndxdp.kernel.maps import Settings
from ndxdp.ladder import Step
from ndxdp.ndp import NaSource, Profile, Reason
from ndxdp.policy import Prefix, Rule
from ndxdp.wire import netlink, offload

_NOT_ATTACHED = "not attached: the interface has gone, or the program was taken off"


def address_text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, address)


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


def status_data(instance: Instance, *, is_held: bool) -> dict[str, Any]:
    """One interface, as `ndxdp status --json` gives it (docs/commands.md)."""
    maps = instance.maps
    settings = maps.settings()
    rules = maps.rules()
    program = loader = None
    if isinstance(instance, Pinned):
        info = libbpf.prog_info(instance.prog_fd)
        program, loader = {"id": info.id, "tag": info.tag}, "bcc" if settings.bcc else "prebuilt"
    kinds = Counter("addresses" if prefix.length == 128 else "prefixes" for prefix in rules)
    return {
        "interface": instance.interface,
        "attached": instance.is_attached(settings),
        "mode": settings.mode.label,
        "steps_down": [
            {"mode": mode.label, "why": why} for mode, why in ladder.unpack(settings.steps)
        ],
        "loader": loader,
        "program": program,
        "socket": maps.socket_counts(),
        "held_by": "run" if is_held else "pins",
        "ifindex": settings.ifindex,
        "mac": mac_text(settings.mac),
        "link_local": address_text(settings.link_local),
        "paused": settings.paused,
        "rate": 1e9 / settings.rate_interval if settings.rate_interval else 0,
        "burst": settings.burst,
        "rules": {
            "addresses": kinds["addresses"],
            "prefixes": kinds["prefixes"],
            "max_addresses": maps.max_entries("addresses"),
            "max_prefixes": maps.max_entries("prefixes"),
            "by_source": dict(sorted(Counter(rule.source for rule in rules.values()).items())),
        },
        "reasons": {reason.label: count for reason, count in maps.reasons().items()},
        "groups": [count._asdict() for count in maps.group_counts()],
        "warnings": list(_warnings(instance.interface, settings)),
    }


def status_text(data: Mapping[str, Any]) -> Iterator[str]:
    rules, reasons = data["rules"], data["reasons"]
    attached = data["mode"]
    if data["program"]:
        attached += f", {data['loader']} program {data['program']['id']}"
    if data["held_by"] == "run":
        attached += ", held by a running ndxdp"
    yield f"{data['interface']}  {attached if data['attached'] else _NOT_ATTACHED}"
    steps = [Step(Mode[step["mode"].upper()], step["why"]) for step in data["steps_down"]]
    for step in ladder.told(steps):
        yield f"  not       {step}"
    for warning in data["warnings"]:
        yield f"  WARNING   {warning}"
    if data["paused"]:
        yield "  paused: nothing is answered"
    yield f"  from      {data['mac']}  {data['link_local']}"
    sources = ", ".join(f"{source} {count}" for source, count in rules["by_source"].items())
    yield (
        f"  rules     addresses {rules['addresses']} of {rules['max_addresses']},"
        f" prefixes {rules['prefixes']}" + (f" (by {sources})" if sources else "")
    )
    if data["rate"]:
        limit = f"{data['rate']:g} answers/s, {data['burst']} at once"
        yield f"  limit     {limit} for one soliciting MAC"
    answered = sum(reasons[reason.label] for reason in Reason if reason.is_answer)
    yield f"  answered  {answered} of {sum(reasons.values())} solicitations"
    for reason, count in reasons.items():
        if count:
            yield f"            {count:>10} {reason}"
    if data["socket"] and any(data["socket"].values()):
        overflows, errors = data["socket"]["overflows"], data["socket"]["errors"]
        yield f"  socket    overflows {overflows}, errors {errors}"
    for group in data["groups"]:
        if group["solicited"]:
            yield (
                f"  rule      {group['answered']:>10} of {group['solicited']} answered:"
                f" {group['label']} ({group['source']})"
            )


def _warnings(interface: str, settings: Settings) -> Iterator[str]:
    if settings.mode in (Mode.NATIVE, Mode.GENERIC):
        link = netlink.find_link(interface)
        hidden = offload.hidden_vlans(interface, link.kind) if link else []
        if hidden:
            yield (
                f"the VLAN tags of {', '.join(hidden)} are taken off before XDP sees them:"
                " answers may go to the wrong VLAN; attach in tc mode"
            )


def profile_data(profile: Profile) -> dict[str, Any]:
    source = profile.source
    return {
        "source": source.value if isinstance(source, NaSource) else address_text(source),
        "router": profile.router,
        "override": profile.override,
        "dad": "defend" if profile.defend else "ignore",
        "lladdr": mac_text(profile.lladdr) if profile.lladdr else None,
    }


def rule_data(prefix: Prefix, rule: Rule) -> dict[str, Any]:
    return {
        "prefix": str(prefix),
        "answer": rule.answer.name.lower(),
        "held": rule.held,
        "source": rule.source,
        "label": rule.label,
        "profile": profile_data(rule.profile),
    }


def rule_text(prefix: Prefix, rule: Rule) -> str:
    """`2001:db8::/64 always (manual)`, and what differs from the default profile."""
    data = profile_data(rule.profile)
    usual = profile_data(ndp.DEFAULT_PROFILE)
    words = [rule.answer.name.lower()]
    words += [f"{key}={str(value).lower()}" for key, value in data.items() if value != usual[key]]
    if rule.held:
        words.append("[held: an address of this host or of its gateway]")
    label = f", {rule.label}" if rule.label and rule.label != str(prefix) else ""
    return f"{prefix} {' '.join(words)} ({rule.source}{label})"


def explanation_data(explanation: Explanation) -> dict[str, Any]:
    verdict = explanation.verdict
    matched = None
    if verdict.rule and verdict.prefix_len is not None:
        matched = rule_data(_matched(explanation, verdict.prefix_len), verdict.rule)
    reply = None
    if explanation.reply:
        na = ndp.decode_advertisement(explanation.reply)
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
        "advertisement": reply,
    }


def explanation_text(explanation: Explanation) -> Iterator[str]:
    ns, verdict = explanation.solicitation, explanation.verdict
    yield (
        f"asked    {address_text(ns[62:78])} by {address_text(ns[22:38])}"
        f" ({mac_text(ns[6:12])}) to {address_text(ns[38:54])}"
    )
    if verdict.rule and verdict.prefix_len is not None:
        yield f"rule     {rule_text(_matched(explanation, verdict.prefix_len), verdict.rule)}"
    else:
        yield "rule     none was asked" if verdict.reason is not Reason.NO_RULE else "rule     none"
    yield f"reason   {verdict.reason.label}: {_MEANING[verdict.reason]}"
    if explanation.reply:
        na = ndp.decode_advertisement(explanation.reply)
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
    return Prefix.around(explanation.solicitation[62:78], length)


_MEANING = {
    Reason.NOT_NS: "not a Neighbor Solicitation",
    Reason.OWN_FRAME: "it comes from this interface's own MAC",
    Reason.OTHER_HOST: "its Ethernet destination is another host's",
    Reason.BAD_HOP_LIMIT: "its hop limit is not 255",
    Reason.BAD_CODE: "its ICMPv6 code is not 0",
    Reason.BAD_LENGTH: "its length is too short, or longer than the frame",
    Reason.BAD_OPTION: "an option is malformed",
    Reason.BAD_CHECKSUM: "its checksum is wrong",
    Reason.BAD_TARGET: "its target is no unicast address",
    Reason.BAD_SOURCE: "its source is none that may solicit so",
    Reason.PAUSED: "answering is paused on this interface",
    Reason.NO_RULE: "no prefix covers the target",
    Reason.DENIED: "the rule says never, or the host or its gateway owns the target",
    Reason.EXPIRED: "the rule's daemon has stopped",
    Reason.NO_ROUTE: "the kernel has no route to the target behind this host",
    Reason.NO_NEIGHBOUR: "the kernel has no live neighbour of that address",
    Reason.DAD_IGNORED: "the rule leaves Duplicate Address Detection alone",
    Reason.RATE_LIMITED: "the soliciting MAC is over its rate; the frame is dropped",
    Reason.RESIZE_FAILED: "the driver left no room for the answer",
    Reason.SEND_FAILED: "the interface did not take the answer",
    Reason.ANSWERED: "the solicitor gets an advertisement",
    Reason.ANSWERED_DAD: "all nodes get an advertisement: the address is in use",
}
