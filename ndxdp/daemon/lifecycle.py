"""The life of one attachment of the daemon: begun, renewed, replaced, and ended.

Call the methods of Lifecycle in the executor's thread, except for the context managers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ndxdp.daemon import reconcile
from ndxdp.daemon.admission import Admission
from ndxdp.daemon.packet_loop import PacketLoop
from ndxdp.daemon.resolver import Resolver
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.daemon.state_directory import StateDirectory
from ndxdp.errors import Damaged, InterfaceGone, ModeUnavailable, NdxdpError
from ndxdp.netlink import links
from ndxdp.netlink.links import Link
from ndxdp.netlink.uplink_addresses import uplink_addresses
from ndxdp.session.detach import detach_interface
from ndxdp.session.recovery import recover
from ndxdp.session.rename import reconcile_renames
from ndxdp.session.session import Session
from ndxdp.store import handover
from ndxdp.store.directories import Trees
from ndxdp.store.ownership import refuse_if_locked
from ndxdp.upstream import deprecate


@dataclass
class Answering:
    """An interface on which a program or this process answers.

    Attributes:
        session: The interface's session.
        ifindex: The interface's index.
        ends_with_process: The program is not kept when this process ends.
        directory: The interface's directory.
        allmulti: The membership that keeps the interface in allmulti.
    """

    session: Session
    ifindex: int
    ends_with_process: bool = False
    directory: StateDirectory = field(init=False)
    allmulti: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.directory = StateDirectory(self.session, has_link=not self.ends_with_process)

    def close(self) -> None:
        """Close everything; a pinned program answers on."""
        with contextlib.closing(self.session), self.allmulti:
            pass


class Lifecycle:
    """Begins and ends the attachments of one interface."""

    def __init__(self, trees: Trees, shared: Shared, admission: Admission) -> None:
        self._trees, self._shared, self._admission = trees, shared, admission

    def check(self, spec: InterfaceSpec, *, patient: bool) -> None:
        """Suspend attachments that a rename has separated from their pins, and check the interface.

        Raises:
            NdxdpError: The interface cannot be answered on. It may be down if `patient` is true.
        """
        if self.quiet_link(spec) is None:
            self._check_attachable(spec, patient=patient)

    def _check_attachable(self, spec: InterfaceSpec, *, patient: bool) -> None:
        with contextlib.suppress(ModeUnavailable):
            reconcile_renames(self._trees.pins, spec.interface)
        links.answering_link(spec.interface, down=patient)

    def quiet_link(self, spec: InterfaceSpec) -> Link | None:
        """Return the interface if no solicitations arrive there, and only addresses are kept.

        Restore addresses that a former specification deprecated and this one does not.

        Raises:
            NdxdpError: No solicitations arrive there, and there are rules.
        """
        name = spec.interface
        link = links.find_link(name)
        if link is None or links.has_mac(link):
            return None
        if spec.keeps_addresses_only:
            return link
        deprecate.restore(self._trees.files.root, name)
        if spec.addresses.deprecate:
            raise NdxdpError(
                f"{name} has no MAC address: no router solicits there, and its rules answer"
                " nothing",
                "remove its [[interface.prefix]], [[interface.docker]] and [[interface.etcd]]: then"
                " its [interface.addresses] works",
            )
        return None

    def begin(self, spec: InterfaceSpec, *, patient: bool) -> tuple[Answering | None, Answering]:
        """Begin to answer on an interface that is no quiet_link().

        Args:
            spec: The interface's specification.
            patient: The interface may be down, and a rule for other nodes of the link is left out.
                Otherwise both are errors.

        Returns:
            A program that was attached before, to be replaced by this process, if there is one;
            and the new attachment. A former program is renewed if a program is to answer.
        """
        self._check_attachable(spec, patient=patient)
        former = self._former_program(spec)
        with contextlib.ExitStack() as undo:
            if former is not None:
                undo.callback(former.close)
            answering = self.renew(spec, former, switch=former is not None, patient=patient)
            undo.pop_all()
        return former, answering

    def _former_program(self, spec: InterfaceSpec) -> Answering | None:
        """Return the attached program that this process is to replace, if there is one.

        A command line does not replace a program of `attach`, which is meant to stay.
        """
        tree, name = self._trees.pins, spec.interface
        if not spec.wants_process or not spec.patient:
            return None
        try:
            tree.check()
        except ModeUnavailable:
            return None
        if not tree.path(name).is_dir():
            return None
        with contextlib.ExitStack() as opened, tree.lock.exclusive():
            refuse_if_locked(tree, name)
            try:
                program = opened.enter_context(recover(tree, name))
            except Damaged:
                return None
            settings = program.maps.settings()
            if not program.is_attached(settings):
                return None
            lock = opened.enter_context(contextlib.ExitStack())
            lock.enter_context(tree.locked(name))
            opened.pop_all()
            return Answering(Session(tree, program, lock), settings.ifindex)

    def renew(
        self,
        spec: InterfaceSpec,
        before: Answering | None,
        *,
        switch: bool,
        patient: bool,
    ) -> Answering:
        """Attach as specified, in place of the present attachment if there is one.

        Args:
            spec: The interface's specification.
            before: The present attachment, to be retired afterwards.
            switch: The program changes to the specified mode.
            patient: The interface may be down, and a rule for other nodes of the link is left out.
        """
        link = links.find_link(spec.interface)
        addresses = uplink_addresses(link) if link else None
        here = self._admission.on_link(spec, link, addresses and addresses.on_link)
        rules = self._admission.admitted(spec, link, here, refuse=not patient)
        request = spec.request(rules, down=patient, switch=switch)
        request = replace(request, addresses=addresses)
        if before is None:
            session = Session.attach(self._trees, request)
        else:
            session = before.session.renew(self._trees, request)
        with contextlib.ExitStack() as undo:
            undo.callback(session.close)
            ends_with_process = session.packets is not None or not spec.keep
            answering = Answering(session, session.maps.settings().ifindex, ends_with_process)
            undo.callback(answering.allmulti.close)
            session.maps.park()
            if session.packets is None:
                self._keep_allmulti(spec, answering)
            if session.maps.in_kernel:
                handover.make_queue(session.tree.path(spec.interface))
            # Here, and not when the resolver is opened: the event loop must not wait for the lock.
            # Until then, requests wait in the map.
            solicits = spec.gateway.keep or spec.announce.solicit_gateway
            reconcile.enable_resolution(session, spec.resolve, solicits=solicits)
            undo.pop_all()
        if before is not None:
            before.session.hand_lock_to(session)
        return answering

    def _keep_allmulti(self, spec: InterfaceSpec, answering: Answering) -> None:
        """Keep the interface in allmulti, or end a program that would depend on that.

        A program that is kept has the interface's own flag. The membership then only helps while
        another program has switched the flag off, so that answering begins without it, too.
        """
        try:
            with links.interface_errors(spec.interface):
                kept = self._shared.allmulti.enabled(answering.ifindex)
                answering.allmulti.enter_context(kept)
        except InterfaceGone:
            answering.session.suspend()
            raise
        except BaseException as error:
            if not spec.keep:
                answering.session.detach()
            if not spec.keep or not isinstance(error, NdxdpError):
                raise

    def retire(self, before: Answering, now: Answering) -> None:
        """Close the former attachment; detach its program if this process answers now."""
        with contextlib.closing(before):
            if before.session.tree is not now.session.tree and before.session.packets is None:
                before.session.detach()

    def end(self, answering: Answering, *, lost: bool, detach: bool) -> None:
        """End an attachment.

        Args:
            answering: The attachment.
            lost: The interface is absent: rules and counters are kept for its return.
            detach: The program is to be detached even if it outlives the process.
        """
        with contextlib.closing(answering):
            if not lost and (detach or answering.ends_with_process):
                answering.session.detach()
                return
            if lost:
                answering.session.suspend()
            reconcile.enable_resolution(answering.session, None)  # no resolver follows

    def detach(self, spec: InterfaceSpec) -> None:
        """Detach an interface that nothing answers on any more."""
        with contextlib.suppress(NdxdpError):  # there may be nothing to detach
            detach_interface(self._trees, spec.interface)

    # ---- for the event loop's thread

    @contextlib.contextmanager
    def resolving(self, spec: InterfaceSpec, answering: Answering) -> Iterator[Resolver]:
        """Resolve unknown neighbours, for which the program asks, during the block."""
        maps, shared = answering.session.maps, self._shared
        with links.interface_errors(spec.interface):
            resolver = Resolver(answering.ifindex, maps, spec.resolve, shared.fib, shared.sender)
        with contextlib.closing(resolver):
            yield resolver

    @contextlib.contextmanager
    def packet_loop(self, answering: Answering, resolver: Resolver) -> Iterator[PacketLoop | None]:
        """Answer from this process during the block, unless a program answers."""
        packets = answering.session.packets
        if packets is None:
            yield None
            return
        packet_loop = PacketLoop(
            answering.session.maps, packets, self._shared.fib, unresolved=resolver.resolve
        )
        with packet_loop.serving(self._shared.executor):
            yield packet_loop
