"""The choice of the backend that answers on an interface."""

from __future__ import annotations

from ndxdp.errors import ModeUnavailable
from ndxdp.kernel.abi import Mode
from ndxdp.session import modes
from ndxdp.session.backend import Attached, Backend
from ndxdp.session.kernel_backend import KernelBackend
from ndxdp.session.request import AttachRequest
from ndxdp.session.userspace_backend import UserspaceBackend
from ndxdp.store.directories import Tree, Trees


def attach(trees: Trees, request: AttachRequest, locked: Tree | None = None) -> Attached:
    """Attach a program if one works, else answer from this process if the request allows it.

    Args:
        trees: Where the state of interfaces is kept.
        request: The request.
        locked: The tree in which this process has locked the interface already.

    Raises:
        ModeUnavailable: No requested mode works.
        NdxdpError: Another failure. The kernel's state is what it was.
    """
    backend: Backend
    if request.options.mode is Mode.USERSPACE:
        backend = UserspaceBackend(trees)
    else:
        try:
            return KernelBackend(trees).attach(request, locked)
        except ModeUnavailable as error:
            if not request.fallback:
                raise
            backend = UserspaceBackend(trees, modes.refusals_of(error))
    return backend.attach(request, locked)
