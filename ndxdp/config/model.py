"""Model of the configuration: frozen dataclasses, which config/reader.py makes of a file. Pure.

Equal content makes equal dataclasses, so that a reload can compare them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ndxdp.ndp.limiter import Limits, Rate
from ndxdp.ndp.profile import Answer
from ndxdp.rules.address import address_text
from ndxdp.rules.interface_name import is_pattern, matches_dev
from ndxdp.rules.interface_pattern import Patterns
from ndxdp.rules.prefix import AddressPattern, Prefix
from ndxdp.rules.ruleset import Rules
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.sources.selector import ENGINE_SOCKET, Selector

DEADLINE = (0.01, 60)
"""Bounds of `deadline` in [interface.resolve], in seconds."""

JOIN = ("auto", "never", "always")
"""Whether the daemon joins the solicited-node groups of exact addresses."""

ANNOUNCEMENTS = ("solicit_gateway", "probe", "advertise")


@dataclass(frozen=True, slots=True)
class Metrics:
    """The address that the exporter listens on, and what it serves.

    Attributes:
        host: An address without brackets, or a name.
        port: The TCP port.
        ipv6only: True if `::` excludes IPv4.
        all_classes: True if each rule class has series of its own, however many there are.
    """

    host: str = "::1"
    port: int = 9877
    ipv6only: bool = False
    all_classes: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Announce:
    """Frames that announce an exact address to the upstream router.

    Attributes:
        solicit_gateway: Solicit the gateway from the address.
        probe: Send a solicitation as for Duplicate Address Detection.
        advertise: Send an unsolicited advertisement.
        interval: Seconds between rounds that announce all addresses again; 0 for no rounds.
        rate: Frames per second at most.
        neighbours: Announce the neighbours behind this host, too, that `neighbour` rules answer
            for, when they appear.
    """

    solicit_gateway: bool = False
    probe: bool = False
    advertise: bool = False
    interval: float = 0.0
    rate: float = 100.0
    neighbours: bool = False


@dataclass(frozen=True, slots=True)
class Gateway:
    """Gateway care: keeping the host's neighbour entry for its gateway reachable.

    Attributes:
        keep: True if the entry is kept reachable.
        source: The address (16 bytes) to solicit from; None leaves the choice to
            upstream/gateways.py.
        interval: Seconds between solicitations; None for 0.4 of the kernel's base reachable time.
    """

    keep: bool = False
    source: bytes | None = None
    interval: float | None = None


@dataclass(frozen=True, slots=True)
class Addresses:
    """Patterns of the host's own addresses that are kept deprecated.

    Attributes:
        preferred: Patterns of addresses that stay preferred, even if `deprecate` matches them.
        deprecate: Patterns of addresses to deprecate.
    """

    preferred: tuple[AddressPattern, ...] = ()
    deprecate: tuple[AddressPattern, ...] = ()


@dataclass(frozen=True, slots=True)
class Limit:
    """Limits on answers.

    Attributes:
        rate: Answers per second to one MAC; 0 for no limit.
        burst: Answers to one MAC at once.
        interface: Answers per second to all MACs except the gateways'; 0 for no limit.
        gateway: Answers per second to each gateway, if there is another limit; 0 for no limit.
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


_ALL, _GATEWAY = 2, 10  # multiples of the limit for one MAC


@dataclass(frozen=True, slots=True)
class Resolve:
    """Limits on searches for neighbours that the kernel does not know.

    All MACs together, except the gateways', may cause twice as many searches as one MAC, and each
    gateway ten times as many.

    Attributes:
        deadline: Seconds that a solicitation waits for the neighbour's answer.
        rate: Searches per second for one MAC.
        burst: Searches for one MAC at once.
        pending: Searches in progress at a time, half of them for gateways.
    """

    deadline: float = 0.5
    rate: float = 100.0
    burst: int = 100
    pending: int = 128

    @property
    def limits(self) -> Limits:
        """Return the limits in the form that the program and the resolver use."""
        return Limits(self._times(1), self._times(_ALL), self._times(_GATEWAY))

    def _times(self, factor: int) -> Rate:
        interval = round(1e9 / self.rate / factor)
        return Rate(interval, (self.burst * factor - 1) * interval)


@dataclass(frozen=True, slots=True)
class Interface:
    """The configuration of one interface.

    Attributes:
        name: The name of the interface, an alternative name, or a pattern of names.
        mode: One of the reader's MODES.
        loader: One of the reader's LOADERS.
        max_addresses: Room for exact addresses; None keeps the present room.
        on_stop: One of the reader's ON_STOP.
        join: One of JOIN.
        heartbeat_timeout: Seconds without a daemon after which the rules for containers expire; 0
            for never.
        rules: The rules of [[interface.prefix]].
        docker: The selectors of [[interface.docker]].
        segments: The segments of [[interface.etcd]].
        announce: The table [interface.announce].
        gateway: The table [interface.gateway].
        addresses: The table [interface.addresses].
        limit: The table [interface.limit].
        resolve: The table [interface.resolve].
        forced: Prefixes whose rule is accepted although it answers for other nodes of the link.
        paused: True if answering starts paused where nothing is attached yet.
    """

    name: str
    mode: str = "auto"
    loader: str = "prebuilt"
    max_addresses: int | None = None
    on_stop: str = "keep"
    join: str = "auto"
    heartbeat_timeout: float = 0.0
    rules: Rules = field(default_factory=Rules)
    docker: tuple[Selector, ...] = ()
    announce: Announce = Announce()
    gateway: Gateway = Gateway()
    addresses: Addresses = Addresses()
    limit: Limit = Limit()
    resolve: Resolve = Resolve()
    forced: frozenset[Prefix] = frozenset()
    paused: bool = False
    segments: tuple[str, ...] = ()

    @property
    def has_rules(self) -> bool:
        """True if the interface has rules, or another source that makes some."""
        return bool(self.rules or self.docker or self.segments)


MAX_HOSTS = 4096
"""Room of a share for learned hosts by default."""

EXPIRE = 600.0
"""Seconds without a sign of life after which a share forgets a host by default."""


def hosts_per_mac(max_hosts: int) -> int:
    """Return how many hosts of one MAC a share learns by default: a quarter of all."""
    return max(max_hosts // 4, 1)


@dataclass(frozen=True, slots=True)
class Share:
    """A table [[share]]: one prefix on both sides of this host.

    Attributes:
        upstream: The name of the interface that faces the upstream.
        downstream: Names of the interfaces behind this host, and patterns of them, in the order of
            the file.
        prefixes: The shared prefixes; () for the on-link prefixes that the routers on the upstream
            interface advertise.
        relay: Router advertisements are relayed to the downstream interfaces.
        max_hosts: The most addresses that are learned.
        max_hosts_per_mac: The most addresses that are learned of one MAC.
        expire: Seconds without a sign of life after which an address is forgotten.
    """

    upstream: str
    downstream: tuple[str, ...]
    prefixes: tuple[Prefix, ...] = ()
    relay: bool = True
    max_hosts: int = MAX_HOSTS
    max_hosts_per_mac: int = hosts_per_mac(MAX_HOSTS)
    expire: float = EXPIRE


def share_downstream(shares: Iterable[Share], name: str) -> Share | None:
    """Return the share that an interface is downstream in; None if there is none.

    The upstream interface of a share is never downstream, whatever patterns match it.
    """
    every = tuple(shares)
    if any(share.upstream == name for share in every):
        return None
    return next((share for share in every if matches_dev(name, share.downstream)), None)


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration file.

    Attributes:
        log_level: The lowest level that is logged.
        log_format: `text` or `json`.
        metrics: The address of the exporter; None for no exporter.
        docker_socket: The path of the engine's socket.
        interfaces: The interfaces, in the order of the file.
        shares: The shares, in the order of the file.
        etcd: The table [etcd]; None without one.
    """

    log_level: str = "info"
    log_format: str = "text"
    metrics: Metrics | None = None
    docker_socket: str = ENGINE_SOCKET
    interfaces: tuple[Interface, ...] = ()
    shares: tuple[Share, ...] = ()
    etcd: Etcd | None = None

    @property
    def shared_names(self) -> tuple[str, ...]:
        """Return the names and patterns of the interfaces of all shares, each once."""
        names = (name for share in self.shares for name in (share.upstream, *share.downstream))
        return tuple(dict.fromkeys(names))

    def with_shared(self) -> tuple[Interface, ...]:
        """Return the interfaces of the file, and then those that only shares name.

        A name or pattern of a share gets a table with defaults, unless an [[interface]] has the
        same name or pattern. A name that a pattern of an [[interface]] matches gets none either:
        such a table would take the interface away from the pattern.
        """
        patterns = Patterns(interface.name for interface in self.interfaces)
        own = {interface.name for interface in self.interfaces}
        added = [
            name
            for name in self.shared_names
            if name not in own and (is_pattern(name) or not patterns.all_matching(name))
        ]
        return (*self.interfaces, *map(Interface, added))


def summary(interface: Interface, unanswered: str = "") -> list[str]:
    """Return a few words on each setting of an interface that is not off.

    Args:
        interface: The configuration of the interface.
        unanswered: Why nothing is answered on the interface; "" if the rules are answered for.
    """
    by_bcc = interface.loader == "bcc"
    never = len(interface.rules.where(lambda rule: rule.answer is Answer.NEVER))
    words = [unanswered or f"{interface.mode} mode" + (", by bcc" if by_bcc else "")]
    if interface.paused:
        words.append("starts paused")
    if not unanswered:
        words.append(f"rules: {len(interface.rules)}" + (f" ({never} never)" if never else ""))
    if interface.join != "auto":
        words.append(f"joins groups: {interface.join}")
    if interface.docker:
        words.append(f"Docker: {', '.join(map(str, interface.docker))}")
    if interface.segments:
        words.append(f"etcd: {', '.join(interface.segments)}")
    announced = [key for key in ANNOUNCEMENTS if getattr(interface.announce, key)]
    if announced:
        every = f" every {interface.announce.interval:g} s" if interface.announce.interval else ""
        guests = "; of neighbours, too" if interface.announce.neighbours else ""
        words.append(f"announces: {', '.join(announced)}{every}{guests}")
    if interface.gateway.keep:
        words.append(_care(interface))
    if interface.addresses.deprecate:
        words.append(f"deprecates: {', '.join(map(str, interface.addresses.deprecate))}")
    if interface.addresses.preferred:
        words.append(f"prefers: {', '.join(map(str, interface.addresses.preferred))}")
    if interface.limit.rate or interface.limit.interface:
        words.append(f"limit: {interface.limit}")
    return words


def share_summary(share: Share) -> list[str]:
    """Return a few words on each setting of a share."""
    prefixes = ", ".join(map(str, share.prefixes)) or "those that its routers advertise"
    relayed = "relays" if share.relay else "does not relay"
    return [
        f"shared with {', '.join(share.downstream)}",
        f"prefixes: {prefixes}",
        f"{relayed} router advertisements",
        f"hosts: at most {share.max_hosts}, {share.max_hosts_per_mac} of one MAC",
        f"forgets a host after {share.expire:g} s",
    ]


def _care(interface: Interface) -> str:
    """Describe the source of gateway care, as far as it follows from the file."""
    source, rules = interface.gateway.source, interface.rules
    if source is None:
        usable = (rule for rule in rules.exact if not rule.profile.lladdr)
        exact = any(rule.answer is Answer.ALWAYS for rule in usable)
        if exact or interface.docker or interface.segments:
            return "keeps its gateway, from the host's address or an exact rule's"
        return "keeps its gateway, from the host's address only: there is no exact rule"
    text = address_text(source)
    rule = rules.most_specific(source)
    if rule and rule.answer is not Answer.NEVER and not rule.profile.lladdr:
        return f"keeps its gateway, from {text}"
    owner = "the host's own, or a container's" if interface.docker else "the host's own"
    return f"keeps its gateway, from {text} only while it is {owner}: no rule here answers for it"
