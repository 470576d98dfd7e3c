"""Reloads are atomic and acknowledged."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.programs import build_xdp_pass
from tests.fixtures.fake_engine import Fake, container, network
from tests.fixtures.network import (
    BEHIND,
    UPLINK,
    Done,
    Network,
    Running,
    eventually,
    leftovers,
    ndxdp,
    rules,
    sh,
    status,
)
from tests.fixtures.prometheus import get, parsed

OTHER = "2001:db8:0:0:d::/80"
PORT = 9891


class Service:
    """`run -c` with a file that is rewritten."""

    def __init__(self, net: Network, path: Path) -> None:
        self._net, self._path = net, path
        self.running: Running | None = None

    def write(self, *prefixes: str, more: str = "", top: str = "") -> None:
        tables = "".join(f'[[interface.prefix]]\nprefix = "{prefix}"\n' for prefix in prefixes)
        self._path.write_text(f'{top}\n[[interface]]\nname = "{UPLINK}"\n{more}\n{tables}')

    def start(self) -> Running:
        self.running = self._net.run("-c", str(self._path))
        return self.running

    def reload(self) -> Done:
        return ndxdp("reload", "-c", str(self._path))

    def end(self) -> str:
        """End the daemon; return its log."""
        assert self.running
        ended = self.running.end()
        assert ended.code == 0, ended
        assert "Traceback" not in ended.err
        return ended.err


@pytest.fixture
def service(net: Network, tmp_path: Path) -> Iterator[Service]:
    made = Service(net, tmp_path / "ndxdp.toml")
    yield made
    if made.running:
        made.running.close()
    ndxdp("-q", "detach", UPLINK)


def reload_success(port: int = PORT) -> float | None:
    """Return the metric; None if no exporter listens."""
    try:
        text = get(f"http://[::1]:{port}/metrics")
    except OSError:
        return None
    return parsed(text)["ndxdp_config_reload_success"][()]


# ---- whole or nothing --------------------------------------------------------------------------


def test_rules_are_in_the_kernel_when_reload_returns(service: Service) -> None:
    service.write(BEHIND)
    service.start()
    for prefix in (OTHER, BEHIND, OTHER):
        service.write(prefix)
        assert service.reload() == Done(0, "", "")
        assert {each for each in rules() if "/80" in each} == {prefix}


@pytest.mark.parametrize("text", ["nonsense", "", '[[interface]]\nname = "a"\nx = 1\n'])
def test_a_bad_file_changes_nothing(service: Service, text: str, tmp_path: Path) -> None:
    service.write(BEHIND)
    service.start()
    before = rules()
    (tmp_path / "ndxdp.toml").write_text(text)
    refused = service.reload()
    assert refused.code == 1
    assert refused.err.startswith("ndxdp: cannot reload: ")
    assert rules() == before
    assert "cannot reload: " in service.end()


def test_rules_without_room_are_refused_whole(service: Service, tmp_path: Path) -> None:
    """Refuse a file whose rules only the kernel's tables show to be too many."""
    few = "".join(f"2001:db8::{n:x}\n" for n in range(1, 6))
    (tmp_path / "list").write_text(few)
    more = 'max_addresses = 10\n[[interface.prefix]]\nfile = "list"\n'
    service.write(BEHIND, more=more, top=f'[metrics]\nlisten = "[::1]:{PORT}"')
    service.start()
    by_hand = [f"2001:db8:1::{n:x}" for n in range(4)]
    assert ndxdp("prefix", "add", *by_hand).code == 0
    before = rules()
    (tmp_path / "list").write_text(few + "2001:db8::f1\n2001:db8::f2\n")
    service.write(OTHER, more=more, top=f'[metrics]\nlisten = "[::1]:{PORT}"')
    refused = service.reload()
    assert refused.code == 1
    assert f"cannot reload: {UPLINK}: " in refused.err
    assert rules() == before
    assert reload_success() == 0
    assert ndxdp("prefix", "del", *by_hand).code == 0
    assert service.reload().code == 0
    assert reload_success() == 1
    assert OTHER in rules()


def test_an_unavailable_mode_is_refused_whole(service: Service) -> None:
    service.write(BEHIND, more='mode = "tc"')
    service.start()
    sh("ip", "link", "set", "dev", UPLINK, "xdpgeneric", "obj", str(build_xdp_pass()), "sec", "xdp")
    try:
        service.write(OTHER, more='mode = "generic"')
        refused = service.reload()
    finally:
        sh("ip", "link", "set", "dev", UPLINK, "xdpgeneric", "off")
    assert refused.code == 1
    assert f"cannot reload: {UPLINK}: {UPLINK} already runs an XDP program" in refused.err
    assert BEHIND in rules()
    assert OTHER not in rules()
    assert status()["mode"] == "tc"
    assert service.reload() == Done(0, "", "")
    assert status()["mode"] == "generic"


_SLOW_START = """
import pathlib, sys, time
from ndxdp.cli.main import main
from ndxdp.daemon.lifecycle import Lifecycle
from ndxdp.daemon.uplink import Uplink

directory = pathlib.Path(sys.argv.pop(1))
begin, set_spec = Lifecycle.begin, Uplink.set_spec

def begin_slowly(self, spec, **how):
    begun = begin(self, spec, **how)
    (directory / "attached").touch()
    for _ in range(1000):
        if (directory / "reloaded").exists():
            break
        time.sleep(0.01)
    return begun

def set_noticed(self, spec):
    outcome = set_spec(self, spec)
    (directory / "reloaded").touch()
    return outcome

Lifecycle.begin, Uplink.set_spec = begin_slowly, set_noticed
main()
"""


def test_a_reload_while_an_interface_begins_is_put_in_force(
    net: Network, service: Service, tmp_path: Path
) -> None:
    service.write(BEHIND, more='mode = "generic"')
    command = (sys.executable, "-c", _SLOW_START, str(tmp_path))
    service.running = Running(("-c", str(tmp_path / "ndxdp.toml")), command, wait=False)
    eventually((tmp_path / "attached").exists, within=20)
    service.write(OTHER, more='mode = "auto"')
    service.running.process.send_signal(signal.SIGHUP)
    eventually(lambda: (status()["mode"], OTHER in rules()) == ("tc", True), within=20)
    assert (tmp_path / "reloaded").exists()
    assert BEHIND not in rules()
    service.end()


def test_an_absent_interface_does_not_delay_a_reload(service: Service, tmp_path: Path) -> None:
    service.write(BEHIND)
    service.start()
    service.write(OTHER)
    with (tmp_path / "ndxdp.toml").open("a") as file:
        file.write('[[interface]]\nname = "absent0"\n')
    done = service.reload()
    assert done.code == 0
    assert "absent0" in done.err
    assert OTHER in rules()


def test_an_interface_that_is_taken_out_is_detached_when_reload_returns(
    service: Service, tmp_path: Path
) -> None:
    service.write(BEHIND)
    service.start()
    (tmp_path / "ndxdp.toml").write_text('[[interface]]\nname = "absent0"\n')
    assert service.reload().code == 0
    assert leftovers() == []
    service.write(OTHER)
    assert service.reload().code == 0
    assert OTHER in rules()


def test_settings_of_an_interface_are_reloaded(service: Service) -> None:
    """Change the settings that docs/service.md lists, and take them back."""

    def shown() -> dict[str, Any]:
        (interface,) = ndxdp("status", "--json").json()["interfaces"]
        limits = {name: interface[name] for name in ("rate", "burst", "interface_rate")}
        multicast = interface["multicast"] or {}  # of the daemon's report, which follows
        room, join = interface["rules"]["max_addresses"], multicast.get("join")
        return {**limits, "max_addresses": room, "join": join}

    def heartbeat() -> float | None:
        found = parsed(ndxdp("metrics").out).get("ndxdp_heartbeat_timeout_seconds", {})
        return next(iter(found.values()), None)

    service.write(BEHIND)
    service.start()
    eventually(lambda: shown()["join"] == "auto")
    keys = 'max_addresses = 4096\njoin = "never"\nheartbeat_timeout = 60\non_stop = "detach"\n'
    limit = "[interface.limit]\nrate = 50\nburst = 3\ninterface_rate = 100\n"
    service.write(BEHIND, more=keys + limit)
    assert service.reload().code == 0
    wanted = {"rate": 50, "burst": 3, "interface_rate": 100, "max_addresses": 4096, "join": "never"}
    eventually(lambda: shown() == wanted)
    assert heartbeat() == 60
    service.write(BEHIND)
    assert service.reload().code == 0
    wanted |= {"rate": 0, "burst": 0, "interface_rate": 0, "join": "auto"}
    eventually(lambda: shown() == wanted)  # the room for addresses stays
    assert heartbeat() is None
    service.write(BEHIND, more='on_stop = "detach"')
    assert service.reload().code == 0
    service.end()
    assert leftovers() == []


def test_reload_without_a_daemon(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "ndxdp.toml"
    refused = ndxdp("reload", "-c", str(path))
    assert refused.code == 1
    assert refused.err.startswith(f"ndxdp: no daemon runs here with {path}\n  hint: ")


# ---- settings beside the interfaces
# ---------------------------------------------------------------


def selecting(**selector: str) -> str:
    """Return the table of a selector."""
    keys = "".join(f'{key} = "{value}"\n' for key, value in selector.items())
    return f"[[interface.docker]]\n{keys}"


def of_containers() -> set[str]:
    """Return the addresses that have a rule because containers have them."""
    return {prefix for prefix, rule in rules().items() if rule["source"] == "docker"}


def test_a_reload_keeps_the_connection_to_the_engine(service: Service, fake: Fake) -> None:
    """Unless it selects by labels that were not kept."""
    top = f'[docker]\nsocket = "{fake.path}"'
    fake.containers = [container(32, "six", kind="a"), container(33, "seven")]
    fake.networks = [network("six"), network("seven")]
    service.write(top=top, more=selecting(container_label="kind") + selecting(network="six"))
    service.start()
    eventually(lambda: of_containers() == {"2001:db8::20"})
    eventually(lambda: fake.lists() == 3)
    for more in (
        selecting(container_label="kind") + selecting(network="six"),
        selecting(network="seven"),
        selecting(container_label="kind=b"),
        selecting(container_label="kind=a"),
    ):
        service.write(top=top, more=more)
        assert service.reload().code == 0
        assert ("2001:db8::21" in of_containers()) is ("seven" in more)
        assert ("2001:db8::20" in of_containers()) is ("six" in more or "=a" in more)
    # A new interface or selector does not miss what is known.
    assert fake.requests.count("/version") == 1
    assert fake.lists() == 3
    fake.containers.append(container(34, kind="a"))
    fake.send_event_of(34)
    eventually(lambda: of_containers() == {"2001:db8::20", "2001:db8::22"})
    assert fake.requests.count("/version") == 1

    # The list with other labels comes late: until then no rule of a selector that stays is removed.
    held = threading.Event()

    def late(connection: socket.socket) -> None:
        held.wait(10)
        fake.send(connection, json.dumps(fake.containers).encode())

    fake.replies["json"] = late
    more = selecting(container_label="kind=a") + selecting(network_label="other")
    service.write(top=top, more=more)
    assert service.reload().code == 0
    assert of_containers() == {"2001:db8::20", "2001:db8::22"}
    fake.containers.pop()
    held.set()
    eventually(lambda: of_containers() == {"2001:db8::20"})
    assert fake.requests.count("/version") == 2


def test_log_and_engine_are_reloaded(service: Service, tmp_path: Path) -> None:
    more = '[[interface.docker]]\nnetwork = "web"\n'
    service.write(top=f'log_level = "error"\n[docker]\nsocket = "{tmp_path}/one"')
    path = tmp_path / "ndxdp.toml"
    path.write_text(path.read_text() + more)
    service.start()
    service.write(
        top=f'log_level = "debug"\nlog_format = "json"\n[docker]\nsocket = "{tmp_path}/two"'
    )
    path.write_text(path.read_text() + more)
    assert service.reload().code == 0
    service.write(BEHIND, top='log_level = "info"')
    assert service.reload().code == 0
    lines = service.end().splitlines()
    assert not any("/one" in line for line in lines)  # "error" omits warnings
    in_json = [json.loads(line) for line in lines if line.startswith("{")]
    assert any("/two" in line["message"] for line in in_json)
    assert "info" in {line["level"] for line in in_json}
    assert lines[-1].startswith("ndxdp: ")


def test_metrics_move_on_their_own_port(service: Service) -> None:
    """Move the exporter from [::] to [::1], and to IPv6 alone, as doctor recommends."""

    def top(listen: str, more: str = "") -> str:
        return f'[metrics]\nlisten = "{listen}:{PORT}"\n{more}'

    service.write(BEHIND, top=top("[::]"))
    service.start()
    for text in (top("[::1]"), top("[::]"), top("[::]", "ipv6only = true"), top("[::1]")):
        service.write(OTHER, top=text)
        assert service.reload() == Done(0, "", "")
        assert reload_success() == 1
    assert "process listens" not in service.end()


def test_answers_although_metrics_cannot_listen(service: Service) -> None:
    with socket.create_server(("::1", PORT), family=socket.AF_INET6):
        service.write(BEHIND, top=f'[metrics]\nlisten = "[::1]:{PORT}"')
        service.start()
        assert BEHIND in rules()
        result = ndxdp("status")
        assert result.code == 0
        assert f"cannot listen on [::1]:{PORT}: another process listens there" in result.out
        service.write(OTHER, top=f'[metrics]\nlisten = "[::1]:{PORT + 1}"')
        assert service.reload().code == 0
        assert reload_success(PORT + 1) == 1
        service.write(BEHIND, top=f'[metrics]\nlisten = "[::1]:{PORT}"')
        assert service.reload().code == 0
        assert BEHIND in rules()
        assert reload_success(PORT + 1) == 1
    eventually(lambda: reload_success() == 1, within=10)
    log = service.end()
    assert log.count("cannot serve metrics: ") == 2
