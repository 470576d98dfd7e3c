"""The endpoints of an engine's running containers, by container and by address. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ndxdp.sources.answers import Endpoint, Listed

Change = Mapping[bytes, tuple[Endpoint, ...]]
"""By address (16 bytes), the endpoints that have it now; none where the address has gone."""


class Inventory:
    """The endpoints that were listed last, kept in step with lists of all or of some containers.

    Attributes:
        by_address: The endpoints of each address. Two networks may use one address.
    """

    def __init__(self) -> None:
        self.by_address: dict[bytes, tuple[Endpoint, ...]] = {}
        self._by_container: dict[str, tuple[Endpoint, ...]] = {}

    def known(self, listed: Listed) -> Listed:
        """Return an equal item whose endpoint is the present object, if there is one.

        So there is only one copy of each endpoint in memory while a list is read.
        """
        for endpoint in self._by_container.get(listed.container_id, ()):
            if endpoint == listed.endpoint:
                return listed._replace(endpoint=endpoint)
        return listed

    def update(self, listed: Iterable[Listed], asked: Collection[str] | None = None) -> Change:
        """Take a list of endpoints.

        Args:
            listed: The endpoints.
            asked: The ids of the containers that the list is about; None for all. A container that
                is asked about and not listed has no endpoints. One that is listed and not asked
                about is ignored: a proxy may ignore the filter, and may answer from a cache.

        Returns:
            The addresses whose endpoints have changed.
        """
        found: dict[str, tuple[Endpoint, ...]] = {}
        for each in listed:
            found[each.container_id] = *found.get(each.container_id, ()), each.endpoint
        touched: set[bytes] = set()
        for container_id in {*self._by_container, *found} if asked is None else asked:
            before = self._by_container.get(container_id, ())
            after = found.get(container_id, ())
            if after != before:
                self._replace(container_id, before, after)
                touched.update(each.address for each in set(before) ^ set(after))
        return {address: self.by_address.get(address, ()) for address in touched}

    def _replace(
        self, container_id: str, before: tuple[Endpoint, ...], after: tuple[Endpoint, ...]
    ) -> None:
        """Replace the endpoints of a container."""
        for endpoint in before:
            others = list(self.by_address.pop(endpoint.address))
            others.remove(endpoint)
            if others:
                self.by_address[endpoint.address] = tuple(others)
        for endpoint in after:
            there = self.by_address.get(endpoint.address, ())
            self.by_address[endpoint.address] = *there, endpoint
        if after:
            self._by_container[container_id] = after
        else:
            del self._by_container[container_id]
