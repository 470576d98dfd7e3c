"""Docker's networks: the selection of endpoints, and a real engine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ndxdp.errors import UsageError
from ndxdp.ndp.frame import source_of
from ndxdp.ndp.profile import NaSource, Profile
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.rules.rule import Rule
from ndxdp.sources import docker
from ndxdp.sources.answers import Endpoint
from ndxdp.sources.selector import Selector, label_keys, rules_of
from tests.fixtures.engine import Engine
from tests.fixtures.network import BEHIND, HOST_MAC, UPLINK, Network, eventually, ndxdp
from tests.fixtures.network import rules as listed
from tests.fixtures.watching import Watching, endpoint, watching

# ---- selection -----------------------------------------------------------------------------------


def picked(endpoints: list[Endpoint], *selectors: Selector) -> dict[str, str]:
    """Return address and label of each rule."""
    return {str(prefix): rule.label for prefix, rule in rules_of(endpoints, selectors).items()}


def test_a_rule_is_an_exact_address() -> None:
    profile = Profile(source=NaSource.LINK_LOCAL)
    made = rules_of([endpoint("2001:db8::2")], [Selector(network="six", profile=profile)])
    rule = Rule(origin="docker", label="six", dynamic=True, profile=profile)
    assert made == {Prefix(parse_address("2001:db8::2"), 128): rule}


def test_by_network() -> None:
    endpoints = [endpoint("2001:db8::2"), endpoint("2001:db8::3", network="seven")]
    assert picked(endpoints, Selector(network="six")) == {"2001:db8::2": "six"}
    assert picked(endpoints) == {}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("ndxdp", {"2001:db8::2", "2001:db8::3"}),
        ("ndxdp=yes", {"2001:db8::2"}),
        ("ndxdp=", {"2001:db8::3"}),
        ("ndx", set()),
        ("ndxdp=y", set()),
    ],
)
def test_by_label(wanted: str, found: set[str]) -> None:
    labels: list[dict[str, str]] = [{"a": "b", "ndxdp": "yes"}, {"ndxdp": ""}, {"a": "ndxdp"}]
    by_container = [endpoint(f"2001:db8::{i}", labels=own) for i, own in enumerate(labels, 2)]
    by_network = [endpoint(f"2001:db8::{i}", network_labels=own) for i, own in enumerate(labels, 2)]
    text = f"container:{wanted}"
    assert picked(by_container, Selector(container_label=wanted)) == dict.fromkeys(found, text)
    assert picked(by_container, Selector(network_label=wanted)) == {}
    text = f"network:{wanted}"
    assert picked(by_network, Selector(network_label=wanted)) == dict.fromkeys(found, text)
    assert picked(by_network, Selector(container_label=wanted)) == {}


def test_by_prefix() -> None:
    endpoints = [
        endpoint("2001:db8:0:1:c::2"),
        endpoint("2001:db8:0:1:d::2", subnets=("2001:db8:0:1:d::/80", "2001:db8:0:1:c::/80")),
        endpoint("2001:db8:0:1:c::3", subnets=("2001:db8:0:1::/64",)),
        endpoint("2001:db8:0:1:c::4", subnets=()),
    ]
    within = Selector(within=parse_prefix("2001:db8:0:1:c::/80"))
    assert picked(endpoints, within) == {"2001:db8:0:1:c::2": "2001:db8:0:1:c::/80"}
    wide = Selector(within=parse_prefix("2001:db8::/32"))
    assert len(picked(endpoints, wide)) == 3
    assert picked(endpoints, Selector(within=parse_prefix("2001:db8:0:2::/64"))) == {}


def test_opting_out() -> None:
    endpoints = [
        endpoint("2001:db8::2"),
        endpoint("2001:db8::3", labels={"hidden": "1"}),
        endpoint("2001:db8::4", network_labels={"hidden": "0"}),
    ]
    out = Selector(network="six", except_label="hidden")
    assert picked(endpoints, out) == {"2001:db8::2": "six"}
    out = Selector(network="six", except_label="hidden=1")
    assert set(picked(endpoints, out)) == {"2001:db8::2", "2001:db8::4"}
    # It is excluded from one selector, not from all.
    everything = Selector(within=parse_prefix("2001:db8::/32"))
    assert len(picked([endpoint("2001:db8::3", labels={"hidden": ""})], out, everything)) == 1


def test_the_first_selector_wins_whatever_the_order_of_the_set() -> None:
    twice = [endpoint("2001:db8::2", "b", "six"), endpoint("2001:db8::2", "a", "seven")]
    first, second = Selector(network="six"), Selector(network="seven")
    for order in (twice, twice[::-1]):
        assert picked(order, first, second) == {"2001:db8::2": "six"}
        assert picked(order, second, first) == {"2001:db8::2": "seven"}


def test_a_selectors_rules_are_counted_together() -> None:
    endpoints = [endpoint(f"2001:db8::{i:x}") for i in range(2, 102)]
    made = rules_of(endpoints, [Selector(within=parse_prefix("2001:db8::/32"))])
    assert len(made) == 100
    assert len({id(rule) for rule in made.values()}) == 1


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"network": "six", "container_label": "a"},
        {"network": ""},
        {"container_label": "=b"},
        {"network": "six", "except_label": ""},
    ],
)
def test_invalid_selectors(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Selector(**words)


def test_labels_that_matter() -> None:
    selectors = [
        Selector(network="six", except_label="a"),
        Selector(network_label="b=c"),
        Selector(container_label="d"),
    ]
    assert label_keys(selectors) == {"a", "b", "d"}


# ---- a watcher, and a scripted engine ------------------------------------------------------------


@pytest.fixture
def states(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the levels of the logged lines: one for each change of state."""
    caplog.set_level(logging.INFO, docker.__name__)
    return lambda: [record.levelname for record in caplog.records if record.name == docker.__name__]


# ---- a real engine -------------------------------------------------------------------------------


SIX, SEVEN = "2001:db8:0:1:c::/80", "2001:db8:0:1:d::/80"


@pytest.fixture
def live(docker_engine: Engine) -> Iterator[tuple[Engine, Watching]]:
    """Yield an engine without containers, and a watcher that has listed it."""
    with watching(docker_engine.socket) as watcher:
        watcher.becomes({})
        yield docker_engine, watcher
        docker_engine.clear()
        watcher.becomes({})


def test_real_start_connect_disconnect_kill(live: tuple[Engine, Watching]) -> None:
    engine, watcher = live
    engine.make_network("six", "172.30.6.0/24", SIX, labels={"ndxdp": "yes"})
    engine.make_network("seven", "172.30.7.0/24", SEVEN)
    engine.make_network("four", "172.30.4.0/24")
    engine.run("web", "six", address="2001:db8:0:1:c::10", labels={"tier": "front"})
    watcher.becomes({"2001:db8:0:1:c::10": "six"})
    (one,) = watcher.sets[-1]
    labels = {"container": {"tier": "front"}, "network": {"ndxdp": "yes"}}
    assert one == endpoint(
        "2001:db8:0:1:c::10", "web", labels=labels["container"], network_labels=labels["network"]
    )

    engine.run("old", "four")
    engine.connect("web", "seven", address="2001:db8:0:1:d::11")
    both = {"2001:db8:0:1:c::10": "six", "2001:db8:0:1:d::11": "seven"}
    watcher.becomes(both)
    engine.disconnect("web", "six")
    watcher.becomes({"2001:db8:0:1:d::11": "seven"})
    engine.connect("web", "six", address="2001:db8:0:1:c::10")
    watcher.becomes(both)

    engine.ask("POST", "/containers/web/pause")
    time.sleep(0.7)
    assert watcher.addresses() == both  # yet its addresses are in its network namespace
    engine.ask("POST", "/containers/web/unpause")

    engine.ask("POST", "/containers/web/kill")
    watcher.becomes({})
    engine.ask("POST", "/containers/web/start")
    watcher.becomes(both)
    engine.ask("POST", "/containers/web/rename", name="shop")
    eventually(lambda: {one.container for one in watcher.sets[-1]} == {"shop"})
    engine.ask("DELETE", "/containers/shop", force="1")
    watcher.becomes({})


def test_real_labels_and_prefixes(live: tuple[Engine, Watching]) -> None:
    engine, watcher = live
    engine.make_network("six", "172.30.6.0/24", SIX, labels={"expose": "yes"})
    engine.make_network("seven", "172.30.7.0/24", SEVEN)
    engine.run("plain", "six", address="2001:db8:0:1:c::10")
    engine.run("secret", "six", address="2001:db8:0:1:c::11", labels={"hidden": ""})
    engine.run("asked", "seven", address="2001:db8:0:1:d::12", labels={"expose": "yes"})
    eventually(lambda: len(watcher.sets[-1]) == 3)
    found = list(watcher.sets[-1])

    assert picked(found, Selector(network="seven")) == {"2001:db8:0:1:d::12": "seven"}
    opted_in = picked(found, Selector(container_label="expose=yes"))
    assert opted_in == {"2001:db8:0:1:d::12": "container:expose=yes"}
    opted_out = picked(found, Selector(network_label="expose", except_label="hidden"))
    assert opted_out == {"2001:db8:0:1:c::10": "network:expose"}
    within = picked(found, Selector(within=parse_prefix(SIX)))
    assert within == {"2001:db8:0:1:c::10": SIX, "2001:db8:0:1:c::11": SIX}
    assert len(picked(found, Selector(within=parse_prefix("2001:db8:0:1::/64")))) == 3


def test_real_burst(live: tuple[Engine, Watching]) -> None:
    engine, watcher = live
    engine.make_network("six", "172.30.6.0/24", SIX)
    addresses = [f"2001:db8:0:1:c::{number:x}" for number in range(0x10, 0x16)]
    for number, address in enumerate(addresses):
        engine.run(f"web{number}", "six", address=address)
    watcher.becomes(dict.fromkeys(addresses, "six"))
    for number in range(len(addresses)):
        engine.ask("POST", f"/containers/web{number}/kill")
    watcher.becomes({})


def test_real_engine_killed_and_restarted(
    live: tuple[Engine, Watching], states: Callable[[], list[str]]
) -> None:
    engine, watcher = live
    engine.make_network("six", "172.30.6.0/24", SIX)
    engine.run("web", "six", address="2001:db8:0:1:c::10")
    watcher.becomes({"2001:db8:0:1:c::10": "six"})
    seen = len(watcher.sets)

    engine.kill()
    eventually(lambda: not watcher.docker.connected)
    time.sleep(0.5)
    assert len(watcher.sets) == seen  # the container is still running, and its rule is kept
    engine.launch()
    eventually(lambda: watcher.docker.connected, within=20)
    # An engine that finds running containers ends them, unless live-restore is set.
    watcher.becomes({}, within=20)
    engine.ask("POST", "/containers/web/start")
    watcher.becomes({"2001:db8:0:1:c::10": "six"})
    assert states().count("WARNING") == 1


def test_real_engine_that_comes_after_the_watcher(docker_engine: Engine) -> None:
    engine = docker_engine
    engine.make_network("six", "172.30.6.0/24", SIX)
    engine.kill(15)
    assert not os.path.exists(engine.socket)
    with watching(engine.socket) as watcher:
        time.sleep(1)
        assert watcher.sets == []
        engine.launch()
        watcher.becomes({}, within=20)
        engine.run("web", "six", address="2001:db8:0:1:c::10")
        watcher.becomes({"2001:db8:0:1:c::10": "six"})
        engine.clear()
        watcher.becomes({})


# ---- `ndxdp run -i IFACE -N NETWORK`, as ndpresponder is called ----------------------------------


@pytest.mark.parametrize(
    ("words", "announced"), [((), True), (("--announce",), True), (("--no-announce",), False)]
)
def test_real_run_announces_a_new_container(
    net: Network, docker_engine: Engine, words: tuple[str, ...], announced: bool
) -> None:
    """Announce a container, so that the router learns its address without a solicitation."""
    engine, address = docker_engine, "2001:db8::c:0:0:10"
    engine.make_network("exposed", "172.30.6.0/24", BEHIND)
    try:
        run = net.run("-i", UPLINK, "-N", "exposed", "--docker-socket", str(engine.socket), *words)
        with net.advertisements() as heard:
            engine.run("new", "exposed", address=address)
            eventually(lambda: address in listed(), within=10)
            eventually(lambda: is_known(net, address) or not announced)
            time.sleep(0.3)
        assert is_known(net, address) is announced
        from_it = [frame for frame in heard if source_of(frame) == parse_address(address)]
        assert bool(from_it) is announced
        assert run.end()[:2] == (0, "")
    finally:
        engine.clear()


def is_known(net: Network, address: str) -> bool:
    return HOST_MAC in net.at_router("ip", "-6", "neighbour", "show", address).out


@pytest.mark.parametrize(("words", "announced"), [((), False), (("--announce",), True)])
def test_run_announces_its_own_addresses_on_request(
    net: Network, words: tuple[str, ...], announced: bool
) -> None:
    address = "2001:db8::c:0:0:11"
    run = net.run("-i", UPLINK, "-n", address, *words)
    eventually(lambda: is_known(net, address) or not announced)
    time.sleep(0.3)
    assert is_known(net, address) is announced
    assert run.end()[:2] == (0, "")


def test_run_with_a_socket_that_cannot_be(net: Network) -> None:
    refusal = ndxdp("run", "-i", UPLINK, "-N", "x", "--docker-socket", "run/docker.sock")
    assert (refusal.code, refusal.out) == (2, "")
    assert "'run/docker.sock' is not the path of a unix socket" in refusal.err


@pytest.mark.parametrize(
    "words", [("--docker-socket", "/x"), ("--announce",), ("--paused",), ("--mode", "tc")]
)
def test_the_file_excludes_options(tmp_path: Path, words: list[str]) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text('[[interface]]\nname = "nowhere0"\n')
    refusal = ndxdp("run", "-c", str(file), *words)
    assert refusal.code == 2
    assert f"-c FILE cannot be combined with other options: {words[0]}" in refusal.err
