"""The directories that hold the state of interfaces: pins, or files in userspace mode.

    <bpffs>/ndxdp/v<ABI>/<interface>/{addresses,prefixes,…,program,link,tracer/}
    <run directory>/v<ABI>/<interface>/{addresses,prefixes,…,tracer/events}

bpffs does not allow a dot in a name, and interfaces (`eth0.100`) have dots. So a dot is written as
a colon, which no interface name has.

The lock `lock` beside `v<ABI>` serializes all writers (tree_lock.py). A process that answers on an
interface also locks the interface's directory for as long as the process lives. The group of the
pins may pass through that directory, to open a pin that it can name.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ndxdp.errors import ModeUnavailable, NdxdpError
from ndxdp.files import access, locks
from ndxdp.kernel import abi, filesystem
from ndxdp.rules.interface_name import check_interface
from ndxdp.store.pins import LINK
from ndxdp.store.tree_lock import TRAVERSED, TreeLock

DEFAULT_BPFFS = Path("/sys/fs/bpf")
DEFAULT_RUN_DIRECTORY = Path("/run/ndxdp")
TRACER = "tracer"
_PATIENCE = 1.0  # seconds: is_locked() of another process holds a shared lock for a moment


class Tree:
    """The directories of all interfaces below one root.

    Attributes:
        root: The directory that has the state of all ABI versions, and the lock.
        base: The directory of this ABI version.
        lock: The lock that serializes all writers.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = root / f"v{abi.VERSION}"
        self.lock = TreeLock(root, self.base, self.check)

    def check(self) -> None:
        """Raise ModeUnavailable if users other than root and this one can change the tree."""
        access.refuse_untrusted(self.base)

    @contextlib.contextmanager
    def locked(self, interface: str) -> Iterator[None]:
        """Lock an interface for this process, for as long as the process lives."""
        with access.opened_directory(self.path(interface)) as fd:
            access.restrict(fd, TRAVERSED)
            if not locks.take(fd, _PATIENCE):
                raise self._locked_by_run(interface)
            yield

    def is_locked(self, interface: str) -> bool:
        """Return True if a running process has locked the interface."""
        return locks.is_taken(self.path(interface))

    @contextlib.contextmanager
    def traced(self, interface: str) -> Iterator[Path]:
        """Mark an interface as traced by this process; yield the tracer's own directory.

        The mark is a locked directory, because bpffs has no files to lock. The directory of a
        tracer that was killed is reused.

        Raises:
            NdxdpError: Another process traces the interface.
        """
        path = self.path(interface) / TRACER
        with contextlib.ExitStack() as opened:
            with self.lock.exclusive():
                path.mkdir(mode=0o700, exist_ok=True)
                fd = opened.enter_context(access.opened_directory(path))
                access.restrict(fd, 0o700)
                if not locks.take(fd, 0):
                    raise NdxdpError(
                        f"{interface} is being traced already",
                        "end the other `ndxdp trace` or `ndxdp top` first",
                    )
                _empty(path)
            try:
                yield path
            finally:
                with self.lock.exclusive():
                    # After detach and attach, the directory is another tracer's.
                    if locks.is_at(fd, path):
                        _empty(path)
                        path.rmdir()

    def refuse_if_locked(self, interface: str) -> None:
        """Raise NdxdpError if a running process has locked the interface."""
        if self.is_locked(interface):
            raise self._locked_by_run(interface)

    def _locked_by_run(self, interface: str) -> NdxdpError:
        holder = locks.holder(self.path(interface))
        which = f": {holder}" if holder.pid else ""
        return NdxdpError(
            f"{interface} is locked by a running `ndxdp run`", f"stop that process first{which}"
        )

    def path(self, interface: str) -> Path:
        """Return the directory of an interface.

        Raises:
            UsageError: The name is not an interface's; a path must not lead out of the tree.
        """
        check_interface(interface)
        return self.base / interface.replace(".", ":")

    def interfaces(self) -> list[str]:
        """Return the names of the interfaces that have a directory of this ABI version."""
        try:
            names = os.listdir(self.base)
        except FileNotFoundError:
            return []
        except PermissionError:
            raise NdxdpError(
                f"cannot read {self.base}: permission denied", "run this as root"
            ) from None
        return sorted(name.replace(":", ".") for name in names)

    def other_versions(self, interface: str) -> list[str]:
        """Return the other ABI versions (`v3`) that have a directory for the interface."""
        name = interface.replace(".", ":")
        try:
            return sorted(
                entry.name
                for entry in os.scandir(self.root)
                if entry.name != self.base.name and (Path(entry.path) / name).is_dir()
            )
        except FileNotFoundError:
            return []

    def make(self, interface: str) -> Path:
        """Make the directory of an interface, and return its path."""
        path = self.path(interface)
        try:
            path.mkdir(mode=TRAVERSED)
        except OSError as error:
            raise access.unwritable(path, error) from error
        return path

    def rename(self, interface: str, name: str) -> None:
        """Rename an interface's directory; a process keeps its lock on the directory."""
        self.path(interface).rename(self.path(name))

    def notify(self, interface: str, at: int | None = None) -> None:
        """Notify watchers that a command changed the interface's rules, or paused or resumed it.

        The kernel reports no writes to maps. So a command sets the times of the directory that has
        the interface's maps, and a daemon watches the directory (kernel/inotify.py).

        Args:
            interface: The interface's name.
            at: The time to set, in ns, as the daemon expects it (handover.announce()); None for the
                present time.
        """
        with contextlib.suppress(OSError):  # the directory is another user's, or was removed
            # The kernel's own time of a touch is that of its last tick.
            now = time.time_ns() if at is None else at
            os.utime(self.path(interface), ns=(now, now))

    def remove(self, interface: str) -> None:
        """Remove an interface's directory; the kernel frees objects without other references."""
        path = self.path(interface)
        with contextlib.suppress(FileNotFoundError):
            # The link is removed first, so that no program answers from maps half removed.
            for name in sorted(os.listdir(path), key=lambda name: name != LINK):
                if name == TRACER:
                    _empty(path / name)
                    (path / name).rmdir()
                else:
                    (path / name).unlink()
            path.rmdir()


class PinTree(Tree):
    """The pins of all interfaces below one BPF file system."""

    def __init__(self, bpffs: Path = DEFAULT_BPFFS) -> None:
        super().__init__(bpffs / "ndxdp")
        self.bpffs = bpffs

    def check(self) -> None:
        """Raise ModeUnavailable if there is no usable BPF file system.

        It is unusable if this process may not enter it, or if users other than root and this one
        can change it.
        """
        try:
            is_bpf = self.bpffs.is_dir() and filesystem.is_bpf(self.bpffs)
            may_enter = os.access(self.bpffs, os.X_OK)
        except PermissionError:  # a parent directory may not be entered
            is_bpf, may_enter = True, False
        except OSError:
            is_bpf = False
        if not is_bpf:
            raise ModeUnavailable(
                f"there is no BPF file system at {self.bpffs}",
                f"mount it: mount -t bpf -o mode=0700 bpf {self.bpffs}"
                " (`ip netns exec` hides it: use nsenter --net)",
            )
        if not may_enter:
            raise ModeUnavailable(
                f"cannot enter {self.bpffs}: permission denied", "run this as root"
            )
        super().check()


class FileTree(Tree):
    """The files of all interfaces in userspace mode, below the run directory."""


class Trees(NamedTuple):
    """The tree of pins and the tree of files; at most one of them has an interface."""

    pins: PinTree = PinTree()
    files: FileTree = FileTree(DEFAULT_RUN_DIRECTORY)

    def of(self, interface: str) -> Tree:
        """Return the usable tree that has the interface; the tree of pins if neither has.

        Raises:
            ModeUnavailable: That tree is unusable.
        """
        tree: Tree = self.files if self.files.path(interface).is_dir() else self.pins
        tree.check()
        return tree

    def have(self, interface: str) -> bool:
        """Return True if the interface has a directory, or if this process may not look for one."""
        try:
            return any(tree.path(interface).is_dir() for tree in self)
        except PermissionError:  # systemd mounts the BPF file system for root only
            return True

    def interfaces(self) -> list[str]:
        """Return the names of the interfaces in both trees.

        Raises:
            NdxdpError: No interface was found, and one of the trees is unusable.
        """
        found, failed = list[str](), None
        for tree in self:
            try:
                tree.check()
                found += tree.interfaces()
            except NdxdpError as error:
                failed = failed or error
        if failed and not found:
            raise failed
        return sorted(set(found))  # both have it while the backend changes


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        entry.unlink()
