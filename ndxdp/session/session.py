"""An interface that ndxdp answers on, and the four verbs of its life.

Every command and the daemon act on an interface through a Session. `attach` and `run` make one,
which attaches a program or opens a packet socket. The daemon renews it, and suspends or detaches it
at the end. `prefix`, `pause` and `detach` open the present one.
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

# The verbs import their modules themselves: these load pyroute2, which `prefix` and `pause` do not
# need.


class Session:
    """An interface's directory, name, lock and maps.

    Attributes:
        tree: The tree of the interface's directory: pins, or files.
        interface: The interface's name, which its directory has, too.
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
            lock: The interface's lock, if this process stays.
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
        """Open an attached interface to change its rules or settings, with the tree's lock.

        Raises:
            NdxdpError: Nothing is attached, or it belongs to another network namespace.
        """
        with tree.lock(), open_instance(tree, interface) as instance:
            refuse_elsewhere(tree, instance)
            yield cls(tree, instance, has_tree_lock=True)

    @classmethod
    def attach(cls, trees: Trees, request: AttachRequest) -> Self:
        """Attach to an interface, or renew an attachment that no process has locked.

        Raises:
            ModeUnavailable: No requested mode works on the interface.
            NdxdpError: Another failure. The kernel's state is what it was.
        """
        return cls._of(_attach(trees, request))

    def renew(self, trees: Trees, request: AttachRequest) -> Self:
        """Return a session that answers as requested.

        If the backend changes, this session answers on until it is detached. It keeps the lock
        until hand_lock_to(); close it in any case.

        Raises:
            ModeUnavailable: No requested mode works on the interface.
            NdxdpError: Another failure. The kernel's state is what it was.
        """
        return self._of(_attach(trees, request, locked=self.tree))

    def hand_lock_to(self, renewed: Session) -> None:
        """Let a renewed session have the lock of the directory, if both have the same one."""
        if renewed.tree is self.tree:
            renewed._lock = self._lock.pop_all()

    def lock_again(self) -> None:
        """Lock the directory of the interface's name, which is another one than before."""
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
        """Close maps and socket, and release the lock; a pinned program answers on."""
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
        """Lock the tree, unless the caller has; an unusable or busy lock does not prevent it."""
        if self._has_tree_lock:
            yield
            return
        with self.tree.lock_if_usable(urgent=True):
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
