"""Parser of a container engine's answers: from JSON objects to endpoints. Pure.

Podman's Docker-compatible API has the same objects, but a container's NetworkID is the network's
name. Every function raises ValueError or UsageError for an object of another shape.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

from ndxdp.ndp.address import LOOPBACK, UNSPECIFIED
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import Prefix, mask

Labels = tuple[tuple[str, str], ...]
"""Keys and values, sorted."""

_ID_MAX = 128  # characters; ids have 64


class Endpoint(NamedTuple):
    """An address of a running container.

    Attributes:
        address: 16 bytes.
        container: The name of the container.
        network: The name of the network.
        container_labels: The labels of the container.
        network_labels: The labels of the network.
        subnets: The IPv6 subnets of the network.
    """

    address: bytes
    container: str
    network: str
    container_labels: Labels
    network_labels: Labels
    subnets: tuple[Prefix, ...]


class Network(NamedTuple):
    """A network of the engine, with its labels and IPv6 subnets."""

    id: str
    name: str
    labels: Labels
    subnets: tuple[Prefix, ...]


class Listed(NamedTuple):
    """An endpoint in a list of containers, with the ids that the list has.

    Attributes:
        container_id: The id of the container.
        network_id: The id of the network; its name in Podman's lists.
        endpoint: The endpoint.
    """

    container_id: str
    network_id: str
    endpoint: Endpoint


_NONE = Network("", "", (), ())


def endpoints_of(
    container: dict[str, Any], networks: Mapping[str, Network], keys: Container[str] | None
) -> Iterator[Listed]:
    """Yield the endpoints in an element of /containers/json.

    Args:
        container: The element.
        networks: The networks by id and by name; an unknown one has no labels and no subnets.
        keys: The keys of the labels to keep; None for all.
    """
    container_id = _text(container.get("Id"))
    if not container_id:
        raise ValueError("a container without an id")
    names = [name.removeprefix("/") for name in _texts(container.get("Names"))]
    # A name with a / inside is a link: an alias within another container.
    name = next((name for name in names if "/" not in name), "")
    labels = _labels(container.get("Labels"), keys)
    settings = _mapping(container.get("NetworkSettings"))
    for title, entry in _mapping(settings.get("Networks")).items():
        joined = _mapping(entry)
        address = _target(_text(joined.get("GlobalIPv6Address")))
        if address is not None:
            network_id = _text(joined.get("NetworkID"))
            network = networks.get(network_id) or networks.get(title) or _NONE
            endpoint = Endpoint(address, name, title, labels, network.labels, network.subnets)
            yield Listed(container_id, network_id, endpoint)


def networks_of(network: dict[str, Any], keys: Container[str] | None) -> Iterator[Network]:
    """Yield the network in an element of /networks, with its labels of these keys; None for all."""
    configured = _mapping(network.get("IPAM")).get("Config") or []
    if not isinstance(configured, list):
        raise ValueError("IPAM.Config")
    texts = [_text(_mapping(entry).get("Subnet")) for entry in configured]
    subnets = tuple(_subnet(text) for text in texts if ":" in text)
    labels = _labels(network.get("Labels"), keys)
    yield Network(_text(network.get("Id")), _text(network.get("Name")), labels, subnets)


def container_of(event: Mapping[str, Any]) -> str | None:
    """Return the id of the container that an event is about; None if the event names none.

    Docker's events of a network name the container in an attribute. Podman's do not.
    """
    actor = event.get("Actor")
    if not isinstance(actor, dict):
        return None
    found = actor.get("ID")
    if event.get("Type") != "container":
        attributes = actor.get("Attributes")
        found = attributes.get("container") if isinstance(attributes, dict) else None
    return found if isinstance(found, str) and 0 < len(found) <= _ID_MAX else None


def _target(text: str) -> bytes | None:
    """Return an address as 16 bytes; None if it is empty, link-local, or not a unicast address."""
    if not text:
        return None
    address = parse_address(text.partition("/")[0])
    link_local = mask(address, 10) == b"\xfe\x80" + bytes(14)
    unusable = address[0] == 0xFF or link_local or address in (UNSPECIFIED, LOOPBACK)
    return None if unusable else address


def _subnet(text: str) -> Prefix:
    """Return a subnet, with its host bits cleared."""
    address, _, length = text.partition("/")
    if not (length.isascii() and length.isdecimal() and len(length) <= 3 and int(length) <= 128):
        raise ValueError(f"subnet {text[:50]}")
    return Prefix.around(parse_address(address), int(length))


def versions(answer: dict[str, Any]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the newest and the oldest API version that the engine supports, from /version."""
    yield _number(answer.get("ApiVersion")), _number(answer.get("MinAPIVersion"))


def _number(value: object) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", _text(value), re.ASCII)
    if found is None:
        raise ValueError("not a version")
    return int(found[1]), int(found[2])


def _labels(value: object, keys: Container[str] | None) -> Labels:
    return tuple(
        sorted(
            (sys.intern(key), _text(text))
            for key, text in _mapping(value).items()
            if keys is None or key in keys
        )
    )


def _mapping(value: object) -> dict[str, Any]:
    """Return an object; Go may write an empty one as null."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return [_text(text) for text in value]


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value
