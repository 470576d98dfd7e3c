"""Network namespaces of this machine, found by the inode number in ndxdp's settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NAMED = Path("/run/netns")  # of `ip netns`
_PROC = Path("/proc")


def path_of(inode: int) -> str:
    """Return a path of a namespace for `nsenter --net=`; "" if it has no name and no process."""
    for path in _candidates():
        try:
            if path.stat().st_ino == inode:
                return str(path)
        except OSError:  # the process has ended, or is another user's
            continue
    return ""


def _candidates() -> Iterator[Path]:
    yield from sorted(_NAMED.glob("*"))
    for process in _PROC.glob("[0-9]*"):
        yield process / "ns/net"


def enter(path: str, *command: str) -> str:
    """Return a shell command that runs `command` in a namespace.

    `ip netns exec` would hide the BPF file system.
    """
    return " ".join((f"nsenter --net={path}", *command))
