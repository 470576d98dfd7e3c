"""The protocol of the two backends: a program in the kernel, and a process in userspace."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ndxdp.store.directories import Tree
from ndxdp.store.instance import Instance

if TYPE_CHECKING:
    from ndxdp.session.request import AttachRequest
    from ndxdp.sockets.packet import PacketSocket


@dataclass
class Attached:
    """An interface that a backend has attached to.

    Attributes:
        tree: The tree of the interface's directory.
        instance: The open maps, and the program if there is one.
        lock: The lock on the directory, if the request wants one.
        packets: The socket to answer from; None if a program answers.
    """

    tree: Tree
    instance: Instance
    lock: contextlib.ExitStack
    packets: PacketSocket | None = None


class Backend(Protocol):
    """A way to answer on an interface."""

    def attach(self, request: AttachRequest, locked: Tree | None) -> Attached:
        """Attach to an interface, or renew an attachment without losing a solicitation.

        Args:
            request: The request.
            locked: The tree in which this process has locked the interface already.

        Raises:
            ModeUnavailable: This backend does not work on the interface or the host.
            NdxdpError: Another failure. The kernel's state is what it was.
        """
        ...
