"""The configuration that fits a host: narrow rules for what is behind it, and sysctls. Pure."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ndxdp.errors import NdxdpError
from ndxdp.proposal import notes, relations, settings, sharing
from ndxdp.proposal.facts import ContainerNetwork, Host, Uplink, Way
from ndxdp.proposal.relations import Relation, relation
from ndxdp.proposal.settings import Setting
from ndxdp.rules.address import address_text
from ndxdp.rules.prefix import Prefix

_NETWORKS_MAX = 8  # networks that are selected one by one
_RULES_MAX = 16  # rules for the routes inside one on-link prefix
_DEVS_MAX = 8  # interfaces that a rule for many routes names
_PROXIES_MAX = 64  # rules for entries of proxy_ndp


@dataclass(frozen=True, slots=True)
class Selection:
    """A [[interface.docker]]: its key and value, and why it is proposed."""

    key: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class PrefixRule:
    """A [[interface.prefix]]: its keys, and why it is proposed."""

    prefix: Prefix
    answer: str
    why: str
    dev: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShareTable:
    """A [[share]]: its keys, and why it is proposed."""

    upstream: str
    downstream: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Proof:
    """An address behind the host that the rules answer for, and what has it."""

    address: str
    interface: str
    what: str


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one uplink."""

    uplink: Uplink
    selections: tuple[Selection, ...] = ()
    rules: tuple[PrefixRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """A proposal.

    Attributes:
        uplinks: The uplinks with something to answer for.
        socket: The engine's socket for the file; "" for no such key.
        settings: The sysctls that the rules need.
        notes: Sentences on what the proposal contains, and what it leaves out.
        proof: An address to try; None if no container or guest is known.
        shares: The shares.
    """

    uplinks: tuple[Tables, ...]
    socket: str
    settings: tuple[Setting, ...]
    notes: tuple[str, ...]
    proof: Proof | None
    shares: tuple[ShareTable, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if the file would have no table."""
        return not self.uplinks and not self.shares

    @property
    def names(self) -> tuple[str, ...]:
        """The uplinks with a table, in the order of the file."""
        own = [each.uplink.name for each in self.uplinks]
        return tuple(dict.fromkeys([*own, *(each.upstream for each in self.shares)]))


def propose(host: Host, *, default_socket: str, sysctl_file: str) -> Plan:
    """Return the proposal for a host.

    Args:
        host: The host.
        default_socket: The engine's socket that a file without the key means.
        sysctl_file: The path of the file for the sysctls.
    """
    usable = [uplink for uplink in host.uplinks if not notes.unusable(uplink)]
    cases = sharing.cases(host, usable)
    shared = {link.name for case in cases.values() for link in case.downstream}
    found = [_tables(host, uplink, shared) for uplink in usable]
    planned = tuple(each for each in found if each.selections or each.rules)
    selects = any(each.selections for each in planned)
    forwards = any(
        each.selections or any(rule.answer != "local" for rule in each.rules) for each in planned
    )
    sharing_uplinks = [uplink for uplink in usable if uplink.name in cases]
    concerned = [each.uplink for each in planned]
    concerned += [uplink for uplink in sharing_uplinks if uplink not in concerned]
    wanted = settings.needed(host, concerned) if forwards or cases else ()
    overridden = settings.overridden(wanted, sysctl_file, host.sysctl_files)
    return Plan(
        planned,
        host.engine if selects and host.engine != default_socket else "",
        wanted,
        (*notes.all_notes(host, shared), *sharing.notes(host, cases, usable), *overridden),
        next((proof for each in planned for proof in _proofs(host, each)), None),
        tuple(
            ShareTable(
                name,
                tuple(glob.escape(link.name) for link in case.downstream),
                sharing.why(name, case),
            )
            for name, case in cases.items()
        ),
    )


def nothing(host: Host) -> NdxdpError:
    """Return the error for a host on which there is nothing to answer."""
    usable = [each for each in host.uplinks if not notes.unusable(each)]
    names = ", ".join(each.name for each in usable or host.uplinks)
    if not usable:
        return NdxdpError(
            f"ndxdp cannot answer on {names}", "name the interface that faces the router"
        )
    if not any(each.on_link or each.addresses for each in usable):
        return NdxdpError(f"{names} has no global IPv6 address", f"ndxdp doctor {usable[0].name}")
    if host.ways or any(each.subnets for each in host.networks):
        return NdxdpError(
            "nothing to answer: no network behind this host has a part of an on-link prefix of"
            f" {names}",
            "a routed prefix needs no responder; to see what the router says: ndxdp doctor --probe",
        )
    part = next(filter(None, (_free_part(host, each) for each in usable)), None)
    hint = f"; give the containers or guests a part of the on-link prefix: {part}" if part else ""
    return NdxdpError(
        "nothing to answer: there is no IPv6 network behind this host",
        f"run init again when there is one{hint}",
    )


def _free_part(host: Host, uplink: Uplink) -> Prefix | None:
    return relations.spare(host, uplink, uplink.on_link[0]) if uplink.on_link else None


# ---- one uplink ---------------------------------------------------------------------------------


def _tables(host: Host, uplink: Uplink, shared: set[str]) -> Tables:
    networks = [
        (network, subnet)
        for network in host.networks
        if network.answerable
        for subnet in network.subnets
        if relation(subnet, uplink).needs_answer
    ]
    rules = {each.prefix: each for each in _for_ways(host, uplink, shared)}
    for prefix in host.local:
        if relation(prefix, uplink).needs_answer:
            why = f"A local route delivers all of {prefix} to this host itself (AnyIP)."
            rules[prefix] = PrefixRule(prefix, "local", why)
    covered = [*rules, *(subnet for _, subnet in networks)]
    for rule in _for_proxies(uplink, covered):
        rules[rule.prefix] = rule
    ordered = tuple(rules[prefix] for prefix in sorted(rules))
    return Tables(uplink, tuple(_selections(uplink, networks)), ordered)


def _selections(
    uplink: Uplink, networks: list[tuple[ContainerNetwork, Prefix]]
) -> Iterator[Selection]:
    """Yield a table for each network; for many networks, one for each on-link prefix."""
    by_name: dict[str, list[Prefix]] = {}
    for network, subnet in networks:
        by_name.setdefault(network.name, []).append(subnet)
    if len(by_name) > _NETWORKS_MAX:
        for on_link in uplink.on_link:
            inside = [name for name, some in by_name.items() if any(map(on_link.covers, some))]
            if inside:
                why = f"Containers with an address of {on_link}, on any network: {len(inside)} now."
                yield Selection("within", str(on_link), why)
            for name in inside:
                del by_name[name]
    for name, subnets in by_name.items():
        if not name.isprintable():  # no file can name the network
            for subnet in subnets:
                yield Selection("within", str(subnet), f"The containers of {subnet}.")
            continue
        shown = ", ".join(map(str, subnets))
        why = (
            f"The containers on the network {name} ({shown}): an exact rule for each address, while"
            " the container runs."
        )
        yield Selection("network", name, why)


def _for_ways(host: Host, uplink: Uplink, shared: set[str]) -> Iterator[PrefixRule]:
    """Yield the rules for what the host routes to networks behind it, except those of a share."""
    by_on_link: dict[Prefix | None, list[tuple[Way, Relation]]] = {}
    for way in relations.plain_ways(host):
        if way.dev in shared:
            continue
        related = relation(way.prefix, uplink)
        if related.needs_answer:
            around = next((each for each in uplink.on_link if each.covers(way.prefix)), None)
            by_on_link.setdefault(around, []).append((way, related))
    for around, some in by_on_link.items():
        if around is not None and len(some) > _RULES_MAX:
            yield _for_many(around, some)
        else:
            yield from _for_each(some)


def _for_each(some: list[tuple[Way, Relation]]) -> Iterator[PrefixRule]:
    devs: dict[tuple[Prefix, str], list[Way]] = {}
    for way, related in some:
        answer = _answer(way, related)
        if answer:
            devs.setdefault((way.prefix, answer), []).append(way)
    done: set[Prefix] = set()
    for (prefix, answer), ways in sorted(devs.items()):
        if prefix in done:  # by another interface, whose rule is `neighbour`: the safer one
            continue
        done.add(prefix)
        what = " and ".join(relations.called(way) for way in ways)
        why = (
            f"The guests of {prefix} on {what}, while they are alive there."
            if answer == "neighbour"
            else f"All of {prefix}, while the route leads to {what}."
        )
        yield PrefixRule(prefix, answer, why, tuple(glob.escape(way.dev) for way in ways))


def _answer(way: Way, related: Relation) -> str:
    """Return whether to ask for routes or neighbours; "" if neither is safe.

    If the same prefix is on-link at the uplink, too, the route may cover nodes of the uplink, so
    that `routed` would answer for them.
    """
    if related is Relation.SAME:
        return "neighbour" if way.direct else ""
    return "neighbour" if way.direct and way.prefix.length < 128 else "routed"


def _for_many(around: Prefix, some: list[tuple[Way, Relation]]) -> PrefixRule:
    answer = "neighbour" if any(each is Relation.SAME for _, each in some) else "routed"
    devs = sorted({glob.escape(way.dev) for way, _ in some})
    why = f"{len(some)} routes inside {around} lead to networks behind this host."
    return PrefixRule(around, answer, why, tuple(devs) if len(devs) <= _DEVS_MAX else ())


def _for_proxies(uplink: Uplink, covered: Iterable[Prefix]) -> Iterator[PrefixRule]:
    """Yield rules for the kernel's proxy entries that no other table covers."""
    known = set(covered)
    for address in uplink.proxied[:_PROXIES_MAX]:
        exact = Prefix(address, 128)
        if any(each.covers(exact) for each in known):
            continue
        yield PrefixRule(
            exact,
            "routed",
            f"The kernel's proxy_ndp has an entry for {exact}: ndxdp answers while a route leads"
            " behind this host.",
        )


# ---- a test after the start ---------------------------------------------------------------------


def _proofs(host: Host, tables: Tables) -> Iterator[Proof]:
    """Yield the addresses of running containers and living guests that the tables answer for."""
    name = tables.uplink.name
    if tables.selections:
        for network in host.networks:
            if network.answerable and any(
                relation(each, tables.uplink).needs_answer for each in network.subnets
            ):
                for container, address in network.containers:
                    yield Proof(address, name, f"the container {container}")
    for rule in tables.rules:
        if rule.answer == "local":
            continue
        for way in host.ways:
            if way.guest is not None and rule.prefix.covers(Prefix(way.guest, 128)):
                yield Proof(address_text(way.guest), name, f"a guest on {way.dev}")
