"""The prefixes whose rules commands have changed, handed over to the daemon of an interface.

The kernel reports no writes to maps, so a daemon that knows only that something has changed has to
read all rules. Therefore the daemon pins a queue, a BPF map, beside the maps of the interface. A
command that changes few rules writes their prefixes into the queue, then the rules into the maps,
and then notifies the daemon (Tree.notify()). All of that happens under the tree's lock.

The queue is only a shortcut. Behind its prefixes, each command writes the time of the interface's
directory before the command, and the time that the notification sets. The daemon compares all rules
unless these times lead from the time that it has seen to the present one. That is so where the
queue is missing or was full, where a command was killed before its notification, and where somebody
touched the directory who wrote nothing into the queue, such as an older ndxdp.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from ndxdp.errors import NdxdpError
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.rules.prefix import Prefix
from ndxdp.store import pins

NAME = "changes"
"""The name of the queue's pin."""

_TIMES_LENGTH = 255
"""The prefix length that marks the times of a command, which are in place of an address."""

_TIMES = struct.Struct("=qq")  # ns, of the directory: before the command, and after it


def announce(directory: Path, prefixes: Iterable[Prefix] = ()) -> int:
    """Write prefixes into the queue of an interface, if a daemon has made one.

    Call this before the rules are changed, and notify the daemon afterwards.

    Args:
        directory: The directory of the interface's maps.
        prefixes: The prefixes whose rules change, of which no more are read than the queue has room
            for; none if something else than rules changes.

    Returns:
        The time for Tree.notify().
    """
    before = _time_of(directory)
    after = _another_time(before)
    if not (directory / NAME).exists():  # no daemon, or userspace mode, which needs no libbpf
        return after
    # A full queue, or one that cannot be opened, lacks the times.
    with contextlib.suppress(OSError):
        queue = libbpf.get_pinned(str(directory / NAME))
        try:
            for prefix in prefixes:
                bpf_maps.push(queue, _entry(prefix.length, prefix.address))
            bpf_maps.push(queue, _entry(_TIMES_LENGTH, _TIMES.pack(before, after)))
        finally:
            os.close(queue)
    return after


def make_queue(directory: Path) -> None:
    """Pin an empty queue in the directory of an interface's maps; keep the present one.

    If that fails, commands hand nothing over, and the daemon compares all rules.
    """
    path = directory / NAME
    with contextlib.suppress(OSError, NdxdpError):
        if path.exists():
            return
        queue = bpf_maps.create(abi.CHANGES)
        try:
            pins.pin(queue, path)
        finally:
            os.close(queue)
        # Pinning has set the time of the kernel's last tick, and an older ndxdp that touches the
        # directory within that tick would set the same time.
        now = _another_time(_time_of(directory))
        os.utime(directory, ns=(now, now))


class Inbox:
    """The daemon's end of a queue. The caller has the tree's lock, if that is usable."""

    def __init__(self) -> None:
        self._seen = -1  # the time of the directory, in ns, at the last call

    def begin(self, directory: Path) -> None:
        """Empty the queue, and make one if it is missing: all rules are about to be read."""
        path = directory / NAME
        with contextlib.suppress(OSError):
            if _drained(path) is None:
                path.unlink(missing_ok=True)
        make_queue(directory)
        self._seen = _time_of(directory)

    def take(self, directory: Path) -> frozenset[Prefix] | None:
        """Return the prefixes whose rules have changed since the last call, and forget them.

        Returns:
            None if any rule may have changed.
        """
        found = None
        with contextlib.suppress(OSError):
            found = _drained(directory / NAME)
        if found is None or len(found) >= abi.CHANGES.max_entries:
            return None
        prefixes, seen = set(), self._seen
        for length, address in found:
            if length != _TIMES_LENGTH:
                prefixes.add(Prefix(address, length))
                continue
            before, after = _TIMES.unpack(address)
            if before != seen:
                return None
            seen = after
        if seen != _time_of(directory):
            return None
        self._seen = seen
        return frozenset(prefixes)


def remove(directory: Path) -> None:
    """Remove the queue: no daemon reads it any more."""
    with contextlib.suppress(OSError):
        (directory / NAME).unlink()


def _entry(length: int, address: bytes) -> bytes:
    return abi.PREFIX.pack(length=length, address=address)


def _drained(path: Path) -> list[tuple[int, bytes]] | None:
    """Empty a queue, and return what it had; None if there is no queue of ours."""
    if not path.exists():
        return None
    found = []
    queue = libbpf.get_pinned(str(path))
    try:
        if bpf_maps.spec_of(queue)._replace(name=NAME) != abi.CHANGES:
            return None
        while (value := bpf_maps.pop(queue, abi.CHANGES.value_size)) is not None:
            fields = abi.PREFIX.unpack(value)
            found.append((fields["length"], fields["address"]))
    finally:
        os.close(queue)
    return found


def _time_of(directory: Path) -> int:
    """Return when a directory was touched last, in ns; 0 if it is absent."""
    try:
        return directory.stat().st_mtime_ns
    except OSError:
        return 0


def _another_time(before: int) -> int:
    """Return the present time in ns, or a moment later if that is the time before."""
    now = time.time_ns()
    return now if now != before else now + 1
