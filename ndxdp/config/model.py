"""What a configuration says, in frozen dataclasses; config/reader.py reads it from a file. Pure.

Equal content makes equal dataclasses, so that a reload can tell what changed.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ndxdp.ndp.limiter import Limits, Rate
from ndxdp.ndp.profile import Answer
from ndxdp.rules.prefix import AddressPattern, Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules

DEADLINE = (0.01, 60)
"""Bounds of `deadline` in [interface.resolve], in seconds."""

ANNOUNCEMENTS = ("solicit_gateway", "probe", "advertise")


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where the exporter listens. host: an address without brackets, or a name.

    ipv6only: `::` is not IPv4's too.
    """

    host: str = "::1"
    port: int = 9877
    ipv6only: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Label(NamedTuple):
    """A label that a network or container has: any value of `key`, or just one."""

    key: str
    value: str | None = None

    def __str__(self) -> str:
        return self.key if self.value is None else f"{self.key}={self.value}"

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels has this one."""
        return self.key in labels and self.value in (None, labels[self.key])


@dataclass(frozen=True, slots=True)
class Containers:
    """Which containers an interface answers for. Exactly one of the first four is not None.

    network: all on the network of this name. network_label: all on networks with this label.
    container_label: those with this label. within: all on networks that have an IPv6 subnet
    inside this prefix. except_label: but none with this label, nor on a network with it.
    rule: what becomes the rule of each address.
    """

    rule: Rule
    network: str | None = None
    network_label: Label | None = None
    container_label: Label | None = None
    within: Prefix | None = None
    except_label: Label | None = None


@dataclass(frozen=True, slots=True)
class Announce:
    """What the upstream is told of an exact address without being asked.

    solicit_gateway: solicit the gateway from the address. probe: a DAD-style solicitation.
    advertise: an unsolicited advertisement. interval: seconds between rounds, 0 for on events
    only. rate: frames per second at most.
    """

    solicit_gateway: bool = False
    probe: bool = False
    advertise: bool = False
    interval: float = 0.0
    rate: float = 100.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """Whether the neighbour entry of the gateway is kept reachable.

    source: the address (16 bytes) to solicit from; None leaves the choice to
        upstream/gateways.py.
    interval: seconds between solicitations; None for 0.4 of the kernel's base reachable time.
    """

    keep: bool = False
    source: bytes | None = None
    interval: float | None = None


@dataclass(frozen=True, slots=True)
class Addresses:
    """Patterns of own addresses that are kept deprecated.

    preferred: patterns of addresses that stay preferred, also if a pattern of `deprecate` has them.
    """

    preferred: tuple[AddressPattern, ...] = ()
    deprecate: tuple[AddressPattern, ...] = ()


@dataclass(frozen=True, slots=True)
class Limit:
    """How many answers are sent.

    rate: a second to one MAC, 0 for no limit; burst: how many at once. interface: a second to all
    MACs but the gateways', 0 for no limit. gateway: a second to each gateway, where there is any
    limit; 0 for none.
    """

    rate: float = 0.0
    burst: int = 100
    interface: float = 0.0
    gateway: float = 10_000.0

    def __str__(self) -> str:
        words = [f"{self.rate:g}/s, burst {self.burst}"] if self.rate else []
        if self.interface:
            words.append(f"{self.interface:g}/s in all")
        share = f"{self.gateway:g}/s" if self.gateway else "no limit"
        return "; ".join([*words, f"{share} for each gateway"])


_ALL, _GATEWAY = 2, 10  # times what one MAC may have looked for


@dataclass(frozen=True, slots=True)
class Resolve:
    """What becomes of solicitations for neighbours that the kernel does not know.

    deadline: seconds that one waits for its answer. rate: neighbours per second that one MAC may
    have looked for; burst: how many at once. All MACs together but the gateways' may have twice as
    many, each gateway ten times. pending: how many are looked for at a time, half of them for
    gateways.
    """

    deadline: float = 0.5
    rate: float = 100.0
    burst: int = 100
    pending: int = 128

    @property
    def limits(self) -> Limits:
        """The limits on searches, as the program and the resolver keep them."""
        return Limits(self._times(1), self._times(_ALL), self._times(_GATEWAY))

    def _times(self, factor: int) -> Rate:
        interval = round(1e9 / self.rate / factor)
        return Rate(interval, (self.burst * factor - 1) * interval)


@dataclass(frozen=True, slots=True)
class Interface:
    """What is to be done on one interface.

    mode, loader, on_stop: words of MODES, LOADERS, ON_STOP. max_addresses: room for exact
    addresses, None for as it is. heartbeat_timeout: seconds after which the rules for containers
    lapse without a daemon, 0 for never. rules: those that the file holds. forced: prefixes whose
    rule is wanted although it answers for other nodes of the link. paused: answering begins paused
    where nothing is attached yet.
    """

    name: str
    mode: str = "auto"
    loader: str = "prebuilt"
    max_addresses: int | None = None
    on_stop: str = "keep"
    heartbeat_timeout: float = 0.0
    rules: Rules = field(default_factory=Rules)
    docker: tuple[Containers, ...] = ()
    announce: Announce = Announce()
    gateway: Gateway = Gateway()
    addresses: Addresses = Addresses()
    limit: Limit = Limit()
    resolve: Resolve = Resolve()
    forced: frozenset[Prefix] = frozenset()
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file. metrics: None for no exporter. docker_socket: path of the engine's socket."""

    log_level: str = "info"
    log_format: str = "text"
    metrics: Metrics | None = None
    docker_socket: str = "/var/run/docker.sock"
    interfaces: tuple[Interface, ...] = ()


def summary(interface: Interface, unanswered: str = "") -> list[str]:
    """Describe what is to be done on an interface, in a few words each; leave out what is off.

    unanswered: why nothing is answered there, "" where the rules are answered for.
    """
    by_bcc = interface.loader == "bcc"
    never = len(interface.rules.where(lambda rule: rule.answer is Answer.NEVER))
    said = [unanswered or f"{interface.mode} mode" + (", by bcc" if by_bcc else "")]
    if interface.paused:
        said.append("begins paused")
    if not unanswered:
        said.append(f"rules: {len(interface.rules)}" + (f" ({never} never)" if never else ""))
    if interface.docker:
        said.append(f"Docker: {', '.join(each.rule.label for each in interface.docker)}")
    announced = [key for key in ANNOUNCEMENTS if getattr(interface.announce, key)]
    if announced:
        every = f" every {interface.announce.interval:g} s" if interface.announce.interval else ""
        said.append(f"announces: {', '.join(announced)}{every}")
    if interface.gateway.keep:
        said.append(_care(interface))
    if interface.addresses.deprecate:
        said.append(f"deprecates: {', '.join(map(str, interface.addresses.deprecate))}")
    if interface.addresses.preferred:
        said.append(f"prefers: {', '.join(map(str, interface.addresses.preferred))}")
    if interface.limit.rate or interface.limit.interface:
        said.append(f"limit: {interface.limit}")
    return said


def _care(interface: Interface) -> str:
    """Say from where the gateway will be solicited, as far as the file alone can tell."""
    source, rules = interface.gateway.source, interface.rules
    if source is None:
        usable = (rule for rule in rules.exact if not rule.profile.lladdr)
        exact = any(rule.answer is Answer.ALWAYS for rule in usable)
        if exact or interface.docker:
            return "keeps its gateway, from the host's address or an exact rule's"
        return "keeps its gateway, from the host's address only: there is no exact rule"
    text = socket.inet_ntop(socket.AF_INET6, source)
    rule = rules.most_specific(source)
    if rule and rule.answer is not Answer.NEVER and not rule.profile.lladdr:
        return f"keeps its gateway, from {text}"
    others = "or a container's: no rule here answers" if interface.docker else "as no rule answers"
    return f"keeps its gateway, from {text} only while it is the host's own, {others} for it"
