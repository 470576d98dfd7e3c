"""IPv6 in Docker or Podman: settings of its daemon, networks, and containers without IPv6."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ndxdp.doctor.finding import Finding, failure, note, warning
from ndxdp.errors import UsageError
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.rules.prefix import Prefix, free_part
from ndxdp.sources.answers import networks_of
from ndxdp.sources.http import NoAnswer, get

_WITHIN = 1.0  # seconds for the engine to answer both requests
_DEFAULT = "bridge"
"""Docker's default network, which its daemon creates by its settings."""

SETTINGS = Path("/etc/docker/daemon.json")


class Network(NamedTuple):
    """Network of the engine.

    Attributes:
        name: The name.
        ipv6: IPv6 is enabled.
        subnets: The IPv6 subnets.
        joined: The names of its running containers.
        without: The names of its running containers that have no IPv6 address there.
        driver: The driver, such as `bridge` or `macvlan`.
        internal: The network has no way out of the host.
        addresses: Name and IPv6 address of each running container that has one there.
    """

    name: str
    ipv6: bool
    subnets: tuple[Prefix, ...]
    joined: tuple[str, ...]
    without: tuple[str, ...]
    driver: str = "bridge"
    internal: bool = False
    addresses: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Networks of the engine, and prefixes of an interface.

    Attributes:
        interface: The interface.
        networks: The engine's networks.
        on_link: The prefixes of the interface's addresses.
        taken: Addresses that are in use there, 16 bytes each.
        settings: The content of daemon.json.
        broken: Why daemon.json could not be read; "" if it was, or does not exist.
    """

    interface: str
    networks: tuple[Network, ...]
    on_link: tuple[Prefix, ...]
    taken: frozenset[bytes]
    settings: Mapping[str, Any]
    broken: str = ""


def gather(
    interface: str,
    addresses: list[OwnAddress],
    gateways: Iterable[bytes],
    socket_path: str,
    file: Path = SETTINGS,
) -> Facts | None:
    """Read the engine's networks and settings.

    Return None if there is no engine, or it does not answer: the check of containers reports that.
    """
    if not os.access(socket_path, os.W_OK):
        return None
    try:
        networks = tuple(each for each in list_networks(socket_path) if each.driver == "bridge")
    except (NoAnswer, TimeoutError, ValueError):
        return None
    settings, broken = _settings(file)
    on_link = {
        Prefix.around(own.address, own.length)
        for own in addresses
        if not own.link_local and own.length < 128
    }
    taken = frozenset(own.address for own in addresses) | frozenset(gateways)
    return Facts(interface, networks, tuple(sorted(on_link)), taken, settings, broken)


def list_networks(socket_path: str) -> tuple[Network, ...]:
    """Return the networks of an engine, sorted by name.

    Raises:
        NoAnswer: The engine is not reachable, or answers with an error.
        TimeoutError: The engine does not answer.
        ValueError: The answer has another form.
    """
    try:
        return asyncio.run(_networks(socket_path))
    except (UsageError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


async def _networks(socket_path: str) -> tuple[Network, ...]:
    async with asyncio.timeout(_WITHIN):
        networks = await _get(socket_path, "/networks")
        containers = await _get(socket_path, "/containers/json")
    joined: dict[str, list[tuple[str, str]]] = {}
    for container in containers:
        name = next(iter(container.get("Names") or ["?"])).removeprefix("/")
        for network, endpoint in (container["NetworkSettings"]["Networks"] or {}).items():
            address = endpoint.get("GlobalIPv6Address") or ""
            joined.setdefault(network, []).append((name, address))
    return tuple(
        Network(
            found.name,
            bool(answer.get("EnableIPv6")),
            found.subnets,
            tuple(sorted(name for name, _ in joined.get(found.name, ()))),
            tuple(sorted(name for name, has in joined.get(found.name, ()) if not has)),
            str(answer.get("Driver")),
            bool(answer.get("Internal")),
            tuple(sorted(each for each in joined.get(found.name, ()) if each[1])),
        )
        for answer in sorted(networks, key=lambda network: str(network.get("Name")))
        for found in networks_of(answer, ())
    )


async def _get(socket_path: str, target: str) -> Any:
    """Return the engine's answer to a request.

    Raises:
        ValueError: The answer is no list of objects.
    """
    async with get(socket_path, target, timeout=_WITHIN, silence=_WITHIN) as response:
        pieces = []
        while piece := await response.read():
            pieces.append(piece)
    answer = json.loads(b"".join(pieces))
    if not isinstance(answer, list) or not all(isinstance(each, dict) for each in answer):
        raise ValueError(target)
    return answer


def _settings(file: Path) -> tuple[Mapping[str, Any], str]:
    try:
        settings = json.loads(file.read_text())
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, error.strerror or str(error)
    except ValueError as error:
        return {}, f"no JSON ({error})"
    return (settings, "") if isinstance(settings, dict) else ({}, "no JSON object")


def judge(facts: Facts) -> list[Finding]:
    """Return findings about the engine's settings, and about each of its networks."""
    found = []
    if facts.broken:
        found.append(
            warning(
                f"{SETTINGS}: {facts.broken}",
                "Docker does not start with this file",
                f"python3 -m json.tool {SETTINGS}",
            )
        )
    for network in facts.networks:
        found += _overlap(facts, network)
        if network.without and not network.ipv6:
            found.append(_without(facts, network))
    return found


def _overlap(facts: Facts, network: Network) -> list[Finding]:
    for subnet in network.subnets:
        for on_link in facts.on_link:
            if subnet.length > on_link.length:
                continue
            if Prefix.around(on_link.address, subnet.length) == subnet:
                return [_both(facts, network, subnet, on_link)]
    return []


def _both(facts: Facts, network: Network, subnet: Prefix, on_link: Prefix) -> Finding:
    part = _free_part(facts, on_link)
    what = f"the network {network.name} has {subnet}, which is on-link on {facts.interface} as well"
    why = (
        "the kernel has two routes to the same addresses, and uses one: either the gateway or the"
        f" containers are unreachable. Give the containers a part of the prefix: {part}"
    )
    if network.name == _DEFAULT:
        return failure(
            f"{what}", f"{why}, as fixed-cidr-v6 in {SETTINGS}", "systemctl restart docker"
        )
    steps = [f"docker network disconnect -f {network.name} {name}" for name in network.joined]
    steps.append(f"docker network rm {network.name}")
    steps.append(f"docker network create --ipv6 --subnet {part} {network.name}")
    steps += [f"docker network connect {network.name} {name}" for name in network.joined]
    return failure(
        what, f"{why}. Repeat the network's labels and options in `create`", " && ".join(steps)
    )


def _free_part(facts: Facts, on_link: Prefix) -> Prefix:
    subnets = (subnet for network in facts.networks for subnet in network.subnets)
    return free_part(on_link, facts.taken, subnets) or on_link


def _without(facts: Facts, network: Network) -> Finding:
    names = network.without
    some = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
    if network.name == _DEFAULT:
        hint = f"ipv6 and fixed-cidr-v6 in {SETTINGS}"
    elif facts.settings.get("ipv6"):
        hint = f"ipv6 in {SETTINGS} is for the default network only; create it with --ipv6"
    else:
        hint = "create it with --ipv6"
    return note(f"the network {network.name} gives no IPv6 address to {some}: {hint}")
