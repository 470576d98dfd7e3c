"""An interface without a MAC, on which no router solicits: the daemon only keeps its addresses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ndxdp.config.model import Announce
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.daemon.uplink_state import UplinkState
from ndxdp.daemon.upstream_tasks import AddressKeeper
from ndxdp.errors import interface_gone
from ndxdp.netlink import links
from ndxdp.netlink.links import Link
from ndxdp.runtime.daemon_status import DaemonStatus

log = logging.getLogger(__name__)


async def keep_addresses(
    state: UplinkState,
    spec: InterfaceSpec,
    link: Link,
    shared: Shared,
    status: DaemonStatus,
    directory: Path,
    kept: Callable[[], None],
) -> None:
    """Keep addresses deprecated, as the specification wants, until it changes or the uplink stops.

    Args:
        state: The state of the uplink.
        spec: The specification that says to do so.
        link: The interface.
        shared: What all uplinks share.
        status: The daemon's status, where it is noted that the daemon does not answer here.
        directory: The run directory.
        kept: Called once this has begun.

    Raises:
        InterfaceGone: The interface has disappeared.
    """
    if state.spec != spec:  # it was reloaded meanwhile
        return
    name = spec.interface
    state.follow_links(frozenset((link.ifindex,)))
    log.info("ndxdp answers nothing on %s: %s", name, links.NO_MAC)
    for table, wanted in (
        ("announce", spec.announce != Announce()),
        ("gateway", spec.gateway.keep),
    ):
        if wanted:
            log.warning("[interface.%s] has no effect on %s: %s", table, name, links.NO_MAC)
    keeper = AddressKeeper(spec, link, directory, links.NO_MAC)
    try:
        with status.not_answering(name, links.NO_MAC):
            kept()
            async for _ in state.rounds():
                if state.spec != spec:
                    return
                present = await shared.call(partial(links.find_link, name))
                if present is None or present.ifindex != link.ifindex:
                    raise interface_gone(name)
                keeper.notice_changes()
                state.health.succeeded(state.health.beginning)
    finally:
        await keeper.end()
