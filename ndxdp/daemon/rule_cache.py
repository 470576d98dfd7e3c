"""The rules in an interface's maps, as this process has read or written them last."""

from __future__ import annotations

import time

from ndxdp.rules.ruleset import Rules
from ndxdp.session.session import Session
from ndxdp.store.handover import Inbox

_GRAIN = 0.1
"""Seconds; more than the step of a file system's clock. Two changes in one step leave the same
time, so that the second one does not show."""


class RuleCache:
    """Reads the rules from the maps only if a command may have changed them.

    Reading 100 000 rules takes 0.1 s, and one container that starts changes one of them. A command
    changes rules under the tree's lock, and then sets the times of the interface's directory
    (Tree.notify()). So rules are unchanged if these times are. A command that changes few rules in
    the kernel also writes their prefixes into a queue (store/handover.py): only those rules are
    read. The caller holds the lock.
    """

    def __init__(self, session: Session) -> None:
        """Know no rules yet."""
        self._maps = session.maps
        self._directory = session.tree.path(session.interface)
        self._rules: Rules | None = None
        self._stamp: tuple[int, ...] | None = None
        self._inbox = Inbox()

    def rules(self) -> Rules:
        """Return all rules in the maps. They are forgotten until keep() is called."""
        known, self._rules = self._rules, None
        if self._maps.in_kernel:
            return self._in_kernel(known)
        stamp, before = self._directory_stamp(), self._stamp
        self._stamp = stamp
        if known is not None and stamp is not None and stamp == before:
            return known
        return self._maps.rules()

    def _in_kernel(self, known: Rules | None) -> Rules:
        """Return all rules in the maps of the kernel.

        Args:
            known: The rules before, if they are known.
        """
        maps, path = self._maps, self._directory
        # The queue is read even if no time has changed: a command may have been killed.
        prefixes = self._inbox.take(path)
        if known is None or prefixes is None:
            self._inbox.begin(path)
            return maps.rules()
        return known.changed_at(prefixes, maps.rules_at(prefixes)) if prefixes else known

    def keep(self, rules: Rules) -> None:
        """Take the rules that are in the maps now that all changes since rules() are written."""
        self._rules = rules.to_keep()

    def _directory_stamp(self) -> tuple[int, ...] | None:
        """Return the identity and time of the directory; None if a change may not show."""
        try:
            found = self._directory.stat()
        except OSError:
            return None
        if not 0 <= found.st_mtime < time.time() - _GRAIN:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns
