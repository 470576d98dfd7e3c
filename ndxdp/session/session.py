"""An interface that ndxdp answers on, and the four verbs of its life.

Every command and the daemon act on an interface through a Session. The verbs are attach(),
renew(), suspend() and detach(). `ndxdp attach` and the daemon attach a program or a packet socket.
The daemon renews when the specification changes, suspends when the interface disappears, and
detaches at its end, if the specification says so. `prefix`, `pause` and `detach` open an attached
interface.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from ndxdp.errors import ModeUnavailable
from ndxdp.kernel.abi import Mode
from ndxdp.store.directories import Tree
from ndxdp.store.instance import Instance, open_instance
from ndxdp.store.maps import Maps
from ndxdp.store.ownership import refuse_elsewhere

if TYPE_CHECKING:
    from ndxdp.session.backend import Attached, Backend
    from ndxdp.session.request import AttachRequest
    from ndxdp.sockets.packet import PacketSocket
    from ndxdp.store.directories import Trees

# The verbs import modes, backends and restore late: these load pyroute2, which `prefix` and `pause`
# do not need.


class Session:
    """An interface's directory, name, lock and maps.

    Attributes:
        tree: The tree of the interface's directory: pins, or files.
        interface: The interface's name; the directory is named after it.
        instance: The open maps, and the program if there is one.
        maps: The open maps.
        packets: The socket to answer from; None if a program answers.
    """

    def __init__(
        self,
        tree: Tree,
        instance: Instance,
        lock: contextlib.ExitStack | None = None,
        packets: PacketSocket | None = None,
        *,
        has_tree_lock: bool = False,
    ) -> None:
        """Take over an open interface.

        Args:
            tree: The tree of the interface's directory.
            instance: The interface's open maps, and its program.
            lock: The lock on the interface's directory; None for a command that ends at once.
            packets: The socket to answer from.
            has_tree_lock: The caller has the tree's lock for as long as the session is open.
        """
        self.tree, self.interface, self.instance = tree, instance.interface, instance
        self.maps: Maps = instance.maps
        self.packets = packets
        self._lock = lock or contextlib.ExitStack()
        self._has_tree_lock = has_tree_lock

    @classmethod
    @contextlib.contextmanager
    def open(cls, tree: Tree, interface: str) -> Iterator[Self]:
        """Lock the tree, and open an interface that has a directory.

        Raises:
            NdxdpError: There is no directory, or the interface belongs to another network
                namespace.
        """
        with tree.lock.exclusive(), open_instance(tree, interface) as instance:
            refuse_elsewhere(tree, instance)
            yield cls(tree, instance, has_tree_lock=True)

    @classmethod
    def attach(cls, trees: Trees, request: AttachRequest) -> Self:
        """Attach to an interface, or renew an attachment that no process has locked.

        Raises:
            ModeUnavailable: No requested mode works on the interface.
            NdxdpError: Another failure. The kernel is unchanged.
        """
        return cls._of(_attach(trees, request))

    def renew(self, trees: Trees, request: AttachRequest) -> Self:
        """Return a session that answers as requested.

        If the backend changes, this session continues to answer until the caller detaches it. It
        keeps the lock until hand_lock_to(). The caller closes it in any case.

        Raises:
            ModeUnavailable: No requested mode works on the interface.
            NdxdpError: Another failure. The kernel is unchanged.
        """
        return self._of(_attach(trees, request, locked=self.tree))

    def hand_lock_to(self, renewed: Session) -> None:
        """Pass the lock to the renewed session, if both use the same directory."""
        if renewed.tree is self.tree:
            renewed._lock = self._lock.pop_all()

    def lock_again(self) -> None:
        """Release the old lock, and lock the directory that has replaced the removed one."""
        self._lock.close()
        self._lock.enter_context(self.tree.locked(self.interface))

    def suspend(self) -> None:
        """Stop answering, and keep rules, counters and settings for the next attachment."""
        from ndxdp.session.restore import suspend_instance

        with self._tree_lock():
            suspend_instance(self.tree, self.instance)

    def detach(self) -> None:
        """Stop answering, remove pins or files, and restore the interface."""
        from ndxdp.session.restore import detach_instance

        with self._tree_lock():
            detach_instance(self.tree, self.instance)

    def close(self) -> None:
        """Close maps and socket, and release the lock; a pinned program continues to answer."""
        with self._lock, contextlib.ExitStack() as closing:
            if self.packets is not None:
                closing.callback(self.packets.close)
            self.instance.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @classmethod
    def _of(cls, attached: Attached) -> Self:
        return cls(attached.tree, attached.instance, attached.lock, attached.packets)

    @contextlib.contextmanager
    def _tree_lock(self) -> Iterator[None]:
        """Lock the tree unless the caller has; without an available lock, run the block anyway."""
        if self._has_tree_lock:
            yield
            return
        with self.tree.lock.if_usable(urgent=True):
            yield


def _attach(trees: Trees, request: AttachRequest, locked: Tree | None = None) -> Attached:
    """Attach a program if a mode works, else answer from this process if the request allows it.

    Args:
        trees: Where the state of interfaces is kept.
        request: The request.
        locked: The tree in which this process has locked the interface already.
    """
    from ndxdp.session import modes
    from ndxdp.session.kernel_backend import KernelBackend
    from ndxdp.session.userspace_backend import UserspaceBackend

    backend: Backend = KernelBackend(trees)
    if request.options.mode is Mode.USERSPACE:
        backend = UserspaceBackend(trees)
    try:
        return backend.attach(request, locked)
    except ModeUnavailable as error:
        if not request.fallback:
            raise
        refusals = modes.refusals_of(error)
    return UserspaceBackend(trees, refusals).attach(request, locked)
