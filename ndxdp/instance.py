"""What there is of one interface: opened, its rules changed, its verdict asked.

Whoever writes holds the tree's lock.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ndxdp import ndp
from ndxdp.errors import Damaged, NdxdpError, UsageError
from ndxdp.kernel import abi, attach, libbpf, pins
from ndxdp.kernel.abi import Left, Mode
from ndxdp.kernel.libbpf import BpfError
from ndxdp.kernel.maps import Explained, Maps, Settings
from ndxdp.kernel.pins import PinTree, Tree
from ndxdp.ndp import Host
from ndxdp.policy import HOST_SOURCE, Prefix, Rule, Table, difference, hole, merged

log = logging.getLogger(__name__)

_TX = {Mode.NATIVE: 3, Mode.GENERIC: 3, Mode.TC: 7}  # XDP_TX, TC_ACT_REDIRECT
_NEVER_ANSWERED = "the host's own and its gateway's addresses are never answered for"


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

    def verdict(self, frame: bytes) -> tuple[Explained, bytes | None]:
        """What would become of a frame, and its answer if there is one; it is not counted."""
        raise NotImplementedError


@dataclass
class Pinned(Instance):
    """With a program in the kernel. link_fd: None without a link, or somebody else's."""

    prog_fd: int
    link_fd: int | None

    def close(self) -> None:
        super().close()
        os.close(self.prog_fd)
        if self.link_fd is not None:
            os.close(self.link_fd)

    def is_attached(self, settings: Settings) -> bool:
        return attach.is_attached(settings.ifindex, settings.mode, self.prog_fd, self.link_fd)

    def is_dead(self, settings: Settings) -> bool:
        """It can be attached nowhere: its interface has gone, or the process that held it."""
        if self.link_fd is not None:
            return libbpf.link_info(self.link_fd).ifindex == 0
        return not settings.left & Left.NETLINK

    def verdict(self, frame: bytes) -> tuple[Explained, bytes | None]:
        try:
            run = libbpf.run_once(self.prog_fd, frame)
        except BpfError as error:
            raise NdxdpError(
                f"the kernel did not run the program ({error.strerror})", "run this as root"
            ) from error
        answered = run.retval == _TX[self.maps.settings().mode]
        return self.maps.explained(), run.data if answered else None


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
        reason, reply, matched = ndp.decide(frame, host, table.match)
        found = table.lookup(frame[62:78]) if matched else None
        if found is None:
            return Explained(reason, None, None), reply
        return Explained(reason, found[0].length, found[1]), reply


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of a made-up solicitation. reply: the NA, if it is answered."""

    solicitation: bytes
    verdict: Explained
    reply: bytes | None


def open_instance(tree: Tree, interface: str) -> Instance:
    """What there is of an interface; NdxdpError where there is nothing."""
    if isinstance(tree, PinTree):
        return open_pinned(tree, interface)
    path = _directory(tree, interface)
    try:
        maps = Maps.open_files(path)
    except PermissionError as error:
        raise NdxdpError(f"the files of {interface} may not be read", "run this as root") from error
    except OSError as error:
        raise Damaged(
            f"the files of {interface} are incomplete ({error.strerror})",
            f"ndxdp detach {interface}",
        ) from error
    return Served(interface, maps, tree.is_held(interface))


def open_pinned(tree: PinTree, interface: str) -> Pinned:
    """The pinned objects of an interface; NdxdpError where there are none."""
    path = _directory(tree, interface)
    try:
        maps = Maps.open(path)
        try:
            prog_fd = libbpf.get_pinned(str(path / pins.PROGRAM))
            link_fd = None
            if (path / pins.LINK).exists():
                link_fd = libbpf.get_pinned(str(path / pins.LINK))
        except BaseException:
            maps.close()
            raise
    except BpfError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise NdxdpError(
                f"the pins of {interface} may not be opened", "run this as root"
            ) from error
        raise Damaged(
            f"the pins of {interface} are incomplete ({error})", f"ndxdp detach {interface}"
        ) from error
    return Pinned(interface, maps, prog_fd, link_fd)


def _directory(tree: Tree, interface: str) -> Path:
    path = tree.path(interface)
    if not path.is_dir():
        others = tree.other_versions(interface)
        if others:
            raise other_version(tree, interface, others[0])
        raise NdxdpError(f"ndxdp is not attached to {interface}", f"ndxdp attach {interface}")
    return path


def other_version(tree: Tree, interface: str, version: str) -> NdxdpError:
    path = tree.root / version / tree.path(interface).name
    return NdxdpError(
        f"{interface} is held by an ndxdp of another ABI version ({version},"
        f" this one has v{abi.VERSION})",
        f"detach it with the ndxdp that attached it, or: rm -r {path}",
    )


def add_rules(tree: Tree, interface: str, rules: Mapping[Prefix, Rule]) -> None:
    """Add rules to live maps; NdxdpError if any is there already, and none is added then."""
    with tree.lock(), open_instance(tree, interface) as instance:
        actual = instance.maps.rules()
        for prefix, rule in rules.items():
            there = actual.get(prefix)
            if there and there.source == rule.source and there.same_words(rule):
                raise NdxdpError(f"{prefix} has that rule already", "nothing was added")
        desired = merged(rules, actual)
        instance.maps.apply(difference(desired, actual), actual)


def delete_rules(tree: Tree, interface: str, prefixes: list[Prefix] | None, source: str) -> None:
    """Remove a source's rules, all of them for None; NdxdpError if one is not there or not its."""
    if source == HOST_SOURCE:
        raise UsageError(
            f"rules of source '{HOST_SOURCE}' are ndxdp's own",
            _NEVER_ANSWERED,
        )
    with tree.lock(), open_instance(tree, interface) as instance:
        actual = instance.maps.rules()
        if prefixes is None:
            prefixes = [prefix for prefix, rule in actual.items() if rule.source == source]
        desired = dict(actual)
        for prefix in prefixes:
            rule = actual.get(prefix)
            if rule is None:
                raise NdxdpError(f"{prefix} has no rule", "ndxdp prefix list shows all")
            if rule.source != source:
                raise NdxdpError(
                    f"the rule of {prefix} is not of source '{source}' but of '{rule.source}'",
                    _NEVER_ANSWERED
                    if rule.source == HOST_SOURCE
                    else f"name it if you mean it: --source {rule.source}",
                )
            if rule.held:
                desired[prefix] = hole("own")  # the host has the address still
            else:
                desired.pop(prefix, None)
        instance.maps.apply(difference(desired, actual), actual)


def set_paused(tree: Tree, interface: str, *, paused: bool) -> None:
    """Answer nothing, or answer again; one write, and the next solicitation is judged by it."""
    with tree.lock(), open_instance(tree, interface) as instance:
        settings = instance.maps.settings()
        instance.maps.set_settings(replace(settings, paused=paused))


def explain(tree: Tree, interface: str, solicitation: Callable[[bytes], bytes]) -> Explanation:
    """What would become of a made-up solicitation; it is not counted.

    solicitation: makes its frame, given the interface's MAC.
    """
    with tree.lock(), open_instance(tree, interface) as instance:
        frame = solicitation(instance.maps.settings().mac)
        verdict, reply = instance.verdict(frame)
    return Explanation(frame, verdict, reply)
