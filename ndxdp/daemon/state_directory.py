"""The directory of an interface that is answered on: its pins or files, restored when removed."""

from __future__ import annotations

import logging
from pathlib import Path

from ndxdp.errors import Damaged
from ndxdp.session.restore import detach_instance
from ndxdp.session.session import Session
from ndxdp.store import pins
from ndxdp.store.instance import KernelInstance, open_instance
from ndxdp.store.ownership import refuse_elsewhere, refuse_if_locked

log = logging.getLogger(__name__)

DirectoryId = tuple[int, int]
"""A directory's device and inode number."""


def directory_id(path: Path) -> DirectoryId | None:
    """Return the identity of a directory, which a new one of the same path does not share."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class StateDirectory:
    """The directory of one attachment. The process has all that is pinned in it open, too.

    Attributes:
        path: The directory.
    """

    def __init__(self, session: Session, *, has_link: bool) -> None:
        """Note which directory the attachment has now.

        Args:
            session: The interface.
            has_link: The link is pinned, too, if there is one.
        """
        self.path = session.tree.path(session.interface)
        self._session, self._has_link = session, has_link
        self._id = directory_id(self.path)

    def is_damaged(self) -> bool:
        """Return True if the directory, or pins or files in it, have been removed."""
        if directory_id(self.path) != self._id:
            return True
        return bool(self._missing_pins() or self._session.maps.missing(self.path))

    def _missing_pins(self) -> dict[str, int]:
        """Return program and link without a pin, by the names of their pins."""
        instance = self._session.instance
        if not isinstance(instance, KernelInstance):
            return {}
        wanted = instance.pinned(link=self._has_link)
        return {name: fd for name, fd in wanted.items() if not (self.path / name).exists()}

    def repair(self) -> None:
        """Restore removed pins or files, and lock the directory again.

        If an `attach` has made another directory since, its program is detached. Call this in the
        executor's thread.

        Raises:
            NdxdpError: There is another directory that another process has locked, or that belongs
                to another network namespace.
        """
        if not self.is_damaged():
            return
        session = self._session
        tree, interface, maps = session.tree, session.interface, session.maps
        with tree.lock.if_usable():
            is_new = directory_id(self.path) != self._id
            if is_new and self.path.is_dir():
                refuse_if_locked(tree, interface)
                try:
                    with open_instance(tree, interface) as other:
                        refuse_elsewhere(tree, other)
                        detach_instance(tree, other)
                except Damaged:
                    tree.remove(interface)
            if is_new:
                tree.make(interface)
            if maps.in_kernel:
                maps.restore_pins(self.path)
                for name, fd in self._missing_pins().items():
                    pins.pin(fd, self.path / name)
            else:
                maps.restore_files()
        self._id = directory_id(self.path)
        if is_new:
            session.lock_again()
        log.warning("%s: another process removed %s; it is restored", session.interface, self.path)
