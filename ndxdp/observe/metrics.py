"""Metrics in Prometheus' formats, read from the maps at each scrape.

The module has no timers and keeps no values: a scrape reads pins and files as `ndxdp status` does.
Every label has few values, which the configuration chooses and not the network. docs/monitoring.md
describes each metric.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import Collector

from ndxdp import __version__
from ndxdp.config.model import JOIN
from ndxdp.errors import NdxdpError
from ndxdp.hooks import hook_order
from ndxdp.kernel import abi, bpf_programs
from ndxdp.kernel.abi import Mode
from ndxdp.netlink import neighbour_table, tx_stats
from ndxdp.netlink.netns import netns
from ndxdp.observe import class_series, fleet_metrics, share_metrics
from ndxdp.observe.metric_kinds import KINDS
from ndxdp.runtime import report
from ndxdp.runtime.daemon_status import DaemonStatus, EtcdStatus, GroupStatus
from ndxdp.store.directories import Trees
from ndxdp.store.instance import Instance, KernelInstance, Place, open_instance
from ndxdp.store.records import RuleCount, Settings

log = logging.getLogger(__name__)

_STATS_ENABLED = Path("/proc/sys/kernel/bpf_stats_enabled")

_COUNTED_MAPS = ("dev_sets", "vias", "locals", "on_link")
"""The maps whose entries a scrape counts. In userspace mode, only the first one exists."""

_Family = CounterMetricFamily | GaugeMetricFamily


class Exposition:
    """All metrics as text."""

    def __init__(
        self, trees: Trees, state: DaemonStatus | None = None, *, process: bool = True
    ) -> None:
        """Register the metrics.

        Args:
            trees: The directories of pins and files.
            state: The status of the daemon, if this process is one.
            process: Include `process_*` of this process.
        """
        self._registry = CollectorRegistry()
        self._maps = _Maps(trees, state)
        self._registry.register(self._maps)
        if process:
            ProcessCollector(registry=self._registry)

    @property
    def all_classes(self) -> bool:
        """True if each rule class has series of its own, and not only the first ones."""
        return self._maps.all_classes

    @all_classes.setter
    def all_classes(self, value: bool) -> None:
        self._maps.all_classes = value

    def text(self) -> bytes:
        """Return the metrics in the plain text format."""
        return generate_latest(self._registry)

    def negotiated(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that an Accept header prefers, and its content type.

        An invalid header selects the plain text format.
        """
        try:
            encode, content_type = choose_encoder(" ".join(accept.split()))
            return encode(self._registry), content_type
        except (TypeError, ValueError, LookupError):  # choose_encoder() parses versions as numbers
            encode, content_type = choose_encoder("")
            return encode(self._registry), content_type


class _Maps(Collector):
    def __init__(self, trees: Trees, state: DaemonStatus | None) -> None:
        self._trees, self._state = trees, state
        self.all_classes = False

    def describe(self) -> Iterator[_Family]:
        """Return no descriptions. Without this method, registering would call collect()."""
        return iter(())

    def collect(self) -> Iterator[_Family]:
        began = time.perf_counter()
        scrape = _Scrape(self._trees, all_classes=self.all_classes)
        scrape.add("ndxdp_build_info", 1, __version__, str(abi.VERSION))
        try:
            found = self._trees.interfaces()
            scrape.add("ndxdp_pins_readable", 1)
        except (NdxdpError, OSError) as error:
            log.debug("cannot list the interfaces: %s", error)
            found = []
            scrape.add("ndxdp_pins_readable", 0)
        for interface in found:
            scrape.interface(interface)
        for interface, (problem, unanswered) in self._reported().items():
            scrape.add("ndxdp_interface_in_step", not problem, interface)
            if interface not in found and not unanswered:
                scrape.add("ndxdp_attached", 0, interface)
        scrape.neighbour_table()
        for sample in share_metrics.samples(self._trees.files.root):
            scrape.add(sample.name, sample.value, *sample.labels)
        if self._state:
            scrape.daemon(self._state)
        scrape.add("ndxdp_scrape_duration_seconds", time.perf_counter() - began)
        return scrape.families()

    def _reported(self) -> dict[str, tuple[str, str]]:
        """Return the daemon's report on each of its interfaces: problem, and why it is unanswered.

        A daemon uses its own status; another process reads the reports of daemons.
        """
        if self._state:
            daemons = [report.daemon_of(self._state)]
        else:
            daemons = report.daemons(self._trees.files.root, netns())
        return {
            each["interface"]: (each["problem"], each["unanswered"])
            for daemon in daemons
            for each in daemon.interfaces
        }


class _Scrape:
    """Samples of one scrape."""

    def __init__(self, trees: Trees, *, all_classes: bool) -> None:
        self._trees, self._all_classes = trees, all_classes
        self._families: dict[str, _Family] = {}
        self._transmit = tx_stats.transmitted()
        self._stats_enabled = _stats_enabled()

    def families(self) -> Iterator[_Family]:
        """Return the metrics that have samples, in the order of KINDS."""
        return (self._families[name] for name in KINDS if name in self._families)

    def add(self, name: str, value: float, *labels: str) -> None:
        family = self._families.get(name)
        if family is None:
            kind = KINDS[name]
            made = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = self._families[name] = made(name, kind.help, labels=kind.labels)
        family.add_metric(labels, value)

    def interface(self, name: str) -> None:
        try:
            tree = self._trees.of(name)
            with open_instance(tree, name, readonly=True) as instance:
                self._instance(name, instance)
        except (NdxdpError, OSError) as error:
            log.debug("cannot read %s: %s", name, error)
            if self._trees.have(name):  # else it was detached a moment ago
                self.add("ndxdp_readable", 0, name)
            return
        self.add("ndxdp_readable", 1, name)

    def _instance(self, name: str, instance: Instance) -> None:
        settings = instance.maps.settings()
        place = instance.place(settings, is_locked=self._trees.of(name).is_locked(name))
        self.add("ndxdp_attached", place is not Place.NOWHERE, name)
        for mode in Mode:
            self.add("ndxdp_mode", mode is settings.mode, name, mode.label)
        self.add("ndxdp_fallback_steps", len(settings.refusals.splitlines()), name)
        before = instance.programs_before()
        if before is not None:
            counted = Counter(program.hook for program in before)
            for hook in hook_order.HOOKS:
                self.add("ndxdp_programs_before", counted[hook], name, hook)
        self.add("ndxdp_paused", settings.paused, name)
        if settings.heartbeat_timeout:
            age = (time.monotonic_ns() - settings.heartbeat) / 1e9
            self.add("ndxdp_heartbeat_age_seconds", age, name)
            self.add("ndxdp_heartbeat_timeout_seconds", settings.heartbeat_timeout / 1e9, name)
        rules = instance.maps.rule_count()
        self.add("ndxdp_paused_rules", len(instance.maps.paused_names(rules)), name)
        self._counts(name, instance, settings, rules)
        self._rules(name, instance, rules)
        self._sent(name, instance, place)

    def _counts(
        self, name: str, instance: Instance, settings: Settings, counted: RuleCount
    ) -> None:
        maps = instance.maps
        answered = 0
        for reason, count in maps.reasons().items():
            self.add("ndxdp_solicitations_total", count, name, reason.label)
            answered += count if reason.is_answer else 0
        self.add("ndxdp_advertisements_total", answered, name, settings.mode.label)
        series, others = class_series.read(maps, counted, all_classes=self._all_classes)
        began = time.time() - time.monotonic()
        for each in series:
            key = each.source, each.label
            self.add("ndxdp_group_solicitations_total", each.solicited, name, *key)
            self.add("ndxdp_group_advertisements_total", each.answered, name, *key)
            if each.last_answer:
                moment = began + each.last_answer / 1e9
                self.add("ndxdp_group_last_answer_timestamp_seconds", moment, name, *key)
        self.add("ndxdp_group_others", others, name)
        solicitors = maps.solicitors(settings)
        if solicitors:
            self.add("ndxdp_limiter_sources", solicitors.remembered, name)
            self.add("ndxdp_limiter_max_sources", maps.max_entries("limiter"), name)
            self.add("ndxdp_rate_limited_sources", solicitors.limited, name)
        resolved = maps.resolved()
        self.add("ndxdp_resolver_searches_total", resolved.asked, name)
        self.add("ndxdp_resolver_failed_total", resolved.failed, name)
        self.add("ndxdp_resolver_advertisements_total", resolved.answered, name)
        self.add("ndxdp_resolver_refused_total", resolved.refused, name)

    def _rules(self, name: str, instance: Instance, counted: RuleCount) -> None:
        maps = instance.maps
        for source, count in counted.by_origin.items():
            self.add("ndxdp_rules", count, name, source)
        known = {
            "addresses": counted.addresses,
            "prefixes": counted.prefixes,
            "groups": len(counted.by_slot),
        }
        for each in (*known, *_COUNTED_MAPS):
            entries = known[each] if each in known else maps.entries(each)
            if entries is not None:
                self.add("ndxdp_map_entries", entries, name, each)
                self.add("ndxdp_map_max_entries", maps.max_entries(each), name, each)

    def _sent(self, name: str, instance: Instance, place: Place) -> None:
        socket = instance.maps.socket_counts()
        if socket:
            self.add("ndxdp_socket_overflows_total", socket["overflows"], name)
            self.add("ndxdp_socket_errors_total", socket["errors"], name)
        if name in self._transmit and place is not Place.ELSEWHERE:
            self.add("ndxdp_link_transmit_errors_total", self._transmit[name].errors, name)
            self.add("ndxdp_link_transmit_drops_total", self._transmit[name].dropped, name)
            failed = tx_stats.xdp_failures(name)
            if failed is not None:
                self.add("ndxdp_driver_transmit_failures_total", failed, name)
        if not isinstance(instance, KernelInstance):
            return
        program = bpf_programs.info_of(instance.prog_fd)
        # The sysctl stays 0 while a process measures by bpf(BPF_ENABLE_STATS).
        if self._stats_enabled or program.run_count:
            self.add("ndxdp_program_run_seconds_total", program.run_time_ns / 1e9, name)
            self.add("ndxdp_program_runs_total", program.run_count, name)

    def neighbour_table(self) -> None:
        table = neighbour_table.read()
        if table is not None:
            self.add("ndxdp_neighbour_table_entries", table.entries)
            self.add("ndxdp_neighbour_table_max_entries", table.most)
            self.add("ndxdp_neighbour_table_overflows_total", table.overflows)

    def _etcd(self, etcd: EtcdStatus) -> None:
        self.add("ndxdp_etcd_connected", etcd.connected)
        self.add("ndxdp_etcd_rules", etcd.rules)
        self.add("ndxdp_etcd_refused_values", etcd.refused)
        if etcd.last_event is not None:
            self.add("ndxdp_etcd_last_change_timestamp_seconds", etcd.last_event)
        if etcd.confirmed is not None:
            self.add("ndxdp_etcd_confirmed_timestamp_seconds", etcd.confirmed)

    def daemon(self, state: DaemonStatus) -> None:
        self.add("ndxdp_config_reload_success", state.reload_ok)
        self.add("ndxdp_config_reload_timestamp_seconds", state.reloaded)
        if state.docker_connected:
            self.add("ndxdp_docker_connected", state.docker_connected())
        if state.etcd:
            self._etcd(state.etcd())
        if state.fleet:
            for sample in fleet_metrics.samples(state.fleet()):
                self.add(sample.name, sample.value, *sample.labels)
        for name, status in list(state.interfaces.items()):
            if status.announced:
                announced = status.announced()
                self.add("ndxdp_announcements_total", announced.sent, name)
                self.add("ndxdp_announcement_failures_total", announced.failed, name)
                if announced.neighbours is not None:
                    self.add("ndxdp_announced_neighbours", announced.neighbours, name)
                    self.add("ndxdp_announced_arrivals_total", announced.arrivals, name)
            if status.groups:
                self._groups(name, status.groups)
            gateways = status.gateways() if status.gateways else []
            if gateways:
                answering = not any(each.silent for each in gateways)
                self.add("ndxdp_gateway_answering", answering, name)
                seen = [each.seen for each in gateways if each.seen is not None]
                if seen:
                    last = time.time() - max(seen)
                    self.add("ndxdp_gateway_last_answer_timestamp_seconds", last, name)

    def _groups(self, name: str, groups: GroupStatus) -> None:
        for policy in JOIN:
            self.add("ndxdp_multicast_join", policy == groups.join, name, policy)
        self.add("ndxdp_multicast_groups", groups.joined, name, "joined")
        self.add("ndxdp_multicast_groups", groups.left_out, name, "left_out")
        self.add("ndxdp_mld_querier", bool(groups.querier), name)


def _stats_enabled() -> bool:
    try:
        return _STATS_ENABLED.read_text().strip() == "1"
    except OSError:  # a sandbox hides the file
        return False
