"""The rules in an interface's maps, as this process has read or written them last."""

from __future__ import annotations

from ndxdp.rules.prefix import Prefix
from ndxdp.rules.ruleset import Rules
from ndxdp.session.session import Session
from ndxdp.store.handover import Inbox
from ndxdp.store.rule_format import OF_RULES, Changes
from ndxdp.store.rule_reader import prefix_of


class RuleCache:
    """Reads the rules from the maps only if a command may have changed them.

    Reading 100 000 rules takes 0.1 s, and one container that starts changes one of them. A command
    that changes few rules in the kernel writes their prefixes into a queue (store/handover.py), and
    in userspace mode the file of the rules has a log of the changes: only those rules are read. The
    caller holds the tree's lock.
    """

    def __init__(self, session: Session) -> None:
        """Know no rules yet."""
        self._maps = session.maps
        self._directory = session.tree.path(session.interface)
        self._rules: Rules | None = None
        self._inbox = Inbox()
        self._changes = None if self._maps.in_kernel else self._maps.rule_file.follow()

    def rules(self) -> Rules:
        """Return all rules in the maps. They are forgotten until keep() is called."""
        known, self._rules = self._rules, None
        maps, path = self._maps, self._directory
        if self._changes is not None:
            prefixes = _prefixes(self._changes.take())
        else:
            # The queue is read even if no time has changed: a command may have been killed.
            prefixes = self._inbox.take(path)
        if known is None or prefixes is None:
            if self._changes is None:
                self._inbox.begin(path)
            return maps.rules()
        return known.changed_at(prefixes, maps.rules_at(prefixes)) if prefixes else known

    def keep(self, rules: Rules) -> None:
        """Take the rules that are in the maps now that all changes since rules() are written."""
        if self._changes is not None:
            self._changes.take()
        self._rules = rules.to_keep()


def _prefixes(changes: Changes | None) -> frozenset[Prefix] | None:
    """Return the prefixes whose rules have changed; None if all may have."""
    if changes is None:
        return None
    addresses, prefixes = (changes.get(name, {}) for name in OF_RULES)
    return frozenset((*(Prefix(key, 128) for key in addresses), *map(prefix_of, prefixes)))
