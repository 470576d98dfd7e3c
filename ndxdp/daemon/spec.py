"""What the daemon is to do, decided by a command line or by the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ndxdp.config.model import Addresses, Announce, Gateway, Metrics, Resolve
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import RUN_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.session.request import Options
from ndxdp.sources import docker
from ndxdp.sources.docker import Selector


@dataclass(frozen=True, slots=True)
class Job:
    """One interface's part of a configuration.

    rules: those that the daemon was given, of `origin`. keep: the program outlives the process.
    insist: and where no program can be had, that is an error. detach: it is taken off at the end
    all the same. patient: an interface that is not there is waited for from the start.
    selectors: of containers. heartbeat_timeout: s, after which dynamic rules lapse; 0 for never.
    forced: prefixes whose rule is wanted although it answers for other nodes of the link.
    """

    interface: str
    options: Options
    rules: Rules
    origin: str = RUN_ORIGIN
    keep: bool = False
    insist: bool = False
    detach: bool = True
    patient: bool = False
    selectors: tuple[Selector, ...] = ()
    heartbeat_timeout: float = 0.0
    announce: Announce = field(default_factory=Announce)
    gateway: Gateway = field(default_factory=Gateway)
    addresses: Addresses = field(default_factory=Addresses)
    resolve: Resolve = field(default_factory=Resolve)
    forced: frozenset[Prefix] = frozenset()

    def same_but_rules(self, other: Job) -> bool:
        """Nothing but rules and selectors differs, which are changed as it runs."""
        same = replace(self, rules=other.rules, forced=other.forced, selectors=other.selectors)
        return same == other


@dataclass(frozen=True, slots=True)
class Work:
    """All that the daemon is to do.

    Attributes:
        jobs: One for each interface; the daemon empties the list, so that rules are held once.
        docker_socket: The path of the engine's socket.
        metrics: Where to serve metrics; None for nowhere.
        log_level: The least level that is logged, as the configuration has it.
        log_format: The form of log lines, as the configuration has it.
    """

    jobs: list[Job]
    docker_socket: str = docker.SOCKET
    metrics: Metrics | None = None
    log_level: str = "info"
    log_format: str = "text"
