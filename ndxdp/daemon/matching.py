"""The interfaces that the patterns of a configuration match, each with its specification. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.netlink.link_names import NamedLink
from ndxdp.rules.interface_pattern import Patterns

log = logging.getLogger(__name__)


class Instance(NamedTuple):
    """An interface that matches a pattern.

    Attributes:
        ifindex: The interface's index, by which another interface of the same name is recognized.
        spec: The specification of the pattern, with the interface's name.
    """

    ifindex: int
    spec: InterfaceSpec

    @property
    def name(self) -> str:
        """The interface's name."""
        return self.spec.interface


class Matching:
    """The instances of a configuration's patterns.

    Attributes:
        named: The interfaces that the configuration names.
        instances: The instances, by the names of their interfaces.
    """

    def __init__(
        self, specs: Iterable[InterfaceSpec] = (), left_alone: dict[int, str] | None = None
    ) -> None:
        """Have no instances until update().

        Args:
            specs: The specifications, in the order of the configuration.
            left_alone: The names of the interfaces that were logged as left alone, by index. It is
                kept up to date.
        """
        every = list(specs)
        self._patterns = Patterns(spec.interface for spec in every)
        self._specs = {spec.interface: spec for spec in every if spec.is_pattern}
        self._left_alone = {} if left_alone is None else left_alone
        self._names: dict[int, str] = {}
        self.named = self._patterns.named
        self.instances: dict[str, Instance] = {}

    def __bool__(self) -> bool:
        """Return True if there is a pattern."""
        return bool(self._patterns)

    def name_of(self, ifindex: int) -> str:
        """Return the name of the instance on a link; "" if there is none."""
        return self._names.get(ifindex, "")

    def replace(self, links: Mapping[int, NamedLink]) -> tuple[list[Instance], list[Instance]]:
        """Take all links that there are; return as update()."""
        gone = dict.fromkeys((*self._names, *self._left_alone))
        return self.update({**gone, **links})

    def update(
        self, links: Mapping[int, NamedLink | None]
    ) -> tuple[list[Instance], list[Instance]]:
        """Apply changes of links, by their index; None stands for a link that has disappeared.

        Returns:
            The instances that have ended, and those that have begun.
        """
        ended: list[Instance] = []
        begun: list[Instance] = []
        for ifindex, link in links.items():
            if link is None:
                self._left_alone.pop(ifindex, None)
            before, spec = self._names.get(ifindex), self._spec_of(link) if link else None
            if before == (spec.interface if spec else None):
                continue
            if before is not None:
                del self._names[ifindex]
                ended.append(self.instances.pop(before))
            if spec is not None:
                begun.append(Instance(ifindex, spec))
        for instance in begun:
            self._names[instance.ifindex] = instance.name
            replaced = self.instances.get(instance.name)
            if replaced is not None:
                ended.append(replaced)
                del self._names[replaced.ifindex]
            self.instances[instance.name] = instance
        return ended, begun

    def _spec_of(self, link: NamedLink) -> InterfaceSpec | None:
        """Return the specification of a link; None if no pattern is for it."""
        pattern = self._patterns.first(link.name, link.altnames)
        if not pattern:
            return None
        spec = self._specs[pattern]
        why = link.unusable(keeps_addresses=spec.keeps_addresses_only)
        if not why:
            self._left_alone.pop(link.ifindex, None)
            return spec.of(link.name)
        if self._left_alone.get(link.ifindex) != link.name:
            self._left_alone[link.ifindex] = link.name
            log.info("%s matches '%s', and is left alone: %s", link.name, pattern, why)
        return None
