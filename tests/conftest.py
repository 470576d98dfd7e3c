"""Fixtures and markers of every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import private
from lab.etcd_member import encode
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.store.directories import Trees
from tests.fixtures import doctor, engine, etcd, features, network
from tests.fixtures import hostile as hostile_server
from tests.fixtures.deprecated import restored_network
from tests.fixtures.engine import Engine
from tests.fixtures.etcd import Cluster
from tests.fixtures.fake_engine import Fake
from tests.fixtures.fleet_commands import write_fleet_of_three
from tests.fixtures.learning_world import World
from tests.fixtures.network import Network
from tests.fixtures.proposing import Place, without_forwarding
from tests.fixtures.segment import Segment, segment
from tests.fixtures.traced import MODES, in_mode


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(feature): of the kernel, see fixtures/features.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that this kernel cannot run, before a fixture attaches a program for it."""
    features.check(item)


@pytest.fixture(scope="session")
def privacy() -> None:
    """Fail without root and private namespaces; no test is skipped for want of them."""
    if os.geteuid() != 0 or not private.inside():
        pytest.fail(
            "this test needs root and namespaces of its own: run `make test`", pytrace=False
        )


@pytest.fixture(scope="module")
def trees(privacy: None) -> Iterator[Trees]:
    """Return pins and files of the private file systems; fail if a test leaves one behind."""
    trees = Trees()
    yield trees
    assert trees.interfaces() == [], "a test left something behind"


@pytest.fixture
def wired(privacy: None) -> Iterator[Segment]:
    """Return a segment whose switch forwards every group."""
    with segment() as made:
        yield made


@pytest.fixture
def net() -> Iterator[Network]:
    """Return a router on one side of a veth, with this host on the other."""
    with network.network() as made:
        yield made


@pytest.fixture
def restored_net(privacy: None) -> Iterator[Network]:
    """Return the same network; restore at the end what a daemon changed of its addresses."""
    with restored_network() as made:
        yield made


@pytest.fixture
def end_host(net: Network) -> Iterator[Network]:
    """Return the same network, where this host does not forward; remove the links of the test."""
    with without_forwarding():
        yield net


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return the place of the files that `ndxdp init` writes."""
    return Place(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a configuration file that the test writes."""
    return tmp_path / "ndxdp.toml"


@pytest.fixture
def attached(net: Network) -> Iterator[Network]:
    """Return the same network, with ndxdp attached in tc mode and one rule."""
    network.done("attach", network.UPLINK, "--mode", "tc", "-n", network.BEHIND)
    yield net
    network.remove_instance()


@pytest.fixture(params=MODES)
def in_each_mode(request: pytest.FixtureRequest, net: Network) -> Iterator[Network]:
    """Return the same network, with ndxdp attached in each mode and one rule."""
    with in_mode(net, request.param):
        yield net


@pytest.fixture
def on_tc(net: Network) -> Iterator[Network]:
    """Return the same network, with ndxdp attached in tc mode; detach it at the end."""
    with in_mode(net, "tc"):
        yield net


@pytest.fixture(scope="module")
def docker_engine(privacy: None) -> Iterator[Engine]:
    """Return a real Docker engine with an image; it starts in 0.2 s, so each module has its own."""
    with engine.engine() as made:
        yield made


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    """Return a scripted engine."""
    made = Fake(tmp_path / "engine.sock")
    yield made
    made.close()


@pytest.fixture
def hostile(privacy: None) -> Iterator[tuple[Etcd, list[bytes]]]:
    """Return settings for a server that answers every request by the last of some bytes."""
    with hostile_server.hostile() as made:
        yield made


@pytest.fixture
def one(privacy: None, tmp_path: Path) -> Iterator[Cluster]:
    """Return a member of etcd."""
    with etcd.cluster(tmp_path / "etcd") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def started_member(privacy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a member of etcd for all tests of a module that do not stop it."""
    with etcd.cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def member(started_member: Cluster) -> Iterator[Cluster]:
    """Return that member, without keys."""
    yield started_member
    every = {"key": encode("/"), "range_end": encode("0")}
    started_member.call("/v3/kv/deleterange", every)


@pytest.fixture
def fleet_of_three(member: Cluster) -> Cluster:
    """Return that member, with the keys of three hosts that answer for shared addresses."""
    write_fleet_of_three(member)
    return member


@pytest.fixture
def world() -> World:
    """Return a share that has learned no host yet."""
    return World()


@pytest.fixture
def healthy(net: Network) -> Iterator[Network]:
    """Yield a host that forwards, with a static default route."""
    with doctor.healthy_host():
        yield net


@pytest.fixture
def answering(healthy: Network) -> Iterator[Network]:
    """Yield a healthy host with ndxdp at tc."""
    network.done("attach", network.UPLINK, "--mode", "tc", "-n", network.BEHIND)
    assert doctor.bad() == []
    yield healthy
    network.remove_instance()
