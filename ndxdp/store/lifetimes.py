"""The preferred lifetimes that addresses had before ndxdp changed them, in a file each interface.

    <run directory>/addresses/<interface>
    <run directory>/addresses/<interface>.lock

The file outlives the daemon, so that a later one, or `ndxdp detach`, can restore the lifetimes. The
daemon that keeps the addresses holds a lock, on a file of its own: everybody may read the other,
and who may read a file can lock it. A dot in an interface's name is written as a colon.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

from ndxdp.errors import NdxdpError, not_written
from ndxdp.files import locks, trust
from ndxdp.rules.interface_name import check_interface
from ndxdp.rules.prefix import AddressPattern

log = logging.getLogger(__name__)

_FOLDER = "addresses"
_LOCK = ".lock"
_PATIENCE = 1.0  # seconds: `ndxdp status` holds a shared lock for a moment


class Before(NamedTuple):
    """The state of an address before ndxdp changed it.

    until: second of the monotonic clock at which its preferred lifetime ended, None for never.
    deprecated: ndxdp deprecated it; False: ndxdp made it preferred.
    """

    until: float | None
    deprecated: bool


class Kept(NamedTuple):
    """An interface whose addresses are or were kept, for those who show it.

    running: a daemon keeps them at present. unanswered: why nothing is answered on the interface,
    "" where something is. deprecated: the addresses (16 bytes) that ndxdp deprecated.
    """

    interface: str
    running: bool
    unanswered: str
    preferred: tuple[str, ...]
    deprecate: tuple[str, ...]
    deprecated: tuple[bytes, ...]


class Record:
    """The file of one interface, open and locked until close().

    changed: what each changed address (16 bytes) was before; written by save(). It is empty where
    the file is about an earlier device of that name.
    """

    def __init__(self, directory: Path, interface: str, ifindex: int, netns: int) -> None:
        """Open the file, and make it where it is missing.

        NdxdpError if another process holds it, it may not be written, or it belongs to another
        network namespace.
        """
        self.changed: dict[bytes, Before] = {}
        self._path = _path(directory, interface)
        self._ifindex, self._netns = ifindex, netns
        self._shown: dict[str, Any] = {}
        self._lock = _locked(self._path, interface)
        try:
            self._fd = _opened(self._path)
        except BaseException:
            os.close(self._lock)
            raise
        data = _read(self._fd)
        if data.get("netns", netns) != netns:
            self._unlock()
            raise NdxdpError(
                f"{self._path} belongs to an interface of another network namespace",
                f"give this one a --run-directory; if that one has gone: rm {self._path}",
            )
        if data.get("ifindex", ifindex) == ifindex:
            self.changed = _changed(data, logging.WARNING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def describe(
        self,
        preferred: Iterable[AddressPattern],
        deprecate: Iterable[AddressPattern],
        unanswered: str,
    ) -> None:
        """Set what `ndxdp status` shows beside the addresses; save() writes it."""
        self._shown = {
            "unanswered": unanswered,
            "preferred": [str(pattern) for pattern in preferred],
            "deprecate": [str(pattern) for pattern in deprecate],
        }

    def save(self) -> None:
        addresses = {
            socket.inet_ntop(socket.AF_INET6, address): before._asdict()
            for address, before in self.changed.items()
        }
        data = {
            "ifindex": self._ifindex,
            "netns": self._netns,
            **self._shown,
            "changed": addresses,
        }
        text = json.dumps(data).encode()
        try:
            os.posix_fallocate(self._fd, 0, len(text))  # where there is no room, the old text stays
        except OSError as error:
            raise not_written(self._path, error) from error
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def close(self) -> None:
        """Unlock the file; remove it if there is nothing to restore."""
        if self._fd < 0:
            return
        if not self.changed:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        os.close(self._fd)
        self._fd = -1
        with contextlib.suppress(OSError):
            _lock_of(self._path).unlink()
            for directory in self._path.parents[:2]:
                directory.rmdir()  # OSError where there is more in it
        os.close(self._lock)


def exists(directory: Path, interface: str) -> bool:
    """Return True if there may be something to restore on the interface."""
    return _path(directory, interface).exists()


def kept(directory: Path) -> list[Kept]:
    """Return all interfaces that have a file, by name; those that may not be read are left out."""
    found: list[Kept] = []
    try:
        trust.refuse_untrusted(directory / _FOLDER)
    except NdxdpError as error:
        log.debug("not looked at: %s", error)
        return found
    with contextlib.suppress(OSError):
        for path in sorted((directory / _FOLDER).iterdir()):
            if path.suffix != _LOCK:
                with contextlib.suppress(OSError):
                    found.append(_look(path))
    return found


def remaining(before: Before, valid: int, forever: int) -> int:
    """Return the preferred lifetime (s) to restore; valid: the address's valid one."""
    if before.until is None:
        return valid
    return min(max(round(before.until - time.monotonic()), 0), valid, forever)


def _look(path: Path) -> Kept:
    fd = os.open(path, os.O_RDONLY)
    try:
        data = _read(fd)
    finally:
        os.close(fd)
    return Kept(
        path.name.replace(":", "."),
        locks.is_taken(_lock_of(path)),
        str(data.get("unanswered", "")),
        tuple(data.get("preferred", ())),
        tuple(data.get("deprecate", ())),
        tuple(address for address, each in _changed(data).items() if each.deprecated),
    )


def _path(directory: Path, interface: str) -> Path:
    check_interface(interface)
    return directory / _FOLDER / interface.replace(".", ":")


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + _LOCK)


def _locked(path: Path, interface: str) -> int:
    """Return a descriptor that holds the lock of an interface's file; make the directory."""
    lock = _lock_of(path)

    def opened() -> int | None:
        try:
            path.parent.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            trust.refuse_untrusted(path.parent)
            path.parent.mkdir(mode=0o755, exist_ok=True)
            return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise not_written(path, error) from error

    try:
        fd = locks.acquire(lock, opened, lambda fd: locks.take(fd, _PATIENCE))
    except FileNotFoundError as error:
        raise not_written(path, error) from error
    if fd is not None:
        return fd
    holder = locks.holder(lock)
    which = f": {holder}" if holder.pid else ""
    raise NdxdpError(
        f"the addresses of {interface} are kept by a running `ndxdp run`",
        f"stop that process first{which}",
    )


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise not_written(path, error) from error


def _read(fd: int) -> dict[str, Any]:
    try:
        data, _ = json.JSONDecoder().raw_decode(os.pread(fd, os.fstat(fd).st_size, 0).decode())
    except ValueError:  # it is new, or somebody else wrote it
        return {}
    return data if isinstance(data, dict) else {}


def _changed(data: dict[str, Any], level: int = logging.DEBUG) -> dict[bytes, Before]:
    found = {}
    try:
        for text, each in data.get("changed", {}).items():
            before = Before(each["until"], bool(each["deprecated"]))
            found[socket.inet_pton(socket.AF_INET6, text)] = before
    except (AttributeError, KeyError, TypeError, OSError) as error:
        log.log(level, "the file of former lifetimes is damaged: %r", error)
    return found
