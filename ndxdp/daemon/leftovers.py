"""State of interfaces that matched a pattern, and that disappeared while no daemon ran."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from functools import partial

from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.errors import NdxdpError, problem_of
from ndxdp.netlink import names
from ndxdp.rules.interface_pattern import Patterns
from ndxdp.session.detach import detach_interface
from ndxdp.store import lifetimes
from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)


class Leftovers:
    """Removes pins and files of absent interfaces that a pattern matches.

    While a daemon runs, it removes the state of an instance together with its interface. A program
    that answers on without a daemon outlives its interface as pins.
    """

    def __init__(self, trees: Trees, shared: Shared, is_wanted: Callable[[str], bool]) -> None:
        """Do nothing yet.

        Args:
            trees: Where the state of interfaces is kept.
            shared: What all uplinks share.
            is_wanted: Returns True if there is, or will be, an uplink for an interface.
        """
        self._trees, self._shared, self._is_wanted = trees, shared, is_wanted

    async def remove(self, configured: Iterable[str]) -> None:
        """Remove what is left of interfaces that are absent.

        Args:
            configured: The names and patterns of the configuration.
        """
        patterns = Patterns(configured)
        if not patterns:
            return
        for name in await self._shared.call(self._known):
            if patterns.first(name) and not self._is_wanted(name):
                try:
                    await self._shared.call(partial(self._remove_if_absent, name))
                except (NdxdpError, OSError) as error:
                    log.debug("%s: its pins stay: %s", name, problem_of(error))

    def _known(self) -> list[str]:
        """Return the names of all interfaces that have a directory, or a file of lifetimes."""
        found = [each.interface for each in lifetimes.kept(self._trees.files.root)]
        with contextlib.suppress(NdxdpError, OSError):  # there is no usable directory
            found += self._trees.interfaces()
        return list(dict.fromkeys(found))

    def _remove_if_absent(self, name: str) -> None:
        """Detach an interface that does not exist by this name.

        Raises:
            NdxdpError: Another process answers there, or it is of another network namespace.
        """
        if not names.index_of(name):
            detach_interface(self._trees, name)
            log.info("%s is gone: removed what was left of it", name)
