"""The task of the daemon, as a command line or the configuration specifies it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ndxdp.config.model import Addresses, Announce, Gateway, Metrics, Resolve, Share
from ndxdp.errors import UsageError
from ndxdp.kernel.abi import Mode
from ndxdp.rules.interface_name import is_pattern
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import RUN_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.sources.selector import ENGINE_SOCKET, Selector


@dataclass(frozen=True, slots=True)
class InterfaceSpec:
    """The part of the daemon's task that concerns a single interface.

    Attributes:
        interface: The interface's name, or a pattern of names.
        options: How to answer.
        rules: The rules that were given, which have the origin `origin`.
        origin: The origin of those rules.
        keep: The program outlives the process.
        insist: It is an error if no program can be attached.
        detach: The program is detached at the end even so.
        patient: The daemon waits for an interface that is absent at the start.
        selectors: The containers to answer for.
        segments: The segments in etcd whose rules this interface gets.
        join: Whether to join the groups of exact addresses: `auto`, `never` or `always`.
        heartbeat_timeout: Seconds without a heartbeat after which dynamic rules expire; 0 for
            never.
        announce: How to announce addresses to the upstream.
        gateway: How to keep the gateways' neighbour entries alive.
        addresses: Which of the interface's addresses to deprecate.
        resolve: How often to have the kernel look for unknown neighbours.
        forced: Prefixes whose rule is accepted although it answers for other nodes of the link.
        pattern: The pattern that the interface matches; "" if the configuration names it.
        shared: The interface belongs to a share, which does not need a MAC on it.
    """

    interface: str
    options: AttachOptions
    rules: Rules
    origin: str = RUN_ORIGIN
    keep: bool = False
    insist: bool = False
    detach: bool = True
    patient: bool = False
    selectors: tuple[Selector, ...] = ()
    join: str = "auto"
    heartbeat_timeout: float = 0.0
    announce: Announce = field(default_factory=Announce)
    gateway: Gateway = field(default_factory=Gateway)
    addresses: Addresses = field(default_factory=Addresses)
    resolve: Resolve = field(default_factory=Resolve)
    forced: frozenset[Prefix] = frozenset()
    pattern: str = ""
    shared: bool = False
    segments: tuple[str, ...] = ()

    def same_but_rules(self, other: InterfaceSpec) -> bool:
        """Return True if only the rules or their sources differ, which needs no renewal.

        The first segments need one: shared addresses that this host takes are announced.

        Args:
            other: The specification before.
        """
        same = replace(
            self,
            rules=other.rules,
            forced=other.forced,
            selectors=other.selectors,
            segments=other.segments or self.segments,
            pattern=other.pattern,
            shared=other.shared,
        )
        return same == other

    def check(self) -> None:
        """Raise UsageError for a program that is to outlive the process in userspace mode."""
        if self.insist and self.wants_process:
            raise UsageError(
                "in userspace mode a process answers, and nothing can go on without it",
                "leave --keep out, or take another mode",
            )

    @property
    def is_pattern(self) -> bool:
        """True if this is the specification of all interfaces that match a pattern."""
        return is_pattern(self.interface)

    def of(self, name: str) -> InterfaceSpec:
        """Return the specification of an interface that matches this one's pattern."""
        return replace(self, interface=name, pattern=self.interface)

    @property
    def keeps_addresses_only(self) -> bool:
        """True if the interface is of use without answers: by its addresses, or to a share."""
        wanted = bool(self.addresses.deprecate) or self.shared
        return wanted and not (self.rules or self.selectors or self.segments)

    @property
    def wants_process(self) -> bool:
        """True if this process is to answer, and not a program."""
        return self.options.mode is Mode.USERSPACE

    def request(self, rules: Rules, *, down: bool, switch: bool) -> AttachRequest:
        """Return the request to attach to the interface.

        Args:
            rules: Those of the rules that may be answered by.
            down: The interface may be down.
            switch: The program changes to the mode of the options. It always does if a
                configuration names the mode: an earlier daemon may have left another one.
        """
        return AttachRequest(
            self.interface,
            rules,
            self.options,
            self.origin,
            keep=self.keep,
            lock=True,
            fallback=self.options.mode is None and not self.insist,
            down=down,
            switch=switch or (self.patient and self.options.mode is not None),
            force=True,
        )


@dataclass(frozen=True, slots=True)
class DaemonSpec:
    """The whole task of the daemon.

    Attributes:
        interfaces: One part for each interface. The daemon empties the list, so that the rules
            are in memory once.
        docker_socket: The path of the engine's socket.
        etcd: How to reach etcd; None if no interface has rules there.
        metrics: The address to serve metrics at; None for none.
        log_level: The lowest level that is logged.
        log_format: The format of log lines.
        shares: The shares. Each of their interfaces has a part in `interfaces`.
    """

    interfaces: list[InterfaceSpec]
    docker_socket: str = ENGINE_SOCKET
    metrics: Metrics | None = None
    log_level: str = "info"
    log_format: str = "text"
    shares: tuple[Share, ...] = ()
    etcd: Etcd | None = None
