"""The uplinks of a daemon: those that the configuration names, and those of its patterns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from ndxdp.daemon.link_index import LinkIndex
from ndxdp.daemon.matching import Instance, Matching
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.daemon.uplink import Uplink
from ndxdp.errors import NdxdpError, problem_of
from ndxdp.netlink import names
from ndxdp.netlink.link_monitor import Changes
from ndxdp.netlink.link_names import NamedLink, present_links
from ndxdp.netlink.rtnetlink import netlink_errors
from ndxdp.rules.interface_pattern import Patterns
from ndxdp.runtime.daemon_status import DaemonStatus, InterfaceStatus

log = logging.getLogger(__name__)

_SEARCH_PAUSE = 1.0  # seconds between two searches for links whose messages were lost


@dataclass
class _Entry:
    """An uplink, its task, and the index of its link if it is the instance of a pattern."""

    uplink: Uplink
    task: asyncio.Task[None]
    ifindex: int | None


class _Ending(NamedTuple):
    """An uplink that is ending, and what it occupies until then: names, and the index of a link."""

    uplink: Uplink
    occupied: frozenset[str | int]


class Uplinks:
    """Starts and ends uplinks, and notifies them of changes of the network.

    The instance of a pattern is started when its interface appears, and ended when its interface
    is deleted or renamed. An uplink is not started while another one that has its name, or its
    link under another name, is ending.

    Call the methods in the event loop's thread.
    """

    def __init__(
        self,
        make: Callable[[InterfaceSpec, LinkIndex[Uplink]], Uplink],
        status: DaemonStatus,
        apply_rules: Callable[[Uplink], None],
        failed: Callable[[], None],
    ) -> None:
        """Have no uplinks yet.

        Args:
            make: Makes an uplink.
            status: The daemon's status.
            apply_rules: Gives an uplink the rules of the present containers, and of its share.
            failed: Called when an uplink has ended by itself, because it could not begin.
        """
        self._make, self._status = make, status
        self._apply_rules, self._failed = apply_rules, failed
        self._entries: dict[str, _Entry] = {}
        self._ending: dict[asyncio.Task[None], _Ending] = {}
        self._occupied: Counter[str | int] = Counter()
        self._index: LinkIndex[Uplink] = LinkIndex()
        self._left_alone: dict[int, str] = {}
        self._matching = Matching()
        self._search: asyncio.TimerHandle | None = None
        self._is_stopped = False

    def __iter__(self) -> Iterator[Uplink]:
        """Iterate over the uplinks that are not ending. Any thread may do so."""
        return iter([entry.uplink for entry in list(self._entries.values())])

    def is_wanted(self, name: str) -> bool:
        """Return True if an interface of this name has an uplink, will have or just had one."""
        is_known = name in self._entries or name in self._matching.instances
        return is_known or self._occupied[name] > 0

    # ---- the configuration

    def begin(self, specs: list[InterfaceSpec]) -> None:
        """Start the uplinks of a configuration, in its order; empty the list."""
        self._matching = Matching(specs, self._left_alone)
        self._matching.replace(_links(self._matching))
        while specs:
            spec = specs.pop(0)
            if not spec.is_pattern:
                self._start(spec, None)
        self._start_instances()

    async def put_in_force(self, specs: list[InterfaceSpec], in_force: Callable[[], None]) -> None:
        """Put another configuration in force, and return once it is.

        An interface that is not answered on, neither before nor after, does not keep the others
        from their new rules.

        Args:
            specs: The specifications. The list is emptied.
            in_force: Called when the configuration cannot be refused any more.

        Raises:
            NdxdpError: An interface's specification cannot be put in force. All interfaces have
                their former ones then.
        """
        named = {spec.interface: spec for spec in specs if not spec.is_pattern}
        matching = Matching(specs, self._left_alone)
        specs.clear()
        matching.replace(_links(matching))
        wanted = named | {each.name: each.spec for each in matching.instances.values()}
        former = {name: each.uplink.spec for name, each in self._entries.items() if name in wanted}
        problems = await self._set_specs({name: wanted[name] for name in former})
        if problems:
            first, *others = (f"{name}: {problem}" for name, problem in problems.items())
            lasting = await self._set_specs(former)
            if lasting:
                first += f"; {', '.join(lasting)} is not as before either"
            raise NdxdpError(first, "the former configuration is in force", tuple(others))
        in_force()
        self._matching = matching
        matching.replace(_links(matching))  # interfaces may have come and gone meanwhile
        late = self._adapt(former, named)
        await self._set_specs(late)
        # An interface may be configured by another of its names now.
        if self._ending:
            await asyncio.wait(self._ending)
        for name, spec in named.items():
            if name not in self._entries:
                self._start(spec, None)
        self._start_instances()
        for uplink in self:
            await uplink.began.wait()

    def _adapt(
        self, former: dict[str, InterfaceSpec], named: dict[str, InterfaceSpec]
    ) -> dict[str, InterfaceSpec]:
        """End the uplinks that are not wanted any more.

        Returns:
            The specifications of uplinks that have been started since the configuration was read,
            and do not have them yet.
        """
        late: dict[str, InterfaceSpec] = {}
        instances = self._matching.instances
        for name, entry in list(self._entries.items()):
            instance = instances.get(name)
            if name in named:
                entry.ifindex = None
                wanted = named[name]
            elif instance is not None and entry.ifindex in (None, instance.ifindex):
                entry.ifindex = instance.ifindex
                wanted = instance.spec
            else:
                self._end(name)
                continue
            if name not in former:
                late[name] = wanted
        return late

    async def _set_specs(self, specs: dict[str, InterfaceSpec]) -> dict[str, str]:
        """Give uplinks their specifications; return the problem of each that fails, by name."""
        outcomes = {}
        for name, spec in specs.items():
            if name in self._entries:  # the interface of a pattern's instance may be gone
                uplink = self._entries[name].uplink
                outcomes[name] = uplink.set_spec(spec)
                self._apply_rules(uplink)
        problems = {name: await outcome for name, outcome in outcomes.items()}
        return {name: problem for name, problem in problems.items() if problem}

    # ---- starts and ends

    def _start(self, spec: InterfaceSpec, ifindex: int | None) -> None:
        self._status.interfaces.setdefault(spec.interface, InterfaceStatus())
        self._status.changed()
        uplink = self._make(spec, self._index)
        task = asyncio.ensure_future(uplink.run())
        self._entries[spec.interface] = _Entry(uplink, task, ifindex)
        task.add_done_callback(self._on_end)
        self._apply_rules(uplink)

    def _start_instances(self) -> None:
        for name in list(self._matching.instances):
            self._start_instance(name)

    def _start_instance(self, name: str) -> None:
        """Start the uplink of an instance, unless it runs, or another one must end first."""
        instance = self._matching.instances.get(name)
        if instance is None or name in self._entries or self._is_stopped:
            return
        if self._occupied[name] or self._occupied[instance.ifindex]:
            return
        if not self._has_alternative_name(name):
            self._start(instance.spec, instance.ifindex)

    def _has_alternative_name(self, name: str) -> bool:
        """Return True if an uplink works on this interface, and is named by another name of it.

        That name may have been removed from the interface, which does not end the uplink.
        """
        named = (self._entries.get(each) for each in self._matching.named)
        return any(entry and entry.uplink.spec.interface == name for entry in named)

    def _end(self, name: str) -> None:
        """Detach an interface that the configuration does not have any more."""
        entry = self._entries.pop(name)
        uplink, present = entry.uplink, entry.uplink.spec.interface
        self._status.interfaces.pop(present, None)
        self._status.changed()
        uplink.set_spec(replace(uplink.spec, detach=True))
        uplink.stop()
        occupied = {name, present} | ({entry.ifindex} if entry.ifindex else set())
        self._ending[entry.task] = _Ending(uplink, frozenset(occupied))
        self._occupied.update(occupied)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """Start what had to wait for this uplink."""
        ending = self._ending.pop(task, None)
        if ending is None:
            self._failed()
            return
        self._index.assign(ending.uplink, frozenset())
        self._occupied.subtract(ending.occupied)
        for each in ending.occupied:
            if not self._occupied[each]:
                del self._occupied[each]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            name = ending.uplink.spec.interface
            log.error("cannot detach %s: %s", name, problem_of(error))
        self.wake_waiting()
        for each in ending.occupied:
            self._start_instance(each if isinstance(each, str) else self._matching.name_of(each))

    def stop(self) -> None:
        """End all uplinks."""
        self._is_stopped = True
        if self._search is not None:
            self._search.cancel()
        for uplink in self:
            uplink.stop()

    async def ended(self) -> list[BaseException | None]:
        """Wait until all uplinks have ended; return the error of each that had one."""
        tasks = [entry.task for entry in self._entries.values()]
        return await asyncio.gather(*tasks, *self._ending, return_exceptions=True)

    def present_names(self) -> list[str]:
        """Return the names of the interfaces whose uplinks have not ended."""
        present = [each.uplink for each in self._entries.values() if not each.task.done()]
        present += [each.uplink for each in self._ending.values()]
        return [each.spec.interface for each in present]

    # ---- the network

    def wake_waiting(self) -> None:
        """Let waiting uplinks try again: an interface was released."""
        for uplink in self:
            uplink.other_released()

    def network_changed(self, changes: Changes, interrupted: frozenset[int]) -> None:
        """Start and end instances; notify each uplink that a change concerns, and no others.

        Args:
            changes: What has changed.
            interrupted: The links that were interrupted.
        """
        if self._matching and not self._is_stopped:
            self._follow(*self._matching.update(changes.links))
            if changes.lost and self._search is None:
                loop = asyncio.get_running_loop()
                self._search = loop.call_later(_SEARCH_PAUSE, self._search_links)
        for uplink in self._index.of(interrupted):
            uplink.link_interrupted()
        for uplink in self._concerned(changes):
            uplink.network_changed()
        for name in changes.names:
            if name in self._entries:
                self._entries[name].uplink.name_changed()

    def _concerned(self, changes: Changes) -> Iterable[Uplink]:
        """Return the uplinks of which a link, or another thing that an answer needs, changed."""
        if changes.lost:
            return self
        return self._index.all() if changes.anything else self._index.of(changes.interfaces)

    def _follow(self, ended: Iterable[Instance], begun: Iterable[Instance]) -> None:
        for instance in ended:
            entry = self._entries.get(instance.name)
            if entry is not None and entry.ifindex == instance.ifindex:
                log.info("%s was deleted or renamed", instance.name)
                self._end(instance.name)
        for instance in begun:
            self._start_instance(instance.name)

    def _search_links(self) -> None:
        """Look at all links, because messages of some were lost."""
        self._search = None
        try:
            self._follow(*self._matching.replace(present_links()))
        except OSError as error:
            log.warning("cannot list the interfaces: %s", problem_of(error))
            loop = asyncio.get_running_loop()
            self._search = loop.call_later(_SEARCH_PAUSE, self._search_links)


def _links(matching: Matching) -> dict[int, NamedLink]:
    """Return all links if there is a pattern to compare them with."""
    with netlink_errors():
        return present_links() if matching else {}


def interface_names(specs: list[InterfaceSpec]) -> list[str]:
    """Return the names of the interfaces that specifications are for at present.

    An interface that is named by an alternative name is there by its own.
    """
    patterns = Patterns(spec.interface for spec in specs)
    found = [names.real_name(spec.interface) for spec in specs if not spec.is_pattern]
    with contextlib.suppress(OSError):
        links = present_links().values() if patterns else ()
        found += [
            each.name for each in links if patterns.first(each.name, each.altnames) and each.has_mac
        ]
    return found


def present_specs(
    specs: list[InterfaceSpec],
) -> Iterator[tuple[InterfaceSpec, list[InterfaceSpec]]]:
    """Yield each specification with those of the interfaces that match it at present.

    A specification without a pattern has itself.
    """
    matching = Matching(specs)
    matching.replace(_links(matching))
    every = [instance.spec for instance in matching.instances.values()]
    for spec in specs:
        instances = [each for each in every if each.pattern == spec.interface]
        yield spec, instances if spec.is_pattern else [spec]
