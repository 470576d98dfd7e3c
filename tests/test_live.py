"""The complete system in the lab: a router, an anti-spoofing bridge, the host, a container."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.topology import (
    CONTAINER_ADDRESS,
    CONTAINER_PREFIX,
    HOST,
    INTERNET_ADDRESS,
    ROUTER,
    ROUTER_ADDRESS,
    ROUTER_MAC,
    UPLINK,
    Lab,
)
from tests.fixtures.features import needs

NDXDP = (sys.executable, "-m", "ndxdp")
PREFIX = str(CONTAINER_PREFIX)
MODES = ("native", "generic", "tc")


@pytest.fixture
def lab(privacy: None) -> Iterator[Lab]:
    with Lab(peer_xdp=True) as lab:
        yield lab
        lab.run(HOST, *NDXDP, "detach", UPLINK, check=False)


def ndxdp(lab: Lab, *arguments: str) -> str:
    return lab.run(HOST, *NDXDP, *arguments).stdout


def pings(lab: Lab) -> list[int]:
    """Return the answered pings of 2, from a global and from a link-local soliciting source."""
    answered = []
    for source in (ROUTER_ADDRESS, INTERNET_ADDRESS):
        lab.forget_neighbours()
        answered.append(lab.ping(ROUTER, CONTAINER_ADDRESS, source=source, count=2))
    return answered


class Flood:
    """Solicitations of the router at a steady rate during the block."""

    def __init__(self, lab: Lab, rate: int = 12_000) -> None:
        self._lab, self._rate = lab, rate
        self.result: dict[str, Any] = {}

    def __enter__(self) -> Flood:
        self._process = self._lab.popen(
            ROUTER,
            *(sys.executable, "-m", "tests.fixtures.flood", UPLINK),
            *("--mac", ROUTER_MAC, "--prefix", str(CONTAINER_PREFIX.network_address)),
            *("--rate", str(self._rate)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        assert "soliciting" in self._process.stderr.readline()
        time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.5)
        self._process.send_signal(signal.SIGTERM)
        out = self._process.communicate(timeout=30)[0]
        self.result = json.loads(out)
        print(self.result)


@pytest.mark.parametrize("mode", MODES)
def test_router_reaches_container(lab: Lab, mode: str) -> None:
    """Make the container reachable past a filter that passes only sources of the prefix."""
    assert pings(lab) == [0, 0]
    ndxdp(lab, "attach", UPLINK, "-n", PREFIX, "--mode", mode)

    with lab.capture() as capture:
        assert pings(lab) == [2, 2]
    solicited = {str(message.source) for message in capture.solicitations}
    assert solicited == {"2001:db8:0:1::1", "fe80::1"}
    assert {message.source for message in capture.advertisements} == {CONTAINER_ADDRESS}
    assert all(message.passed for message in capture.advertisements)

    ndxdp(lab, "detach", UPLINK)
    assert pings(lab) == [0, 0]


def test_demo(privacy: None) -> None:
    """Run `make demo`'s program: it ends as it promises, including ndppd's failure."""
    done = subprocess.run(
        [sys.executable, "lab/demo.py", "--ndxdp", f"{os.path.dirname(sys.executable)}/ndxdp"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DROPPED by the filter" in done.stdout


@pytest.mark.parametrize("mode", MODES)
def test_renewing_loses_nothing(lab: Lab, mode: str) -> None:
    """Attach again under load, with the other loader's object, without losing an answer."""
    ndxdp(lab, "attach", UPLINK, "-n", PREFIX, "--mode", mode)
    with Flood(lab) as flood:
        for loader in ("bcc", "prebuilt", "prebuilt"):
            ndxdp(lab, "attach", UPLINK, "-n", PREFIX, "--loader", loader)
        ndxdp(lab, "attach", UPLINK, "--max-addresses", "200000")
        ndxdp(lab, "prefix", "add", "2001:db8:0:2::/64")
        ndxdp(lab, "prefix", "del", "2001:db8:0:2::/64")
    assert flood.result["sent"] > 0
    assert flood.result["unanswered"] == 0


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_renewing_without_bpf_links_loses_nothing(lab: Lab, mode: str) -> None:
    """Replace the program by netlink, as on older kernels, without losing an answer."""
    attach = (
        "from ndxdp.session.request import AttachOptions, AttachRequest;"
        "from ndxdp.session.session import Session;"
        "from ndxdp.rules.rule_lists import compile_rules;"
        "from ndxdp.kernel.abi import Mode; from ndxdp.store.directories import Trees;"
        f"options = AttachOptions(Mode.{mode.upper()}, links=False);"
        f"rules = compile_rules(['{PREFIX}']);"
        f"Session.attach(Trees(), AttachRequest('{UPLINK}', rules, options)).close()"
    )
    lab.run(HOST, sys.executable, "-c", attach)
    with Flood(lab) as flood:
        for _ in range(3):
            lab.run(HOST, sys.executable, "-c", attach)
    assert flood.result["sent"] > 0
    assert flood.result["unanswered"] == 0


@needs("xdp")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_end_of_a_keeping_run_loses_nothing(lab: Lab, number: signal.Signals) -> None:
    command = (*NDXDP, "run", "-i", UPLINK, "-n", PREFIX, "--mode", "native", "--keep")
    run = lab.popen(HOST, *command, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline().startswith("ready")
    with Flood(lab) as flood:
        run.send_signal(number)
        run.wait(timeout=10)
        time.sleep(0.5)
    assert flood.result["sent"] > 0
    assert flood.result["unanswered"] == 0


@needs("xdp")
def test_foreign_program_survives_every_command(lab: Lab) -> None:
    """Name a foreign XDP program on the interface, and leave it there."""
    peer = lab.run(
        HOST, "ip", "link", "set", UPLINK, "xdp", "obj", "build/xdp_pass.o", "sec", "xdp"
    )
    assert peer.returncode == 0

    def program() -> int:
        links = json.loads(
            lab.run(HOST, "ip", "--json", "--details", "link", "show", UPLINK).stdout
        )
        return int(links[0]["xdp"]["prog"]["id"])

    foreign = program()
    for arguments in (
        ("attach", UPLINK, "-n", PREFIX, "--mode", "native"),
        ("attach", UPLINK, "-n", PREFIX, "--mode", "generic"),
        ("run", "-i", UPLINK, "-n", PREFIX, "--mode", "native"),
        ("detach", UPLINK),
        ("status",),
        ("explain", str(CONTAINER_ADDRESS)),
        ("prefix", "list"),
    ):
        done = lab.run(HOST, *NDXDP, *arguments, check=False)
        assert "Traceback" not in done.stderr
        if "native" in arguments or "generic" in arguments:
            assert done.returncode == 1
            assert f"(id {foreign})" in done.stderr
        assert program() == foreign
    ndxdp(lab, "attach", UPLINK, "-n", PREFIX, "--mode", "tc")
    assert pings(lab) == [2, 2]
    assert program() == foreign


@pytest.mark.parametrize("by", ["file", "stdin"])
def test_long_lists(lab: Lab, by: str, tmp_path: Any) -> None:
    """Add 100 000 addresses and 10 000 prefixes; docs/rules.md has the time."""
    lines = [f"2001:db8:a:{i >> 16:x}::{i & 0xFFFF:x}" for i in range(1, 100_001)]
    lines += [f"2001:db8:b:{i:x}::/64" for i in range(10_000)]
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines) + "\n")
    ndxdp(lab, "attach", UPLINK, "--mode", "tc")
    command = [*NDXDP, "prefix", "add", "--file", str(path) if by == "file" else "-"]
    with path.open() as stream:
        process = lab.popen(HOST, *command, **({"stdin": stream} if by == "stdin" else {}))
        assert process.wait(timeout=60) == 0

    status = json.loads(ndxdp(lab, "status", "--json"))["interfaces"][0]
    assert status["rules"]["by_source"]["manual"] == 110_000
    for target, reason in (
        ("2001:db8:a:1::1", "answered"),
        ("2001:db8:a::1", "answered"),
        ("2001:db8:a::", "no_rule"),
        ("2001:db8:b:270f::7", "answered"),
        ("2001:db8:b:2710::7", "no_rule"),
    ):
        assert json.loads(ndxdp(lab, "explain", target, "--json"))["reason"] == reason

    ndxdp(lab, "prefix", "del", "--all")
    rules = json.loads(ndxdp(lab, "prefix", "list", "--json"))
    assert {rule["source"] for rule in rules} == {"host"}


@pytest.mark.parametrize("loader", ["prebuilt", "bcc"])
@pytest.mark.parametrize("mode", MODES)
def test_two_capabilities_suffice(lab: Lab, mode: str, loader: str) -> None:
    """Attach with CAP_BPF and CAP_NET_ADMIN; without CAP_PERFMON the verifier is stricter."""
    bounded = ("setpriv", "--bounding-set=-all,+bpf,+net_admin", "--inh-caps=-all")
    command = (*bounded, *NDXDP)
    attach = (*command, "attach", UPLINK, "-n", PREFIX, "--mode", mode, "--loader", loader)
    # Linux 6.1 and 6.12 require CAP_PERFMON; releases between 6.12 and 6.18 were not tried.
    if tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2]) < (6, 18):
        refused = lab.run(HOST, *attach, check=False)
        assert refused.returncode == 1
        assert "CAP_PERFMON" in refused.stderr
        return
    lab.run(HOST, *attach)
    lab.run(HOST, *command, "attach", UPLINK, "--loader", loader)
    explained = lab.run(HOST, *command, "explain", str(CONTAINER_ADDRESS), "--json").stdout
    assert json.loads(explained)["reason"] == "answered"
    assert pings(lab) == [2, 2]
    lab.run(HOST, *command, "detach", UPLINK)


def test_daemon_under_a_flood(lab: Lab, tmp_path: Path) -> None:
    """Lose no answer when the daemon is killed, started, reloaded, stopped, or gets another MAC."""
    names = [tmp_path / f"list{n}.txt" for n in range(2)]
    for n, name in enumerate(names):
        name.write_text("".join(f"2001:db8:a:{n}::{i:x}\n" for i in range(5000)))
    file = tmp_path / "ndxdp.toml"

    def write(n: int) -> None:
        file.write_text(
            f'[[interface]]\nname = "{UPLINK}"\n'
            f'[[interface.prefix]]\nprefix = "{PREFIX}"\n'
            f'[[interface.prefix]]\nfile = "{names[n]}"\n'
        )

    def start() -> subprocess.Popen[str]:
        command = (*NDXDP, "run", "-c", str(file))
        daemon = lab.popen(HOST, *command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert daemon.stdout is not None
        assert daemon.stdout.readline().startswith("ready")
        return daemon

    def has(address: str) -> bool:
        reason: str = json.loads(ndxdp(lab, "explain", address, "--json"))["reason"]
        return reason == "answered"

    write(0)
    daemon = start()
    with Flood(lab, rate=5000) as flood:
        daemon.kill()
        daemon.wait()
        daemon = start()
        write(1)
        daemon.send_signal(signal.SIGHUP)
        while not has("2001:db8:a:1::1387"):
            time.sleep(0.05)
        assert not has("2001:db8:a::1387")
        lab.run(HOST, "ip", "link", "set", "dev", UPLINK, "address", "02:00:00:00:00:44")
        while json.loads(ndxdp(lab, "status", "--json"))["interfaces"][0]["mac"] != (
            "02:00:00:00:00:44"
        ):
            time.sleep(0.02)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=10) == 0
    assert flood.result["sent"] > 0
    assert flood.result["unanswered"] == 0
