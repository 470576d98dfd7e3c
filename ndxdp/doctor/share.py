"""Shares: one prefix on both sides of this host, configured, running, or missing."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ndxdp import systemd_unit
from ndxdp.config import reader
from ndxdp.config.model import Share, share_downstream
from ndxdp.config.toml_text import quoted
from ndxdp.doctor.finding import Finding, failure, note, warning
from ndxdp.doctor.share_case import Case
from ndxdp.errors import NdxdpError
from ndxdp.netlink import neighbour_table
from ndxdp.netlink.link_overview import all_links
from ndxdp.netlink.neighbour_table import NeighbourTable
from ndxdp.netlink.netns import netns
from ndxdp.observe import status
from ndxdp.runtime import share_report
from ndxdp.runtime.share_report import ShareReport
from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)

_NAMED_MAX = 6  # interfaces in a finding
_ENOUGH = 2  # a warning about the neighbour table if the hosts fill a half of it


@dataclass(frozen=True, slots=True)
class Found:
    """A share that concerns an interface.

    Attributes:
        interface: The interface under examination.
        upstream: The upstream interface of the share.
        downstream: The downstream interfaces that exist, by name.
        share: The share of a configuration file; None if no file has it.
        file: The path of that file; "" without one.
        report: The report of the share; None without one.
        running: The daemon that wrote the report runs.
        table: The size of the kernel's neighbour table; None if it is not known.
        idle: The interfaces without carrier, and bridges without a port that has it.
    """

    interface: str
    upstream: str
    downstream: tuple[str, ...] = ()
    share: Share | None = None
    file: str = ""
    report: ShareReport | None = None
    running: bool = False
    table: NeighbourTable | None = None
    idle: frozenset[str] = frozenset()

    @property
    def relay(self) -> bool:
        """True if the share relays router advertisements."""
        if self.report is not None and self.running:
            return self.report.relay
        return self.share.relay if self.share else True

    @property
    def max_hosts(self) -> int:
        """The most hosts that the share learns."""
        if self.report is not None and self.running:
            return self.report.max_hosts
        return self.share.max_hosts if self.share else 0

    @property
    def is_upstream(self) -> bool:
        """True if the interface under examination is the upstream one."""
        return self.interface == self.upstream


def gather(trees: Trees, interface: str) -> Found | None:
    """Return the share that an interface is a part of; None without one.

    Args:
        trees: The directories of pins and files.
        interface: The interface.

    Raises:
        OSError: The kernel refused a request.
    """
    daemons = status.reports(trees)
    reports = share_report.reports(trees.files.root, netns())
    files = [*(each.config for each in daemons if each.config), *_default_file()]
    read = {file: _shares(file) for file in files}
    seen = [link for link in all_links() if not link.is_loopback]
    names = [link.name for link in seen]
    ports = {link.master for link in seen if link.operational}
    idle = frozenset(
        link.name
        for link in seen
        # A new bridge without a port has carrier, but no link-local address.
        if not link.operational or (link.kind == "bridge" and link.ifindex not in ports)
    )
    configured = [(shares, share, file) for file, shares in read.items() for share in shares]
    for shares, share, file in configured:
        downstream = tuple(name for name in names if share_downstream(shares, name) is share)
        if interface == share.upstream or interface in downstream:
            report = next((each for each in reports if each.upstream == share.upstream), None)
            running = report is not None and share_report.is_running(report, daemons)
            if report is not None and running:
                downstream = _downstream(report, names)
            return Found(
                interface,
                share.upstream,
                downstream,
                share,
                file,
                report,
                running,
                neighbour_table.read(),
                idle,
            )
    for report in reports:
        members = _downstream(report, names)
        if interface == report.upstream or interface in members:
            return Found(
                interface,
                report.upstream,
                members,
                report=report,
                running=share_report.is_running(report, daemons),
                table=neighbour_table.read(),
                idle=idle,
            )
    return None


def _default_file() -> list[str]:
    return [str(systemd_unit.CONFIG)] if systemd_unit.CONFIG.is_file() else []


def _shares(file: str) -> tuple[Share, ...]:
    try:
        return reader.load(Path(file)).shares
    except NdxdpError as error:  # the checks of the daemon and of `ndxdp check` report it
        log.debug("%s: %s", file, error)
        return ()


def _downstream(report: ShareReport, names: Iterable[str]) -> tuple[str, ...]:
    existing = set(names)
    return tuple(
        link.interface
        for link in report.links
        if link.kind != "upstream" and link.interface in existing
    )


# ---- a share ------------------------------------------------------------------------------------


def judge(found: Found) -> Iterator[Finding]:
    """Yield findings about the state of a share, without its interfaces."""
    if not found.is_upstream:
        yield note(
            f"{found.interface} is downstream of {found.upstream} in a share: doctor examines all"
            f" interfaces of the share with {found.upstream}",
            cure=f"ndxdp doctor {found.upstream}",
        )
        return
    if not found.running:
        yield from _ended(found)
    elif found.report is not None:
        yield from _running(found.report, found.idle)
    yield from _room(found)


def _ended(found: Found) -> Iterator[Finding]:
    hosts = len(found.report.hosts) if found.report else 0
    kept = f"the {_routes(hosts)}, and " if hosts else ""
    if found.share is None:
        yield note(
            f"the share of {found.upstream} has ended: {kept}no host is learned",
            "to remove what is left, flush its routes",
            "ip -6 route flush proto 158",
        )
        return
    yield failure(
        f"no daemon runs for the share of {found.upstream} in {found.file}",
        f"{kept}no host is learned, and no router advertisement is relayed",
        "systemctl enable --now ndxdp"
        if Path(found.file) == systemd_unit.CONFIG and Path("/run/systemd/system").is_dir()
        else f"ndxdp run -c {shlex.quote(found.file)}",
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return f"{', '.join(names[:_NAMED_MAX])}{more}"


def _routes(hosts: int) -> str:
    return f"routes of {hosts} hosts stay" if hosts > 1 else "route of one host stays"


def _running(report: ShareReport, idle: frozenset[str]) -> Iterator[Finding]:
    empty = [
        link.interface
        for link in report.links
        if link.interface in idle and link.kind != "upstream"
    ]
    if empty:
        yield note(f"no host is on {_some(empty)}: without carrier, or without a port with carrier")
    for link in report.links:
        if link.problem and link.interface not in empty:
            yield warning(
                f"the share of {report.upstream} does not work on {link.interface} yet:"
                f" {link.problem}",
                "the daemon tries again within a minute",
                f"ip -br link show dev {link.interface}",
            )
    if not report.prefixes:
        yield failure(
            f"the share of {report.upstream} has no prefix",
            "no router advertisement with an on-link prefix was heard, and the file names none:"
            " no host is learned",
            f"ndxdp doctor {report.upstream} --probe",
        )
    elif report.relay and not report.routers:
        yield warning(
            f"no router on {report.upstream} has advertised itself",
            "there is nothing to relay: hosts behind get no address and no default route by"
            " themselves",
            f"ndxdp doctor {report.upstream} --probe",
        )
    counts = f"hosts {len(report.hosts)} of {report.max_hosts}"
    names = [link.interface for link in report.links if link.kind != "upstream"]
    behind = _some(names) or "no interface yet"
    prefixes = ", ".join(each.prefix for each in report.prefixes)
    if prefixes:
        yield note(f"{prefixes} is shared with {behind}: {counts}")
    if len(report.hosts) >= report.max_hosts or report.refused.get("limit"):
        yield warning(
            f"the share of {report.upstream} has no room: {counts},"
            f" {report.refused.get('limit', 0)} claims refused",
            "a new host is not reachable; write a larger max_hosts in the table [[share]], or"
            " look for a host that claims too many addresses",
            "ndxdp hosts",
        )
    elif report.refused.get("mac_limit"):
        yield warning(
            f"a host of the share of {report.upstream} claims more addresses than"
            f" max_hosts_per_mac allows: {report.refused['mac_limit']} claims refused",
            "its other addresses are not reachable; a router behind, or a tunnel, needs a larger"
            " max_hosts_per_mac in the table [[share]]",
            "ndxdp hosts",
        )


def _room(found: Found) -> Iterator[Finding]:
    """Yield a finding if the kernel's neighbour table is smaller than the share."""
    table, most = found.table, found.max_hosts
    if table is None or not most or table.most >= most:
        return
    hosts = len(found.report.hosts) if found.report and found.running else 0
    what = (
        f"the kernel's neighbour table has room for {table.most} entries (gc_thresh3), and the"
        f" share of {found.upstream} for {most} hosts"
    )
    cure = f"sysctl -w {' '.join(neighbour_table.settings_for(most))}"
    why = "hosts beyond that are unreachable, although they have a route"
    if hosts * _ENOUGH >= table.most:
        yield warning(f"{what}: there are {hosts}", why, cure)
    else:
        yield note(what, why, cure)


# ---- no share -----------------------------------------------------------------------------------


def propose(interface: str, case: Case | None, file: str = "") -> Iterator[Finding]:
    """Yield a finding that proposes a share.

    Args:
        interface: The uplink.
        case: The share that fits; None if none does.
        file: The configuration file of the running daemon; "" for the default one.
    """
    if case is None:
        return
    names = [link.name for link in case.downstream]
    prefixes = ", ".join(map(str, case.prefixes))
    downstream = ", ".join(map(quoted, names))
    path = shlex.quote(file or str(systemd_unit.CONFIG))
    table = f"[[share]]\\nupstream = {quoted(interface)}\\ndownstream = [{downstream}]\\n"
    cure = f"printf '\\n{table}' >> {path} && ndxdp check {path}"
    trial = f"try it without a file first: ndxdp share {interface} {' '.join(names)}"
    if case.both:
        first = case.both[0].name
        shared = next(each for each in case.prefixes if each in case.both[0].prefixes)
        yield warning(
            f"{shared} is on-link on {interface} and on {first}: the kernel has two routes to the"
            " same addresses, and uses one",
            f"hosts on one of the two links are unreachable; a share brings a route for each host"
            f" behind ({trial}); then make this host's address on {first} a /128",
            cure,
        )
        return
    hosts = _some([f"{link.name}: {link.about_hosts}" for link in case.downstream])
    yield note(
        f"hosts behind this host have no prefix of their own ({hosts}); a share lets them use"
        f" {prefixes} of {interface}",
        f"if these are your hosts, add the table [[share]] to the file, or {trial}",
        cure,
    )
