"""Descriptors that all interfaces of a daemon share, so that one more takes few of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from ndxdp.errors import NdxdpError
from ndxdp.kernel.watch import Watch


class Shared:
    """Opened when they are first needed, in a running event loop; close() when done."""

    def __init__(self) -> None:
        self._watch: Watch | None = None
        self._taken: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all; nobody uses them any more."""
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None

    @contextlib.contextmanager
    def taking(self, interface: str, configured: str) -> Iterator[None]:
        """Keep others from an interface during the block, which may be configured by two names.

        Args:
            interface: Its name.
            configured: That name, or an alternative one.

        Raises:
            NdxdpError: It is taken already.
        """
        other = self._taken.setdefault(interface, configured)
        if other != configured:
            raise NdxdpError(
                f"{configured} and {other} are names of one interface", "remove one of them"
            )
        try:
            yield
        finally:
            del self._taken[interface]

    @contextlib.contextmanager
    def watching(self, directory: Path, changed: Callable[[], None]) -> Iterator[None]:
        """Call back during the block when a directory is touched, or something in it is removed.

        Raises:
            OSError: It cannot be watched.
        """
        if self._watch is None:
            watch = Watch()
            asyncio.get_running_loop().add_reader(watch.fileno(), watch.dispatch)
            self._watch = watch
        number = self._watch.add(directory, changed)
        try:
            yield
        finally:
            self._watch.remove(number)
