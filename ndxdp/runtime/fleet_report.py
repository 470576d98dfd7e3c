"""The report of shared addresses for other processes, a file in the run directory.

    <run directory>/fleet-<inode number of the network namespace>.json

The daemon writes the file when something has changed, and removes it at the end. That of a killed
daemon stays until the next one writes its own; is_running() tells it apart. A report says which
hosts answer, as far as the daemon knows: the truth is in etcd.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ndxdp.runtime import report_fields as fields
from ndxdp.runtime import report_file
from ndxdp.runtime.report import Daemon

_ENTRIES = 500
"""Entries that are encoded at once: json does not let other threads run meanwhile."""


class SharedAddressEntry(NamedTuple):
    """An address that exactly one member of a segment answers for.

    Attributes:
        segment: The segment.
        name: The name in the key.
        prefix: The prefix, as text: an address alone, or with a length below 128; "" if the value
            of the key is refused.
        hosts: The hosts that may answer for it, the preferred one first; [] for all members.
        failback: The preferred host gets it back.
        holder: The host that answers for it; "" for nobody.
        since: time.time() when the holder acquired it; 0 if that is unknown, or without a holder.
        problem: Why nobody answers for it, or why this host does not, although it holds it; ""
            without a problem.
    """

    segment: str
    name: str
    prefix: str
    hosts: list[str]
    failback: bool
    holder: str
    since: float
    problem: str = ""

    @property
    def key(self) -> str:
        """The segment and the name, as commands have them."""
        return f"{self.segment}/{self.name}"


class FleetReport(NamedTuple):
    """The shared addresses of a host's segments.

    Attributes:
        host: The name of the host in etcd.
        netns: The inode number of the network namespace.
        pid: The daemon's process id, in its own process namespace.
        written: time.time() of this report.
        addresses: The shared addresses.
    """

    host: str
    netns: int
    pid: int
    written: float
    addresses: list[SharedAddressEntry]


def path_of(directory: Path, netns: int) -> Path:
    """Return the path of the report in the run directory."""
    return directory / f"fleet-{netns}.json"


def write(directory: Path, report: FleetReport) -> None:
    """Write a report: readers find either the former one or all of this one.

    The file can be read by its owner and group only. The run directory is made if it is absent.

    Raises:
        NdxdpError: The file cannot be written, or another user can change the run directory; the
            former report stays.
    """
    report_file.write(path_of(directory, report.netns), _encoded(report))


def _encoded(report: FleetReport) -> Iterator[bytes]:
    """Yield the JSON text of a report in pieces."""
    head = {key: value for key, value in report._asdict().items() if key != "addresses"}
    yield f'{json.dumps(head)[:-1]}, "addresses": ['.encode()
    left, comma = iter(report.addresses), ""
    while entries := [each._asdict() for each in islice(left, _ENTRIES)]:
        yield f"{comma}{json.dumps(entries)[1:-1]}".encode()
        comma = ", "
    yield b"]}"


def read(directory: Path, netns: int) -> FleetReport | None:
    """Return the report of a network namespace; None without one that this process may read.

    That of a daemon that has ended is returned, too; is_running() tells it apart. A file that is
    damaged, that belongs to another user than root and this one, or that is no regular file is
    ignored.

    Args:
        directory: The run directory.
        netns: The inode number of the network namespace.
    """
    try:
        report = report_of(json.loads(report_file.read(path_of(directory, netns))))
    except (OSError, ValueError, RecursionError):
        return None
    return report if report.netns == netns else None


def remove(directory: Path, netns: int) -> None:
    """Remove the report, if there is one, and the run directory if it is empty then."""
    report_file.remove(path_of(directory, netns))


def is_running(report: FleetReport, daemons: Iterable[Daemon]) -> bool:
    """Return True if the daemon that wrote a report is among the running daemons.

    Args:
        report: The report.
        daemons: The running daemons, as ndxdp.runtime.report.daemons() returns them.
    """
    return any((each.pid, each.netns) == (report.pid, report.netns) for each in daemons)


def report_of(data: Any) -> FleetReport:
    """Return the report that JSON has. A field that an older version did not write is empty.

    Raises:
        ValueError: A value has another type, or the host, its namespace or its daemon is missing.
    """
    try:
        return FleetReport(
            fields.text(data["host"]),
            fields.whole(data["netns"]),
            fields.whole(data["pid"]),
            fields.moment(data.get("written", 0)),
            [
                SharedAddressEntry(
                    fields.text(each["segment"]),
                    fields.text(each["name"]),
                    _prefix(each["prefix"]),
                    [fields.text(host) for host in each.get("hosts", ())],
                    bool(each.get("failback", False)),
                    fields.text(each.get("holder", "")),
                    fields.moment(each.get("since", 0)),
                    fields.text(each.get("problem", "")),
                )
                for each in data.get("addresses", ())
            ],
        )
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError) as error:
        raise ValueError(f"the report of shared addresses is damaged: {error}") from error


def _prefix(value: object) -> str:
    """Return a prefix in its canonical form, in which an address has no length; "" for ""."""
    text = fields.text(value)
    if not text:
        return ""
    return fields.prefix(text if "/" in text else f"{text}/128").removesuffix("/128")
