"""The preferred lifetimes that addresses had before ndxdp changed them, a file for each interface.

    <run directory>/addresses/<interface>
    <run directory>/addresses/<interface>.lock

The file outlives the daemon, so that a later daemon, or `ndxdp detach`, can restore the lifetimes.
The daemon that keeps the addresses has a lock. The lock is a separate file, because every user may
read the first file, and a user who may read a file can lock it. A dot in an interface's name is
written as a colon.
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
from ndxdp.files import access, locks
from ndxdp.rules.address import address_text
from ndxdp.rules.interface_name import check_interface
from ndxdp.rules.prefix import AddressPattern

log = logging.getLogger(__name__)

_FOLDER = "addresses"
_LOCK = ".lock"
_PATIENCE = 1.0  # seconds: `ndxdp status` holds a shared lock for a moment


class Before(NamedTuple):
    """The state of an address before ndxdp changed it.

    Attributes:
        until: The time at which the preferred lifetime was to end, in seconds of CLOCK_MONOTONIC;
            None for never.
        deprecated: True if ndxdp deprecated the address, False if ndxdp made it preferred.
    """

    until: float | None
    deprecated: bool


class Kept(NamedTuple):
    """The contents of an interface's file, for `ndxdp status`.

    Attributes:
        interface: The interface's name.
        running: A running daemon keeps the addresses.
        unanswered: Why nothing is answered on the interface; "" if something is.
        preferred: Patterns of the addresses to keep preferred.
        deprecate: Patterns of the addresses to deprecate.
        deprecated: The addresses that ndxdp deprecated, 16 bytes each.
    """

    interface: str
    running: bool
    unanswered: str
    preferred: tuple[str, ...]
    deprecate: tuple[str, ...]
    deprecated: tuple[bytes, ...]


class Record:
    """The file of one interface, open and locked until close().

    Attributes:
        changed: The former state of each changed address (16 bytes); save() writes it. It is
            empty if the file is about an earlier device of that name.
    """

    def __init__(self, directory: Path, interface: str, ifindex: int, netns: int) -> None:
        """Open and lock the file, and create it if it is missing.

        Raises:
            NdxdpError: Another process has the lock, the file is not writable, or it belongs to
                another network namespace.
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
                f"give this one a --run-directory; if that namespace has ended: rm {self._path}",
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
        """Set the other facts that `ndxdp status` shows; save() writes them."""
        self._shown = {
            "unanswered": unanswered,
            "preferred": [str(pattern) for pattern in preferred],
            "deprecate": [str(pattern) for pattern in deprecate],
        }

    def save(self) -> None:
        """Write the file; raise NdxdpError if that fails."""
        addresses = {
            address_text(address): before._asdict() for address, before in self.changed.items()
        }
        data = {
            "ifindex": self._ifindex,
            "netns": self._netns,
            **self._shown,
            "changed": addresses,
        }
        text = json.dumps(data).encode()
        try:
            os.posix_fallocate(self._fd, 0, len(text))  # without room, the old text stays
        except OSError as error:
            raise not_written(self._path, error) from error
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def close(self) -> None:
        """Unlock the file; remove the file if there is nothing to restore."""
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
                directory.rmdir()  # OSError if it is not empty
        os.close(self._lock)


def exists(directory: Path, interface: str) -> bool:
    """Return True if there may be something to restore on the interface."""
    return _path(directory, interface).exists()


def kept(directory: Path) -> list[Kept]:
    """Return the contents of all files that this process may read, ordered by interface."""
    found: list[Kept] = []
    try:
        access.refuse_untrusted(directory / _FOLDER)
    except NdxdpError as error:
        log.debug("cannot read the former lifetimes: %s", error)
        return found
    with contextlib.suppress(OSError):
        for path in sorted((directory / _FOLDER).iterdir()):
            if path.suffix != _LOCK:
                with contextlib.suppress(OSError):
                    found.append(_kept_in(path))
    return found


def remaining(before: Before, valid: int, forever: int) -> int:
    """Return the preferred lifetime to restore, in seconds; `valid` is the valid lifetime."""
    if before.until is None:
        return valid
    return min(max(round(before.until - time.monotonic()), 0), valid, forever)


def _kept_in(path: Path) -> Kept:
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
            access.refuse_untrusted(path.parent)
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
    except ValueError:  # the file is new, or another program wrote it
        return {}
    return data if isinstance(data, dict) else {}


def _changed(data: dict[str, Any], level: int = logging.DEBUG) -> dict[bytes, Before]:
    found = {}
    try:
        for text, each in data.get("changed", {}).items():
            before = Before(each["until"], bool(each["deprecated"]))
            found[socket.inet_pton(socket.AF_INET6, text)] = before
    except (AttributeError, KeyError, TypeError, OSError) as error:
        log.log(level, "cannot read the file of former lifetimes: %r", error)
    return found
