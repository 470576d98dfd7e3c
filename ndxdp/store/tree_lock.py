"""The lock that serializes all writers of a tree: a directory next to the tree's state.

A process that can open a directory can also lock it. So only the owner of the lock's directory can
open that directory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ndxdp.errors import ModeUnavailable, NdxdpError
from ndxdp.files import access, locks
from ndxdp.files.locks import Holder

log = logging.getLogger(__name__)

TRAVERSED = 0o710
"""The mode of an interface's directory: its group may pass through to files that it can name."""

_LOCK = "lock"
_DEADLINE = 10.0  # seconds that one process may keep the lock while another process waits
_AGAIN = 0.1  # seconds for a process that has exceeded the deadline before


class TreeLock:
    """The lock of the tree below `root`, and the directories that exist only under the lock."""

    def __init__(self, root: Path, base: Path, check: Callable[[], None]) -> None:
        """Describe the lock, without taking it.

        Args:
            root: The directory that the lock is in; made and removed with it.
            base: The directory of the state that the lock protects.
            check: Called before each attempt; raises ModeUnavailable where the tree is unusable.
        """
        self._root, self._base, self._check = root, base, check
        self._path = root / _LOCK
        self._stuck: Holder | None = None
        self._threads = threading.Lock()
        self._locking = 0  # the threads of this process that have the lock
        self._owner: int | None = None  # the thread that has the lock, if one of this process has
        # The directories whose permissions are right, as names and inodes, and the version of
        # `base` that had them.
        self._restricted: set[tuple[str, int]] = set()
        self._restricted_version: tuple[int, int] | None = None

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Exclude every other writer while the block runs; make the base directory.

        A block inside a block of the same thread changes nothing.

        Raises:
            ModeUnavailable: The tree is not writable.
            NdxdpError: Another process has kept the lock for too long.
        """
        if self._owner == threading.get_ident():
            yield
            return
        fd = self._acquire()
        self._owner = threading.get_ident()
        with self._threads:
            self._locking += 1
        try:
            yield
        finally:
            with self._threads:  # a thread that shares the lock ends first
                self._locking -= 1
            with contextlib.suppress(OSError):
                # Directories that were made under the lock have the right permissions.
                self._restricted_version = _version_of(self._base)
            # The directories are removed under the lock, so that a process that waits for the lock
            # notices their removal.
            with contextlib.suppress(OSError):  # not empty: other pins
                for directory in (self._base, self._path, self._root):
                    directory.rmdir()
            self._owner = None
            os.close(fd)

    @contextlib.contextmanager
    def if_usable(self, *, urgent: bool = False) -> Iterator[None]:
        """Exclude every other writer while the block runs, where the tree can be locked.

        For writes to objects that are open already. Where the tree is out of reach, for example
        behind another file system, no process can lock it, and the block runs without the lock.

        Args:
            urgent: Run the block without the lock, too, if another process keeps it for too long.

        Raises:
            NdxdpError: Another process has kept the lock for too long.
        """
        with contextlib.ExitStack() as locked:
            try:
                locked.enter_context(self.exclusive())
            except NdxdpError as error:
                if not (urgent or isinstance(error, ModeUnavailable)):
                    raise
                log.debug("writing without the lock: %s", error)
            yield

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Exclude the writers of other processes; another thread of this process may be writing.

        Raises:
            NdxdpError: Another process has kept the lock for too long.
        """
        with self._threads:
            if self._locking:
                yield
                return
        with self.if_usable():
            yield

    def _acquire(self) -> int:
        """Return a descriptor that holds the lock."""
        try:
            fd = locks.acquire(self._path, self._open, self._wait)
        except FileNotFoundError:
            fd = None
        if fd is None:
            raise NdxdpError(f"{self._base} cannot be made", "is it on a file system of its own?")
        try:
            self._make_base()
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _wait(self, fd: int) -> bool:
        """Take the lock; raise NdxdpError if one process keeps it for longer than the deadline.

        The daemon has other interfaces to care for. So a process that has exceeded the deadline
        once is afterwards waited for only briefly.
        """
        taken = locks.take(fd, 0)
        while not taken:
            holder = locks.holder(self._path)
            taken = locks.take(fd, _AGAIN if holder == self._stuck else _DEADLINE)
            if not taken and locks.holder(self._path) == holder:
                self._stuck = holder
                raise NdxdpError(
                    f"{self._root} has been locked for {_DEADLINE:.0f} s by {holder}",
                    f"wait until that process ends, or end it: {holder.cure}",
                )
        self._stuck = None
        return True

    def _open(self) -> int | None:
        """Return a descriptor of the lock's directory; None if it was removed at that moment."""
        try:
            if not os.path.isdir(self._root):
                self._check()
                self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._check()  # of a directory that another user may have just made, too
            self._path.mkdir(mode=0o700, exist_ok=True)
            fd = access.open_directory(self._path)
        except FileNotFoundError:
            if not self._root.parent.is_dir():
                raise
            return None
        except FileExistsError as error:  # pathlib's mkdir(), if the directory is just removed
            if any(
                os.path.lexists(path) and not path.is_dir() for path in (self._root, self._path)
            ):
                raise access.unwritable(self._base, error) from error
            return None
        except OSError as error:
            raise access.unwritable(self._base, error) from error
        try:
            if not access.is_ours(os.fstat(fd)):  # the root may be a sticky directory, such as /tmp
                access.refuse_untrusted(self._path)
            access.restrict(fd, 0o700)
        except OSError as error:
            os.close(fd)
            raise access.unwritable(self._base, error) from error
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _make_base(self) -> None:
        """Make the base directory; withdraw permissions that an earlier ndxdp gave below it."""
        try:
            self._base.mkdir(mode=0o755, exist_ok=True)
            version = _version_of(self._base)
            if version == self._restricted_version:
                return
            present = {(entry.name, entry.inode()) for entry in os.scandir(self._base)}
            for name, _ in present - self._restricted:
                path = self._base / name
                if path.is_dir() and not path.is_symlink():
                    with access.opened_directory(path) as fd:
                        access.restrict(fd, TRAVERSED)
            self._restricted, self._restricted_version = present, version
        except OSError as error:
            raise access.unwritable(self._base, error) from error


def _version_of(directory: Path) -> tuple[int, int]:
    """Return a value that changes when entries of a directory are added or removed."""
    found = os.stat(directory)
    return found.st_ino, found.st_mtime_ns
