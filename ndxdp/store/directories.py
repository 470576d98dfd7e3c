"""The directories that hold the state of interfaces: pins, or files without BPF.

    <bpffs>/ndxdp/v<ABI>/<interface>/{addresses,prefixes,…,program,link,tracer/}
    <run directory>/v<ABI>/<interface>/{addresses,prefixes,…,tracer/events}

bpffs reserves dots in names, interfaces (`eth0.100`) have them: a dot is written as a colon,
which no interface name holds.

Whoever can open a directory can lock it, so that locks are on directories that only their owner can
open: `lock` beside `v<ABI>` serialises all who write; the interface's own marks that a process
answers there. The group of the pins may pass through that, to open what it knows by name.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ndxdp.errors import ModeUnavailable, NdxdpError
from ndxdp.files import locks, trust
from ndxdp.files.locks import Holder
from ndxdp.kernel import abi, filesystem, libbpf
from ndxdp.rules.interface_name import check_interface

log = logging.getLogger(__name__)

DEFAULT_BPFFS = Path("/sys/fs/bpf")
DEFAULT_RUN_DIRECTORY = Path("/run/ndxdp")
PROGRAM = "program"
LINK = "link"
STAGED = ":new"
"""Ends the name of a pin that is to take the place of another."""
TRACER = "tracer"
_LOCK = "lock"
_DEADLINE = 10.0  # seconds that one process may keep the lock while another one waits
_AGAIN = 0.1  # the same, of a process that was waited for in vain
_HOLD = 1.0  # seconds: who asks is_held() holds a shared lock for a moment
_TRAVERSED = 0o710  # the mode of an interface's directory


class Tree:
    """The directories of all interfaces below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = root / f"v{abi.VERSION}"
        self._lock = root / _LOCK
        self._stuck: Holder | None = None
        self._here = threading.Lock()
        self._holding = 0  # the threads of this process that have the lock

    def check(self) -> None:
        """Raise ModeUnavailable if others than root can change what is in the tree."""
        trust.refuse_untrusted(self.base)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold off every other writer; makes the base directory where it is missing.

        Raises:
            ModeUnavailable: Nothing may be written there.
            NdxdpError: Another process has kept the lock for too long.
        """
        fd = self._locked()
        with self._here:
            self._holding += 1
        try:
            yield
        finally:
            with self._here:  # a thread that shares the lock ends first
                self._holding -= 1
            # While it is locked: who waits for it sees that the directory has gone.
            with contextlib.suppress(OSError):  # not empty: others' pins
                for directory in (self.base, self._lock, self.root):
                    directory.rmdir()
            os.close(fd)

    @contextlib.contextmanager
    def lock_if_usable(self, *, urgent: bool = False) -> Iterator[None]:
        """Hold off every other writer of what is open already.

        Where the directory is out of reach, as behind another file system, none can be: then go on
        without the lock.

        Args:
            urgent: Go on without it, too, where another process has kept it for too long.

        Raises:
            NdxdpError: Another process has kept the lock for too long.
        """
        with contextlib.ExitStack() as locked:
            try:
                locked.enter_context(self.lock())
            except NdxdpError as error:
                if not (urgent or isinstance(error, ModeUnavailable)):
                    raise
                log.debug("without a lock: %s", error)
            yield

    @contextlib.contextmanager
    def shared_lock(self) -> Iterator[None]:
        """Hold off the writers of other processes, while a thread of this one may be writing.

        Raises:
            NdxdpError: As lock_if_usable() does.
        """
        with self._here:
            if self._holding:
                yield
                return
        with self.lock_if_usable():
            yield

    def _locked(self) -> int:
        """Return a descriptor that holds the lock."""
        for _ in range(1000):  # each time that another one took the directory away meanwhile
            fd = self._opened_lock()
            if fd is None:
                continue
            try:
                self._take(fd)
                if _is_at(fd, self._lock):
                    self._make_base()
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise NdxdpError(f"{self.base} cannot be made", "is it on a file system of its own?")

    def _take(self, fd: int) -> None:
        """Take the lock. NdxdpError if one process keeps it for longer than the deadline.

        A process that was waited for in vain is not waited for again, but for a moment: a daemon
        has more to do.
        """
        taken = locks.take(fd, 0)
        while not taken:
            holder = locks.holder(self._lock)
            taken = locks.take(fd, _AGAIN if holder == self._stuck else _DEADLINE)
            if not taken and locks.holder(self._lock) == holder:
                self._stuck = holder
                raise NdxdpError(
                    f"{self.root} has been locked for {_DEADLINE:.0f} s by {holder}",
                    f"wait until that ends, or end it: {holder.cure}",
                )
        self._stuck = None

    def _opened_lock(self) -> int | None:
        """Return a descriptor of the directory to lock; None if it was taken away just now."""
        self.check()
        try:
            self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
            trust.refuse_untrusted(self.root)  # somebody else may have made it meanwhile
            self._lock.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self._lock, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if not self.root.parent.is_dir():
                raise
            return None
        except FileExistsError as error:  # pathlib's mkdir(), if it goes while that looks at it
            if any(os.path.lexists(path) and not path.is_dir() for path in (self.root, self._lock)):
                raise _unwritable(self.base, error) from error
            return None
        except OSError as error:
            raise _unwritable(self.base, error) from error
        try:
            if not trust.is_ours(os.fstat(fd)):  # the root may be a sticky directory, as /tmp is
                trust.refuse_untrusted(self._lock)
            _close_to(fd, 0o700)
        except OSError as error:
            os.close(fd)
            raise _unwritable(self.base, error) from error
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _make_base(self) -> None:
        """Make the base directory; withdraw permissions that an earlier ndxdp gave below it."""
        try:
            self.base.mkdir(mode=0o755, exist_ok=True)
            for entry in os.scandir(self.base):
                if entry.is_dir(follow_symlinks=False):
                    with _opened(Path(entry.path)) as fd:
                        _close_to(fd, _TRAVERSED)
        except OSError as error:
            raise _unwritable(self.base, error) from error

    @contextlib.contextmanager
    def locked(self, interface: str) -> Iterator[None]:
        """Lock an interface for this process, for as long as the process lives."""
        with _opened(self.path(interface)) as fd:
            _close_to(fd, _TRAVERSED)
            if not locks.take(fd, _HOLD):
                raise self._is_held(interface)
            yield

    def is_locked(self, interface: str) -> bool:
        """Return True if a living process has locked the interface."""
        return locks.is_taken(self.path(interface))

    @contextlib.contextmanager
    def traced(self, interface: str) -> Iterator[Path]:
        """Mark an interface as traced by this process; yields the tracer's own directory.

        A directory, for bpffs has no files to lock. What a killed tracer left is taken over.
        """
        path = self.path(interface) / TRACER
        with contextlib.ExitStack() as opened:
            with self.lock():
                path.mkdir(mode=0o700, exist_ok=True)
                fd = opened.enter_context(_opened(path))
                _close_to(fd, 0o700)
                if not locks.take(fd, 0):
                    raise NdxdpError(
                        f"{interface} is being traced already",
                        "end the other `ndxdp trace` or `ndxdp top` first",
                    )
                _empty(path)
            try:
                yield path
            finally:
                with self.lock():
                    # Another one's, if the interface was detached and attached anew.
                    if _is_at(fd, path):
                        _empty(path)
                        path.rmdir()

    def refuse_if_held(self, interface: str) -> None:
        if self.is_locked(interface):
            raise self._is_held(interface)

    def _is_held(self, interface: str) -> NdxdpError:
        holder = locks.holder(self.path(interface))
        which = f": {holder}" if holder.pid else ""
        return NdxdpError(
            f"{interface} is held by a running `ndxdp run`", f"stop that process first{which}"
        )

    def path(self, interface: str) -> Path:
        """UsageError for what can be no interface: a path must not lead out of the tree."""
        check_interface(interface)
        return self.base / interface.replace(".", ":")

    def interfaces(self) -> list[str]:
        """Names of the interfaces that have a directory of this ABI version."""
        try:
            names = os.listdir(self.base)
        except FileNotFoundError:
            return []
        except PermissionError:
            raise NdxdpError(f"{self.base} may not be read", "run this as root") from None
        return sorted(name.replace(":", ".") for name in names)

    def other_versions(self, interface: str) -> list[str]:
        """ABI versions other than ours (`v3`) that have a directory for the interface."""
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
        path = self.path(interface)
        try:
            path.mkdir(mode=_TRAVERSED)
        except OSError as error:
            raise _unwritable(path, error) from error
        return path

    def rename(self, interface: str, name: str) -> None:
        """Give an interface's directory another name, which has none. Who holds it goes on to."""
        self.path(interface).rename(self.path(name))

    def remove(self, interface: str) -> None:
        """Remove an interface's directory; what nothing else holds is gone with its pin."""
        path = self.path(interface)
        with contextlib.suppress(FileNotFoundError):
            # The link first: from then on nothing answers from maps that are being taken apart.
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
        """Raise ModeUnavailable where there is no BPF file system, or it is of no use.

        That is if this process may not enter it, or others than root can change what is in it.
        """
        try:
            is_bpf = self.bpffs.is_dir() and filesystem.is_bpf(self.bpffs)
            may_enter = os.access(self.bpffs, os.X_OK)
        except PermissionError:  # it is behind a directory that may not be entered
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
            raise ModeUnavailable(f"{self.bpffs} may not be entered", "run this as root")
        super().check()


class FileTree(Tree):
    """The files of interfaces that a process answers on, from userspace."""

    def __init__(self, root: Path = DEFAULT_RUN_DIRECTORY) -> None:
        super().__init__(root)


class Trees(NamedTuple):
    """Both places. An interface has a directory in one of them at most."""

    pins: PinTree = PinTree()
    files: FileTree = FileTree()

    def of(self, interface: str) -> Tree:
        """The one that has the interface, the pins' if none has. It must be usable."""
        tree: Tree = self.files if self.files.path(interface).is_dir() else self.pins
        tree.check()
        return tree

    def have(self, interface: str) -> bool:
        """Return True if the interface has a directory, or nobody may see whether it has."""
        try:
            return any(tree.path(interface).is_dir() for tree in self)
        except PermissionError:  # systemd mounts the BPF file system for root only
            return True

    def interfaces(self) -> list[str]:
        """Return those of both. NdxdpError if there are none, and a place cannot be used."""
        found, failed = list[str](), None
        for tree in self:
            try:
                tree.check()
                found += tree.interfaces()
            except NdxdpError as error:
                failed = failed or error
        if failed and not found:
            raise failed
        return sorted(found)


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        entry.unlink()


def _is_at(fd: int, path: Path) -> bool:
    """The directory that is open is still there."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _close_to(fd: int, mode: int) -> None:
    """Take the permissions away that `mode` does not have; the set-group-ID bit stays."""
    present = stat.S_IMODE(os.fstat(fd).st_mode)
    if present & 0o777 & ~mode:
        os.fchmod(fd, present & (0o7000 | mode))


def _unwritable(path: Path, error: OSError) -> OSError | ModeUnavailable:
    """Return what to raise where nothing can be made in a directory: the error, or its meaning."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return ModeUnavailable(f"{path} may not be written", "run this as root")
    if error.errno == errno.EROFS:
        return ModeUnavailable(
            f"{path} may not be written",
            "its file system is read-only: remount it, or name another",
        )
    return error


def pin(fd: int, path: Path) -> None:
    """Pin an object so that its group may read it and its owner alone may write."""
    try:
        libbpf.pin(fd, str(path))
    except libbpf.BpfError as error:
        if error.errno == errno.EROFS:
            raise _unwritable(path, error) from error
        raise
    path.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP)


def repin(fd: int, path: Path) -> None:
    """Put another object behind a pin: at no moment is the path missing."""
    stage(fd, path).rename(path)


def stage(fd: int, path: Path) -> Path:
    """Pin an object beside the pin whose place it is to take; return where."""
    fresh = staged(path)
    fresh.unlink(missing_ok=True)
    pin(fd, fresh)
    return fresh


def staged(path: Path) -> Path:
    return path.with_name(f"{path.name}{STAGED}")
