"""Several keys with the same prefix: which one of them is in force. Pure."""

from __future__ import annotations

from ndxdp.rules.prefix import Prefix


class Precedence:
    """The keys of a segment that have a prefix.

    Of the keys with the same prefix, the one that was created first is in force; the name decides
    between two that were created at once. So the order in which keys become known does not matter.
    """

    def __init__(self) -> None:
        """Have no keys yet."""
        self._keys: dict[str, tuple[int, Prefix]] = {}
        self._first: dict[Prefix, str] = {}
        self._others: dict[Prefix, dict[str, None]] = {}

    def __len__(self) -> int:
        """Return the number of keys, with those that are not in force."""
        return len(self._keys)

    @property
    def prefixes(self) -> int:
        """The number of different prefixes, which is that of the keys in force."""
        return len(self._first)

    def put(self, name: str, prefix: Prefix, created: int) -> list[str]:
        """Take a key, in place of its earlier prefix.

        Args:
            name: The name of the key.
            prefix: Its prefix.
            created: The revision of its creation.

        Returns:
            The names for which winner() may have changed, with the key's own.
        """
        affected = self.remove(name)
        self._keys[name] = created, prefix
        first = self._first.get(prefix)
        if first is None:
            self._first[prefix] = name
        else:
            others = self._others.setdefault(prefix, {})
            if self._age(name) < self._age(first):
                affected += [first, *others]
                others[first] = None
                self._first[prefix] = name
            else:
                others[name] = None
        return [*affected, name]

    def remove(self, name: str) -> list[str]:
        """Forget a key; return the names of other keys for which winner() may have changed."""
        known = self._keys.pop(name, None)
        if known is None:
            return []
        prefix = known[1]
        others = self._others.get(prefix)
        if others is None:
            del self._first[prefix]
            return []
        affected: list[str] = []
        if self._first[prefix] == name:
            affected = list(others)
            name = self._first[prefix] = min(others, key=self._age)
        del others[name]
        if not others:
            del self._others[prefix]
        return affected

    def in_force(self, prefix: Prefix) -> str | None:
        """Return the name of the key in force for a prefix; None if no key has the prefix."""
        return self._first.get(prefix)

    def winner(self, name: str) -> str | None:
        """Return the name of the key in force for the prefix of a key; None for unknown keys."""
        known = self._keys.get(name)
        return self._first[known[1]] if known else None

    def _age(self, name: str) -> tuple[int, str]:
        return self._keys[name][0], name
