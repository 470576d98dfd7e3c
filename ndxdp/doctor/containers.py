"""Containers of Docker or Podman whose addresses the router solicits, and no rule answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain

from ndxdp.doctor.finding import Finding, unseen, warning
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.rules.address import address_text
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.table import Table
from ndxdp.sources.answers import Endpoint
from ndxdp.sources.docker import Docker

_WITHIN = 1.5  # seconds for the engine to list its containers
_DENIED = "permission denied"
_NAMED_MAX = 8  # addresses in a command


@dataclass(frozen=True, slots=True)
class Facts:
    """Containers and rules of an interface.

    Attributes:
        interface: The interface.
        endpoints: The containers' addresses; None if the engine did not list them.
        why: Why it did not.
        on_link: The on-link prefixes of the interface.
        table: The rules of the interface; None if ndxdp answers nothing there.
    """

    interface: str
    endpoints: frozenset[Endpoint] | None
    why: str
    on_link: tuple[Prefix, ...]
    table: Table | None


def gather(
    interface: str, addresses: list[OwnAddress], table: Table | None, socket_path: str
) -> Facts | None:
    """List the containers; return None if there is no engine."""
    if not os.path.exists(socket_path):
        return None
    on_link = {
        Prefix.around(own.address, own.length)
        for own in addresses
        if not own.link_local and own.length < 128
    }
    endpoints, why = None, f"{socket_path}: {_DENIED}"
    if os.access(socket_path, os.W_OK):
        endpoints = asyncio.run(_endpoints(socket_path))
        why = f"{socket_path}: the engine does not answer"
    return Facts(interface, endpoints, why, tuple(sorted(on_link)), table)


async def _endpoints(socket_path: str) -> frozenset[Endpoint] | None:
    async with contextlib.aclosing(Docker(socket_path, label_keys=frozenset()).watch()) as changes:
        try:
            async with asyncio.timeout(_WITHIN):
                return frozenset(chain.from_iterable((await anext(changes)).values()))
        except TimeoutError:
            return None


def judge(facts: Facts) -> list[Finding]:
    """Return a warning about each network whose containers no rule answers for."""
    if facts.endpoints is None:
        hint = "run this as root, or in the engine's group" if _DENIED in facts.why else ""
        cure = "" if hint else "docker ps"
        return [unseen(f"cannot check the containers: {facts.why}", cure, hint)]
    unanswered: dict[str, set[Endpoint]] = defaultdict(set)
    for endpoint in facts.endpoints:
        near = any(
            Prefix.around(endpoint.address, prefix.length) == prefix for prefix in facts.on_link
        )
        if near and not _answered(facts.table, endpoint.address):
            unanswered[endpoint.network].add(endpoint)
    return [_judge_network(facts, name, unanswered[name]) for name in sorted(unanswered)]


def _answered(table: Table | None, address: bytes) -> bool:
    matched = table.lookup(address) if table else None
    # A `local` rule answers only for packets that end at this host, not for those of a container.
    return matched is not None and matched[1].answer.name not in ("NEVER", "LOCAL")


def _judge_network(facts: Facts, network: str, endpoints: set[Endpoint]) -> Finding:
    addresses = sorted({endpoint.address for endpoint in endpoints})
    texts = [address_text(address) for address in addresses[:_NAMED_MAX]]
    several = f"{texts[0]} and {len(addresses) - 1} more" if len(addresses) > 1 else texts[0]
    if facts.table is None:
        cure = " ".join(f"-n {text}" for text in texts)
        cure = f"ndxdp attach {facts.interface} {cure}"
    else:
        cure = f"ndxdp prefix add {facts.interface} {' '.join(texts)}"
    return warning(
        f"ndxdp does not answer on {facts.interface} for the containers of {network}: {several}",
        "their addresses are in an on-link prefix, so the router solicits each of them;"
        " [[interface.docker]] adds and removes rules as containers start and stop",
        cure,
    )
