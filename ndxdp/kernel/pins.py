"""Where the state of an interface lives: a directory of pins, or of files without BPF.

    <bpffs>/ndxdp/v<ABI>/<interface>/{addresses,prefixes,…,program,link,tracer/}
    <run directory>/v<ABI>/<interface>/{addresses,prefixes,…,tracer/events}

bpffs reserves dots in names, interfaces (`eth0.100`) have them: a dot is written as a colon,
which no interface name holds. One lock on the `v<ABI>` directory serialises all who write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ndxdp.errors import ModeUnavailable, NdxdpError
from ndxdp.kernel import abi, libbpf
from ndxdp.policy import check_interface

DEFAULT_BPFFS = Path("/sys/fs/bpf")
DEFAULT_RUN_DIRECTORY = Path("/run/ndxdp")
PROGRAM = "program"
LINK = "link"
STAGED = ":new"
"""Ends the name of a pin that is to take the place of another."""
TRACER = "tracer"
_BPF_FS_MAGIC = 0xCAFE4A11  # linux/magic.h


class Tree:
    """The directories of all interfaces below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = root / f"v{abi.VERSION}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold off every other writer; makes the base directory where it is missing."""
        for _ in range(1000):  # each time that another one took the directory away meanwhile
            fd = self._locked_base()
            if fd is not None:
                break
        else:
            raise NdxdpError(f"{self.base} cannot be made", "is it on a file system of its own?")
        try:
            yield
        finally:
            # While it is locked: who waits for it sees that the directory has gone.
            for directory in (self.base, self.root):
                with contextlib.suppress(OSError):  # not empty: others' pins
                    directory.rmdir()
            os.close(fd)

    def _locked_base(self) -> int | None:
        """A descriptor that holds the lock; None if its last holder took the directory away."""
        try:
            self.base.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(self.base, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if not self.root.parent.is_dir():
                raise
            return None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EROFS):
                raise
            raise ModeUnavailable(f"{self.base} may not be written", "run this as root") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_at(fd, self.base):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    @contextlib.contextmanager
    def held(self, interface: str) -> Iterator[None]:
        """Mark an interface as held by this process, for as long as the process lives."""
        # Who asks is_held() holds a shared lock for a moment.
        for _ in range(100):
            fd = self._lock_of(interface, fcntl.LOCK_EX)
            if fd is not None:
                break
            time.sleep(0.01)
        else:
            raise _is_held(interface)
        try:
            yield
        finally:
            os.close(fd)

    def is_held(self, interface: str) -> bool:
        """A living process holds the interface."""
        try:
            fd = self._lock_of(interface, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False
        if fd is None:
            return True
        os.close(fd)
        return False

    @contextlib.contextmanager
    def traced(self, interface: str) -> Iterator[Path]:
        """Mark an interface as traced by this process; yields the tracer's own directory.

        A directory, for bpffs has no files to lock. What a killed tracer left is taken over.
        """
        path = self.path(interface) / TRACER
        with self.lock():
            path.mkdir(mode=0o750, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _empty(path)
            except BlockingIOError:
                os.close(fd)
                raise NdxdpError(
                    f"{interface} is being traced already",
                    "end the other `ndxdp trace` or `ndxdp top` first",
                ) from None
            except BaseException:
                os.close(fd)
                raise
        try:
            yield path
        finally:
            with self.lock():
                # Another one's, if the interface was detached and attached anew.
                if _is_at(fd, path):
                    _empty(path)
                    path.rmdir()
            os.close(fd)

    def refuse_if_held(self, interface: str) -> None:
        if self.is_held(interface):
            raise _is_held(interface)

    def _lock_of(self, interface: str, kind: int) -> int | None:
        """A descriptor that holds the lock on an interface's directory; None if another does."""
        fd = os.open(self.path(interface), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

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
        path.mkdir(mode=0o750)
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
        """ModeUnavailable where there is no BPF file system, or it may not be entered."""
        mounts = _mounts()
        if mounts is not None and not any(
            kind == "bpf" and _same_path(where, self.bpffs) for where, kind in mounts
        ):
            raise ModeUnavailable(
                f"there is no BPF file system at {self.bpffs}",
                f"mount it: mount -t bpf bpf {self.bpffs}"
                " (`ip netns exec` hides it: use nsenter --net)",
            )
        if not os.access(self.bpffs, os.X_OK):
            raise ModeUnavailable(f"{self.bpffs} may not be entered", "run this as root")


class FileTree(Tree):
    """The files of interfaces that a process answers on, from userspace."""

    def __init__(self, root: Path = DEFAULT_RUN_DIRECTORY) -> None:
        super().__init__(root)


class Trees(NamedTuple):
    """Both places. An interface has a directory in one of them at most."""

    pins: PinTree = PinTree()
    files: FileTree = FileTree()

    def of(self, interface: str) -> Tree:
        """The one that has the interface; the pins' if none has, which must be usable then."""
        if self.files.path(interface).is_dir():
            return self.files
        self.pins.check()
        return self.pins

    def have(self, interface: str) -> bool:
        """Return True if the interface has a directory, or nobody may see whether it has."""
        try:
            return any(tree.path(interface).is_dir() for tree in self)
        except PermissionError:  # systemd mounts the BPF file system for root only
            return True

    def interfaces(self) -> list[str]:
        """Those of both. NdxdpError if there are none and BPF has no place to be."""
        found = self.files.interfaces()
        try:
            self.pins.check()
            found += self.pins.interfaces()
        except NdxdpError:
            if not found:
                raise
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


def _is_held(interface: str) -> NdxdpError:
    return NdxdpError(f"{interface} is held by a running `ndxdp run`", "stop that process first")


def pin(fd: int, path: Path) -> None:
    """Pin an object so that its group may read it and its owner alone may write."""
    libbpf.pin(fd, str(path))
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


def _mounts() -> list[tuple[Path, str]] | None:
    try:
        lines = Path("/proc/self/mounts").read_bytes().splitlines()
    except OSError:
        return None
    fields = [line.split() for line in lines]
    return [(Path(_unescaped(field[1])), field[2].decode()) for field in fields]


def _unescaped(path: bytes) -> str:
    r"""The kernel writes a blank as \040, and so on."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), path))


def _same_path(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENOTDIR):
            raise
        return a == b
