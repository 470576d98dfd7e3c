"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lab import private
from ndxdp.store.directories import Trees
from tests.fixtures import engine, features, network
from tests.fixtures.engine import Engine
from tests.fixtures.network import Network


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(feature): of the kernel, see fixtures/features.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture attaches a program that this kernel does not take."""
    features.check(item)


@pytest.fixture(scope="session")
def privacy() -> None:
    """Namespaces of our own, as root. Missing, this fails: it skips no test."""
    if os.geteuid() != 0 or not private.inside():
        pytest.fail("this needs root and namespaces of its own: make test", pytrace=False)


@pytest.fixture(scope="module")
def trees(privacy: None) -> Iterator[Trees]:
    """Pins and files of the private file systems, which must be empty again afterwards."""
    trees = Trees()
    yield trees
    assert trees.interfaces() == [], "a test left something behind"


@pytest.fixture
def net() -> Iterator[Network]:
    """A router on one side of a veth, this host on the other."""
    with network.network() as made:
        yield made


@pytest.fixture
def attached(net: Network) -> Iterator[Network]:
    """The same, attached in tc mode, with one rule."""
    network.done("attach", network.UPLINK, "--mode", "tc", "-n", network.BEHIND)
    yield net
    network.take_off()


@pytest.fixture(scope="module")
def docker_engine(privacy: None) -> Iterator[Engine]:
    """A real Docker engine with an image. It is up after 0.2 s, so each module has its own."""
    with engine.engine() as made:
        yield made
