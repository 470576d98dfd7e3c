"""The backend in the kernel: a program on a hook, with pins that outlive the process.

- `attach` pins maps, program and link, and returns. The pins keep the program attached; `detach`
  removes them.
- `run` pins maps and program, and keeps the link open itself, so that the program ends with the
  process, even if that is killed. `run --keep` pins the link too.
"""

from __future__ import annotations

import contextlib
import logging

from ndxdp.errors import Damaged, ModeUnavailable, NdxdpError
from ndxdp.netlink import links, onlink
from ndxdp.netlink.links import Link
from ndxdp.session import kernel_program, modes
from ndxdp.session.backend import Attached
from ndxdp.session.former_layout import has_former, take_over
from ndxdp.session.link_check import refuse_broad
from ndxdp.session.modes import ModeRefusal, NoMode
from ndxdp.session.plan import AttachPlan, CarriedState, attached_otherwise, carry_over
from ndxdp.session.recovery import recover
from ndxdp.session.rename import adopt
from ndxdp.session.request import AttachRequest
from ndxdp.store.directories import Tree, Trees
from ndxdp.store.instance import KernelInstance, refuse_other_version
from ndxdp.store.ownership import refuse_if_locked

log = logging.getLogger(__name__)


class KernelBackend:
    """Answers by a program that the kernel runs."""

    def __init__(self, trees: Trees) -> None:
        self._trees, self._tree = trees, trees.pins

    def attach(self, request: AttachRequest, locked: Tree | None) -> Attached:
        """Attach a program, or renew the attached one; see Backend.attach()."""
        tree, trees = self._tree, self._trees
        link = links.answering_link(request.interface, down=request.down)
        name = link.name  # the request may have an alternative one
        tree.check()
        if not request.force:
            refuse_broad(name, request.rules, lambda: onlink.read((link.ifindex, link.master)))
        with tree.lock.exclusive(), contextlib.ExitStack() as opened:
            take_over(tree, name)
            if has_former(trees.files, name):
                with trees.files.lock.exclusive():
                    take_over(trees.files, name)
            refuse_other_version(tree, name)
            if locked is not trees.files:
                refuse_if_locked(trees.files, name)
            if locked is not tree and tree.path(name).is_dir():
                refuse_if_locked(tree, name)
            adopt(tree, link)
            present = self._present(request, link)
            if present is not None:
                opened.enter_context(present)
            has_files = trees.files.path(name).is_dir()
            carried = carry_over(trees.files, name) if has_files else CarriedState()
            instance = self._in_best_mode(request, link, present, carried)
            if has_files:
                with trees.files.lock.exclusive():
                    trees.files.remove(name)
            lock = contextlib.ExitStack()
            if request.lock and locked is not tree:
                lock.enter_context(tree.locked(name))
            return Attached(tree, instance, lock)

    def _present(self, request: AttachRequest, link: Link) -> KernelInstance | None:
        """Open an interface's pins, attached or not; remove them if they are damaged."""
        tree = self._tree
        if not tree.path(link.name).is_dir():
            return None
        try:
            present = recover(tree, link.name, request.options.mode)
        except Damaged:  # an attach that was killed half-way
            tree.remove(link.name)
            return None
        error = conflict(present, request, link)
        if error:
            present.close()
            raise error
        return present

    def _in_best_mode(
        self,
        request: AttachRequest,
        link: Link,
        present: KernelInstance | None,
        carried: CarriedState,
    ) -> KernelInstance:
        """Attach, renew or switch in the first mode that the kernel and the driver accept."""
        named = request.options.mode
        settings = present.maps.settings() if present else None
        attached = bool(present and settings and present.is_attached(settings))
        present_mode = settings.mode if settings and attached else None
        candidates = modes.candidates(named, present_mode, request.switch)
        addresses, path = request.addresses_of(link), self._tree.path(link.name)
        refusals: list[ModeRefusal] = []
        for mode in candidates:
            stays = bool(settings and attached and settings.mode is mode)
            noted = modes.encode(refusals)
            if settings and attached and not request.switch:
                noted = settings.refusals
            plan = AttachPlan(request, link, addresses, mode, path, noted, carried)
            try:
                if not stays:
                    modes.check(link, mode, named=named is not None)
                if present is None:
                    instance = kernel_program.attach_new(self._tree, plan)
                elif attached and not stays:
                    instance = kernel_program.switch_mode(present, plan)
                else:
                    instance = kernel_program.renew(present, plan)
            except ModeUnavailable as error:
                if len(candidates) == 1:
                    raise
                refusals.append(modes.refusal(mode, error))
                hint = error.hint
                continue
            for refused, reason in refusals:
                log.info("%s: not %s: %s", link.name, refused.label, reason)
            return instance
        raise NoMode(link.name, refusals, hint)


def conflict(present: KernelInstance, request: AttachRequest, link: Link) -> NdxdpError | None:
    """Return the reason for which an attached program cannot be renewed as requested."""
    settings = present.maps.settings()
    if not present.is_attached(settings):
        return None
    if settings.ifindex != link.ifindex:
        return NdxdpError(
            f"the pins of {link.name} belong to an interface that has another name now",
            f"ndxdp detach {link.name} first",
        )
    if not request.switch and request.options.mode not in (None, settings.mode):
        return attached_otherwise(link.name, settings.mode)
    if not request.keep:
        return NdxdpError(
            f"ndxdp is attached to {link.name} already, and meant to stay",
            f"ndxdp detach {link.name} first, or ndxdp run --keep",
        )
    return None
