"""Dashboards, alerts and recording rules: promtool, and a real Prometheus that scrapes a daemon."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import socket
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units

from dashboards import mixin
from dashboards.alerts import alerts, recordings
from dashboards.config import CONFIG
from dashboards.panels import MODE, MODES
from lab import monitoring
from ndxdp.kernel.abi import Mode
from ndxdp.netlink.netns import netns
from ndxdp.observe import metrics
from ndxdp.observe.metric_kinds import KINDS
from ndxdp.runtime import fleet_report, share_report
from ndxdp.runtime.daemon_status import DaemonStatus, FleetStatus, SegmentStatus
from ndxdp.store.directories import Trees
from tests.fixtures import etcd
from tests.fixtures.engine import Engine
from tests.fixtures.etcd import Cluster
from tests.fixtures.network import (
    BEHIND,
    REPOSITORY,
    TARGET,
    UPLINK,
    Network,
    call,
    eventually,
    ndxdp,
    sh,
)
from tests.fixtures.prometheus import Prometheus, parsed, prometheus, promtool

PORT = 9877
DASHBOARDS = REPOSITORY / "dashboards"
DOCS = REPOSITORY / "docs"
FLEET = "ndxdp_fleet_"

# ---- dashboards, alerts --------------------------------------------------------------------------

VARIABLES = {"$__rate_interval": "10s", "$job": "ndxdp", "$instance": ".+", "$interface": ".+"}


def expressions() -> dict[str, str]:
    """Return each query of the dashboards, by file and panel."""
    return {
        f"{name} {panel['id']} {panel['title']} {target['refId']}": target["expr"]
        for name, model in mixin.dashboards().items()
        for panel in model["panels"]
        for target in panel.get("targets", ())
    }


def resolved(expression: str) -> str:
    """Return a query of a dashboard as Grafana sends it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, "an unknown variable"
    return expression


def test_generated_files_are_current() -> None:
    for name, content in mixin.files().items():
        assert (DASHBOARDS / name).read_text() == content, f"{name}: make dashboards"


def test_promtool_accepts_the_rules() -> None:
    rules = sorted(map(str, DASHBOARDS.glob("*.yaml")))
    checked = promtool("check", "rules", *rules)
    assert checked.code == 0, checked
    assert checked.out.count("SUCCESS") == len(rules) == 2
    tested = promtool("test", "rules", str(DASHBOARDS / "tests" / "alerts.yaml"))
    assert tested.code == 0, tested


def test_prometheus_parses_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:query:{nth}", "expr": resolved(expression)}
        for nth, expression in enumerate(expressions().values())
    ]
    assert len(rules) > 50
    file = tmp_path / "queries.yaml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    checked = promtool("check", "rules", str(file))
    assert checked.code == 0, checked
    assert f"{len(rules)} rules found" in checked.out


def test_every_alert_is_tested_and_explained() -> None:
    tests = (DASHBOARDS / "tests" / "alerts.yaml").read_text()
    runbook = (DOCS / "runbook.md").read_text()
    names = [alert.name for alert in alerts()]
    assert re.findall(r"^  - name: (\w+)$", tests, re.MULTILINE) == names
    assert re.findall(r"^## (\w+)$", runbook, re.MULTILINE) == names
    assert all(re.fullmatch(r"Ndxdp[A-Za-z]+", name) for name in names)
    assert {alert.severity for alert in alerts()} <= {"info", "warning", "critical"}


def test_every_alert_links_to_its_section_of_the_runbook() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    urls = re.findall(r'runbook_url: "(.+)"', (DASHBOARDS / "alerts.yaml").read_text())
    assert len(urls) == len(alerts())
    for alert, url in zip(alerts(), urls, strict=True):
        address, _, anchor = url.partition("#")
        folder, _, page = address.rpartition("/")
        assert project["urls"]["Documentation"] == f"{folder}/index.md"
        assert folder.startswith("https://")
        headings = re.findall(r"^## (.+)$", (DOCS / page).read_text(), re.MULTILINE)
        assert [each for each in headings if each.lower() == anchor] == [alert.name]


def test_queries_use_existing_metrics() -> None:
    """Use only existing metrics in queries, alerts and recordings."""
    queries = [*expressions().values(), *(alert.expr for alert in alerts())]
    queries += [expr for _, expr in recordings()]
    named = {name for expr in queries for name in re.findall(r"\b(?:ndxdp|process)_\w+", expr)}
    assert len(named) > 40
    served = parsed(metrics.Exposition(Trees()).text().decode())
    assert named <= {*KINDS, *served}


FILES = ("ndxdp.json", "ndxdp-interface.json")


@pytest.mark.parametrize("name", FILES)
def test_dashboards_pass_the_linter(name: str) -> None:
    """Pass the checks of Grafana's own linter, and let no panel cover another."""
    model = mixin.dashboards()[name]
    panels = model["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert at["x"] + at["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"]
        if panel["type"] == "alertlist":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            for selector in re.findall(r"\{([^}]*)\}", target["expr"]):
                assert 'job=~"$job",instance=~"$instance"' in selector
            for counter in re.findall(r"(\w+)_total\{", target["expr"]):
                assert re.search(
                    rf"rate\({counter}_total\{{[^}}]*\}}\[\$__rate_interval\]\)", target["expr"]
                )
    names = [variable["name"] for variable in model["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "interface"]
    assert "alertlist" in {panel["type"] for panel in panels}


UNITS = {
    value for name, value in vars(units).items() if name[0].isupper() and isinstance(value, str)
}


def test_dashboards_link_to_each_other() -> None:
    models = mixin.dashboards()
    uids = {model["uid"] for model in models.values()}
    for model in models.values():
        addresses = [link["url"] for link in model["links"]]
        addresses += re.findall(r'"url": "([^"]*)"', json.dumps(model["panels"]))
        linked = {found[1] for each in addresses if (found := re.match(r"/d/([\w-]+)\?", each))}
        assert linked == uids - {model["uid"]}
        assert f"{CONFIG.docs}/runbook.md" in addresses
    (table,) = [each for each in models["ndxdp.json"]["panels"] if each["title"] == "Interfaces"]
    (link,) = re.findall(r'"url": "([^"]*)"', json.dumps(table))
    for variable in models["ndxdp-interface.json"]["templating"]["list"]:
        assert re.search(rf"[?&](var-{variable['name']}=|\${{{variable['name']}:)", link)


def test_every_mode_has_a_text() -> None:
    assert [mode for mode, _ in MODES] == [mode.label for mode in Mode]
    texts = [
        result["text"] for result in json.loads(JSONEncoder().encode(MODE))[0]["options"].values()
    ]
    assert texts == [mode.label for mode in Mode]


def test_marks_are_where_alerts_fire() -> None:
    """Mark in the panels the values at which alerts fire."""
    text = json.dumps(mixin.dashboards())
    for limit in (CONFIG.map_fill, CONFIG.flood, CONFIG.descriptors, CONFIG.share_fill):
        assert f'"value": {limit}, "color": "red"' in text


def test_grafana_finds_the_dashboards_where_the_package_installs_them() -> None:
    provisioning = DASHBOARDS / "provisioning"
    (folder,) = re.findall(
        r"^      path: /(\S+)$",
        (provisioning / "dashboards.yaml").read_text(),
        re.MULTILINE,
    )
    installed = (REPOSITORY / "packaging/debian/ndxdp.install").read_text().splitlines()
    for name in FILES:
        assert f"dashboards/{name} {folder}" in installed
    shown = re.findall(
        r"^cp /(\S+) /etc/grafana/(\S+)/ndxdp.yaml$",
        (DOCS / "monitoring.md").read_text(),
        re.MULTILINE,
    )
    assert len(shown) == 2
    for source, target in shown:
        within = source.removeprefix(f"{folder}/")
        assert (DASHBOARDS / within).is_file()
        assert within == f"{target}.yaml"
    source = (provisioning / "datasources.yaml").read_text()
    assert f"url: http://localhost:{monitoring.PROMETHEUS}\n" in source


def test_prometheus_takes_the_configuration_of_the_page(tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```yaml\n(.*?)^```$", (DOCS / "monitoring.md").read_text(), re.MULTILINE | re.DOTALL
    )
    for name in ("alerts.yaml", "rules.yaml"):
        shutil.copy(DASHBOARDS / name, tmp_path)
    (tmp_path / "prometheus.yml").write_text(block)
    checked = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert checked.code == 0, checked
    assert "2 rule files found" in checked.out


def test_the_sdk_is_no_part_of_the_product() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert not [each for each in project["dependencies"] if "grafana" in each]
    assert "grafana" not in (REPOSITORY / "packaging/requirements.txt").read_text()


# ---- a real Prometheus ---------------------------------------------------------------------------

LAB = """
[metrics]
listen = "[::1]:{port}"
[docker]
socket = "{docker}"
[etcd]
endpoints = ["{etcd}"]
host = "h1"
[[interface]]
name = "{uplink}"
mode = "tc"
heartbeat_timeout = 30
[[interface.prefix]]
prefix = "{behind}"
[[interface.prefix]]
prefix = "2001:db8::d:0:0:1"
[[interface.docker]]
network = "web"
[[interface.etcd]]
segment = "vlan7"
[interface.announce]
solicit_gateway = true
interval = 1
neighbours = true
[interface.gateway]
interval = 1
[interface.limit]
rate = 1000
[[interface]]
name = "{other}"
mode = "userspace"
[[interface.prefix]]
prefix = "2001:db8:0:9::/64"
[[share]]
upstream = "{uplink}"
downstream = ["{behind_share}"]
prefixes = ["2001:db8:0:8::/64"]
"""
OTHER = "up1"
BEHIND_SHARE = "lan1"


@contextmanager
def program_is_measured() -> Iterator[None]:
    """Enable BPF_ENABLE_STATS until the descriptor is closed, without changing a sysctl."""
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    attributes = (ctypes.c_uint32 * 32)(0)  # BPF_STATS_RUN_TIME
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, 32, ctypes.byref(attributes), ctypes.sizeof(attributes))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        os.close(fd)


@pytest.fixture
def member(net: Network, tmp_path: Path) -> Iterator[Cluster]:
    with etcd.cluster(tmp_path / "etcd") as cluster:
        yield cluster


@pytest.fixture
def scraped(
    net: Network, docker_engine: Engine, member: Cluster, trees: Trees, tmp_path: Path
) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes a daemon on two interfaces, which a router solicits."""
    sh("ip", "link", "add", OTHER, "type", "veth", "peer", "name", "far1")
    sh("ip", "link", "add", BEHIND_SHARE, "type", "veth", "peer", "name", "far2")
    for name in (OTHER, "far1", BEHIND_SHARE, "far2"):
        sh("ip", "link", "set", name, "up")
    path = tmp_path / "ndxdp.toml"
    path.write_text(
        LAB.format(
            port=PORT,
            docker=docker_engine.socket,
            etcd=member.members[0].url,
            uplink=UPLINK,
            behind=BEHIND,
            other=OTHER,
            behind_share=BEHIND_SHARE,
        )
    )
    member.put("vlan7/web", {"prefix": "2001:db8::c:0:0:20"}, "/ndxdp/v1/shared/")
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            for target in (TARGET, "2001:db8::d:0:0:1", "2001:db8::e:0:0:1"):
                net.ask(target, wait=0.05)
            member.put("vlan7/guest", {"prefix": "2001:db8::c:0:0:5"})
            call("ndisc6", "-1", "-q", "-r", "1", "-w", "50", "2001:db8:0:9::1", "far1")

    asking = threading.Thread(target=keep_asking)
    with program_is_measured():
        running = net.run("-c", str(path))
        asking.start()
        try:
            rules = [DASHBOARDS / "alerts.yaml", DASHBOARDS / "rules.yaml"]
            with prometheus(tmp_path, PORT, rules) as server:
                yield server
        finally:
            stop.set()
            asking.join()
            running.close()
            for name in (UPLINK, OTHER, BEHIND_SHARE):
                ndxdp("-q", "detach", name)
            for name in (OTHER, BEHIND_SHARE):
                call("ip", "link", "delete", name)
            share_report.remove(trees.files.root, netns(), UPLINK)
            fleet_report.remove(trees.files.root, netns())


def is_one(server: Prometheus, name: str) -> bool:
    """Return True if there is one sample, with the value 1."""
    return [sample["value"][1] for sample in server.query(name)] == ["1"]


def have_data(server: Prometheus, wanted: dict[str, str]) -> None:
    """Fail unless each query returns something within a while."""
    for what, expression in wanted.items():
        try:
            eventually(partial(server.query, resolved(expression)), within=30)
        except AssertionError:
            pytest.fail(f"no data for {what}: {expression}", pytrace=False)


def test_every_query_has_data(scraped: Prometheus) -> None:
    """Return data for each query, each alert without its comparison, and each recording."""
    wanted = expressions()
    wanted |= {alert.name: alert.value for alert in alerts()}
    wanted |= {name: name for name, _ in recordings()}
    assert len(wanted) > 50
    have_data(scraped, wanted)
    # Prometheus knows all of them, in good health, and can parse the comparisons.
    groups = scraped.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert len(rules) == len(alerts()) + len(recordings())
    for alert in alerts():
        scraped.query(alert.expr)
    # Variables of the dashboard.
    for label in ("job", "instance", "interface"):
        assert scraped.ask(f"label/{label}/values", **{"match[]": "ndxdp_attached"})

    # Every name in KINDS is scraped.
    def missing() -> set[str]:
        return set(KINDS) - set(scraped.ask("label/__name__/values"))

    with suppress(AssertionError):
        eventually(lambda: not missing(), within=30)
    assert missing() == set()
    for name in (
        *("ndxdp_docker_connected", "ndxdp_etcd_connected", "ndxdp_etcd_rules"),
        *("ndxdp_fleet_connected", "ndxdp_fleet_answering", "ndxdp_fleet_joined"),
        *("ndxdp_fleet_held_addresses", "ndxdp_fleet_taken_total"),
    ):
        eventually(partial(is_one, scraped, name), within=30)
    (left,) = scraped.query("ndxdp_fleet_lease_remaining_seconds / ndxdp_fleet_lease_seconds")
    assert 0 < float(left["value"][1]) <= 1
    answering = scraped.query("ndxdp_gateway_answering")
    assert [sample["value"][1] for sample in answering] == ["1"]


# ---- shared addresses ----------------------------------------------------------------------------


@contextmanager
def served(state: DaemonStatus) -> Iterator[None]:
    """Serve the metrics of a daemon's status on PORT."""
    exposition = metrics.Exposition(Trees(), state)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = exposition.text()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(HTTPServer):
        address_family = socket.AF_INET6

    with Server(("::1", PORT), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_every_query_about_shared_addresses_has_data(net: Network, tmp_path: Path) -> None:
    """Return data for each, and let each alert fire for a host in trouble and for none without."""
    segment = SegmentStatus("vlan7", True, "", ["h1", "h2"], 3, 2, 0, 5, 3, answering=True)
    good = FleetStatus(True, "", time.time() + 1e6, False, [segment], 0, [], 0, 0.01, 1_000_000)
    now = [good]
    state = DaemonStatus(fleet=lambda: now[0])
    wanted = {what: each for what, each in expressions().items() if FLEET in each}
    wanted |= {alert.name: alert.value for alert in alerts() if FLEET in alert.value}
    wanted |= {name: name for name in KINDS if FLEET in name}
    assert len(wanted) > 30
    about = [alert for alert in alerts() if FLEET in alert.value]
    rules = [DASHBOARDS / "alerts.yaml", DASHBOARDS / "rules.yaml"]
    with served(state), prometheus(tmp_path, PORT, rules) as server:
        have_data(server, wanted)

        def firing() -> set[str]:
            return {
                alert.name.removeprefix("NdxdpFleet") for alert in about if server.query(alert.expr)
            }

        assert firing() == set()
        left_out = segment._replace(joined=False, unheld=2)
        now[0] = good._replace(expires=time.time() - 5, refused=2, rivals=1, segments=[left_out])
        names = {"LeaseShort", "AddressUnheld", "Rival", "ValuesRefused", "NotJoined"}
        eventually(lambda: firing() == names, within=30)
        now[0] = good._replace(connected=False, drained=True, rivals=1)
        eventually(lambda: firing() == {"Disconnected", "Drained", "Rival"}, within=30)
        assert len(about) == len(names | {"Disconnected", "Drained"})
