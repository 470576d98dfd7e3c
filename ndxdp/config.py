"""What a configuration says, in frozen dataclasses; config_reader.py reads it from a file. Pure.

Equal content makes equal dataclasses, so that a reload can tell what changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ndxdp.ndp import Answer
from ndxdp.policy import Prefix, Rule
from ndxdp.rules import Rules

ANNOUNCEMENTS = ("solicit_gateway", "probe", "advertise")


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where the exporter listens. host: an address without brackets, or a name.

    ipv6only: `::` is not IPv4's too.
    """

    host: str = "::1"
    port: int = 9877
    ipv6only: bool = False


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

    source: the address (16 bytes) to solicit from; None leaves the choice to ndxdp. interval:
    seconds between looks.
    """

    keep: bool = False
    source: bytes | None = None
    interval: float = 12.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Own addresses that are kept deprecated; `preferred` (16 bytes) never is."""

    preferred: bytes | None = None
    deprecate: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class Limit:
    """rate: answers per second to one soliciting MAC, 0 for no limit. burst: how many at once."""

    rate: float = 0.0
    burst: int = 100


@dataclass(frozen=True, slots=True)
class Resolve:
    """What becomes of solicitations for neighbours that the kernel does not know.

    deadline: seconds that one waits for its answer. rate: neighbours per second that one soliciting
    MAC may have looked for; burst: how many at once. pending: how many are looked for at a time.
    """

    deadline: float = 0.5
    rate: float = 100.0
    burst: int = 100
    pending: int = 128

    @property
    def interval(self) -> int:
        """ns between two of one soliciting MAC."""
        return round(1e9 / self.rate)

    @property
    def credit(self) -> int:
        """ns that it may run ahead."""
        return (self.burst - 1) * self.interval


@dataclass(frozen=True, slots=True)
class Interface:
    """What is to be done on one interface.

    mode, loader, on_stop: words of MODES, LOADERS, ON_STOP. max_addresses: room for exact
    addresses, None for as it is. heartbeat_timeout: seconds after which the rules for containers
    lapse without a daemon, 0 for never. rules: those that the file holds. paused: answering
    begins paused where nothing is attached yet.
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
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file. metrics: None for no exporter. docker_socket: path of the engine's socket."""

    log_level: str = "info"
    log_format: str = "text"
    metrics: Metrics | None = None
    docker_socket: str = "/var/run/docker.sock"
    interfaces: tuple[Interface, ...] = ()


def summary(interface: Interface) -> list[str]:
    """What is to be done on an interface, in a few words each; what is off is left out."""
    never = len(interface.rules.only(lambda rule: rule.answer is Answer.NEVER))
    said = [f"{interface.mode} mode" + (", by bcc" if interface.loader == "bcc" else "")]
    if interface.paused:
        said.append("begins paused")
    said.append(f"rules: {len(interface.rules)}" + (f" ({never} never)" if never else ""))
    if interface.docker:
        said.append(f"Docker: {', '.join(each.rule.label for each in interface.docker)}")
    announced = [key for key in ANNOUNCEMENTS if getattr(interface.announce, key)]
    if announced:
        every = f" every {interface.announce.interval:g} s" if interface.announce.interval else ""
        said.append(f"announces: {', '.join(announced)}{every}")
    if interface.gateway.keep:
        said.append("keeps its gateway")
    if interface.addresses.deprecate:
        said.append(f"deprecates: {', '.join(map(str, interface.addresses.deprecate))}")
    if interface.limit.rate:
        said.append(f"limit: {interface.limit.rate:g}/s, burst {interface.limit.burst}")
    return said
