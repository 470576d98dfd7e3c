"""The open state of one interface: its maps, and in the kernel's modes its program and link.

Lock the tree before you write.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Self

from ndxdp.errors import Damaged, NdxdpError, NotAttached, is_exhausted
from ndxdp.hooks import attachment, hook_order
from ndxdp.hooks.hook_order import Program
from ndxdp.kernel import abi, bpf_hooks, bpf_maps, bpf_programs, libbpf
from ndxdp.kernel.abi import Restore
from ndxdp.kernel.libbpf import BpfError
from ndxdp.ndp.decision import decide
from ndxdp.ndp.frame import VERSION_AT, target_of
from ndxdp.ndp.message import Host
from ndxdp.netlink.fib import Fib
from ndxdp.netlink.netns import netns
from ndxdp.netlink.refusal import refusal
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.table import Table
from ndxdp.store import pins
from ndxdp.store.directories import PinTree, Tree
from ndxdp.store.maps import Maps
from ndxdp.store.records import Explained, Settings

log = logging.getLogger(__name__)

_XDP_TX, _TC_ACT_REDIRECT = 3, 7
_RUNS = 10  # dry runs at most, as there may be no room for the verdict


class Place(Enum):
    """The network namespace in which ndxdp answers, according to an interface's pins or files."""

    HERE = "here"
    """On the interface."""

    ELSEWHERE = "elsewhere"
    """On an interface of another network namespace."""

    NOWHERE = "nowhere"
    """Nowhere: nothing of ndxdp is attached any more."""


@dataclass
class Instance:
    """The open maps of an interface; close() when done."""

    interface: str
    maps: Maps

    def close(self) -> None:
        """Close all that is open."""
        self.maps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def is_attached(self, settings: Settings) -> bool:
        """Return True if ndxdp answers: its program is on the hook, or its process is running."""
        raise NotImplementedError

    def place(self, settings: Settings, *, is_locked: bool) -> Place:
        """Return where ndxdp answers.

        Args:
            settings: The settings in the maps.
            is_locked: A running process has locked the interface's directory.
        """
        if not self.is_attached(settings):
            return Place.NOWHERE
        return Place.ELSEWHERE if _is_of_other_netns(settings) else Place.HERE

    def programs_before(self) -> list[Program] | None:
        """Return the foreign programs that see frames before ndxdp does, in their order.

        Returns:
            None if the kernel does not show the programs to this process; [] if ndxdp is not
            attached in this network namespace.
        """
        settings = self.maps.settings()
        try:
            if netns() != settings.netns or not self.is_attached(settings):
                return []
            return hook_order.before(settings.ifindex, settings.mode, self._program_id())
        except (NdxdpError, OSError) as error:  # no CAP_NET_ADMIN, or no libbpf
            log.debug("%s: cannot list the foreign programs: %s", self.interface, error)
            return None

    def warn_of_rivals(self) -> None:
        """Log a warning for each foreign program at tc that sees frames before ndxdp does."""
        for program in self.programs_before() or []:
            if program.is_rival:
                log.warning(
                    "%s: %s may take solicitations before ndxdp sees them", self.interface, program
                )

    def can_come_first(self) -> bool:
        """Return True if a renewal would move ndxdp before foreign programs."""
        return False

    def _program_id(self) -> int | None:
        return None

    def device(self) -> str | None:
        """Return the present name of the device that ndxdp answers on; it may have been renamed.

        Returns:
            None if ndxdp answers nowhere, or in another network namespace.
        """
        settings = self.maps.settings()
        if netns() != settings.netns or not self.is_attached(settings):
            return None
        try:
            return socket.if_indextoname(settings.ifindex)
        except OSError:
            return None

    def verdict(self, frame: bytes) -> tuple[Explained, bytes | None]:
        """Return the verdict on a frame, and the answer if there is one; nothing is counted."""
        raise NotImplementedError


@dataclass
class KernelInstance(Instance):
    """The open pins of an interface: maps, program and perhaps a link.

    Attributes:
        prog_fd: The program.
        link_fd: The link; None if there is no pin of a link, or this process may not open it.
        link_unseen: There is a pin of a link, which this process may not open.
        is_locked: A running process has locked the interface, so it may have the link open.
    """

    prog_fd: int
    link_fd: int | None
    link_unseen: bool = False
    is_locked: bool = False

    def close(self) -> None:
        """Close the maps, the program and the link."""
        super().close()
        os.close(self.prog_fd)
        if self.link_fd is not None:
            os.close(self.link_fd)

    def reads_addresses(self) -> bool:
        """Return True if the program reads these maps' addresses.

        After an upgrade that was killed, a program of a former layout may read its own until ndxdp
        attaches again.
        """
        ids = bpf_programs.map_ids(self.prog_fd)
        return bpf_maps.id_of(self.maps.fds["addresses"]) in ids

    def pinned(self, *, link: bool) -> dict[str, int]:
        """Return the program and, with `link`, the link, by the names of their pins."""
        found = {pins.PROGRAM: self.prog_fd}
        if link and self.link_fd is not None:
            found[pins.LINK] = self.link_fd
        return found

    def is_attached(self, settings: Settings) -> bool:
        """Return True if the program is on the hook.

        Without CAP_NET_ADMIN: if the link is pinned or open, and the interface exists.
        """
        try:
            return attachment.is_attached(settings.ifindex, self.prog_fd, self.link_fd)
        except BpfError as error:
            has_link = self.link_unseen or self.is_locked
            if not has_link or error.errno not in (errno.EPERM, errno.EACCES):
                raise
        # Without CAP_NET_ADMIN the kernel does not show tcx. A link that is pinned, or open in a
        # process, stays attached as long as its interface exists.
        try:
            socket.if_indextoname(settings.ifindex)
        except OSError:
            return False
        return True

    def place(self, settings: Settings, *, is_locked: bool) -> Place:
        """Return where ndxdp answers; see Instance.place().

        Without a link, the hooks of another network namespace cannot be queried. There the program
        counts as attached.
        """
        if _is_of_other_netns(settings):
            alive = is_locked or self.link_unseen or not self.is_dead(settings)
            return Place.ELSEWHERE if alive else Place.NOWHERE
        ifindex = settings.ifindex
        if self.link_fd is not None:
            # In another network namespace, the interface may have got another index.
            ifindex = bpf_hooks.link_info(self.link_fd).ifindex
            if not ifindex:
                return Place.NOWHERE
        try:
            socket.if_indextoname(ifindex)
        except OSError:
            return Place.NOWHERE if self.link_fd is None else Place.ELSEWHERE
        return Place.HERE if self.is_attached(settings) else Place.NOWHERE

    def can_come_first(self) -> bool:
        """Return True if a renewal would move ndxdp before foreign programs."""
        settings = self.maps.settings()
        return attachment.is_overtaken(settings.ifindex, settings.mode, self.prog_fd, self.link_fd)

    def _program_id(self) -> int | None:
        return attachment.program_id(self.prog_fd, self.link_fd)

    def is_dead(self, settings: Settings) -> bool:
        """Return True if the program is certainly not attached any more."""
        if self.link_fd is not None:
            return bpf_hooks.link_info(self.link_fd).ifindex == 0
        return not settings.restore & Restore.NETLINK

    def verdict(self, frame: bytes) -> tuple[Explained, bytes | None]:
        """Return the verdict of a dry run of the program, and the answer if there is one."""
        for _ in range(_RUNS):
            number, numbered = _numbered(frame)
            try:
                run = bpf_programs.run_once(self.prog_fd, numbered)
            except BpfError as error:
                raise NdxdpError(
                    f"cannot run the program: {error.strerror}", "run this as root"
                ) from error
            explained = self.maps.take_explained(number)
            if explained is not None:
                break
        else:
            raise NdxdpError(
                "the program has left no verdict: the map 'explained' has no room",
                "other processes run the program, too: try again",
            )
        is_xdp = bpf_programs.info_of(self.prog_fd).type == bpf_programs.BPF_PROG_TYPE_XDP
        answered = run.retval == (_XDP_TX if is_xdp else _TC_ACT_REDIRECT)
        return explained, run.data if answered else None


@dataclass
class UserspaceInstance(Instance):
    """The open files of an interface in userspace mode.

    Attributes:
        is_locked: The process that answers is running.
    """

    is_locked: bool

    def is_attached(self, settings: Settings) -> bool:
        """Return True if the process that answers is running."""
        return self.is_locked and settings.ifindex != 0

    def verdict(self, frame: bytes) -> tuple[Explained, bytes | None]:
        """Return the verdict that the process would reach, and the answer if there is one."""
        settings = self.maps.settings()
        target = target_of(frame)
        possible = [Prefix.around(target, length) for length in range(129)]
        table = Table.of(self.maps.rules_at(possible), expired=settings.daemon_dead)
        host = Host(settings.mac, settings.link_local, settings.paused)
        with Fib() as fib:
            refuse = partial(refusal, fib, settings.l3_ifindex)

            reason, reply, matched = decide(
                frame, host, table.match, refuse=refuse, lapsed=self.maps.has_lapsed
            )
        found = table.lookup(target) if matched else None
        if found is None:
            return Explained(reason, None, None), reply
        return Explained(reason, found[0].length, found[1]), reply


def _numbered(frame: bytes) -> tuple[bytes, bytes]:
    """Return a random number for a dry run, and a solicitation with it; see struct ndp_explained.

    The number is the traffic class and the flow label of the solicitation, which no receiver reads
    and no checksum covers (RFC 4861 4.3, RFC 6437 2).
    """
    number = bytearray(os.urandom(4))
    number[0] = 0x60 | number[0] & 0x0F  # the version of IPv6
    return bytes(number), frame[:VERSION_AT] + number + frame[VERSION_AT + 4 :]


def _is_of_other_netns(settings: Settings) -> bool:
    """Return True if the interface was attached in another network namespace."""
    return settings.netns not in (0, netns())


def open_instance(tree: Tree, interface: str, *, readonly: bool = False) -> Instance:
    """Open the state of an interface.

    Args:
        tree: The tree that has the interface.
        interface: The interface's name.
        readonly: Open it for reading, for which read permission suffices.

    Raises:
        NotAttached: The tree does not have the interface.
        Damaged: Pins or files are missing, or have unknown contents.
        NdxdpError: This process has no permission to open them.
    """
    if isinstance(tree, PinTree):
        return open_pinned(tree, interface, readonly=readonly)
    path = _directory(tree, interface)
    try:
        maps = Maps.open_files(path)
    except PermissionError as error:
        raise NdxdpError(
            f"cannot read the files of {interface}: permission denied", "run this as root"
        ) from error
    except OSError as error:
        if is_exhausted(error):
            raise
        raise Damaged(
            f"the files of {interface} are incomplete ({error.strerror})",
            f"ndxdp detach {interface}",
        ) from error
    return UserspaceInstance(interface, maps, tree.is_locked(interface))


def open_pinned(tree: PinTree, interface: str, *, readonly: bool = False) -> KernelInstance:
    """Open the pinned objects of an interface; see open_instance()."""
    path = _directory(tree, interface)
    try:
        with contextlib.ExitStack() as undo:
            maps = Maps.open(path, readonly=readonly)
            undo.callback(maps.close)
            prog_fd = libbpf.get_pinned(str(path / pins.PROGRAM), readonly=readonly)
            undo.callback(os.close, prog_fd)
            link_fd, link_unseen = None, False
            if (path / pins.LINK).exists():
                try:
                    link_fd = libbpf.get_pinned(str(path / pins.LINK))
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
                f"cannot open the pins of {interface}: permission denied",
                "run this as root, or in the group that may read them",
            ) from error
        raise Damaged(
            f"the pins of {interface} are incomplete ({error})", f"ndxdp detach {interface}"
        ) from error
    return KernelInstance(interface, maps, prog_fd, link_fd, link_unseen, tree.is_locked(interface))


def _directory(tree: Tree, interface: str) -> Path:
    path = tree.path(interface)
    if not path.is_dir():
        refuse_other_version(tree, interface)
        from ndxdp.netlink import links  # pyroute2 is loaded only where there are no pins

        hint = f"ndxdp attach {interface}"
        if links.is_quiet(interface):
            hint = f"there is nothing to answer: {links.NO_MAC}"
        elif links.is_missing(interface):
            hint = "there is no interface of this name: ip -br link"
        raise NotAttached(f"ndxdp is not attached to {interface}", hint)
    return path


def refuse_other_version(tree: Tree, interface: str) -> None:
    """Raise NdxdpError if an ndxdp of another ABI version has attached an interface."""
    others = tree.other_versions(interface)
    if others:
        raise other_version(tree, interface, others[0])


def other_version(tree: Tree, interface: str, version: str) -> NdxdpError:
    """Return the error for an interface that an ndxdp of another ABI version has attached."""
    path = tree.root / version / tree.path(interface).name
    hint = f"detach it with the ndxdp that attached it, or: rm -r {path}"
    if version in {f"v{each}" for each in abi.FORMER_VERSIONS}:
        hint = f"ndxdp attach {interface} takes it over, and so does a restart of the daemon"
    return NdxdpError(
        f"{interface} is attached by an ndxdp of another ABI version ({version},"
        f" this one has v{abi.VERSION})",
        hint,
    )
