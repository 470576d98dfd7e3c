"""Problems reported by the daemon of an interface."""

from __future__ import annotations

import shlex

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
        check = f"ndxdp check -c {shlex.quote(daemon.config)}" if daemon.config else ""
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
