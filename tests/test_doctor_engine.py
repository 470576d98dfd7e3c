"""Doctor's findings on the ways in which a real Docker engine hands out IPv6."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp.doctor import engine
from ndxdp.doctor.engine import Facts, Network
from ndxdp.doctor.finding import Level
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import parse_prefix
from tests.fixtures.doctor import bad, conf, findings, follow, found_one
from tests.fixtures.engine import Engine
from tests.fixtures.network import BEHIND, GATEWAY, HOST, TARGET, UPLINK, done, remove_instance, sh
from tests.fixtures.network import Network as Net

ON_LINK = "2001:db8::/64"


@pytest.fixture
def host(
    net: Net, docker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """Yield the options that name the engine."""
    conf("forwarding", 1, "all")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{docker_engine.socket}")
    yield "--docker-socket", str(docker_engine.socket)
    docker_engine.clear()
    conf("forwarding", 0, "all")


def test_a_network_with_all_of_the_prefix(host: tuple[str, str], docker_engine: Engine) -> None:
    docker_engine.make_network("six", ON_LINK)
    docker_engine.run("web", "six")
    wrong = [each for each in bad(*host) if each["check"] == "engine"]
    (found,) = wrong
    assert found["what"] == f"the network six has {ON_LINK}, which is on-link on {UPLINK} as well"
    follow(found["cure"])
    assert [each for each in bad(*host) if each["check"] == "engine"] == []
    # Its containers are in a part of the prefix now, and need a responder.
    (subnet,) = (
        each["Subnet"]
        for each in docker_engine.ask("GET", "/networks/six")["IPAM"]["Config"]
        if ":" in each["Subnet"]
    )
    assert parse_prefix(subnet).length == 80
    found = found_one("containers", "for the containers of six", *host)
    try:
        follow(found["cure"])
        assert bad(*host) == []
        sh("ping", "-c1", "-W2", GATEWAY)
    finally:
        remove_instance()


def test_a_network_with_a_part_of_it(host: tuple[str, str], docker_engine: Engine) -> None:
    docker_engine.make_network("six", BEHIND)
    docker_engine.make_network("far", "fd00:77::/64")
    docker_engine.run("web", "six", address=TARGET)
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    try:
        assert bad(*host) == []
        assert [each for each in findings(*host) if each["check"] == "engine"] == []
    finally:
        remove_instance()


def test_a_network_without(host: tuple[str, str], docker_engine: Engine) -> None:
    docker_engine.make_network("four")
    docker_engine.run("db", "four")
    found = [each["what"] for each in findings(*host) if each["check"] == "engine"]
    assert found == ["the network four gives no IPv6 address to db: create it with --ipv6"]
    assert bad(*host) == []


# ---- settings that the engine of this test does not have -----------------------------------------


def facts(*networks: Network, **settings: object) -> Facts:
    taken = frozenset(map(parse_address, (HOST, GATEWAY)))
    return Facts("eth0", networks, (parse_prefix(ON_LINK),), taken, settings)


def test_the_default_network() -> None:
    default = Network("bridge", True, (parse_prefix(ON_LINK),), ("web",), ())
    (found,) = engine.judge(facts(default))
    assert found.level is Level.FAILURE
    assert "2001:db8:0:0:1::/80, as fixed-cidr-v6 in /etc/docker/daemon.json" in found.why
    assert found.cure == "systemctl restart docker"
    none = Network("bridge", False, (), ("web", "db"), ("db", "web"))
    (found,) = engine.judge(facts(none))
    assert found.what == (
        "the network bridge gives no IPv6 address to db and 1 more:"
        " ipv6 and fixed-cidr-v6 in /etc/docker/daemon.json"
    )


def test_settings_apply_to_the_default_network_only() -> None:
    four = Network("four", False, (), ("db",), ("db",))
    (found,) = engine.judge(facts(four, ipv6=True))
    assert found.what.endswith("is for the default network only; create it with --ipv6")


def test_a_part_that_is_free() -> None:
    used = Network("six", True, (parse_prefix("2001:db8:0:0:1::/80"),), (), ())
    whole = Network("all", True, (parse_prefix("2001:db8::/32"),), (), ())
    (found,) = engine.judge(facts(used, whole))
    assert found.cure == (
        "docker network rm all && docker network create --ipv6 --subnet 2001:db8:0:0:2::/80 all"
    )


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        (None, ""),
        ('{"ipv6": true}', ""),
        ("{'ipv6': true}", "no JSON (Expecting property name"),
        ("[]", "no JSON object"),
    ],
)
def test_settings(tmp_path: Path, text: str | None, trouble: str) -> None:
    file = tmp_path / "daemon.json"
    if text is not None:
        file.write_text(text)
    settings, broken = engine._settings(file)
    assert broken.startswith(trouble)
    assert bool(broken) == bool(trouble)
    assert settings == (json.loads(text) if text and not trouble else {})
