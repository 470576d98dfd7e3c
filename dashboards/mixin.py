"""What to watch of ndxdp in Prometheus and Grafana, as code: `make dashboards` writes the files.

Change CONFIG for another job name or other thresholds. Everything else beside this file but
tests.yaml is generated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Config:
    """selector: of ndxdp's series. runbook: where docs/runbook.md can be read. The others are
    thresholds: of an alert, and for how long it holds before it is one."""

    selector: str = 'job="ndxdp"'
    runbook: str = "docs/runbook.md"
    map_fill: float = 0.9
    flood: int = 5000  # solicitations per second on one interface
    unanswered_window: str = "30m"
    # Reasons for which nothing ever was to be answered.
    unanswered_ignored: str = (
        "other_vlan|own_frame|other_host|denied|paused|dad_ignored|dad_on_link"
    )


CONFIG = Config()


# ---- alerts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alert:
    """Fires while `value comparison` has held for `hold`. The texts are Prometheus' templates."""

    name: str
    value: str
    comparison: str
    hold: str
    severity: str
    summary: str
    description: str

    @property
    def expr(self) -> str:
        return f"{self.value} {self.comparison}"


_WHERE = "{{ $labels.interface }} of {{ $labels.instance }}"
_INTERFACE = "sum by (job, instance, interface)"


def alerts(config: Config = CONFIG) -> list[Alert]:
    """All of them; docs/runbook.md has a section on each."""
    ours = config.selector
    window = config.unanswered_window
    return [
        Alert(
            "NdxdpExporterDown",
            f"up{{{ours}}}",
            "== 0",
            "5m",
            "warning",
            "Nothing is known of ndxdp on {{ $labels.instance }}",
            "Prometheus cannot scrape it. Whether it answers solicitations is not known either.",
        ),
        Alert(
            "NdxdpUnreadable",
            f'min by (job, instance) ({{__name__=~"ndxdp_readable|ndxdp_pins_readable",{ours}}})',
            "== 0",
            "5m",
            "warning",
            "The exporter on {{ $labels.instance }} cannot read ndxdp's pins",
            "Without permission, or because they are damaged. Other alerts are blind meanwhile.",
        ),
        Alert(
            "NdxdpNotAttached",
            f"ndxdp_attached{{{ours}}}",
            "== 0",
            "2m",
            "critical",
            f"Nothing answers on {_WHERE}",
            "There is no program on the interface, or no process that answers in its place: what"
            " is behind the host is out of reach.",
        ),
        Alert(
            "NdxdpNotInStep",
            f"ndxdp_interface_in_step{{{ours}}}",
            "== 0",
            "10m",
            "warning",
            f"{_WHERE} is not as it is configured",
            "The daemon could not do what its configuration says, or does not follow the network"
            " there. `ndxdp status` says why.",
        ),
        Alert(
            "NdxdpFallbackActive",
            f"ndxdp_fallback_steps{{{ours}}}",
            "> 0",
            "15m",
            "info",
            f"{_WHERE} answers in a lesser mode",
            "{{ $value }} better mode(s) could not be had. `ndxdp status` says why.",
        ),
        Alert(
            "NdxdpProgramBefore",
            f'{_INTERFACE} (ndxdp_programs_before{{{ours},hook!="xdp"}})',
            "> 0",
            "5m",
            "warning",
            f"Another program sees the frames of {_WHERE} before ndxdp",
            "{{ $value }} program(s) at tc may take solicitations before ndxdp sees them. `ndxdp"
            " status` names them.",
        ),
        Alert(
            "NdxdpHeartbeatStale",
            f"ndxdp_heartbeat_age_seconds{{{ours}}} / ndxdp_heartbeat_timeout_seconds{{{ours}}}",
            "> 1",
            "1m",
            "critical",
            f"The daemon of {_WHERE} gives no sign of life",
            "Containers are no longer answered for. The configured prefixes are.",
        ),
        Alert(
            "NdxdpMapNearlyFull",
            f"ndxdp_map_entries{{{ours}}} / ndxdp_map_max_entries{{{ours}}}",
            f"> {config.map_fill}",
            "10m",
            "warning",
            f"The map {{{{ $labels.map }}}} on {_WHERE} is nearly full",
            "It is at {{ $value | humanizePercentage }}. New rules are refused when it is full.",
        ),
        Alert(
            "NdxdpReloadFailed",
            f"ndxdp_config_reload_success{{{ours}}}",
            "== 0",
            "1m",
            "warning",
            "ndxdp on {{ $labels.instance }} runs with an old configuration",
            "The file was changed, and refused when it was reloaded. The next restart would fail.",
        ),
        Alert(
            "NdxdpDockerDisconnected",
            f"ndxdp_docker_connected{{{ours}}}",
            "== 0",
            "5m",
            "warning",
            "ndxdp on {{ $labels.instance }} does not hear of containers",
            "Its connection to the engine is lost. New containers are not answered for.",
        ),
        Alert(
            "NdxdpNoneAnswered",
            f"{_INTERFACE} (rate(ndxdp_advertisements_total{{{ours}}}[{window}]))"
            f" / {_INTERFACE} (rate(ndxdp_solicitations_total{{{ours},"
            f'reason!~"{config.unanswered_ignored}"}}[{window}]))',
            "== 0",
            "10m",
            "warning",
            f"Solicitations come to {_WHERE}, and none is answered",
            f"Not one for {window}. The reasons tell why: no_rule is a prefix that was forgotten"
            " or mistyped.",
        ),
        Alert(
            "NdxdpFlood",
            f"{_INTERFACE} (rate(ndxdp_solicitations_total{{{ours}}}[5m]))",
            f"> {config.flood}",
            "5m",
            "warning",
            f"{{{{ $value | humanize }}}} solicitations per second come to {_WHERE}",
            "Somebody scans the prefix, or a router has lost its neighbours.",
        ),
        Alert(
            "NdxdpGatewayUnreachable",
            f"ndxdp_gateway_answering{{{ours}}}",
            "== 0",
            "2m",
            "critical",
            f"A gateway of {_WHERE} does not answer",
            "It was solicited, and kept silent. When the kernel gives its entry up, the host has"
            " no way out.",
        ),
    ]


def recordings(config: Config = CONFIG) -> list[tuple[str, str]]:
    """Name and expression of each recording rule."""
    ours = config.selector
    return [
        (
            "interface:ndxdp_solicitations:rate5m",
            f"{_INTERFACE} (rate(ndxdp_solicitations_total{{{ours}}}[5m]))",
        ),
        (
            "interface_reason:ndxdp_solicitations:rate5m",
            "sum by (job, instance, interface, reason)"
            f" (rate(ndxdp_solicitations_total{{{ours}}}[5m]))",
        ),
        (
            "interface_path:ndxdp_advertisements:rate5m",
            "sum by (job, instance, interface, path)"
            f" (rate(ndxdp_advertisements_total{{{ours}}}[5m]))",
        ),
        (
            "interface_map:ndxdp_map_fill:ratio",
            f"ndxdp_map_entries{{{ours}}} / ndxdp_map_max_entries{{{ours}}}",
        ),
        (
            "interface:ndxdp_program_seconds_per_frame:rate5m",
            f"{_INTERFACE} (rate(ndxdp_program_run_seconds_total{{{ours}}}[5m]))"
            f" / {_INTERFACE} (rate(ndxdp_program_runs_total{{{ours}}}[5m]))",
        ),
    ]


# ---- the dashboard ------------------------------------------------------------------------------

_S = 'job=~"$job",instance=~"$instance",interface=~"$interface"'
_P = 'job=~"$job",instance=~"$instance"'
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24


def _rate(metric: str, by: str = "", more: str = "") -> str:
    inner = f"rate({metric}{{{_S}{more}}}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


@dataclass(frozen=True)
class Panel:
    """queries: (expression, legend). unit: one of Grafana's."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    mappings: tuple[tuple[int, str, str], ...] = ()
    """What a value is called, and its color."""


_YES = ((0, "no", "red"), (1, "yes", "green"))

OVERVIEW = (
    Panel(
        "Answers",
        "Advertisements sent per second, on all interfaces.",
        "ops",
        ((_rate("ndxdp_advertisements_total"), "answers"),),
        "stat",
        4,
    ),
    Panel(
        "Answered",
        "Of the solicitations that came in, the share that was answered.",
        "percentunit",
        (
            (
                f"{_rate('ndxdp_advertisements_total')} / {_rate('ndxdp_solicitations_total')}",
                "share",
            ),
        ),
        "stat",
        4,
    ),
    Panel(
        "Attached",
        "Whether a program or a process answers on each interface.",
        "short",
        ((f"min by (instance, interface) (ndxdp_attached{{{_S}}})", "{{interface}}"),),
        "stat",
        4,
        mappings=_YES,
    ),
    Panel(
        "Mode",
        "The mode that each interface answers in.",
        "short",
        (
            (
                f"max by (instance, interface, mode) (ndxdp_mode{{{_S}}}) == 1",
                "{{interface}} {{mode}}",
            ),
        ),
        "stat",
        6,
        mappings=((1, "●", "blue"),),
    ),
    Panel(
        "Time per frame",
        "What the program takes of a CPU for each frame that it looks at, of any kind. It is"
        " measured while kernel.bpf_stats_enabled is 1.",
        "s",
        (
            (
                f"{_rate('ndxdp_program_run_seconds_total')} / {_rate('ndxdp_program_runs_total')}",
                "",
            ),
        ),
        "stat",
        6,
    ),
    Panel(
        "Answers by path",
        "Advertisements per second, by what sent them.",
        "ops",
        ((_rate("ndxdp_advertisements_total", "path"), "{{path}}"),),
        stacked=True,
    ),
    Panel(
        "Solicitations by reason",
        "What became of solicitations, per second. docs/wire.md explains each reason.",
        "ops",
        ((_rate("ndxdp_solicitations_total", "reason"), "{{reason}}"),),
        stacked=True,
    ),
    Panel(
        "Busiest prefixes",
        "Solicitations per second for the ten configured prefixes, lists and networks with most.",
        "ops",
        (
            (
                f"topk(10, {_rate('ndxdp_group_solicitations_total', 'source, label')})",
                "{{label}} ({{source}})",
            ),
        ),
    ),
    Panel(
        "Memory",
        "Resident memory of the daemon or exporter.",
        "bytes",
        ((f"process_resident_memory_bytes{{{_P}}}", "{{instance}}"),),
    ),
    Panel(
        "CPU",
        "CPU time of the daemon or exporter, in seconds per second. In userspace mode it answers.",
        "percentunit",
        ((f"rate(process_cpu_seconds_total{{{_P}}}[$__rate_interval])", "{{instance}}"),),
    ),
    Panel(
        "Scrape",
        "How long reading the maps took.",
        "s",
        ((f"ndxdp_scrape_duration_seconds{{{_P}}}", "{{instance}}"),),
    ),
    Panel(
        "Configuration in force",
        "Whether the last reload succeeded.",
        "short",
        ((f"ndxdp_config_reload_success{{{_P}}}", "{{instance}}"),),
        "stat",
        6,
        mappings=_YES,
    ),
    Panel(
        "Configuration read",
        "When the configuration in force was read.",
        "dateTimeFromNow",
        ((f"ndxdp_config_reload_timestamp_seconds{{{_P}}} * 1000", "{{instance}}"),),
        "stat",
        6,
    ),
    Panel(
        "Container engine",
        "Whether containers are heard of.",
        "short",
        ((f"ndxdp_docker_connected{{{_P}}}", "{{instance}}"),),
        "stat",
        6,
        mappings=_YES,
    ),
    Panel(
        "Version",
        "What runs.",
        "short",
        ((f"ndxdp_build_info{{{_P}}}", "{{version}}"),),
        "stat",
        6,
        mappings=((1, "●", "blue"),),
    ),
)

INTERFACE = (
    Panel(
        "Solicitations and answers",
        "Per second.",
        "ops",
        (
            (_rate("ndxdp_solicitations_total"), "solicitations"),
            (_rate("ndxdp_advertisements_total"), "answers"),
            (_rate("ndxdp_resolver_advertisements_total"), "answers when found"),
        ),
    ),
    Panel(
        "Not answered, by reason",
        "Solicitations per second. docs/wire.md explains each reason.",
        "ops",
        (
            (
                _rate("ndxdp_solicitations_total", "reason", ',reason!~"answered.*"'),
                "{{reason}}",
            ),
        ),
        stacked=True,
    ),
    Panel(
        "Prefixes",
        "Solicitations per second for each configured prefix, list or network.",
        "ops",
        (
            (
                _rate("ndxdp_group_solicitations_total", "source, label"),
                "{{label}} ({{source}})",
            ),
        ),
    ),
    Panel(
        "Last answer",
        "Seconds since one for each configured prefix, list or network.",
        "s",
        (
            (
                "time() - max by (source, label)"
                f" (ndxdp_group_last_answer_timestamp_seconds{{{_S}}})",
                "{{label}} ({{source}})",
            ),
        ),
    ),
    Panel(
        "Rules",
        "By who wrote them.",
        "short",
        ((f"sum by (source) (ndxdp_rules{{{_S}}})", "{{source}}"),),
        stacked=True,
    ),
    Panel(
        "Fill of the maps",
        "New rules are refused when one is full.",
        "percentunit",
        (
            (
                f"max by (instance, map) (ndxdp_map_entries{{{_S}}}"
                f" / ndxdp_map_max_entries{{{_S}}})",
                "{{map}}",
            ),
        ),
    ),
    Panel(
        "Rate limit",
        "Soliciting MACs that are remembered, those over their rate now, and solicitations dropped"
        " per second.",
        "short",
        (
            (f"sum(ndxdp_limiter_sources{{{_S}}})", "remembered"),
            (f"sum(ndxdp_rate_limited_sources{{{_S}}})", "over their rate"),
            (_rate("ndxdp_solicitations_total", "", ',reason="rate_limited"'), "dropped/s"),
            (
                _rate("ndxdp_solicitations_total", "", ',reason="gateway_limited"'),
                "of gateways not answered/s",
            ),
        ),
    ),
    Panel(
        "Frames not sent",
        "By the interface, of any kind, and by its driver of XDP's. Per second.",
        "ops",
        (
            (_rate("ndxdp_link_transmit_errors_total"), "errors"),
            (_rate("ndxdp_link_transmit_drops_total"), "drops"),
            (_rate("ndxdp_driver_transmit_failures_total"), "XDP, by the driver"),
        ),
    ),
    Panel(
        "Userspace socket",
        "Solicitations that found no room, and errors. Per second; in userspace mode alone.",
        "ops",
        (
            (_rate("ndxdp_socket_overflows_total"), "overflows"),
            (_rate("ndxdp_socket_errors_total"), "errors"),
        ),
    ),
    Panel(
        "Looking for neighbours",
        "What became of the solicitations for neighbours that the kernel did not know. Per second.",
        "ops",
        (
            (_rate("ndxdp_resolver_searches_total"), "looked for"),
            (_rate("ndxdp_resolver_failed_total"), "not found"),
            (_rate("ndxdp_resolver_refused_total"), "too many"),
        ),
    ),
    Panel(
        "Gateway",
        "Seconds since a gateway answered, of several the one that is silent longest.",
        "s",
        (
            (
                f"time() - min(ndxdp_gateway_last_answer_timestamp_seconds{{{_S}}})",
                "since its answer",
            ),
        ),
    ),
    Panel(
        "Announcements",
        "Frames per second that told the upstream of addresses.",
        "ops",
        (
            (_rate("ndxdp_announcements_total"), "sent"),
            (_rate("ndxdp_announcement_failures_total"), "failed"),
        ),
    ),
    Panel(
        "Heartbeat",
        "Age of the daemon's last sign of life; containers lapse at the timeout.",
        "s",
        (
            (f"max(ndxdp_heartbeat_age_seconds{{{_S}}})", "age"),
            (f"max(ndxdp_heartbeat_timeout_seconds{{{_S}}})", "timeout"),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """Grafana's model of it."""
    panels: list[dict[str, Any]] = [_row(1, "Overview", 0)]
    bottom = _lay(panels, OVERVIEW, 1)
    panels.append(_row(len(panels) + 1, "$interface", bottom, repeat="interface"))
    _lay(panels, INTERFACE, bottom + 1)
    return {
        "uid": "ndxdp",
        "title": "ndxdp",
        "description": "IPv6 Neighbor Discovery, answered",
        "tags": ["ndxdp"],
        "editable": False,
        "graphTooltip": 1,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [],
        "annotations": {"list": []},
        "templating": {"list": list(_variables())},
        "panels": panels,
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "options": [],
        "refresh": 1,
        "regex": "",
    }
    narrower = ""
    for name in ("job", "instance", "interface"):
        metric = "ndxdp_build_info" if name != "interface" else "ndxdp_attached"
        query = f"label_values({metric}{{{narrower}}}, {name})"
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": query, "refId": name},
            "hide": 0,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "options": [],
            "current": {"text": ["All"], "value": ["$__all"]},
            "refresh": 2,
            "regex": "",
            "sort": 1,
        }
        narrower += ("," if narrower else "") + f'{name}=~"${name}"'


def _row(number: int, title: str, y: int, repeat: str | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
        "panels": [],
    }
    return row | ({"repeat": repeat} if repeat else {})


def _lay(panels: list[dict[str, Any]], new: tuple[Panel, ...], y: int) -> int:
    """Put panels side by side, stats lower than graphs; returns where the next row begins."""
    x = height = 0
    for panel in new:
        tall = 4 if panel.kind == "stat" else 8
        if x + panel.width > _WIDTH or (x and tall != height):
            x, y = 0, y + height
        height = tall
        place = {"x": x, "y": y, "w": panel.width, "h": tall}
        panels.append(_panel(len(panels) + 1, panel, place))
        x += panel.width
    return y + height


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    is_stat = panel.kind == "stat"
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "thresholds" if is_stat else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": [{"color": "blue", "value": None}]},
        "mappings": [
            {
                "type": "value",
                "options": {
                    str(value): {"text": text, "color": color, "index": nth}
                    for nth, (value, text, color) in enumerate(panel.mappings)
                },
            }
        ]
        if panel.mappings
        else [],
    }
    if not is_stat:
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    options: dict[str, Any] = {
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    if is_stat:
        options = {
            "colorMode": "value",
            "graphMode": "none" if panel.mappings else "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "showPercentChange": False,
            "wideLayout": True,
            "textMode": "value_and_name" if panel.mappings else "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + nth),
                "datasource": _DATASOURCE,
                "expr": expr,
                "legendFormat": legend or "__auto",
                "instant": False,
                "range": True,
            }
            for nth, (expr, legend) in enumerate(panel.queries)
        ],
    }


# ---- files --------------------------------------------------------------------------------------

_GENERATED = "# Made by mixin.py: `make dashboards`.\n"


def _quoted(text: str) -> str:
    """YAML's double-quoted strings are JSON's."""
    return json.dumps(text, ensure_ascii=False)


def alerts_yaml(config: Config = CONFIG) -> str:
    lines = [_GENERATED + "groups:", "  - name: ndxdp", "    rules:"]
    for alert in alerts(config):
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {_quoted(alert.expr)}",
            f"        for: {alert.hold}",
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f"          summary: {_quoted(alert.summary)}",
            f"          description: {_quoted(alert.description)}",
            f"          runbook_url: {_quoted(f'{config.runbook}#{alert.name.lower()}')}",
        ]
    return "\n".join(lines) + "\n"


def rules_yaml(config: Config = CONFIG) -> str:
    lines = [_GENERATED + "groups:", "  - name: ndxdp-recordings", "    rules:"]
    for name, expr in recordings(config):
        lines += [f"      - record: {name}", f"        expr: {_quoted(expr)}"]
    return "\n".join(lines) + "\n"


def files() -> dict[str, str]:
    """Name in this directory -> content."""
    return {
        "ndxdp.json": json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n",
        "alerts.yaml": alerts_yaml(),
        "rules.yaml": rules_yaml(),
    }


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / name).write_text(content)
        print(name, file=sys.stderr)
