"""The text of a proposed configuration file, and what `ndxdp init` prints about a host. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from ndxdp.config.toml_text import quoted
from ndxdp.printable import printable
from ndxdp.proposal.facts import Host, Uplink
from ndxdp.proposal.plan import Plan, Tables
from ndxdp.proposal.relations import called, plain_ways, relation
from ndxdp.rules.address import address_text

_WIDTH = 98  # columns of a comment, without "# "

_LINES_MAX = 20  # networks behind the host that are shown

_HEAD = """\
# Configuration of ndxdp, proposed by `ndxdp init` for this host. `man ndxdp.toml` describes every
# key. `ndxdp check` checks the file, and `systemctl reload ndxdp` applies a change.

# [metrics]                                # for Prometheus, and a status page
# listen = "[::1]:9877"
"""

_OPTIONS = """\
# [interface.announce]                     # tell the upstream about each address as it appears

# [interface.limit]
# rate = 50                                # answers per second to one soliciting MAC
"""


def configuration(plan: Plan) -> str:
    """Return the text of the configuration file."""
    return "\n".join([_HEAD, *_lines(plan)])


def _lines(plan: Plan) -> Iterator[str]:
    if plan.socket:
        yield from ("[docker]", f"socket = {quoted(plan.socket)}", "")
    for each in plan.shares:
        yield from _comment(each.why)
        yield from ("[[share]]", f"upstream = {quoted(each.upstream)}")
        yield f"downstream = [{', '.join(map(quoted, each.downstream))}]"
        yield ""
    for tables in plan.uplinks:
        yield from _comment(_why_uplink(tables.uplink))
        yield from ("[[interface]]", f"name = {quoted(tables.uplink.name)}", "")
        yield from _of_uplink(tables)
        yield _OPTIONS


def _of_uplink(tables: Tables) -> Iterator[str]:
    for each in tables.selections:
        yield from _comment(each.why)
        yield from ("[[interface.docker]]", f"{each.key} = {quoted(each.value)}", "")
    for rule in tables.rules:
        yield from _comment(rule.why)
        yield from ("[[interface.prefix]]", f"prefix = {quoted(str(rule.prefix))}")
        yield f"answer = {quoted(rule.answer)}"
        if rule.dev:
            yield f"dev = [{', '.join(map(quoted, rule.dev))}]"
        yield ""


def _why_uplink(uplink: Uplink) -> str:
    prefixes = ", ".join(map(str, uplink.on_link))
    solicits = (
        f"The router solicits each address of the on-link {_plural('prefix', uplink)}: {prefixes}."
        if prefixes
        else "The interface has no on-link prefix, but an address of a prefix behind this host."
    )
    if not uplink.is_default:
        return f"The interface that you named. {solicits}"
    gateways = ", ".join(map(address_text, uplink.gateways))
    return (
        f"The IPv6 default route leaves here{f', via {gateways}' if gateways else ''}. {solicits}"
    )


def _plural(word: str, uplink: Uplink) -> str:
    return f"{word}es" if len(uplink.on_link) > 1 else word


def _comment(sentence: str) -> list[str]:
    return [f"# {line}" for line in wrap(printable(sentence), _WIDTH, break_long_words=False)]


# ---- what was found ------------------------------------------------------------------------------


def found(host: Host) -> Iterator[str]:
    """Yield a line for each fact about a host."""
    for uplink in host.uplinks:
        words = [uplink.name]
        words += [f"via {address_text(each)}" for each in uplink.gateways]
        words.append(f"on-link {', '.join(map(str, uplink.on_link)) or 'nothing'}")
        if uplink.manager:
            words.append(f"configured by {uplink.manager}")
        yield f"uplink      {'  '.join(words)}"
    behind = [
        f"{', '.join(map(str, network.subnets))}  the network {network.name}"
        for network in host.networks
        if network.subnets
    ]
    behind += [f"{way.prefix}  {called(way)}" for way in plain_ways(host)]
    for line in behind[:_LINES_MAX]:
        yield f"behind      {line}"
    if len(behind) > _LINES_MAX:
        yield f"behind      and {len(behind) - _LINES_MAX} more: ip -6 route"
    for prefix in host.local:
        yield f"local       {prefix}"
    yield f"forwarding  {'on' if host.forwarding else 'off'}"


def data(host: Host, plan: Plan, configuration: str, sysctls: str) -> dict[str, Any]:
    """Return the facts, the proposal, and the texts of its files for --json."""
    return {
        "uplinks": [
            {
                "interface": uplink.name,
                "kind": uplink.kind,
                "gateways": [address_text(each) for each in uplink.gateways],
                "on_link": [str(each) for each in uplink.on_link],
                "addresses": [address_text(each) for each in uplink.addresses],
                "accept_ra": uplink.accept_ra,
                "forwarding": uplink.forwarding,
                "manager": uplink.manager,
                "proxy_ndp": [address_text(each) for each in uplink.proxied],
            }
            for uplink in host.uplinks
        ],
        "forwarding": host.forwarding,
        "networks": [
            {
                "network": network.name,
                "driver": network.driver,
                "internal": network.internal,
                "subnets": [str(each) for each in network.subnets],
            }
            for network in host.networks
        ],
        "routes": [
            {
                "prefix": str(way.prefix),
                "dev": way.dev,
                "kind": way.kind,
                "relations": [
                    {"interface": uplink.name, "relation": relation(way.prefix, uplink).value}
                    for uplink in host.uplinks
                ],
            }
            for way in host.ways
        ],
        "local": [str(each) for each in host.local],
        "responders": [
            {"pid": each.pid, "name": each.name, "unit": each.unit} for each in host.responders
        ],
        "sysctls": [
            {"key": each.key, "value": each.value, "present": each.present}
            for each in plan.settings
        ],
        "shares": [
            {"upstream": each.upstream, "downstream": list(each.downstream)} for each in plan.shares
        ],
        "notes": list(plan.notes),
        "configuration": configuration,
        "sysctl_file": sysctls,
    }
