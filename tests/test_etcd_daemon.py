"""The daemon with rules from etcd: what a router is answered, and what users are shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.request import urlopen

import pytest

from ndxdp.doctor import etcd as doctor
from ndxdp.doctor.finding import Level
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from tests.fixtures import etcd
from tests.fixtures.etcd import Cluster
from tests.fixtures.network import (
    BEHIND,
    NDXDP,
    UPLINK,
    Network,
    Running,
    done,
    eventually,
    ndxdp,
    rules,
    sh,
)
from tests.fixtures.prometheus import get, parsed
from tests.test_lean import TELLING, imported

ONE, TWO, THREE = (f"2001:db8::c:0:0:{number}" for number in (101, 102, 103))


class Host:
    """A host with a configuration file."""

    def __init__(self, net: Network, cluster: Cluster, file: Path) -> None:
        self.net, self.file = net, file
        self.url = cluster.members[0].url
        self._running: list[Running] = []

    def run(self, command: Sequence[str] = NDXDP) -> Running:
        """Start the daemon; it ends with the test."""
        run = self.net.run("-c", str(self.file), command=command)
        self._running.append(run)
        return run

    def reload(self) -> None:
        done("reload", "-c", str(self.file))

    def end(self) -> None:
        for run in self._running:
            if run.process.poll() is None:
                run.end()

    def write(
        self, *lines: str, segment: str = "vlan7", host: str = "h1", stop: str = "detach"
    ) -> None:
        self.file.write_text(
            f'[etcd]\nendpoints = ["{self.url}"]\nhost = "{host}"\n'
            + "".join(f"{line}\n" for line in lines)
            + f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\non_stop = "{stop}"\n'
            + f'[[interface.etcd]]\nsegment = "{segment}"\n'
        )

    def answers(self, *targets: str) -> None:
        for target in targets:
            eventually(lambda target=target: not self.net.silent(target))  # type: ignore[misc]
            assert self.net.answers(target)

    def silent(self, *targets: str) -> None:
        for target in targets:
            eventually(lambda target=target: self.net.silent(target))  # type: ignore[misc]


@pytest.fixture
def host(net: Network, one: Cluster, tmp_path: Path) -> Iterator[Host]:
    made = Host(net, one, tmp_path / "ndxdp.toml")
    yield made
    made.end()


def test_rules_stay_while_etcd_is_away(host: Host, one: Cluster) -> None:
    """Answer while etcd is down, also across restarts of the daemon, and follow it afterwards."""
    one.put_all({"vlan7/a": {"prefix": ONE}, "vlan7/b": {"prefix": TWO, "router": False}})
    host.write(stop="keep")
    run = host.run()
    host.answers(ONE, TWO)
    listed = rules()
    assert listed[ONE]["source"] == "etcd"
    assert ndxdp("prefix", "add", UPLINK, THREE, "--origin", "etcd").code == 2
    one.kill()
    eventually(lambda: "etcd is disconnected: http://127.0.0.1:2379: " in ndxdp("status").out)
    host.answers(ONE, TWO)
    assert run.end().code == 0
    host.answers(ONE, TWO)
    run = host.run()
    eventually(lambda: "etcd is disconnected: http://127.0.0.1:2379: " in ndxdp("status").out)
    host.answers(ONE, TWO)
    assert rules() == listed
    one.start()
    one.delete("vlan7/a")
    host.silent(ONE)
    host.answers(TWO)
    host.write()
    host.reload()
    assert run.end().code == 0
    host.silent(TWO)


def test_a_reload(host: Host, one: Cluster) -> None:
    one.put_all({"vlan7/a": {"prefix": ONE}, "vlan8/a": {"prefix": TWO}})
    one.put("vlan7/a", {"prefix": THREE}, "/ndxdp/v1/hosts/h2/")
    host.write()
    host.run()
    host.answers(ONE)
    host.write(segment="vlan8")
    host.reload()
    host.answers(TWO)
    host.silent(ONE)
    host.write(segment="vlan7", host="h2")
    host.reload()
    host.answers(THREE)
    host.silent(TWO)
    # A wrong file changes nothing.
    host.file.write_text(host.file.read_text().replace("endpoints", "endpoint"))
    assert ndxdp("reload", "-c", str(host.file)).code == 1
    host.answers(THREE)
    # Without the tables, the rules go.
    host.file.write_text(f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\non_stop = "detach"\n')
    host.reload()
    host.silent(THREE)
    assert not rules() or "etcd" not in {each["source"] for each in rules().values()}


def test_rules_of_the_file_win(host: Host, one: Cluster) -> None:
    one.put_all({"vlan7/a": {"prefix": ONE, "answer": "never"}, "vlan7/b": {"prefix": TWO}})
    host.write()
    with host.file.open("a") as file:
        file.write(f'[[interface.prefix]]\nprefix = "{ONE}"\n')
    host.run()
    host.answers(ONE, TWO)
    one.put("vlan7/c", {"prefix": BEHIND, "answer": "never"})
    host.answers(ONE, TWO)
    host.silent(THREE)


def test_a_rule_for_the_link_itself_is_left_out(host: Host, one: Cluster) -> None:
    """Leave out a rule that covers the on-link prefix; `force` accepts it."""
    one.put_all({"vlan7/wide": {"prefix": "2001:db8::/64"}, "vlan7/a": {"prefix": ONE}})
    host.write()
    run = host.run()
    host.answers(ONE)
    assert host.net.silent(TWO)
    one.put("vlan7/wide", {"prefix": "2001:db8::/64", "force": True})
    host.answers(TWO)
    one.put("vlan7/wide", {"prefix": "2001:db8::/64"})
    host.silent(TWO)
    assert "left out: the always rule for 2001:db8::/64" in run.end().err


def test_a_profile_reaches_the_wire(host: Host, one: Cluster) -> None:
    one.put("vlan7/a", {"prefix": ONE, "override": True, "lladdr": "02:00:00:00:00:77"})
    host.write()
    host.run()
    eventually(lambda: host.net.ask(ONE) == ("02:00:00:00:00:77", ONE))


def test_refused_values_are_shown(host: Host, one: Cluster) -> None:
    one.put_all({"vlan7/a": {"prefix": ONE}, "vlan7/<b>": "{", "vlan7/c": {"prefix": "x"}})
    host.write("[metrics]", 'listen = "127.0.0.1:9877"')
    run = host.run()
    host.answers(ONE)
    eventually(lambda: "vlan7/c is refused" in ndxdp("status").out)
    (daemon,) = ndxdp("status", "--json").json()["daemons"]
    found = daemon["etcd"]
    assert (found["connected"], found["rules"], found["refused"]) == (True, 1, 2)
    reasons = {each["key"]: each["reason"] for each in found["refused_values"]}
    assert reasons["vlan7/c"] == "prefix: 'x' is not an IPv6 address"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["since"])

    def metrics() -> dict[str, float]:
        text = urlopen("http://127.0.0.1:9877/metrics", timeout=5).read().decode()
        return {
            name: float(value)
            for name, value in re.findall(r"^(ndxdp_etcd_\w+) (\S+)$", text, re.MULTILINE)
        }

    shown = metrics()
    assert shown["ndxdp_etcd_connected"] == 1
    assert shown["ndxdp_etcd_rules"] == 1
    assert shown["ndxdp_etcd_refused_values"] == 2
    page = urlopen("http://127.0.0.1:9877/", timeout=5).read().decode()
    assert "connected to http://127.0.0.1:2379, 1 rule, 2 values refused" in page
    assert "<b>" not in page
    assert "&lt;b&gt; is refused" in page
    one.delete_all()
    host.silent(ONE)
    eventually(lambda: metrics()["ndxdp_etcd_refused_values"] == 0)
    assert metrics()["ndxdp_etcd_last_change_timestamp_seconds"] > 0
    one.kill()
    eventually(lambda: metrics()["ndxdp_etcd_connected"] == 0)
    assert run.process.poll() is None


def test_userspace_mode(host: Host, one: Cluster) -> None:
    one.put("vlan7/a", {"prefix": ONE})
    host.write()
    host.file.write_text(host.file.read_text().replace('"tc"\non_stop = "detach"', '"userspace"'))
    host.run()
    host.answers(ONE)
    one.put("vlan7/a", {"prefix": TWO})
    host.answers(TWO)
    host.silent(ONE)


def test_the_daemon_loads_openssl_for_https_only(host: Host, one: Cluster) -> None:
    one.put("vlan7/a", {"prefix": ONE})
    host.write()
    run = host.run(TELLING)
    host.answers(ONE)
    loaded = imported(run.end().err)
    assert {"h11", "ndxdp.sources.etcd"} <= loaded
    assert not loaded & {"_ssl", "http", "email", "prometheus_client"}


# ---- doctor --------------------------------------------------------------------------------------


def test_doctor_asks_every_member(host: Host, one: Cluster) -> None:
    one.put("vlan7/a", {"prefix": ONE})
    host.write()
    host.run()
    host.answers(ONE)

    def findings() -> str:
        ended = ndxdp("doctor", UPLINK)
        return ended.out + ended.err

    assert "every member of etcd answers" in findings()
    one.kill()
    assert "http://127.0.0.1:2379 does not answer: " in findings()


def test_doctor_on_certificates(privacy: None, tmp_path: Path) -> None:
    sh("ip", "link", "set", "lo", "up")
    files = etcd.certificates(tmp_path / "pki", days=3)
    with etcd.cluster(tmp_path / "etcd", files=files) as cluster:
        tls = (Endpoint("127.0.0.1", 2379, True), Endpoint("127.0.0.7", 2379, True))
        names = str(files.ca), str(files.client), str(files.client_key)
        settings = Etcd(tls, "h1", "/ndxdp", *names)
        found = doctor.judge(doctor.examine(settings))
        texts = {finding.what: finding.level for finding in found}
        assert texts["https://127.0.0.7:2379 does not answer: connection refused"] is Level.WARNING
        soon = {what for what in texts if what.endswith("expires in 3 days")}
        assert soon == {
            f"the certificate of {files.client} expires in 3 days",
            "the certificate of https://127.0.0.1:2379 expires in 3 days",
        }
        cluster.kill()
        found = doctor.judge(doctor.examine(settings))
        assert [each.level for each in found if "does not answer" in each.what] == [
            Level.FAILURE,
            Level.FAILURE,
        ]
        files.client_key.write_text("")
        (broken,) = doctor.judge(doctor.examine(settings))
        assert broken.level is Level.FAILURE
        assert "cannot connect to etcd" in broken.what


def test_a_segment_that_a_reload_adds(host: Host, one: Cluster) -> None:
    """Announce the shared addresses that this host takes from then on."""
    metrics = '[metrics]\nlisten = "[::1]:9892"\n'
    interface = f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\non_stop = "detach"\n'
    host.file.write_text(metrics + interface)
    host.run()
    host.write(metrics)
    host.reload()
    one.put("vlan7/web", {"prefix": ONE}, "/ndxdp/v1/shared/")
    host.answers(ONE)

    def announced() -> float:
        found = parsed(get("http://[::1]:9892/metrics")).get("ndxdp_announcements_total", {})
        return sum(found.values())

    eventually(announced)
