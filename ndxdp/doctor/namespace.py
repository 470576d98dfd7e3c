"""Network namespaces of this machine, found by the inode number that ndxdp's settings keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NAMED = Path("/run/netns")  # of `ip netns`
_PROC = Path("/proc")


def path_of(inode: int) -> str:
    """Return a path that `nsenter --net=` takes; '' where no name and no process leads there."""
    for path in _candidates():
        try:
            if path.stat().st_ino == inode:
                return str(path)
        except OSError:  # it went, or is another user's
            continue
    return ""


def _candidates() -> Iterator[Path]:
    yield from sorted(_NAMED.glob("*"))
    for process in _PROC.glob("[0-9]*"):
        yield process / "ns/net"


def enter(path: str, *command: str) -> str:
    """Return the command that runs another one in a namespace.

    Not `ip netns exec`, which hides the BPF file system.
    """
    return " ".join((f"nsenter --net={path}", *command))
