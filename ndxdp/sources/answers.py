"""What a container engine answers: objects of its JSON in, endpoints out. Pure.

Podman's Docker-compatible API says the same, but a container's NetworkID is the network's name.
Everything here raises ValueError or UsageError for what does not have the shape it should.
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


class Endpoint(NamedTuple):
    """One address of a running container.

    address: 16 bytes. container, network: their names. subnets: the network's IPv6 ones.
    """

    address: bytes
    container: str
    network: str
    container_labels: Labels
    network_labels: Labels
    subnets: tuple[Prefix, ...]


class Network(NamedTuple):
    id: str
    name: str
    labels: Labels
    subnets: tuple[Prefix, ...]


_NONE = Network("", "", (), ())


def endpoints_of(
    container: dict[str, Any], networks: Mapping[str, Network], keys: Container[str] | None
) -> Iterator[Endpoint]:
    """Of an element of /containers/json.

    networks: by id and by name; one that is not there has no labels and no subnets. keys: of the
    labels to keep, None for all.
    """
    names = [name.removeprefix("/") for name in _texts(container.get("Names"))]
    # A name with a / inside is another container's word for it, a link.
    name = next((name for name in names if "/" not in name), "")
    labels = _labels(container.get("Labels"), keys)
    settings = _mapping(container.get("NetworkSettings"))
    for title, said in _mapping(settings.get("Networks")).items():
        joined = _mapping(said)
        address = _target(_text(joined.get("GlobalIPv6Address")))
        if address is not None:
            network = networks.get(_text(joined.get("NetworkID"))) or networks.get(title) or _NONE
            yield Endpoint(address, name, title, labels, network.labels, network.subnets)


def networks_of(network: dict[str, Any], keys: Container[str] | None) -> Iterator[Network]:
    """Of an element of /networks: itself, with those of its labels that have these keys."""
    configured = _mapping(network.get("IPAM")).get("Config") or []
    if not isinstance(configured, list):
        raise ValueError("IPAM.Config")
    texts = [_text(_mapping(entry).get("Subnet")) for entry in configured]
    subnets = tuple(_subnet(text) for text in texts if ":" in text)
    labels = _labels(network.get("Labels"), keys)
    yield Network(_text(network.get("Id")), _text(network.get("Name")), labels, subnets)


def _target(text: str) -> bytes | None:
    """The address, 16 bytes; None if there is none that a neighbour could solicit from afar."""
    if not text:
        return None
    address = parse_address(text.partition("/")[0])
    link_local = mask(address, 10) == b"\xfe\x80" + bytes(14)
    unusable = address[0] == 0xFF or link_local or address in (UNSPECIFIED, LOOPBACK)
    return None if unusable else address


def _subnet(text: str) -> Prefix:
    address, _, length = text.partition("/")
    if not (length.isascii() and length.isdecimal() and len(length) <= 3 and int(length) <= 128):
        raise ValueError(f"subnet {text[:50]}")
    return Prefix.around(parse_address(address), int(length))


def versions(said: dict[str, Any]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Of /version: the newest and the oldest version of the API that the engine has."""
    yield _number(said.get("ApiVersion")), _number(said.get("MinAPIVersion"))


def _number(said: object) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", _text(said), re.ASCII)
    if found is None:
        raise ValueError("no version")
    return int(found[1]), int(found[2])


def _labels(said: object, keys: Container[str] | None) -> Labels:
    return tuple(
        sorted(
            (sys.intern(key), _text(text))
            for key, text in _mapping(said).items()
            if keys is None or key in keys
        )
    )


def _mapping(said: object) -> dict[str, Any]:
    """An object; Go writes an empty one as null, too."""
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise ValueError("no object")
    return said


def _texts(said: object) -> list[str]:
    if not isinstance(said, list):
        raise ValueError("no list")
    return [_text(text) for text in said]


def _text(said: object) -> str:
    if said is None:
        return ""
    if not isinstance(said, str):
        raise ValueError("no text")
    return said
