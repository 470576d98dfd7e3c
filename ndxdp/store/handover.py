"""The prefixes whose rules commands have changed, handed over to the daemon of an interface.

The kernel reports no writes to maps, so a daemon that knows only that something has changed has to
read all rules. Therefore the daemon pins a queue, a BPF map, beside the maps of the interface. A
command that changes few rules writes their prefixes into the queue, then the rules into the maps,
and then notifies the daemon (Tree.notify()). All of that happens under the tree's lock.

The queue is only a shortcut. Where it is missing or full, or the directory was touched by somebody
who wrote nothing into the queue, the daemon compares all rules.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from ndxdp.errors import NdxdpError
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.kernel.libbpf import BpfError
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.rules.prefix import Prefix
from ndxdp.store import pins

NAME = "changes"
"""The name of the queue's pin."""

_NO_RULE = Prefix(UNSPECIFIED, 255)
"""Says that a command has changed something else than rules."""


def announce(directory: Path, prefixes: Iterable[Prefix] = (_NO_RULE,)) -> None:
    """Write prefixes into the queue of an interface, if a daemon has made one.

    Call this before the rules are changed, and notify the daemon afterwards.

    Args:
        directory: The directory of the interface's maps.
        prefixes: The prefixes whose rules change, of which no more are read than the queue has room
            for; left out if something else than rules changes.
    """
    path = directory / NAME
    if not path.exists():  # there is no daemon, or these are files
        return
    try:
        queue = libbpf.get_pinned(str(path))
    except BpfError:
        path.unlink(missing_ok=True)
        return
    try:
        for prefix in prefixes:
            bpf_maps.push(queue, abi.PREFIX.pack(length=prefix.length, address=prefix.address))
    except BpfError as error:
        # The daemon recognizes a full queue. It must not trust one that lacks something else.
        if error.errno != errno.E2BIG:
            path.unlink(missing_ok=True)
    finally:
        os.close(queue)


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


class Inbox:
    """The daemon's end of a queue. All methods want the tree's lock, as far as it is usable."""

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
        found, time = None, _time_of(directory)
        with contextlib.suppress(OSError):
            found = _drained(directory / NAME)
        if found is None or len(found) >= abi.CHANGES.max_entries:
            return None
        if not found and time != self._seen:
            return None
        self._seen = time
        return frozenset(prefix for prefix in found if prefix != _NO_RULE)


def remove(directory: Path) -> None:
    """Remove the queue: no daemon reads it any more."""
    with contextlib.suppress(OSError):
        (directory / NAME).unlink()


def _drained(path: Path) -> list[Prefix] | None:
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
            found.append(Prefix(fields["address"], fields["length"]))
    finally:
        os.close(queue)
    return found


def _time_of(directory: Path) -> int:
    """Return when a directory was touched last, in ns; 0 if it is absent."""
    try:
        return directory.stat().st_mtime_ns
    except OSError:
        return 0
