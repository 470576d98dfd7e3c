"""Arrival of answers: solicitations and packets on the interface, watched for a while.

A router that receives an answer sends the packets that wait for the target, and solicits the
target's group again only after its neighbour entry was deleted. A router that solicits the group
again within seconds did not receive the answer, or ignored it. A router that routes the prefix to
this host never solicits it.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ndxdp.doctor import probe
from ndxdp.doctor.finding import Finding, failure, note, unseen
from ndxdp.errors import NdxdpError
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.frame import (
    ETH_P_IPV6,
    ETHERTYPE_AT,
    destination_of,
    eth_destination_of,
    eth_source_of,
    icmpv6_type_of,
)
from ndxdp.ndp.profile import Answer, NaSource, Profile
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.netlink.links import Link
from ndxdp.observe.trace import Event, Tracer
from ndxdp.rules.address import address_text
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import MANUAL_ORIGIN, RESERVED_ORIGINS, Rule
from ndxdp.rules.table import Table
from ndxdp.sockets.cbpf import LD_H, Condition, attach_filter, packet_socket, program
from ndxdp.store.directories import PinTree, Tree, Trees
from ndxdp.store.instance import open_instance

_TYPES = range(133, 138)  # router and neighbor discovery
_SOL_PACKET, _IGNORE_OUTGOING, _TO_US = 263, 23, 0
_SNAPLEN = 64  # bytes of a packet
_PAUSE = 0.1  # seconds between two reads of the packet socket
_PACKETS_MAX = 256  # packets in a read; a sample suffices to know the destinations

_AGAIN = 5.0
"""Seconds after an answer in which another solicitation of the same target counts as a repetition.

A router sends three solicitations, a second apart (RFC 4861 7.2.2)."""

_REPEATS_MIN = 2
"""Repetitions that show a lost answer: a single one may have crossed the answer."""

_SETTLED = 60.0
"""Seconds after attaching, by which the router has probed entries from earlier answers.

An entry is stale after at most 45 s, and is probed 5 s later (RFC 4861 10)."""


class Solicited(NamedTuple):
    """Solicitor and target of solicitations. Addresses have 16 bytes, mac has 6."""

    mac: bytes
    source: bytes
    target: bytes


@dataclass(slots=True)
class LostAnswers:
    """Answers that did not arrive.

    Attributes:
        times: How often the router solicited the group again.
        prefix: The prefix of the rule that answered.
        rule: The rule that answered.
        passing: Sources (16 bytes) from which the router answers a solicitation.
        stopped: Sources from which the router does not answer one.
    """

    times: int
    prefix: Prefix
    rule: Rule
    passing: list[bytes] = field(default_factory=list)
    stopped: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Facts:
    """Result of the watch.

    Attributes:
        interface: The interface.
        problem: Why the interface could not be watched; "" if it was.
        seconds: The duration of the watch.
        answered: Number of answered solicitations.
        lost: Answers that did not arrive.
        reached: Destinations of packets, of rules whose targets were solicited before.
        unsolicited: Destinations of packets, of rules whose targets were never solicited.
        age: Seconds since the interface was attached, None if not known.
        link_local: The link-local address of the interface, None without one.
    """

    interface: str
    problem: str
    seconds: float
    answered: int = 0
    lost: dict[Solicited, LostAnswers] = field(default_factory=dict)
    reached: frozenset[bytes] = frozenset()
    unsolicited: dict[Prefix, set[bytes]] = field(default_factory=dict)
    age: float | None = None
    link_local: bytes | None = None


def gather(
    trees: Trees, link: Link, table: Table, addresses: list[OwnAddress], seconds: float
) -> Facts:
    """Watch an interface for so many seconds with a tracer and a packet socket.

    Then solicit the routers that did not receive answers.
    """
    events: list[Event] = []
    written: Counter[tuple[bytes, bytes]] = Counter()
    try:
        tree = trees.of(link.name)
        with (
            packet_socket("watches incoming packets") as packets,
            Tracer(trees, [link.name]) as tracer,
        ):
            _open(packets, link)
            began = time.monotonic()
            while (left := began + seconds - time.monotonic()) > 0:
                events += tracer.wait(min(left, _PAUSE))[0]
                _read(packets, written)
            events += tracer.finish()
            lost = repeated(events, written)
            own = [each.address for each in addresses]
            for solicited, found in lost.items():
                _try_sources(packets, link, solicited, found, own)
            counts = _solicited(tree, link.name)
            age = _age(tree, link.name)
    except (NdxdpError, OSError) as error:
        problem = error.message if isinstance(error, NdxdpError) else error.strerror or str(error)
        return Facts(link.name, problem, seconds)
    unsolicited: dict[Prefix, set[bytes]] = {}
    reached = set()
    for _, target in written:
        matched = table.lookup(target)
        if matched is None or matched[1].answer is Answer.NEVER or matched[1].owned:
            continue
        prefix, rule = matched
        if counts[rule.origin, rule.label]:
            reached.add(target)
        else:
            unsolicited.setdefault(prefix, set()).add(target)
    return Facts(
        link.name,
        "",
        seconds,
        answered=sum(event.reason.is_answer for event in events),
        lost=lost,
        reached=frozenset(reached),
        unsolicited=unsolicited,
        age=age,
        link_local=next((each.address for each in addresses if each.link_local), None),
    )


def _open(packets: socket.socket, link: Link) -> None:
    """Start to receive the first bytes of IPv6 packets."""
    head = [Condition(LD_H, ETHERTYPE_AT, ETH_P_IPV6)]
    attach_filter(packets, program(head, last=_SNAPLEN - 11, keep=_SNAPLEN))
    packets.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    packets.bind((link.name, ETH_P_IPV6))


def _read(packets: socket.socket, written: Counter[tuple[bytes, bytes]]) -> None:
    """Count packets to this host's MAC by their source MAC and their destination address."""
    for _ in range(_PACKETS_MAX):
        try:
            frame, address = packets.recvfrom(_SNAPLEN)
        except BlockingIOError:
            return
        discovers = icmpv6_type_of(frame) in _TYPES
        if address[2] == _TO_US and not discovers:
            written[eth_source_of(frame), destination_of(frame)] += 1


def repeated(
    events: Iterable[Event], written: Counter[tuple[bytes, bytes]]
) -> dict[Solicited, LostAnswers]:
    """Return the solicitors that repeat a solicitation after an answer, and send no packet then.

    Args:
        events: The traced solicitations.
        written: Number of packets, by their source MAC and their destination address.
    """
    last: dict[Solicited, int] = {}
    found: dict[Solicited, LostAnswers] = {}
    for event in events:
        target = event.target
        to_group = bool(eth_destination_of(event.frame)[0] & 1)
        if target is None or not to_group or event.source == UNSPECIFIED:
            continue
        if not event.reason.is_answer or event.prefix is None or event.rule is None:
            continue
        solicited = Solicited(event.mac, event.source, target)
        if solicited in last and event.time - last[solicited] < _AGAIN * 1e9:
            found.setdefault(solicited, LostAnswers(0, event.prefix, event.rule)).times += 1
        last[solicited] = event.time
    return {
        solicited: one
        for solicited, one in found.items()
        if one.times >= _REPEATS_MIN and not written[solicited.mac, solicited.target]
    }


def _try_sources(
    packets: socket.socket, link: Link, solicited: Solicited, found: LostAnswers, own: list[bytes]
) -> None:
    """Solicit the router from each address from which a rule may answer."""
    for source in dict.fromkeys((solicited.target, *own)):
        heard = any(probe.solicit_from(packets, link, source, solicited.source) for _ in range(2))
        (found.passing if heard else found.stopped).append(source)


def _solicited(tree: Tree, interface: str) -> Counter[tuple[str, str]]:
    """Return how often each rule class was solicited since the interface was attached."""
    counts: Counter[tuple[str, str]] = Counter()
    with open_instance(tree, interface) as instance:
        for each in instance.maps.class_counts():
            counts[each.source, each.label] += each.solicited
    return counts


def _age(tree: Tree, interface: str) -> float | None:
    """Return the age of the counters in seconds: the age of their pin; None for files."""
    if not isinstance(tree, PinTree):
        return None
    return time.time() - (tree.path(interface) / "group_counters").stat().st_mtime


def judge(facts: Facts) -> list[Finding]:
    """Return a failure for each answer that was lost, or a note that answers arrive."""
    if facts.problem:
        return [unseen(f"cannot check whether answers arrive: {facts.problem}")]
    found = [_judge_lost(facts, *item) for item in _one_per_rule(facts.lost)]
    found += [_judge_unsolicited(facts, *item) for item in sorted(facts.unsolicited.items())]
    if facts.reached and not facts.lost:
        some = address_text(min(facts.reached))
        others = f" and {len(facts.reached) - 1} more" if len(facts.reached) > 1 else ""
        found.append(note(f"answers arrive: packets arrived for {some}{others}"))
    elif not found and facts.answered:
        found.append(
            note(f"{facts.answered} solicitations were answered, and no router repeated one")
        )
    elif not found:
        found.append(
            unseen(
                f"cannot check whether answers arrive: no solicitation came in {facts.seconds:g} s",
                f"ndxdp doctor {facts.interface} --watch 60",
            )
        )
    return found


def _one_per_rule(lost: dict[Solicited, LostAnswers]) -> list[tuple[Solicited, LostAnswers]]:
    """Return the first lost answer of each rule."""
    return list(
        {one.prefix: (solicited, one) for solicited, one in reversed(lost.items())}.values()
    )


def _judge_lost(facts: Facts, solicited: Solicited, found: LostAnswers) -> Finding:
    target, router = address_text(solicited.target), address_text(solicited.source)
    what = f"{router} keeps soliciting {target} after each answer: answers are lost"
    now = _source(found.rule.profile, solicited.target, facts.link_local)
    better = next(
        (each for each in _preferred(found, facts, solicited.target) if each != now), None
    )
    passing = " and ".join(map(address_text, found.passing)) or "none of this host's addresses"
    seen = f"solicitations reach the router from {passing}"
    if found.stopped and found.passing:
        seen += f", not from {' or '.join(map(address_text, found.stopped))}"
    if better is None:
        return failure(
            what,
            f"{seen}: a filter on the way (anti-spoofing) drops the frames of this host."
            " Only its operator can change that: show them this exchange",
            f"ndxdp trace {facts.interface} --target {target} --count 3",
        )
    words = {solicited.target: "target", facts.link_local: "link-local"}
    word = words.get(better, address_text(better))
    if now in found.passing:
        why = (
            f"{seen}: a filter drops, or the router ignores, advertisements from"
            f" {address_text(now)}; advertisements from another address may pass"
        )
    else:
        why = f"{seen}: a filter on the way (anti-spoofing) drops answers from {address_text(now)}"
    if found.rule.origin in ("config", "docker"):
        why += f'. To make the change permanent, write in the file: source = "{word}"'
    return failure(what, why, _with_source(facts.interface, found.prefix, found.rule, word))


def _preferred(found: LostAnswers, facts: Facts, target: bytes) -> list[bytes]:
    """Return the sources that pass, best first: those that one rule can use for all its targets."""
    rank = {target: 0, facts.link_local: 1}
    return sorted(found.passing, key=lambda each: rank.get(each, 2))


def _source(profile: Profile, target: bytes, link_local: bytes | None) -> bytes:
    """Return the source address of a rule's answers."""
    if isinstance(profile.source, bytes):
        return profile.source
    return link_local or target if profile.source is NaSource.LINK_LOCAL else target


def _with_source(interface: str, prefix: Prefix, rule: Rule, source: str) -> str:
    """Return the command that changes only the source of a rule's answers.

    If no command wrote the rule, the command deletes it and adds a manual one.
    """
    by = "" if rule.origin == MANUAL_ORIGIN else f" --origin {rule.origin}"
    options = [f"--na-source {source}"]
    if rule.answer is not Answer.ALWAYS:
        options.append(f"--answer {rule.answer.name.lower()}")
    options += [f"--via '{pattern}'" for pattern in rule.dev]
    options += [] if rule.profile.router else ["--no-router"]
    options += ["--override"] if rule.profile.override else []
    options += [] if rule.profile.defend else ["--dad ignore"]
    options += [f"--lladdr {rule.profile.lladdr.hex(':')}"] if rule.profile.lladdr else []
    words = " ".join(options)
    if rule.origin not in RESERVED_ORIGINS:
        return f"ndxdp prefix replace {interface} {prefix}{by} {words}"
    return (
        f"ndxdp prefix del {interface} {prefix}{by}"
        f" && ndxdp prefix add {interface} {prefix} {words}"
    )


def _judge_unsolicited(facts: Facts, prefix: Prefix, targets: set[bytes]) -> Finding:
    some = address_text(min(targets))
    if facts.age is None or facts.age < _SETTLED:
        return unseen(
            f"cannot check yet whether {prefix} needs a responder: packets for {some} arrive"
            " without a solicitation, but another responder may have answered before ndxdp was"
            " attached",
            f"sleep {_SETTLED:g}; ndxdp doctor {facts.interface} --watch 10",
        )
    return note(
        f"{prefix} is routed to this host and needs no responder: packets for {some} arrive, and"
        f" no router solicited it in the {facts.age:.0f} s since ndxdp was attached"
    )
