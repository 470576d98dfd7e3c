"""Rules, namespaces and the daemon in `ndxdp status`, on the page and in the metrics."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from ndxdp.files import locks
from ndxdp.observe.status_text import unread_text
from ndxdp.runtime import report
from ndxdp.runtime.daemon_status import DaemonStatus
from tests.fixtures import network
from tests.fixtures.network import (
    BEHIND,
    FILES,
    NDXDP,
    ROUTER,
    TARGET,
    UPLINK,
    Network,
    Running,
    done,
    eventually,
    ndxdp,
    remove_instance,
    rules,
    sh,
    status,
)
from tests.fixtures.prometheus import get
from tests.fixtures.without_links import attach_without_links

OTHER, OTHER_TARGET = "2001:db8:0:0:d::/80", "2001:db8::d:0:0:1"
GONE = "the interface was deleted"
ELSEWHERE = "in another network namespace"


def group_counts() -> dict[str, tuple[int, int]]:
    """Return the solicitations and the rules of each group that --json shows."""
    return {each["label"]: (each["solicited"], each["rules"]) for each in status()["groups"]}


# ---- removed rules -------------------------------------------------------------------------------


def test_removed_rules_are_not_shown(net: Network, tmp_path: Path) -> None:
    """Hide removed rules; their counters continue when they are added again."""
    file = tmp_path / "ndxdp.toml"
    url = "http://[::1]:9890/"

    def write(*prefixes: str) -> None:
        tables = "".join(f'[[interface.prefix]]\nprefix = "{prefix}"\n' for prefix in prefixes)
        file.write_text(
            f'[metrics]\nlisten = "[::1]:9890"\n[[interface]]\nname = "{UPLINK}"\n{tables}'
        )

    def shown() -> dict[str, list[str]]:
        """Return the prefixes that each place names."""
        by_place = {
            "status": (done("status"), "{} (config)"),
            "page": (get(url), "{} (config)"),
            "metrics": (get(f"{url}metrics"), 'label="{}"'),
        }
        return {
            place: [prefix for prefix in (BEHIND, OTHER) if words.format(prefix) in text]
            for place, (text, words) in by_place.items()
        }

    write(BEHIND, OTHER)
    daemon = net.run("-c", str(file))
    for target in (TARGET, OTHER_TARGET):
        assert net.answers(target)
    assert shown() == {
        "status": [BEHIND, OTHER],
        "page": [BEHIND, OTHER],
        "metrics": [BEHIND, OTHER],
    }
    write(OTHER)
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: BEHIND not in rules())
    assert shown() == {"status": [OTHER], "page": [OTHER], "metrics": [OTHER]}
    assert group_counts()[BEHIND] == (1, 0)
    last = status()["last_answer"]
    write(BEHIND)
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: BEHIND in rules() and OTHER not in rules())
    assert shown() == {"status": [BEHIND], "page": [BEHIND], "metrics": [BEHIND]}
    assert group_counts()[BEHIND] == (1, 1)
    assert status()["last_answer"] >= last
    daemon.end()
    remove_instance()


# ---- another network namespace ------------------------------------------------------------------


def elsewhere(net: Network) -> tuple[dict[str, Any], str]:
    """Return the status of the uplink in the router's namespace: as data, and as text."""
    (data,) = json.loads(net.at_router(*NDXDP, "status", "--json").out)["interfaces"]
    return data, net.at_router(*NDXDP, "status").out


def metric(text: str, name: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return float(line.split()[-1])


@pytest.mark.parametrize("mode", ["tc", "generic"])
@pytest.mark.parametrize("way", ["attach", "without links", "run"])
def test_an_interface_of_another_namespace(net: Network, mode: str, way: str) -> None:
    """Show a foreign interface as attached while it answers."""
    if way == "attach":
        done("attach", UPLINK, "--mode", mode, "-n", BEHIND)
    elif way == "without links":
        attach_without_links(mode, BEHIND)
    else:
        running = net.run("-i", UPLINK, "--mode", mode, "-n", BEHIND)
    here = status()
    assert (here["attached"], here["in_other_namespace"]) == (True, False)
    assert net.answers()
    there, text = elsewhere(net)
    assert (there["attached"], there["in_other_namespace"]) == (True, True)
    assert there["reasons"]["answered"] == 1
    assert ELSEWHERE in text
    assert GONE not in text
    scraped = net.at_router(*NDXDP, "metrics").out
    assert metric(scraped, "ndxdp_attached") == 1
    if way == "run":
        running.end()
        return
    sh("ip", "link", "delete", UPLINK)
    if way == "attach":
        there, text = elsewhere(net)
        assert (there["attached"], there["in_other_namespace"]) == (False, False)
        assert GONE in text
    remove_instance()


def test_userspace_of_another_namespace(net: Network) -> None:
    running = net.run("-i", UPLINK, "--mode", "userspace", "-n", BEHIND)
    there, text = elsewhere(net)
    assert (there["attached"], there["in_other_namespace"]) == (True, True)
    assert ELSEWHERE in text
    running.end(signal.SIGKILL)
    there, text = elsewhere(net)
    assert (there["attached"], there["in_other_namespace"]) == (False, False)
    assert GONE in text
    done("detach", UPLINK)


def test_an_interface_of_the_same_name_here(net: Network) -> None:
    """Attribute the pins to the right one of two interfaces with the same name."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    assert net.at_router("ip", "link", "add", UPLINK, "type", "veth", "peer", "far1").code == 0
    there, _ = elsewhere(net)
    assert there["in_other_namespace"]
    (warning,) = there["warnings"]
    assert warning.startswith(f"ndxdp answers on {UPLINK} of another network namespace")
    assert "ndxdp_link_transmit_drops_total" not in net.at_router(*NDXDP, "metrics").out
    assert net.at_router("ip", "link", "delete", UPLINK).code == 0
    remove_instance()


@pytest.mark.parametrize("mode", ["tc", "generic"])
def test_an_interface_that_was_moved(net: Network, mode: str) -> None:
    """Follow an interface and its program into the other namespace."""
    sh("ip", "link", "add", "up1", "up", "type", "veth", "peer", "far1")
    try:
        done("attach", "up1", "--mode", mode, "-n", BEHIND)
        sh("ip", "link", "set", "up1", "netns", ROUTER)
        moved = status("up1")
        assert (moved["attached"], moved["in_other_namespace"]) == (True, True)
        assert f"up1  {mode}, prebuilt program" in done("status", "up1")
        assert ELSEWHERE in done("status", "up1")
    finally:
        sh("ip", "link", "delete", "far1")
        remove_instance("up1")


# ---- what the daemon reports --------------------------------------------------------------------


CONFIG = f"""
[metrics]
listen = "[::1]:9891"
[[interface]]
name = "{UPLINK}"
[[interface.prefix]]
prefix = "{BEHIND}"
"""
MISSING = """
[[interface]]
name = "nosuch0"
[[interface.prefix]]
prefix = "2001:db8:0:0:d::/80"
"""


def daemons() -> list[dict[str, Any]]:
    """Return the daemons of `ndxdp status --json`."""
    found: list[dict[str, Any]] = ndxdp("status", "--json").json()["daemons"]
    return found


@pytest.fixture
def unready(net: Network, tmp_path: Path) -> Iterator[Running]:
    """Run a daemon that waits for one of its interfaces."""
    file = tmp_path / "ndxdp.toml"
    file.write_text(CONFIG + MISSING)
    with contextlib.closing(Running(("-c", str(file)), wait=False)) as daemon:
        yield daemon
    remove_instance()


def test_an_interface_that_is_missing_is_shown(
    net: Network, tmp_path: Path, unready: Running
) -> None:
    eventually(lambda: net.ask(TARGET, wait=0.2) is not None, within=10)
    eventually(lambda: "nosuch0  not answering" in done("status"))
    (shown,) = daemons()
    assert shown["pid"] == unready.process.pid
    assert shown["config"] == str(tmp_path / "ndxdp.toml")
    assert [each["interface"] for each in shown["interfaces"]] == [UPLINK, "nosuch0"]
    here, missing = shown["interfaces"]
    assert (here["problem"], here["answered"], missing["answered"]) == ("", True, False)
    sentence = f"nosuch0 is {unread_text(missing)}"
    assert sentence.replace(" is ", "  ", 1) in done("status").splitlines()
    assert sentence in unescape(get("http://[::1]:9891/"))
    found = findings()
    assert ("nosuch0", "link", "there is no interface 'nosuch0'") in found
    named = ndxdp("status", "nosuch0")
    assert (named.code, named.out.splitlines()[0].split()[0]) == (1, "nosuch0")
    assert "nosuch0" not in ndxdp("status", UPLINK).out
    # The page of another process shows it, too.
    exporter = subprocess.Popen(
        [*NDXDP, "exporter", "--listen", "[::1]:9892"], stdout=subprocess.PIPE, text=True
    )
    assert exporter.stdout is not None
    assert exporter.stdout.readline().startswith("ready")
    assert sentence in unescape(get("http://[::1]:9892/"))
    exporter.send_signal(signal.SIGTERM)
    assert exporter.wait(10) == 0
    for scraped in (get("http://[::1]:9891/metrics"), done("metrics")):
        assert 'ndxdp_attached{interface="nosuch0"} 0.0' in scraped
        assert f'ndxdp_interface_in_step{{interface="{UPLINK}"}} 1.0' in scraped
    assert unready.end().code == 0
    assert daemons() == []


def test_a_reload_that_failed_is_shown(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text(CONFIG)
    daemon = net.run("-c", str(file))
    assert "WARNING" not in done("status")
    (before,) = daemons()
    assert before["reload"] == {"begun": 0, "number": 0, "ok": True, "error": ""}
    assert before["exporter"] == {"where": "http://[::1]:9891/metrics", "problem": ""}
    assert before["docker"] is None
    file.write_text(CONFIG + "nonsense")
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: daemons()[0]["reload"]["number"] == 1)
    (after,) = daemons()
    assert after["reload"]["ok"] is False
    sentence = f"the daemon did not reload its configuration: {after['reload']['error']}"
    assert f"  WARNING   {sentence}; the previous one is in force" in done("status").splitlines()
    assert sentence[1:] in unescape(get("http://[::1]:9891/"))
    assert (UPLINK, "daemon", f"{sentence}; the previous one is in force") in findings()
    file.write_text(CONFIG)
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: daemons()[0]["reload"]["number"] == 2)
    assert "daemon" not in {check for _, check, _ in findings()}
    assert daemons()[0]["reload"] == {"begun": 2, "number": 2, "ok": True, "error": ""}
    assert "WARNING" not in done("status")
    daemon.end()
    remove_instance()


def findings() -> set[tuple[str, str, str]]:
    """Return what `ndxdp doctor` finds: the interface, the check, and the sentence."""
    return {
        (each["interface"], finding["check"], finding["what"])
        for each in json.loads(ndxdp("doctor", "--json").out)["interfaces"]
        for finding in each["findings"]
    }


def test_a_disconnected_engine_is_shown(net: Network, tmp_path: Path) -> None:
    file, socket = tmp_path / "ndxdp.toml", tmp_path / "docker.sock"
    containers = '[[interface.docker]]\nnetwork = "any"\n'
    file.write_text(f'[docker]\nsocket = "{socket}"\n{CONFIG}{containers}')
    daemon = net.run("-c", str(file))
    assert daemons()[0]["docker"] == {"connected": False}
    assert "the container engine is disconnected" in done("status")
    daemon.end()
    remove_instance()


def test_a_killed_daemon_is_not_shown(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text(CONFIG)
    net.run("-c", str(file)).end(signal.SIGKILL)
    assert len(list(FILES.glob("report-*.json"))) == 1
    (FILES / "report-00000000.new").touch()  # it was killed while it wrote a report
    assert daemons() == []
    daemon = net.run("-c", str(file))
    assert len(list(FILES.glob("report-*.json"))) == 1
    assert not (FILES / "report-00000000.new").exists()
    assert len(daemons()) == 1
    daemon.end(signal.SIGKILL)
    done("detach", UPLINK)
    assert not FILES.exists()


def test_another_namespaces_daemon_is_not_shown(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text(CONFIG)
    daemon = net.run("-c", str(file))
    assert json.loads(net.at_router(*NDXDP, "status", "--json").out)["daemons"] == []
    daemon.end()
    remove_instance()


def test_a_report_of_another_user_is_ignored(tmp_path: Path) -> None:
    made = tmp_path / "report-00000000.json"
    made.write_text("{}")
    os.mkfifo(tmp_path / "report-00000001.json")
    os.symlink("/dev/zero", tmp_path / "report-00000002.json")
    with made.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert report.daemons(tmp_path) == []  # without its fields
        os.chown(made, 65534, 65534)
        report.remove_stale(tmp_path)
    assert report.daemons(tmp_path) == []
    assert made.exists()


def test_a_daemon_without_a_place_for_its_report_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    state = DaemonStatus()
    with report.Publisher(blocked / "run", 1, None, state):
        state.note_reload(False, "once")
        state.note_reload(False, "twice")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_new_report_is_written_although_it_was_taken_for_a_stale_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write the report if another daemon removes its file between its creation and its lock."""
    take, times = locks.take, iter(range(9))

    def late(fd: int, seconds: float) -> bool:
        if next(times) == 0:
            report.remove_stale(tmp_path)
            assert not list(tmp_path.glob("*.new"))
        return take(fd, seconds)

    state = DaemonStatus()
    with report.Publisher(tmp_path, 1, None, state):
        monkeypatch.setattr(locks, "take", late)
        state.note_reload(ok=True)
        assert report.daemons(tmp_path)[0].reload["number"] == 1


def test_a_reader_sees_a_whole_report_at_each_moment(tmp_path: Path) -> None:
    """Read a complete report at any time while it is replaced again and again."""
    state = DaemonStatus()
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            state.note_reload(ok=True)

    with report.Publisher(tmp_path / "run", 1, None, state):
        thread = threading.Thread(target=change)
        thread.start()
        numbers = [report.daemons(tmp_path / "run")[0].reload["number"] for _ in range(500)]
        ended.set()
        thread.join()
        assert numbers == sorted(numbers)
        assert numbers[-1] > 0
    assert not (tmp_path / "run").exists()


def test_files_are_half_made(attached: Network) -> None:
    """Show the old mode while a daemon, on its way to userspace mode, creates its files."""
    made = next(network.PINS.glob(f"v*/{UPLINK}"))
    (FILES / made.parent.name / UPLINK).mkdir(parents=True)
    shown = status()
    assert (shown["mode"], shown["attached"]) == ("tc", True)
    done("detach", UPLINK)
    assert network.leftovers() == []
