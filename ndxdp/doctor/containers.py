"""Containers of Docker or Podman whose addresses the router asks for, and nobody answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import defaultdict
from dataclasses import dataclass

from ndxdp.doctor.finding import Finding, unseen, warning
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.table import Table
from ndxdp.sources.docker import Docker, Endpoint

_WITHIN = 1.5  # seconds for the engine to list its containers
_DENIED = "may not be opened"
_NAMED = 8  # addresses in a command


@dataclass(frozen=True, slots=True)
class Facts:
    """endpoints: None if the engine did not say: then why says so. on_link: the interface's.

    table: of ndxdp's rules there, None if it answers nothing.
    """

    interface: str
    endpoints: frozenset[Endpoint] | None
    why: str
    on_link: tuple[Prefix, ...]
    table: Table | None


def gather(
    interface: str, addresses: list[OwnAddress], table: Table | None, socket_path: str
) -> Facts | None:
    """None where there is no engine."""
    if not os.path.exists(socket_path):
        return None
    on_link = {
        Prefix.around(own.address, own.length)
        for own in addresses
        if not own.link_local and own.length < 128
    }
    endpoints, why = None, f"{socket_path} {_DENIED}"
    if os.access(socket_path, os.W_OK):
        endpoints, why = asyncio.run(_endpoints(socket_path)), f"{socket_path} does not answer"
    return Facts(interface, endpoints, why, tuple(sorted(on_link)), table)


async def _endpoints(socket_path: str) -> frozenset[Endpoint] | None:
    async with contextlib.aclosing(Docker(socket_path, label_keys=()).watch()) as looks:
        try:
            async with asyncio.timeout(_WITHIN):
                return await anext(looks)
        except TimeoutError:
            return None


def judge(facts: Facts) -> list[Finding]:
    if facts.endpoints is None:
        hint = "run this as root, or in the engine's group" if _DENIED in facts.why else ""
        cure = "" if hint else "docker ps"
        return [unseen(f"cannot look at the containers: {facts.why}", cure, hint)]
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
    # `local` is answered only for what ends at this host, which a container's address does not.
    return matched is not None and matched[1].answer.name not in ("NEVER", "LOCAL")


def _judge_network(facts: Facts, network: str, endpoints: set[Endpoint]) -> Finding:
    addresses = sorted({endpoint.address for endpoint in endpoints})
    texts = [socket.inet_ntop(socket.AF_INET6, address) for address in addresses[:_NAMED]]
    several = f"{texts[0]} and {len(addresses) - 1} more" if len(addresses) > 1 else texts[0]
    if facts.table is None:
        cure = " ".join(f"-n {text}" for text in texts)
        cure = f"ndxdp attach {facts.interface} {cure}"
    else:
        cure = f"ndxdp prefix add {' '.join(texts)} -i {facts.interface}"
    return warning(
        f"ndxdp does not answer on {facts.interface} for the containers of {network}: {several}",
        "they are in a prefix of that link, where the router solicits each of them;"
        " [[interface.docker]] follows them as they come and go",
        cure,
    )
