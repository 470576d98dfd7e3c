"""`ndxdp run -c`, the long-running daemon, tested against the kernel and systemd's protocol."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from ndxdp.ndp.frame import OVERRIDE, SOLICITED, flags_of, source_of
from tests.fixtures.engine import Engine
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST_MAC,
    REPOSITORY,
    TARGET,
    UPLINK,
    Network,
    Running,
    connect,
    counts,
    done,
    eventually,
    explain,
    leftovers,
    ndxdp,
    rules,
    sh,
    status,
)

OTHER, THIRD = "2001:db8:0:0:d::/80", "2001:db8:0:0:e::/80"
EXACT = "2001:db8::d:0:0:7"


class File:
    """A configuration of one interface, which can be rewritten and reloaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *prefixes: str, more: str = "", top: str = "") -> File:
        tables = "".join(f'[[interface.prefix]]\nprefix = "{prefix}"\n' for prefix in prefixes)
        self.path.write_text(f'{top}\n[[interface]]\nname = "{UPLINK}"\n{tables}{more}\n')
        return self


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "ndxdp.toml")


@pytest.fixture
def daemon(net: Network, file: File) -> Iterator[Running]:
    """Run a daemon on BEHIND; detach at the end."""
    running = net.run("-c", str(file.write(BEHIND).path))
    yield running
    running.close()
    ndxdp("-q", "detach", UPLINK)


def reload(daemon: Running) -> None:
    daemon.process.send_signal(signal.SIGHUP)


# ---- life ---------------------------------------------------------------------------------------


def test_answers_without_a_gap(net: Network, daemon: Running) -> None:
    """Continue to answer by the pinned program when the daemon ends; the next one takes over."""
    assert daemon.ready.startswith(f"ready: {UPLINK} answers in tc mode")
    assert net.answers()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with net.solicited_continuously() as missed:
            daemon.process.send_signal(number)
            daemon.process.wait(10)
            assert status()["held_by"] == "pins"
            daemon = net.run("-c", daemon_file(daemon))
        assert missed == []
    assert rules()[BEHIND]["source"] == "config"
    assert daemon.end()[:2] == (0, "")
    assert net.answers()


def daemon_file(daemon: Running) -> str:
    arguments = daemon.process.args
    assert isinstance(arguments, list)
    return str(arguments[-1])


def test_on_stop_detach(net: Network, file: File) -> None:
    file.write(BEHIND)
    named = f'name = "{UPLINK}"'
    file.path.write_text(file.path.read_text().replace(named, f'{named}\non_stop = "detach"'))
    run = net.run("-c", str(file.path))
    assert net.answers()
    assert run.end()[:2] == (0, "")
    assert leftovers() == []


def test_waits_for_its_interface(net: Network, file: File) -> None:
    """Wait for a missing interface, at the start and whenever it is deleted."""
    sh("ip", "link", "delete", UPLINK)
    run = Running(("-c", str(file.write(BEHIND).path)), wait=False)
    connect()
    eventually(lambda: net.ask(TARGET, wait=0.2) == (HOST_MAC, TARGET), within=10)
    sh("ip", "link", "delete", UPLINK)
    connect()
    eventually(lambda: net.ask(TARGET, wait=0.2) == (HOST_MAC, TARGET), within=10)
    assert run.end()[0] == 0
    done("detach", UPLINK)


# ---- reload -------------------------------------------------------------------------------------


def test_reload_touches_what_differs(net: Network, daemon: Running, file: File) -> None:
    assert net.answers()
    with net.solicited_continuously() as missed:
        reload_with = file.write(BEHIND, OTHER, EXACT)
        reload(daemon)
        eventually(lambda: OTHER in rules() and EXACT in rules())
        assert net.answers(EXACT)
        reload_with.write(BEHIND, THIRD)
        reload(daemon)
        eventually(lambda: set(rules()) & {OTHER, THIRD, EXACT} == {THIRD})
    assert missed == []
    assert explain(EXACT)["reason"] == "no_rule"


def test_a_rate_is_reloaded_without_a_gap(net: Network, daemon: Running, file: File) -> None:
    with net.solicited_continuously() as missed:
        file.write(BEHIND, more="[interface.limit]\nrate = 100000\nburst = 1000")
        reload(daemon)
        eventually(lambda: status()["rate"] == 100000)
        for _ in range(5):
            assert net.answers()
        file.write(BEHIND)
        reload(daemon)
        eventually(lambda: status()["rate"] == 0)
    assert missed == []


def test_a_bad_file_changes_nothing(net: Network, daemon: Running, file: File) -> None:
    file.path.write_text(file.path.read_text() + "nonsense = 1\n")
    reload(daemon)
    assert daemon.process.stderr is not None
    output = ""
    while "cannot reload" not in output:
        output = daemon.process.stderr.readline()
    assert f"{file.path}:" in output
    assert "nonsense" in output
    assert net.answers()


def test_an_interface_that_is_taken_out_is_detached(
    net: Network, daemon: Running, file: File
) -> None:
    file.path.write_text('[[interface]]\nname = "elsewhere0"\n')  # a rule that does not exist
    reload(daemon)
    eventually(lambda: leftovers() == [])
    file.write(BEHIND)
    reload(daemon)
    eventually(lambda: net.ask(TARGET, wait=0.2) == (HOST_MAC, TARGET))


def test_rules_of_others_stay(net: Network, daemon: Running, file: File) -> None:
    done("prefix", "add", OTHER)
    file.write(BEHIND, THIRD)
    reload(daemon)
    eventually(lambda: THIRD in rules())
    assert rules()[OTHER]["source"] == "manual"


# ---- pausing ------------------------------------------------------------------------------------


def test_pause_and_resume(attached: Network) -> None:
    """Pause and resume by the maps alone, without a daemon."""
    done("pause", UPLINK)
    assert attached.silent()
    assert counts().keys() == {"paused"}
    assert status()["paused"] is True
    done("resume", UPLINK)
    assert attached.answers()


# ---- the network --------------------------------------------------------------------------------


def test_the_next_answer_has_the_new_mac(net: Network, daemon: Running) -> None:
    mac = "02:00:00:00:00:33"
    assert net.answers()
    sh("ip", "link", "set", UPLINK, "address", mac)
    eventually(lambda: status()["mac"] == mac)
    assert net.ask(TARGET) == (mac, TARGET)
    sh("ip", "link", "set", UPLINK, "address", HOST_MAC)


def test_holes_follow(net: Network, daemon: Running) -> None:
    own = "2001:db8::c:0:0:22"
    sh("ip", "address", "add", f"{own}/128", "dev", UPLINK, "nodad")
    eventually(lambda: own in rules())
    assert explain(own)["reason"] == "denied"
    sh("ip", "address", "delete", f"{own}/128", "dev", UPLINK)
    eventually(lambda: own not in rules())


def test_a_rule_for_an_own_address_is_held_over_a_reload(
    net: Network, daemon: Running, file: File
) -> None:
    sh("ip", "address", "add", f"{EXACT}/128", "dev", UPLINK, "nodad")
    eventually(lambda: EXACT in rules())
    file.write(BEHIND, EXACT)
    reload(daemon)
    eventually(lambda: rules()[EXACT]["source"] == "config")
    assert rules()[EXACT]["held"] is True
    file.write(BEHIND)
    reload(daemon)
    eventually(lambda: rules()[EXACT]["source"] == "host")
    sh("ip", "address", "delete", f"{EXACT}/128", "dev", UPLINK)
    eventually(lambda: EXACT not in rules())


def test_groups_are_joined_and_addresses_announced(net: Network, file: File) -> None:
    file.write(BEHIND, EXACT, more="[interface.announce]")
    with net.advertisements() as heard:
        run = net.run("-c", str(file.path))
        groups = Path("/proc/net/igmp6").read_text
        eventually(lambda: "ff0200000000000000000001ff000007" in groups())
        eventually(lambda: is_reachable(net, EXACT))
    assert [source_of(frame) for frame in heard] == [socket.inet_pton(socket.AF_INET6, EXACT)]
    assert flags_of(heard[0]) & (OVERRIDE | SOLICITED) == OVERRIDE, "O=1, S=0"
    assert run.end()[0] == 0
    assert "ff0200000000000000000001ff000007" not in groups()
    done("detach", UPLINK)


def is_reachable(net: Network, address: str) -> bool:
    """Return True if the gateway learnt an address from a solicitation, without soliciting."""
    return HOST_MAC in net.at_router("ip", "-6", "neighbour", "show", address).out


def test_gateway_care(net: Network, file: File) -> None:
    file.write(BEHIND, EXACT, more="[interface.gateway]\ninterval = 1")
    run = net.run("-c", str(file.path))
    eventually(
        lambda: "REACHABLE" in sh("ip", "-6", "neighbour", "show", GATEWAY, "dev", UPLINK), within=5
    )
    assert run.end()[0] == 0
    done("detach", UPLINK)


# ---- Docker -------------------------------------------------------------------------------------


def test_containers(net: Network, file: File, docker_engine: Engine) -> None:
    """Follow a real engine, also when it is killed and restarted."""
    engine, address = docker_engine, "2001:db8:0:0:c::10"
    shown = str(IPv6Address(address))
    engine.make_network("exposed", "172.30.6.0/24", "2001:db8:0:0:c::/80")
    engine.run("early", "exposed", address=address)
    try:
        more = '[[interface.docker]]\nnetwork = "exposed"'
        file.write(more=more, top=f'[docker]\nsocket = "{engine.socket}"')
        run = net.run("-c", str(file.path))
        eventually(lambda: shown in rules())
        assert rules()[shown]["source"] == "docker"
        assert net.answers(shown)

        engine.disconnect("early", "exposed")
        eventually(lambda: shown not in rules())
        assert net.silent(shown)
        engine.connect("early", "exposed", address=address)
        eventually(lambda: shown in rules())
        assert net.answers(shown)

        # A change of a container has no effect while no daemon runs; then all rules are set again.
        engine.kill()
        assert net.answers(shown)
        engine.start()
        eventually(lambda: shown not in rules(), within=15)  # its containers ended with it
        engine.ask("POST", "/containers/early/start")
        eventually(lambda: shown in rules())
        assert net.answers(shown)

        file.write(BEHIND)
        reload(run)
        eventually(lambda: {rule["source"] for rule in rules().values()} == {"config", "host"})
        assert run.end()[0] == 0
        done("detach", UPLINK)
    finally:
        engine.clear()


# ---- systemd ------------------------------------------------------------------------------------


def test_systemd_is_notified(net: Network, file: File, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        os.environ["WATCHDOG_USEC"] = "300000"
        try:
            run = net.run("-c", str(file.write(BEHIND).path))
        finally:
            del os.environ["NOTIFY_SOCKET"], os.environ["WATCHDOG_USEC"]
        begun, *found = [listener.recv(4096).decode() for _ in range(4)]
        assert begun.startswith("EXTEND_TIMEOUT_USEC="), "an interface has begun"
        assert found[0].splitlines()[0] == "READY=1"
        assert found[1:] == ["WATCHDOG=1"] * 2
        reload(run)
        while not (heard := listener.recv(4096).decode()).startswith("RELOADING=1"):
            assert heard == "WATCHDOG=1"
        assert "MONOTONIC_USEC=" in heard
        assert listener.recv(4096).decode().startswith("READY=1")
        assert run.end()[0] == 0
        while heard != "STOPPING=1":
            heard = listener.recv(4096).decode()
    done("detach", UPLINK)


# ---- refused words ------------------------------------------------------------------------------


def test_invalid_options(net: Network, file: File) -> None:
    path = str(file.write(BEHIND).path)
    for words in ((), ("-c", path, "-i", UPLINK), ("-c", path, "-n", OTHER), ("-c", "/nowhere")):
        refusal = ndxdp("run", *words)
        assert refusal.code == 2, refusal
        assert "Traceback" not in refusal.err
    assert REPOSITORY.is_dir()
    assert leftovers() == []
