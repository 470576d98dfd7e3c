"""Whether the answers arrive, and whether any are needed: who asks, and what comes, for a while.

A router that got an answer sends what it holds for the target; it asks its group again only after
its entry has gone. One that asks the group again within seconds did not get it, or did not take
it. A router to which a prefix is routed never asks.
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
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import MANUAL_ORIGIN, RESERVED_ORIGINS, Rule
from ndxdp.rules.table import Table
from ndxdp.sockets.cbpf import LD_H, Condition, attach_filter, packet_socket, program
from ndxdp.store.directories import PinTree, Tree, Trees
from ndxdp.store.instance import open_instance

_TYPES = range(133, 138)  # router and neighbor discovery
_SOL_PACKET, _IGNORE_OUTGOING, _TO_US = 263, 23, 0
_KEPT = 64  # bytes of a packet
_PAUSE = 0.1  # seconds between two looks at what came
_AT_ONCE = 256  # packets in a look: the others are not needed to know who is written to

_AGAIN = 5.0
"""Seconds after an answer: a router sends three solicitations, a second apart (RFC 4861 7.2.2)."""

_REPEATS = 2
"""Of one: with one less, the second solicitation and the answer may have crossed."""

_SETTLED = 60.0
"""Seconds after attaching. Entries that others had answered for are probed by then: after at most
45 s they are in doubt, and 5 s later a solicitation is sent (RFC 4861 10)."""


class Asked(NamedTuple):
    """Who asks for what. All addresses 16 bytes, mac 6."""

    mac: bytes
    source: bytes
    target: bytes


@dataclass(slots=True)
class Unheard:
    """Answers that did not arrive. times: how often the group was asked again.

    prefix, rule: by which it was answered. passing, stopped: sources (16 bytes) from which a
    solicitation for the asking router was, and was not, answered by it.
    """

    times: int
    prefix: Prefix
    rule: Rule
    passing: list[bytes] = field(default_factory=list)
    stopped: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Facts:
    """trouble: why nothing was watched, '' if it was. seconds: for how long.

    answered: solicitations. reached: targets that packets came for, of rules that somebody has
    asked for before. unasked: those of rules that nobody ever asked for. age: seconds
    since the interface was attached, None if it is not known.
    link_local: the interface's, None without one.
    """

    interface: str
    trouble: str
    seconds: float
    answered: int = 0
    unheard: dict[Asked, Unheard] = field(default_factory=dict)
    reached: frozenset[bytes] = frozenset()
    unasked: dict[Prefix, set[bytes]] = field(default_factory=dict)
    age: float | None = None
    link_local: bytes | None = None


def gather(
    trees: Trees, link: Link, table: Table, addresses: list[OwnAddress], seconds: float
) -> Facts:
    """Watch for so many seconds, by the tracer and a packet socket; then ask who did not hear."""
    events: list[Event] = []
    written: Counter[tuple[bytes, bytes]] = Counter()
    try:
        tree = trees.of(link.name)
        with (
            packet_socket("sees what comes for whom") as packets,
            Tracer(trees, [link.name]) as tracer,
        ):
            _open(packets, link)
            began = time.monotonic()
            while (left := began + seconds - time.monotonic()) > 0:
                events += tracer.wait(min(left, _PAUSE))[0]
                _read(packets, written)
            events += tracer.finish()
            unheard = repeated(events, written)
            own = [each.address for each in addresses]
            for asked, found in unheard.items():
                _try_sources(packets, link, asked, found, own)
            counts = _solicited(tree, link.name)
            age = _age(tree, link.name)
    except (NdxdpError, OSError) as error:
        said = error.message if isinstance(error, NdxdpError) else error.strerror or str(error)
        return Facts(link.name, said, seconds)
    unasked: dict[Prefix, set[bytes]] = {}
    reached = set()
    for _, target in written:
        matched = table.lookup(target)
        if matched is None or matched[1].answer is Answer.NEVER or matched[1].owned:
            continue
        prefix, rule = matched
        if counts[rule.origin, rule.label]:
            reached.add(target)
        else:
            unasked.setdefault(prefix, set()).add(target)
    return Facts(
        link.name,
        "",
        seconds,
        answered=sum(event.reason.is_answer for event in events),
        unheard=unheard,
        reached=frozenset(reached),
        unasked=unasked,
        age=age,
        link_local=next((each.address for each in addresses if each.link_local), None),
    )


def _open(packets: socket.socket, link: Link) -> None:
    """Receive the heads of IPv6 packets from now on."""
    head = [Condition(LD_H, ETHERTYPE_AT, ETH_P_IPV6)]
    attach_filter(packets, program(head, last=_KEPT - 11, keep=_KEPT))
    packets.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    packets.bind((link.name, ETH_P_IPV6))


def _read(packets: socket.socket, written: Counter[tuple[bytes, bytes]]) -> None:
    """Count packets to this host's MAC by the MAC that sent them and their destination."""
    for _ in range(_AT_ONCE):
        try:
            frame, address = packets.recvfrom(_KEPT)
        except BlockingIOError:
            return
        discovers = icmpv6_type_of(frame) in _TYPES
        if address[2] == _TO_US and not discovers:
            written[eth_source_of(frame), destination_of(frame)] += 1


def repeated(
    events: Iterable[Event], written: Counter[tuple[bytes, bytes]]
) -> dict[Asked, Unheard]:
    """Who asked a group again soon after an answer, twice at least, and then sent no packet there.

    written: packets by the MAC that sent them, and their destination.
    """
    last: dict[Asked, int] = {}
    found: dict[Asked, Unheard] = {}
    for event in events:
        target = event.target
        to_group = bool(eth_destination_of(event.frame)[0] & 1)
        if target is None or not to_group or event.source == UNSPECIFIED:
            continue
        if not event.reason.is_answer or event.prefix is None or event.rule is None:
            continue
        asked = Asked(event.mac, event.source, target)
        if asked in last and event.time - last[asked] < _AGAIN * 1e9:
            found.setdefault(asked, Unheard(0, event.prefix, event.rule)).times += 1
        last[asked] = event.time
    return {
        asked: one
        for asked, one in found.items()
        if one.times >= _REPEATS and not written[asked.mac, asked.target]
    }


def _try_sources(
    packets: socket.socket, link: Link, asked: Asked, found: Unheard, own: list[bytes]
) -> None:
    """Solicit the asking router from each address that an answer might come from."""
    for source in dict.fromkeys((asked.target, *own)):
        heard = any(probe.ask_from(packets, link, source, asked.source) for _ in range(2))
        (found.passing if heard else found.stopped).append(source)


def _solicited(tree: Tree, interface: str) -> Counter[tuple[str, str]]:
    """How often each group's rules were asked for, since there are counters."""
    counts: Counter[tuple[str, str]] = Counter()
    with open_instance(tree, interface) as instance:
        for each in instance.maps.class_counts():
            counts[each.source, each.label] += each.solicited
    return counts


def _age(tree: Tree, interface: str) -> float | None:
    """Seconds since the counters began: the pins are as old; files are written to."""
    if not isinstance(tree, PinTree):
        return None
    return time.time() - (tree.path(interface) / "group_counters").stat().st_mtime


def judge(facts: Facts) -> list[Finding]:
    if facts.trouble:
        return [unseen(f"cannot tell whether answers arrive: {facts.trouble}")]
    found = [_judge_unheard(facts, *item) for item in _one_a_rule(facts.unheard)]
    found += [_judge_unasked(facts, *item) for item in sorted(facts.unasked.items())]
    if facts.reached and not facts.unheard:
        some = _text(min(facts.reached))
        others = f" and {len(facts.reached) - 1} more" if len(facts.reached) > 1 else ""
        found.append(note(f"answers arrive: packets came for {some}{others}"))
    elif not found and facts.answered:
        found.append(
            note(f"{facts.answered} solicitations were answered, and no router had to ask again")
        )
    elif not found:
        found.append(
            unseen(
                "cannot tell whether answers arrive:"
                f" nobody solicited anything in {facts.seconds:g} s",
                f"ndxdp doctor {facts.interface} --watch 60",
            )
        )
    return found


def _one_a_rule(unheard: dict[Asked, Unheard]) -> list[tuple[Asked, Unheard]]:
    """Of those that one rule answers, the first."""
    return list({one.prefix: (asked, one) for asked, one in reversed(unheard.items())}.values())


def _judge_unheard(facts: Facts, asked: Asked, found: Unheard) -> Finding:
    target, router = _text(asked.target), _text(asked.source)
    what = f"{router} keeps asking for {target}, though it was answered: answers are lost"
    now = _source(found.rule.profile, asked.target, facts.link_local)
    better = next((each for each in _preferred(found, facts, asked.target) if each != now), None)
    passing = " and ".join(map(_text, found.passing)) or "none of this host's addresses"
    seen = f"solicitations reach it from {passing}"
    if found.stopped and found.passing:
        seen += f", not from {' or '.join(map(_text, found.stopped))}"
    if better is None:
        return failure(
            what,
            f"{seen}: a filter on the way (anti-spoofing) drops what this host sends."
            " Only its operator can change that: show them this exchange",
            f"ndxdp trace -i {facts.interface} --target {target} --count 3",
        )
    word = {asked.target: "target", facts.link_local: "link-local"}.get(better, _text(better))
    if now in found.passing:
        why = (
            f"{seen}: what is dropped on the way, or ignored there, is advertisements from"
            f" {_text(now)}; those from another address may pass"
        )
    else:
        why = f"{seen}: a filter on the way (anti-spoofing) drops answers from {_text(now)}"
    if found.rule.origin in ("config", "docker"):
        why += f'. So that it stays, in the file: source = "{word}"'
    return failure(what, why, _with_source(facts.interface, found.prefix, found.rule, word))


def _preferred(found: Unheard, facts: Facts, target: bytes) -> list[bytes]:
    """Those that pass, the best first: what a rule can say of all targets at once."""
    rank = {target: 0, facts.link_local: 1}
    return sorted(found.passing, key=lambda each: rank.get(each, 2))


def _source(profile: Profile, target: bytes, link_local: bytes | None) -> bytes:
    """From where the rule answers."""
    if isinstance(profile.source, bytes):
        return profile.source
    return link_local or target if profile.source is NaSource.LINK_LOCAL else target


def _with_source(interface: str, prefix: Prefix, rule: Rule, source: str) -> str:
    """Return the command that changes nothing of a rule but the source of its answers.

    A rule that no command has written gives way to one that a command writes.
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
        return f"ndxdp prefix replace {prefix} -i {interface}{by} {words}"
    return (
        f"ndxdp prefix del {prefix} -i {interface}{by}"
        f" && ndxdp prefix add {prefix} -i {interface} {words}"
    )


def _judge_unasked(facts: Facts, prefix: Prefix, targets: set[bytes]) -> Finding:
    some = _text(min(targets))
    if facts.age is None or facts.age < _SETTLED:
        return unseen(
            f"cannot tell yet whether {prefix} needs a responder: packets for {some} come without a"
            f" solicitation, but somebody else may have answered one before ndxdp was attached",
            f"sleep {_SETTLED:g}; ndxdp doctor {facts.interface} --watch 10",
        )
    return note(
        f"{prefix} is routed to this host, no responder is needed: packets for {some} come, and"
        f" nobody asked for it in the {facts.age:.0f} s since ndxdp was attached"
    )


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, address)
