"""What there is of one interface: opened, its rules changed, its verdict asked.

Whoever writes holds the tree's lock.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from ndxdp.errors import Damaged, NdxdpError, NotAttached, UsageError, is_exhausted
from ndxdp.kernel import abi, attachment, bpf_hooks, bpf_programs, hook_order, libbpf
from ndxdp.kernel.abi import Restore
from ndxdp.kernel.hook_order import Program
from ndxdp.kernel.libbpf import BpfError
from ndxdp.ndp.decision import decide
from ndxdp.ndp.message import Host
from ndxdp.netlink import onlink
from ndxdp.netlink.fib import Fib, NudState, Route, RouteType, refusal
from ndxdp.netlink.netns import netns as netns
from ndxdp.netlink.onlink import OnLink
from ndxdp.rules import breadth
from ndxdp.rules.difference import difference, merge
from ndxdp.rules.rule import HOST_ORIGIN, OWN_LABEL, owned_rule
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Table
from ndxdp.store import directories, rule_watch
from ndxdp.store.directories import PinTree, Tree
from ndxdp.store.maps import Maps
from ndxdp.store.records import Explained, Settings

log = logging.getLogger(__name__)

_XDP_TX, _TC_ACT_REDIRECT = 3, 7
_RUNS = 10  # of a program to be explained, at most: others may have theirs in between
_NEVER_ANSWERED = "the host's own and its gateway's addresses are never answered for"


class Place(Enum):
    """Where ndxdp answers by what there is of an interface."""

    HERE = "here"
    """On the interface."""

    ELSEWHERE = "elsewhere"
    """On an interface of another network namespace than this process is in."""

    NOWHERE = "nowhere"
    """Nothing of ndxdp is attached any more."""


@dataclass
class Instance:
    """An interface's open maps."""

    interface: str
    maps: Maps

    def close(self) -> None:
        self.maps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def is_attached(self, settings: Settings) -> bool:
        """Something of ours is at work there: our program on its hook, or our process."""
        raise NotImplementedError

    def place(self, settings: Settings, *, is_held: bool) -> Place:
        """Find out where ndxdp answers. is_held: a process holds the interface."""
        if not self.is_attached(settings):
            return Place.NOWHERE
        return Place.ELSEWHERE if _is_foreign(settings) else Place.HERE

    def programs_before(self) -> list[Program] | None:
        """Return the programs of others that see frames before ndxdp does, in their order.

        None where the kernel does not show them to this process. [] if nothing of ours is
        attached in this network namespace.
        """
        settings = self.maps.settings()
        try:
            if netns() != settings.netns or not self.is_attached(settings):
                return []
            return hook_order.before(settings.ifindex, settings.mode, self._program_id())
        except (NdxdpError, OSError) as error:  # no CAP_NET_ADMIN, or no libbpf
            log.debug("%s: programs of others are not shown: %s", self.interface, error)
            return None

    def warn_of_rivals(self) -> None:
        """Log which programs of others at tc see frames before ndxdp does."""
        for program in self.programs_before() or []:
            if program.is_rival:
                log.warning(
                    "%s: %s may take solicitations before ndxdp sees them", self.interface, program
                )

    def can_come_first(self) -> bool:
        """Return True if a renewal would attach before programs that are before ndxdp now."""
        return False

    def _program_id(self) -> int | None:
        return None

    def device(self) -> str | None:
        """What the device that it answers on is called now, which a rename may have changed.

        None if it answers nowhere, or in another network namespace.
        """
        settings = self.maps.settings()
        if netns() != settings.netns or not self.is_attached(settings):
            return None
        try:
            return socket.if_indextoname(settings.ifindex)
        except OSError:
            return None

    def verdict(self, frame: bytes) -> tuple[Explained, bytes | None]:
        """What would become of a frame, and its answer if there is one; it is not counted."""
        raise NotImplementedError


@dataclass
class Pinned(Instance):
    """With a program in the kernel. link_fd: None without a link, or somebody else's.

    link_unseen: there is a link, but who may only read cannot open it. held: a living process holds
    the interface, and so perhaps the link.
    """

    prog_fd: int
    link_fd: int | None
    link_unseen: bool = False
    held: bool = False

    def close(self) -> None:
        super().close()
        os.close(self.prog_fd)
        if self.link_fd is not None:
            os.close(self.link_fd)

    def pinned(self, *, link: bool) -> dict[str, int]:
        """Return what is pinned beside the maps, by its pin: the program, and perhaps the link."""
        found = {directories.PROGRAM: self.prog_fd}
        if link and self.link_fd is not None:
            found[directories.LINK] = self.link_fd
        return found

    def is_attached(self, settings: Settings) -> bool:
        try:
            return attachment.is_attached(settings.ifindex, self.prog_fd, self.link_fd)
        except BpfError as error:
            has_link = self.link_unseen or self.held
            if not has_link or error.errno not in (errno.EPERM, errno.EACCES):
                raise
        # The kernel shows tcx to nobody without CAP_NET_ADMIN. While a link is pinned, or a process
        # has it, it is attached for as long as its interface is there.
        try:
            socket.if_indextoname(settings.ifindex)
        except OSError:
            return False
        return True

    def place(self, settings: Settings, *, is_held: bool) -> Place:
        """Find out where ndxdp answers. is_held: a process holds the interface.

        Without a link, the hook of an interface of another network namespace cannot be asked: it
        is taken to have our program.
        """
        if _is_foreign(settings):
            alive = is_held or self.link_unseen or not self.is_dead(settings)
            return Place.ELSEWHERE if alive else Place.NOWHERE
        ifindex = settings.ifindex
        if self.link_fd is not None:
            ifindex = bpf_hooks.link_info(self.link_fd).ifindex  # another after a move, if need be
            if not ifindex:
                return Place.NOWHERE
        try:
            socket.if_indextoname(ifindex)
        except OSError:
            return Place.NOWHERE if self.link_fd is None else Place.ELSEWHERE
        return Place.HERE if self.is_attached(settings) else Place.NOWHERE

    def can_come_first(self) -> bool:
        settings = self.maps.settings()
        return attachment.is_overtaken(settings.ifindex, settings.mode, self.prog_fd, self.link_fd)

    def _program_id(self) -> int | None:
        return attachment.program_id(self.prog_fd, self.link_fd)

    def is_dead(self, settings: Settings) -> bool:
        """It can be attached nowhere: its interface has gone, or the process that held it."""
        if self.link_fd is not None:
            return bpf_hooks.link_info(self.link_fd).ifindex == 0
        return not settings.restore & Restore.NETLINK

    def verdict(self, frame: bytes) -> tuple[Explained, bytes | None]:
        # No lock keeps another run, of another frame, from leaving its verdict where this one's
        # is read from: so the same has to be read after two runs.
        before = None
        for _ in range(_RUNS):
            try:
                run = bpf_programs.run_once(self.prog_fd, frame)
            except BpfError as error:
                raise NdxdpError(
                    f"the kernel did not run the program ({error.strerror})", "run this as root"
                ) from error
            explained = self.maps.explained()
            if explained == before:
                break
            before = explained
        is_xdp = bpf_programs.info_of(self.prog_fd).type == bpf_programs.BPF_PROG_TYPE_XDP
        answered = run.retval == (_XDP_TX if is_xdp else _TC_ACT_REDIRECT)
        return explained, run.data if answered else None


@dataclass
class Served(Instance):
    """With a process that answers. held: it lives."""

    held: bool

    def is_attached(self, settings: Settings) -> bool:
        return self.held and settings.ifindex != 0

    def verdict(self, frame: bytes) -> tuple[Explained, bytes | None]:
        settings = self.maps.settings()
        table = Table.of(self.maps.rules(), expired=settings.daemon_dead)
        host = Host(settings.mac, settings.link_local, settings.paused)
        with Fib() as fib:
            refuse = partial(refusal, fib, settings.l3_ifindex)

            reason, reply, matched = decide(frame, host, table.match, refuse=refuse)
        found = table.lookup(frame[62:78]) if matched else None
        if found is None:
            return Explained(reason, None, None), reply
        return Explained(reason, found[0].length, found[1]), reply


class Forwarding(NamedTuple):
    """What the kernel's tables say of a target.

    route: the entry that a packet for it takes, None where there is no such entry or the kernel
    does not show it. interface: that it leaves by, '' for none. state: of the target's neighbour
    entry there. forwards: the sysctl of the interface that it comes in by.
    """

    type: RouteType
    route: Route | None
    interface: str
    state: NudState
    forwards: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of a made-up solicitation. reply: the NA, if it is answered.

    forwarding: of a rule that asks the kernel's tables.
    """

    solicitation: bytes
    verdict: Explained
    reply: bytes | None
    forwarding: Forwarding | None = None


def _is_foreign(settings: Settings) -> bool:
    """Return True if the interface was attached to in another network namespace."""
    return settings.netns not in (0, netns())


def open_instance(tree: Tree, interface: str, *, readonly: bool = False) -> Instance:
    """What there is of an interface; NdxdpError where there is nothing.

    readonly: to look at it, for which read permission will do.
    """
    if isinstance(tree, PinTree):
        return open_pinned(tree, interface, readonly=readonly)
    path = _directory(tree, interface)
    try:
        maps = Maps.open_files(path)
    except PermissionError as error:
        raise NdxdpError(f"the files of {interface} may not be read", "run this as root") from error
    except OSError as error:
        if is_exhausted(error):
            raise
        raise Damaged(
            f"the files of {interface} are incomplete ({error.strerror})",
            f"ndxdp detach {interface}",
        ) from error
    return Served(interface, maps, tree.is_locked(interface))


def open_pinned(tree: PinTree, interface: str, *, readonly: bool = False) -> Pinned:
    """The pinned objects of an interface; NdxdpError where there are none."""
    path = _directory(tree, interface)
    try:
        with contextlib.ExitStack() as undo:
            maps = Maps.open(path, readonly=readonly)
            undo.callback(maps.close)
            prog_fd = libbpf.get_pinned(str(path / directories.PROGRAM), readonly=readonly)
            undo.callback(os.close, prog_fd)
            link_fd, link_unseen = None, False
            if (path / directories.LINK).exists():
                try:
                    link_fd = libbpf.get_pinned(str(path / directories.LINK))
                except BpfError as error:
                    link_unseen = readonly and error.errno in (errno.EPERM, errno.EACCES)
                    if not link_unseen:
                        raise
            undo.pop_all()
    except (BpfError, PermissionError) as error:
        if is_exhausted(error):
            raise
        if error.errno in (errno.EPERM, errno.EACCES):
            raise NdxdpError(
                f"the pins of {interface} may not be opened",
                "run this as root, or in the group that may read them",
            ) from error
        raise Damaged(
            f"the pins of {interface} are incomplete ({error})", f"ndxdp detach {interface}"
        ) from error
    return Pinned(interface, maps, prog_fd, link_fd, link_unseen, tree.is_locked(interface))


def _directory(tree: Tree, interface: str) -> Path:
    path = tree.path(interface)
    if not path.is_dir():
        others = tree.other_versions(interface)
        if others:
            raise other_version(tree, interface, others[0])
        from ndxdp.netlink import links  # pyroute2: who finds the pins does without

        hint = f"ndxdp attach {interface}"
        if links.is_quiet(interface):
            hint = f"there is nothing to answer: {links.NO_MAC}"
        raise NotAttached(f"ndxdp is not attached to {interface}", hint)
    return path


def elsewhere(path: Path) -> NdxdpError:
    """Return the error of an interface whose pins or files are another network namespace's."""
    return NdxdpError(
        f"{path} belongs to an interface of another network namespace",
        f"give this one a BPF file system or run directory of its own (--bpffs, --run-directory);"
        f" if that one has gone: rm -r {path}",
    )


def is_elsewhere(tree: Tree, instance: Instance) -> bool:
    """Return True if this belongs to another network namespace, where its interface may be still.

    What the kernel has of it there cannot be asked here: an ifindex means another interface.
    """
    settings = instance.maps.settings()
    if not _is_foreign(settings):
        return False
    is_held = tree.is_locked(instance.interface)
    alive = instance.place(settings, is_held=is_held) is Place.ELSEWHERE
    return alive or not isinstance(instance, Pinned)  # of files nobody knows whether it has gone


def refuse_elsewhere(tree: Tree, instance: Instance) -> None:
    """Raise NdxdpError for what belongs to another network namespace."""
    if is_elsewhere(tree, instance):
        raise elsewhere(tree.path(instance.interface))


def refuse_if_held(tree: Tree, interface: str) -> None:
    """Raise NdxdpError if a process answers on the interface, or on its namesake elsewhere."""
    if not tree.is_locked(interface):
        return
    try:
        with open_instance(tree, interface, readonly=True) as instance:
            is_there = is_elsewhere(tree, instance)
    except NdxdpError:  # it is only just being made, or cannot be read
        is_there = False
    if is_there:
        raise elsewhere(tree.path(interface))
    tree.refuse_if_held(interface)


def other_version(tree: Tree, interface: str, version: str) -> NdxdpError:
    path = tree.root / version / tree.path(interface).name
    return NdxdpError(
        f"{interface} is held by an ndxdp of another ABI version ({version},"
        f" this one has v{abi.VERSION})",
        f"detach it with the ndxdp that attached it, or: rm -r {path}",
    )


def add_rules(
    tree: Tree, interface: str, rules: Rules, *, replacing: bool = False, force: bool = False
) -> None:
    """Add rules to live maps: all of them or, on an error, none.

    A rule that is there with the same words stays as it is, whoever wrote it.

    Args:
        tree: Where the interface's maps are.
        interface: Its name.
        rules: The rules to add.
        replacing: Change rules of the same source that have other words.
        force: Take rules that cover an on-link prefix of the interface, too.

    Raises:
        NdxdpError: A prefix has another rule, a rule is too broad, or there is no room.
    """
    with tree.lock(), open_instance(tree, interface) as instance:
        refuse_elsewhere(tree, instance)
        if not force and breadth.has_candidates(rules):
            here = on_link(instance.maps.settings())
            for broad in breadth.covering(rules, here.prefixes):
                raise broad.error(interface, onlink.behind(broad.prefix, here.ifindexes))
        actual = instance.maps.rules()
        desired = merge(rules, actual, replacing=replacing)
        _log_kept(interface, rules, actual)
        instance.maps.apply(difference(desired, actual), actual)
        note_locals(instance.maps)
        rule_watch.touch(tree.path(interface))
        settings = instance.maps.settings()
        if netns() == settings.netns:
            warn_of_neighbours(interface, settings.l3_ifindex, rules)


def _log_kept(interface: str, rules: Rules, actual: Rules) -> None:
    """Log which of the rules are there already, by another source, and stay that one's."""
    if not log.isEnabledFor(logging.INFO):
        return
    for prefix, rule, there in rules.paired_with(actual):
        if there.origin not in (rule.origin, HOST_ORIGIN):
            log.info(
                "%s: %s has that rule already, by '%s', whose it stays",
                interface,
                prefix,
                there.origin,
            )


def on_link(settings: Settings) -> OnLink:
    """Return what is on-link where an instance answers; nothing in another network namespace."""
    if netns() != settings.netns:
        return OnLink()
    return onlink.read((settings.ifindex, settings.l3_ifindex))


def warn_of_neighbours(interface: str, ifindex: int, rules: Rules) -> None:
    """Log a warning for each rule that answers for neighbours at the uplink.

    Args:
        ifindex: the interface that has the uplink's neighbours, for a port its bridge.
    """
    known = onlink.neighbours(ifindex)
    for prefix, some in breadth.around_neighbours(rules, known).items():
        log.warning(
            "%s: the rule for %s answers for %d that are neighbours there now, as %s at %s",
            interface,
            prefix,
            len(some),
            socket.inet_ntop(socket.AF_INET6, min(some)),
            known[min(some)].hex(":"),
        )
    for address in breadth.at_neighbours(rules, known):
        log.warning(
            "%s: %s is a neighbour there now, at %s: both it and ndxdp answer for that address",
            interface,
            socket.inet_ntop(socket.AF_INET6, address),
            known[address].hex(":"),
        )


def note_locals(maps: Maps) -> None:
    """Let the program know what ends at this host, of which only a daemon hears later."""
    if maps.for_program:
        with Fib() as fib:
            maps.set_locals(fib.local_prefixes())


def delete_rules(
    tree: Tree, interface: str, named: Rules | None, source: str, *, missing_ok: bool = False
) -> None:
    """Remove a source's rules: all that are named or, on an error, none.

    Args:
        tree: Where the interface's maps are.
        interface: Its name.
        named: Any rules, whose prefixes are meant; None for all of the source.
        source: Whose rules.
        missing_ok: Leave out prefixes that have no rule of the source.

    Raises:
        NdxdpError: A prefix has no rule, or that of another source.
    """
    if source == HOST_ORIGIN:
        raise UsageError(
            f"rules of origin '{HOST_ORIGIN}' are ndxdp's own",
            _NEVER_ANSWERED,
        )
    with tree.lock(), open_instance(tree, interface) as instance:
        refuse_elsewhere(tree, instance)
        actual = instance.maps.rules()
        if named is None:
            going = actual.where(lambda rule: rule.origin == source)
        else:
            going = actual.restricted_to(named)
        if named is not None and not missing_ok:
            for prefix in named.without(actual):
                raise NdxdpError(f"{prefix} has no rule", "ndxdp prefix list shows all")
            for prefix, rule in going.where(lambda rule: rule.origin != source).pairs():
                raise NdxdpError(
                    f"the rule of {prefix} is not of origin '{source}' but of '{rule.origin}'",
                    _NEVER_ANSWERED
                    if rule.origin == HOST_ORIGIN
                    else f"name it if you mean it: --origin {rule.origin}",
                )
        going = going.where(lambda rule: rule.origin == source)
        # Of these the host has the address still.
        held = going.where(lambda rule: rule.owned)
        desired = actual.without(going) | dict.fromkeys(held, owned_rule(OWN_LABEL))
        instance.maps.apply(difference(desired, actual), actual)
        rule_watch.touch(tree.path(interface))


def set_paused(tree: Tree, interface: str, *, paused: bool) -> None:
    """Answer nothing, or answer again; one write, and the next solicitation is judged by it."""
    with tree.lock(), open_instance(tree, interface) as instance:
        refuse_elsewhere(tree, instance)
        settings = instance.maps.settings()
        instance.maps.set_settings(replace(settings, paused=paused))
        rule_watch.touch(tree.path(interface))  # a daemon has more to do about it


def explain(tree: Tree, interface: str, solicitation: Callable[[bytes], bytes]) -> Explanation:
    """What would become of a made-up solicitation; it is not counted.

    solicitation: makes its frame, given the interface's MAC.
    """
    with open_instance(tree, interface) as instance:
        refuse_elsewhere(tree, instance)  # a verdict would be by the routes of this namespace
        settings = instance.maps.settings()
        frame = solicitation(settings.mac)
        verdict, reply = instance.verdict(frame)
        instance.warn_of_rivals()
        forwarding = None
        if verdict.rule and verdict.rule.answer.asks_kernel:
            forwarding = _forwarding(frame[62:78], settings.l3_ifindex)
    return Explanation(frame, verdict, reply, forwarding)


def _forwarding(target: bytes, ifindex: int) -> Forwarding:
    with Fib() as fib:
        route = fib.route(target, ifindex)
        entry = fib.route(target, ifindex, matched=True)
        name, state = "", NudState.NONE
        if route.ifindex:
            with contextlib.suppress(OSError):  # it went while we looked
                name = socket.if_indextoname(route.ifindex)
            state = fib.neighbour(route.ifindex, target)
        known = entry._replace(gateway=route.gateway) if entry.prefix else None
        return Forwarding(route.type, known, name, state, fib.forwards(ifindex))
