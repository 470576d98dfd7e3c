"""Problems that the daemon of an interface reports."""

from __future__ import annotations

import shlex

from ndxdp.doctor.finding import Finding, warning
from ndxdp.observe import status
from ndxdp.observe.status_text import daemon_problems
from ndxdp.runtime.report import Daemon
from ndxdp.store.directories import Trees


def gather(trees: Trees, interface: str) -> list[Daemon]:
    """Return the reports of the daemons that attend to an interface, as far as they concern it."""
    return status.reports(trees, interface)


def judge(daemons: list[Daemon]) -> list[Finding]:
    """Return a warning for each thing that a daemon says is wrong."""
    found = []
    for daemon in daemons:
        for each in daemon.interfaces:
            if each["problem"]:
                found.append(
                    warning(
                        f"the daemon says of {each['interface']}: {each['problem']}",
                        "it does not answer there, or not as its configuration wants it; it tries"
                        " again by itself, within a minute",
                        "",
                    )
                )
        check = f"ndxdp check -c {shlex.quote(daemon.config)}" if daemon.config else ""
        for trouble in daemon_problems(daemon):
            found.append(
                warning(
                    trouble,
                    f"the daemon with process id {daemon.pid} says so, and answers all the same",
                    "" if daemon.reload["ok"] else check,
                )
            )
    return found
