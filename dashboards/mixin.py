"""Monitoring mixin of ndxdp for Prometheus and Grafana; `make dashboards` generates the files.

config.py has the job name and the thresholds, alerts.py the alerts and the recording rules.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashboards.alerts import alerts, recordings
from dashboards.config import CONFIG, Config

HERE = Path(__file__).resolve().parent


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
    """Panel of the dashboard.

    Attributes:
        title: The title.
        description: The description.
        unit: The name of a unit in Grafana.
        queries: Pairs of an expression and its legend.
        kind: The type of the panel.
        width: The width, in columns of 24.
        stacked: The series are stacked.
        mappings: Text and color of single values.
    """

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    mappings: tuple[tuple[int, str, str], ...] = ()


_YES = ((0, "no", "red"), (1, "yes", "green"))

OVERVIEW = (
    Panel(
        "Answers",
        "Advertisements sent per second on all interfaces.",
        "ops",
        ((_rate("ndxdp_advertisements_total"), "answers"),),
        "stat",
        4,
    ),
    Panel(
        "Answered",
        "Share of the solicitations that were answered.",
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
        "Interfaces on which a program or a process answers.",
        "short",
        ((f"min by (instance, interface) (ndxdp_attached{{{_S}}})", "{{interface}}"),),
        "stat",
        4,
        mappings=_YES,
    ),
    Panel(
        "Mode",
        "Mode in which each interface answers.",
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
        "CPU time of the program for each frame of any kind. The kernel measures it while"
        " kernel.bpf_stats_enabled is 1.",
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
        "Advertisements per second, by the path that sent them.",
        "ops",
        ((_rate("ndxdp_advertisements_total", "path"), "{{path}}"),),
        stacked=True,
    ),
    Panel(
        "Solicitations by reason",
        "Solicitations per second, by reason. docs/wire.md explains each reason.",
        "ops",
        ((_rate("ndxdp_solicitations_total", "reason"), "{{reason}}"),),
        stacked=True,
    ),
    Panel(
        "Busiest prefixes",
        "Solicitations per second for the ten busiest configured prefixes, lists and networks.",
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
        "CPU time of the daemon or exporter, in seconds per second. In userspace mode this includes"
        " answering.",
        "percentunit",
        ((f"rate(process_cpu_seconds_total{{{_P}}}[$__rate_interval])", "{{instance}}"),),
    ),
    Panel(
        "Scrape",
        "Duration of a scrape.",
        "s",
        ((f"ndxdp_scrape_duration_seconds{{{_P}}}", "{{instance}}"),),
    ),
    Panel(
        "Configuration in force",
        "Success of the last reload.",
        "short",
        ((f"ndxdp_config_reload_success{{{_P}}}", "{{instance}}"),),
        "stat",
        6,
        mappings=_YES,
    ),
    Panel(
        "Configuration read",
        "Time since the configuration in force was read.",
        "dateTimeFromNow",
        ((f"ndxdp_config_reload_timestamp_seconds{{{_P}}} * 1000", "{{instance}}"),),
        "stat",
        6,
    ),
    Panel(
        "Container engine",
        "Connection of the daemon to the container engine.",
        "short",
        ((f"ndxdp_docker_connected{{{_P}}}", "{{instance}}"),),
        "stat",
        6,
        mappings=_YES,
    ),
    Panel(
        "Version",
        "Version of ndxdp.",
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
        "Solicitations and answers per second. The resolver answers when the kernel has found the"
        " neighbour.",
        "ops",
        (
            (_rate("ndxdp_solicitations_total"), "solicitations"),
            (_rate("ndxdp_advertisements_total"), "answers"),
            (_rate("ndxdp_resolver_advertisements_total"), "answers of the resolver"),
        ),
    ),
    Panel(
        "Not answered, by reason",
        "Unanswered solicitations per second. docs/wire.md explains each reason.",
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
        "Seconds since the last answer for each configured prefix, list or network.",
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
        "Rules, by origin.",
        "short",
        ((f"sum by (source) (ndxdp_rules{{{_S}}})", "{{source}}"),),
        stacked=True,
    ),
    Panel(
        "Fill of the maps",
        "Share of each map that is used. A full map refuses new rules.",
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
        "Soliciting MACs that the limit remembers, soliciting MACs that exceed their rate now, and"
        " solicitations per second that the limit affects.",
        "short",
        (
            (f"sum(ndxdp_limiter_sources{{{_S}}})", "remembered"),
            (f"sum(ndxdp_rate_limited_sources{{{_S}}})", "over their rate"),
            (_rate("ndxdp_solicitations_total", "", ',reason="rate_limited"'), "dropped/s"),
            (
                _rate("ndxdp_solicitations_total", "", ',reason="gateway_limited"'),
                "of gateways, not answered/s",
            ),
        ),
    ),
    Panel(
        "Frames not sent",
        "Frames per second of any kind that the interface did not send, and answers of XDP programs"
        " that the driver did not send.",
        "ops",
        (
            (_rate("ndxdp_link_transmit_errors_total"), "errors"),
            (_rate("ndxdp_link_transmit_drops_total"), "drops"),
            (_rate("ndxdp_driver_transmit_failures_total"), "answers of XDP"),
        ),
    ),
    Panel(
        "Userspace socket",
        "Solicitations per second for which the socket had no room, and its errors. Only in"
        " userspace mode.",
        "ops",
        (
            (_rate("ndxdp_socket_overflows_total"), "overflows"),
            (_rate("ndxdp_socket_errors_total"), "errors"),
        ),
    ),
    Panel(
        "Resolver",
        "Neighbours per second that the kernel was asked to find, that it did not find, and that"
        " were refused because of too many searches at once.",
        "ops",
        (
            (_rate("ndxdp_resolver_searches_total"), "searches"),
            (_rate("ndxdp_resolver_failed_total"), "not found"),
            (_rate("ndxdp_resolver_refused_total"), "refused"),
        ),
    ),
    Panel(
        "Gateway",
        "Seconds since the gateway's last answer; with several gateways, the longest time.",
        "s",
        (
            (
                f"time() - min(ndxdp_gateway_last_answer_timestamp_seconds{{{_S}}})",
                "since the last answer",
            ),
        ),
    ),
    Panel(
        "Announcements",
        "Frames per second that announce addresses to the upstream.",
        "ops",
        (
            (_rate("ndxdp_announcements_total"), "sent"),
            (_rate("ndxdp_announcement_failures_total"), "failed"),
        ),
    ),
    Panel(
        "Heartbeat",
        "Age of the daemon's last heartbeat. The rules of containers expire at the timeout.",
        "s",
        (
            (f"max(ndxdp_heartbeat_age_seconds{{{_S}}})", "age"),
            (f"max(ndxdp_heartbeat_timeout_seconds{{{_S}}})", "timeout"),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model."""
    panels: list[dict[str, Any]] = [_row(1, "Overview", 0)]
    bottom = _lay(panels, OVERVIEW, 1)
    panels.append(_row(len(panels) + 1, "$interface", bottom, repeat="interface"))
    _lay(panels, INTERFACE, bottom + 1)
    return {
        "uid": "ndxdp",
        "title": "ndxdp",
        "description": "IPv6 Neighbor Discovery responder",
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
    """Place panels side by side, stats lower than graphs; return where the next row begins."""
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

_GENERATED = "# Generated by mixin.py: `make dashboards`.\n"


def _quoted(text: str) -> str:
    """Return a string of YAML. JSON strings are valid double-quoted strings of YAML."""
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
            f"          runbook_url: {_quoted(f'{config.docs}/runbook.md#{alert.name.lower()}')}",
        ]
    return "\n".join(lines) + "\n"


def rules_yaml(config: Config = CONFIG) -> str:
    lines = [_GENERATED + "groups:", "  - name: ndxdp-recordings", "    rules:"]
    for name, expr in recordings(config):
        lines += [f"      - record: {name}", f"        expr: {_quoted(expr)}"]
    return "\n".join(lines) + "\n"


def files() -> dict[str, str]:
    """Return the content of each generated file by its name."""
    return {
        "ndxdp.json": json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n",
        "alerts.yaml": alerts_yaml(),
        "rules.yaml": rules_yaml(),
    }


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / name).write_text(content)
        print(name, file=sys.stderr)
