"""The commands that follow once the proposed files are written. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from ndxdp.proposal.facts import Host
from ndxdp.proposal.plan import Plan


@dataclass(frozen=True, slots=True)
class Installation:
    """How this host runs ndxdp.

    Attributes:
        config: The path of the configuration file.
        is_default: The path is the default of `ndxdp reload`.
        systemd: systemd runs.
        has_unit: systemd has a unit that runs ndxdp with this file.
        runs: A daemon runs with this file.
    """

    config: str
    is_default: bool
    systemd: bool
    has_unit: bool
    runs: bool


def commands(host: Host, plan: Plan, installed: Installation, sysctls: str) -> Iterator[str]:
    """Yield the commands, in their order.

    Args:
        host: The host.
        plan: The proposal.
        installed: How this host runs ndxdp.
        sysctls: The path of the file for sysctls; "" without one.
    """
    for each in host.responders:
        yield f"systemctl disable --now {each.unit}" if each.unit else f"kill {each.pid}"
    if sysctls and not all(each.is_set for each in plan.settings):
        yield f"sysctl -p {shlex.quote(sysctls)}"
    yield from _start(installed)
    if plan.proof is not None:
        where, what = plan.proof.interface, plan.proof.what
        yield f"ndxdp explain {where} {plan.proof.address}    # must be answered: {what}"
    if plan.shares:
        yield "ndxdp hosts    # the hosts that the share has learned"
    yield f"ndxdp doctor {plan.names[0]}" if len(plan.names) == 1 else "ndxdp doctor"


def _start(installed: Installation) -> Iterator[str]:
    named = "" if installed.is_default else f" -c {shlex.quote(installed.config)}"
    if installed.runs:
        yield f"ndxdp reload{named}"
    elif not installed.systemd:
        yield f"ndxdp run -c {shlex.quote(installed.config)}"
    else:
        if not installed.has_unit:
            yield f"ndxdp install-service{named} && systemctl daemon-reload"
        yield "systemctl enable --now ndxdp"
