"""`ndxdp fleet`, `explain` and `status` with running daemons, a router and etcd."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from lab.fleet import SEGMENT, Fleet, shared_address
from lab.fleet_host import PATIENT, FleetHost
from lab.nodes import wait_until
from tests.fixtures.network import NDXDP

ONE, TWO = shared_address(1), shared_address(2)


@pytest.fixture(scope="module")
def running(privacy: None) -> Iterator[Fleet]:
    """Start three hosts with daemons, and one member of etcd."""
    with Fleet(NDXDP, hosts=3, members=1) as made:
        made.configure(lease=3)
        made.start()
        names = {host.name for host in made.hosts}
        wait_until(lambda: made.members() == names, "not all hosts are members", 30, made.members)
        yield made


@pytest.fixture
def lan(running: Fleet) -> Iterator[Fleet]:
    """Return the hosts, without shared addresses."""
    yield running
    running.undo_all()
    names = [f"shared/{SEGMENT}/{name}" for name in running.shared()]
    if names:
        fleet(running.hosts[0], "delete", *names)
    running.await_holders(lambda found: not found, "an address is held that does not exist")


def fleet(host: FleetHost, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of `ndxdp fleet` at a host."""
    patient = PATIENT if words[0] in ("move", "drain") and code == 0 else ()
    found = host.ndxdp("fleet", words[0], "-c", str(host.file), *patient, *words[1:], check=False)
    assert found.returncode == code, found
    return found


def holder_line(host: FleetHost, target: str = ONE) -> str:
    text = host.ndxdp("explain", target).stdout
    found = [line for line in text.splitlines() if line.startswith("holder ")]
    return (
        re.sub(r"since .* ago", "since N ago", found[0].removeprefix("holder   ")) if found else ""
    )


def shows(host: FleetHost, wanted: str) -> None:
    wait_until(
        lambda: holder_line(host) == wanted,
        f"explain at {host.name} does not show: {wanted}",
        30,
        lambda: holder_line(host),
    )


def test_each_host_says_who_answers(lan: Fleet) -> None:
    one, two, three = lan.hosts
    assert (
        fleet(one, "put", f"shared/{SEGMENT}/web", ONE, "--host", "h2", "--host", "h1").stderr == ""
    )
    lan.await_holders(lambda found: found == {"web": "h2"}, "h2 does not hold the address")
    for host in (one, three):
        shows(host, f"{SEGMENT}/web is held by h2, since N ago")
    shows(two, f"{SEGMENT}/web is held by this host, h2, since N ago")
    found = json.loads(one.ndxdp("explain", ONE, "--json").stdout)
    assert (found["reason"], found["holder"]["host"], found["holder"]["here"]) == (
        "denied",
        "h2",
        False,
    )
    assert found["holder"]["running"] is True
    found = json.loads(two.ndxdp("explain", ONE, "--json").stdout)
    assert (found["reason"], found["rule"]["leased"]) == ("answered", True)
    assert "[while this host's lease lasts]" in two.ndxdp("prefix", "list").stdout
    assert "[not held by this host]" in one.ndxdp("prefix", "list").stdout
    assert "held by this host 1 of 1" in two.ndxdp("status").stdout
    assert "held by this host 0 of 1" in one.ndxdp("status").stdout


def test_move_drain_and_undrain(lan: Fleet) -> None:
    one, two, three = lan.hosts
    fleet(one, "put", f"shared/{SEGMENT}/web", ONE)
    fleet(one, "put", f"shared/{SEGMENT}/mail", TWO, "--host", "h1", "--host", "h3", "--failback")
    lan.await_holders(lambda found: found.get("mail") == "h1" and "web" in found, "nobody holds it")
    for target in (two, three, one):
        text = fleet(three, "move", f"{SEGMENT}/web", target.name).stdout
        assert text.startswith(f"{target.name} holds {SEGMENT}/web ({ONE})")
        assert lan.holders()["web"] == target.name
    text = fleet(two, "move", f"{SEGMENT}/mail", "h3").stdout  # failback does not undo it
    assert text.endswith(", h1 before\n")
    text = fleet(one, "drain").stdout
    assert re.fullmatch(r"h1 is drained: it holds nothing, 1 before; that took \d\.\d\d s\n", text)
    assert set(lan.holders().values()) <= {"h2", "h3"}
    assert (
        "h1 is drained\n  hint: ndxdp fleet undrain h1"
        in fleet(two, "move", f"{SEGMENT}/web", "h1", code=1).stderr
    )
    wait_until(
        lambda: "drained: it gives up all" in one.ndxdp("status").stdout,
        "status does not say it",
        10,
    )
    assert fleet(two, "undrain", "h1").stdout == "h1 may take shared addresses again\n"
    found = json.loads(fleet(two, "status", "--json").stdout)
    (segment,) = found["segments"]
    assert (segment["unheld"], segment["refused"], segment["warnings"]) == (0, [], [])
    assert [each["host"] for each in segment["members"]] == ["h1", "h2", "h3"]


def test_a_host_whose_lease_lapses_says_so(lan: Fleet) -> None:
    one, two, _ = lan.hosts
    fleet(one, "put", f"shared/{SEGMENT}/web", ONE, "--host", "h2")
    lan.await_holders(lambda found: found == {"web": "h2"}, "h2 does not hold the address")
    two.suspend()
    wait_until(lambda: "lapsed" in two.ndxdp("explain", ONE).stdout, "the lease does not lapse", 20)
    assert holder_line(two).startswith("the lease of this host has lapsed; ")
    assert json.loads(two.ndxdp("explain", ONE, "--json").stdout)["holder"]["lapsed"] is True
    problem = "none of its hosts is a member: h2"
    shows(one, f"nobody holds {SEGMENT}/web: {problem}")
    assert problem in fleet(one, "status").stdout
    assert "nobody answers for 1 of 1 shared addresses" in one.ndxdp("status").stdout
    text = fleet(one, "move", f"{SEGMENT}/web", "h2", code=1).stderr
    assert f"h2 is no live member of {SEGMENT}" in text


def test_a_host_that_is_stopped_does_not_hang_a_move(lan: Fleet) -> None:
    """Give up in time if the holder does not release the address, and withdraw the move."""
    one, two, _ = lan.hosts
    fleet(one, "put", f"shared/{SEGMENT}/web", ONE, "--host", "h2", "--host", "h3")
    lan.await_holders(lambda found: found == {"web": "h2"}, "h2 does not hold the address")
    two.suspend()
    text = fleet(one, "move", f"{SEGMENT}/web", "h3", "--timeout", "0.3", code=1).stderr
    assert f"{SEGMENT}/web was not moved within 0.3 s: h2 holds it" in text
    assert not lan.etcd.read("/ndxdp/v1/moves/")
    two.resume()
    text = fleet(one, "move", f"{SEGMENT}/web", "h3").stdout
    assert text.startswith(f"h3 holds {SEGMENT}/web")
