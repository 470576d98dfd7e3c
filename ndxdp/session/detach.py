"""`ndxdp detach`: an interface is left as it was before ndxdp."""

from __future__ import annotations

import contextlib
import logging

from ndxdp.errors import Damaged, ModeUnavailable
from ndxdp.session.former_layout import take_over
from ndxdp.session.recovery import recover
from ndxdp.session.session import Session
from ndxdp.store import lifetimes
from ndxdp.store.directories import PinTree, Tree, Trees
from ndxdp.store.instance import Instance, open_instance
from ndxdp.store.ownership import refuse_elsewhere, refuse_if_locked
from ndxdp.upstream import deprecate

log = logging.getLogger(__name__)


def detach_interface(trees: Trees, interface: str) -> None:
    """Detach the program, remove pins or files, and restore what attaching changed.

    Restore the lifetimes of addresses that an ended daemon changed, too; there may be nothing else
    to restore.
    """
    directory = trees.files.root
    if trees.have(interface) or not lifetimes.exists(directory, interface):
        tree = trees.of(interface)
        _detach(tree, interface)
        # A process that was killed while the backend changed leaves both files and pins.
        if tree is trees.files:
            with contextlib.suppress(PermissionError, ModeUnavailable):  # then it pinned nothing
                if trees.pins.path(interface).is_dir():
                    _detach(trees.pins, interface)
    deprecate.restore(directory, interface)


def _detach(tree: Tree, interface: str) -> None:
    with tree.lock.exclusive():
        take_over(tree, interface)
        if tree.path(interface).is_dir():
            refuse_if_locked(tree, interface)
        try:
            instance: Instance
            if isinstance(tree, PinTree):
                instance = recover(tree, interface)
            else:
                instance = open_instance(tree, interface)
        except Damaged:
            tree.remove(interface)
            return
        with Session(tree, instance, has_tree_lock=True) as session:
            with contextlib.suppress(Damaged):  # settings that make no sense name no namespace
                refuse_elsewhere(tree, instance)
            session.detach()
        log.info("detached from %s", interface)
