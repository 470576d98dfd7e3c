"""`ndxdp fleet move` and `drain`, against a cluster of etcd and simulated daemons."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.fixtures.etcd import Cluster
from tests.fixtures.fleet_commands import (
    MAIL,
    ROOT,
    URL,
    WEB,
    did,
    fleet,
    held,
    keys,
    members,
    put,
    refused,
    remove,
)
from tests.fixtures.network import NDXDP, eventually, ndxdp


class Daemons:
    """A thread that does what all daemons do: it follows moves, and empties drained hosts."""

    def __init__(self, cluster: Cluster, takers: tuple[str, ...] = ()) -> None:
        self._cluster, self._takers, self._ended = cluster, takers, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._look()

    def _look(self) -> None:
        there = keys(self._cluster)
        for key, value in there.items():
            kind, _, rest = key.partition("/")
            if kind == "moves":
                holder = {"host": json.loads(value)["host"], "since": time.time(), "moved": True}
                self._cluster.put_all({f"holders/{rest}": holder}, ROOT)
                remove(self._cluster, key)
            if kind == "holders" and f"drained/{json.loads(value)['host']}" in there:
                others = [each for each in self._takers if f"drained/{each}" not in there]
                if others:
                    self._cluster.put_all({key: {"host": others[0], "since": time.time()}}, ROOT)
                else:
                    remove(self._cluster, key)


# ---- status and list -----------------------------------------------------------------------------


# ---- move ----------------------------------------------------------------------------------------


def test_move(member: Cluster) -> None:
    members(member, "h1", "h2")
    did("put", "shared/vlan7/web", WEB, "--host", "h1", "--host", "h2", "--failback")
    did("put", "shared/vlan7/mail", MAIL)
    held(member, "h1", "web")
    with Daemons(member):
        text = did("move", "vlan7/web", "h2")
        assert text.startswith(f"h2 holds vlan7/web ({WEB}) after ")
        assert text.endswith(" s, h1 before\n")
        text = did("move", "shared/vlan7/mail", "h1")
        assert text.endswith(", nobody before\n")
    assert json.loads(keys(member)["holders/vlan7/web"])["host"] == "h2"
    assert did("move", "vlan7/web", "h2") == f"h2 holds vlan7/web ({WEB}) already\n"
    assert keys(member, "moves/") == {}
    assert member.call("/v3/lease/leases", {}).get("leases", []) == []


def test_a_move_that_nobody_does_leaves_nothing_behind(member: Cluster) -> None:
    members(member, "h1", "h2")
    did("put", "shared/vlan7/web", WEB)
    held(member, "h1", "web")
    text = refused(1, "move", "vlan7/web", "h2", "--timeout", "0.2")
    assert "vlan7/web was not moved within 0.2 s: h1 holds it" in text
    assert keys(member, "moves/") == {}
    assert member.call("/v3/lease/leases", {}).get("leases", []) == []
    remove(member, "holders/vlan7/web")
    text = refused(1, "move", "vlan7/web", "h2", "--timeout", "0.2")
    assert "was not moved within 0.2 s: nobody holds it: " in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_move_is_withdrawn(member: Cluster, number: int) -> None:
    members(member, "h1", "h2")
    did("put", "shared/vlan7/web", WEB)
    held(member, "h1", "web")
    words = ["fleet", "move", "--endpoint", URL, "vlan7/web", "h2"]
    mover = subprocess.Popen([*NDXDP, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    eventually(lambda: keys(member, "moves/"))
    mover.send_signal(number)
    out, err = mover.communicate(timeout=30)
    assert (mover.returncode, out, err.strip()) == (130, b"", b"")
    assert keys(member, "moves/") == {}
    assert member.call("/v3/lease/leases", {}).get("leases", []) == []


def test_an_address_that_goes_while_it_is_moved(member: Cluster) -> None:
    members(member, "h1", "h2")
    did("put", "shared/vlan7/web", WEB)
    held(member, "h1", "web")
    found: list[str] = []
    mover = threading.Thread(
        target=lambda: found.append(refused(1, "move", "vlan7/web", "h2", "--timeout", "1"))
    )
    mover.start()
    eventually(lambda: keys(member, "moves/"))
    assert "is just being moved to h2" in refused(1, "move", "vlan7/web", "h2")
    remove(member, "shared/vlan7/web", "members/vlan7/h2")
    mover.join()
    assert "its key was deleted meanwhile" in found[0]
    assert "hint: h2 is no member any more" in found[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("vlan7/none", "h1"), "there is no shared address vlan7/none\n  hint: some of its"),
        (("other/web", "h1"), "there is no shared address other/web\n  hint: its segment has none"),
        (("vlan7/broken", "h1"), "shared/vlan7/broken is refused: "),
        (("vlan7/web2", "h1"), f"shared/vlan7/web2 is refused: web has {WEB} already"),
        (("vlan7/web", "h10"), "h10 is not one of the hosts of vlan7/web: h1, h2\n  hint: add it:"),
        (
            ("vlan7/mail", "h7"),
            "h7 is no live member of vlan7\n  hint: its members are h1, h2, h10",
        ),
        (("vlan7/lost", "h7"), "h7 is no live member of vlan7"),
        (("vlan7/mail", "h2"), "h2 is drained\n  hint: ndxdp fleet undrain h2"),
        (("vlan7/web", "h2"), "h2 is drained"),
    ],
)
def test_an_impossible_move_is_refused(
    fleet_of_three: Cluster, words: tuple[str, str], sentence: str
) -> None:
    before = fleet_of_three.revision()
    assert sentence in refused(1, "move", *words)
    assert fleet_of_three.revision() == before


def test_the_words_of_a_move(privacy: None) -> None:
    assert "'web' is not the name of a shared address" in refused(2, "move", "web", "h1")
    assert "is not the name of a host" in refused(2, "move", "vlan7/web", "h/1")
    assert "is not in the range" in refused(2, "move", "vlan7/web", "h1", "--timeout", "0")


# ---- drain ---------------------------------------------------------------------------------------


def test_drain_and_undrain(member: Cluster) -> None:
    members(member, "h1", "h2")
    for number in range(70):
        put(member, **{f"shared/vlan7/n{number}": {"prefix": f"2001:db8::{number:x}"}})
    held(member, "h1", *(f"n{number}" for number in range(70)))
    with Daemons(member, takers=("h1", "h2")):
        text = did("drain", "h1")
    assert text.startswith("h1 is drained: it holds nothing, 70 before; that took ")
    assert list(keys(member, "drained/")) == ["drained/h1"]
    assert did("drain", "h1") == "h1 is drained: it holds nothing\n"
    assert did("undrain", "h1") == "h1 may take shared addresses again\n"
    assert keys(member, "drained/") == {}
    assert did("undrain", "h1") == "h1 is not drained\n"


def test_drain_warns_about_what_nobody_takes(member: Cluster) -> None:
    members(member, "h1")
    for number in range(7):
        put(
            member,
            **{f"shared/vlan7/n{number}": {"prefix": f"2001:db8::{number:x}", "hosts": ["h1"]}},
        )
    held(member, "h1", *(f"n{number}" for number in range(7)))
    with Daemons(member):
        found = fleet("drain", "h1")
    assert found.code == 0
    assert found.err.splitlines() == [
        *(
            f"ndxdp: nobody holds vlan7/n{number} (2001:db8::{number or ''}):"
            " all of its hosts that are members are drained: h1"
            for number in range(5)
        ),
        "ndxdp: nobody holds 2 more: ndxdp fleet status",
    ]


def test_a_host_that_does_not_let_go(member: Cluster) -> None:
    members(member, "h1")
    did("put", "shared/vlan7/web", WEB)
    held(member, "h1", "web")
    text = refused(1, "drain", "h1", "--timeout", "0.2")
    assert "h1 still holds 1, and has given up none for 0.2 s: vlan7/web" in text
    assert "it stays drained until: ndxdp fleet undrain h1" in text
    assert list(keys(member, "drained/")) == ["drained/h1"]


def test_a_host_that_gives_up_one_after_another_is_waited_for(member: Cluster) -> None:
    """Let draining take longer than the timeout, which counts from the last address on."""
    members(member, "h1")
    names = [f"n{number}" for number in range(8)]
    held(member, "h1", *names)

    def give_up() -> None:
        for name in names:
            time.sleep(0.5)
            remove(member, f"holders/vlan7/{name}")

    giving = threading.Thread(target=give_up)
    giving.start()
    text = did("drain", "h1", "--timeout", "3")
    giving.join()
    found = re.fullmatch(r"h1 is drained: it holds nothing, 8 before; that took (.*) s\n", text)
    assert found
    assert float(found[1]) > 3


def test_this_host_is_the_default(member: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[etcd]\nendpoints = ["{URL}"]\nhost = "h7"\n[[interface]]\nname = "eth0"\n'
        '[[interface.etcd]]\nsegment = "vlan7"\n'
    )
    found = ndxdp("fleet", "drain", "-c", str(file))
    assert (found.code, found.out) == (0, "h7 is drained: it holds nothing\n")
    assert found.err == "ndxdp: h7 is no member of any segment now\n"
    assert ndxdp("fleet", "undrain", "-c", str(file)).out == "h7 may take shared addresses again\n"
    own = socket.gethostname()
    assert did("undrain") == f"{own} is not drained\n"
