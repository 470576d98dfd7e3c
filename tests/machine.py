"""Limits of the machine that make tests fail where other programs have used them up."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NEIGHBOURS = "/proc/sys/net/ipv6/neigh/default/gc_thresh3"
_INSTANCES = "/proc/sys/fs/inotify/max_user_instances"


class Limit(NamedTuple):
    """A bound that all processes of the machine, or all of root's, share.

    room: the most. taken: what is in use. wanted: what the tests take. cure: a command.
    """

    what: str
    room: int
    taken: int
    wanted: int
    cure: str

    @property
    def sentence(self) -> str:
        return (
            f"the machine has room for {self.room} {self.what}, of which {self.taken} are taken, "
            f"and the tests take up to {self.wanted}: some may fail for that ({self.cure})"
        )


def short_of(limits: list[Limit]) -> list[str]:
    """Return a sentence for each limit that leaves too little room."""
    return [limit.sentence for limit in limits if limit.room - limit.taken < limit.wanted]


def limits() -> list[Limit]:
    """Read the limits that no process can raise for itself alone; those that cannot be read not."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(
            Limit(
                "IPv6 neighbours in all network namespaces together",
                int(Path(_NEIGHBOURS).read_text()),
                _neighbour_statistic("entries"),
                512,
                "sysctl -w net.ipv6.neigh.default.gc_thresh3=4096",
            )
        )
    with contextlib.suppress(OSError, ValueError):
        found.append(
            Limit(
                "inotify instances of one user",
                int(Path(_INSTANCES).read_text()),
                sum(1 for target in _open_files() if target == "anon_inode:inotify"),
                48,
                "sysctl -w fs.inotify.max_user_instances=1024",
            )
        )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        found.append(Limit("open files in one process", most, 0, 4096, "ulimit -Hn 16384"))
    return found


def raise_open_files() -> None:
    """Let this process and its children open as many files as they may at most."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def neighbour_table_overflows() -> int:
    """Return how often the kernel had no room for an IPv6 neighbour, in any namespace."""
    try:
        return _neighbour_statistic("table_fulls")
    except (OSError, ValueError):
        return 0


def _neighbour_statistic(name: str) -> int:
    """Read a column of the neighbour table's statistics.

    There is a line for each CPU, of which each has the same number of entries.
    """
    head, *lines = Path("/proc/net/stat/ndisc_cache").read_text().splitlines()
    column = head.split().index(name)
    values = [int(line.split()[column], 16) for line in lines]
    return values[0] if name == "entries" else sum(values)


def _open_files() -> Iterator[str]:
    """Return what each open file of a process of this user leads to."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == os.geteuid():
                for file in (process / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        yield os.readlink(file)
