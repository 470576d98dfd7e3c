"""Problems reported by the daemon of an interface."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ndxdp.doctor.finding import Finding, warning
from ndxdp.observe import status
from ndxdp.observe.status_text import daemon_problems
from ndxdp.runtime.report import Daemon
from ndxdp.store.directories import Trees


def gather(trees: Trees, interface: str) -> list[Daemon]:
    """Return the daemons' reports on an interface."""
    return status.reports(trees, interface)


def judge(daemons: list[Daemon]) -> list[Finding]:
    """Return a warning about each problem that a daemon reports."""
    found = []
    for daemon in daemons:
        for each in daemon.interfaces:
            if each["problem"]:
                found.append(
                    warning(
                        f"the daemon reports a problem on {each['interface']}: {each['problem']}",
                        "the interface is not as its configuration requires; the daemon tries again"
                        " within a minute"
                        if each.get("answered") or each["unanswered"]
                        else "the daemon does not answer there; it tries again within a minute",
                        "",
                    )
                )
            if each.get("multicast"):
                found += _groups(each["interface"], each["multicast"])
        check = f"ndxdp check {shlex.quote(daemon.config)}" if daemon.config else ""
        for problem in daemon_problems(daemon):
            found.append(
                warning(
                    problem,
                    f"the daemon with process id {daemon.pid} reports this, and continues to"
                    " answer",
                    "" if daemon.reload["ok"] else check,
                )
            )
    return found


def _groups(interface: str, multicast: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield warnings about groups that a switch with MLD snooping does not forward.

    Args:
        interface: The interface.
        multicast: The daemon's report on the groups (GroupStatus).
    """
    left_out = multicast["left_out"]
    if not multicast["querier"]:
        return
    if multicast["join"] == "never":
        yield warning(
            f'an MLD querier is on the link of {interface}, and join is "never"',
            "a switch that snoops MLD does not forward the solicitations for exact addresses: write"
            ' join = "auto" in the file, or remove --join',
            "",
        )
    elif left_out:
        yield warning(
            f"{left_out} of {left_out + multicast['joined']} multicast groups of {interface} are"
            " not joined",
            "an MLD querier is on the link: a switch that snoops MLD does not forward the"
            ' solicitations for the other addresses; write join = "always" in the file, or use'
            " fewer exact addresses",
            "",
        )
