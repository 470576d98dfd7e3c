"""Examination of a share: the checks of all its interfaces, or the proposal of one."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from ndxdp.doctor import (
    listeners,
    manager,
    share,
    share_case,
    share_firewall,
    share_loop,
    share_members,
    share_probe,
)
from ndxdp.doctor.finding import Finding, Level, cannot_check
from ndxdp.doctor.listeners import Listener
from ndxdp.doctor.share import Found
from ndxdp.doctor.share_members import Member
from ndxdp.doctor.subject import Subject
from ndxdp.netlink import links, onlink
from ndxdp.netlink.addresses import own_addresses
from ndxdp.netlink.fib import DefaultRoute
from ndxdp.observe import status
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.prefix import Prefix, parse_prefix


def examine(subject: Subject, *, probing: bool) -> list[Finding]:
    """Return the findings about the share of an interface, or the proposal of a share.

    Args:
        subject: The interface under examination.
        probing: Send a frame by the upstream interface, and listen on the others.

    Raises:
        OSError: The kernel refused a request.
        NdxdpError: A link cannot be read.
    """
    found = share.gather(subject.trees, subject.name)
    if found is None:
        return _propose(subject)
    findings = list(share.judge(found))
    wanted = found.share is not None or found.running
    if not found.is_upstream or not wanted or not subject.link.up:
        return findings
    return findings + _members(subject, found, probing=probing)


def _propose(subject: Subject) -> list[Finding]:
    if subject.quiet or not subject.own_routes:
        return []
    uplinks = {subject.link.ifindex, subject.ifindex}
    for name in subject.routes:
        link = links.find_link(name)
        uplinks |= {link.ifindex, link.l3_ifindex} if link else set()
    on_link = onlink.read((subject.link.ifindex, subject.ifindex)).prefixes
    case = share_case.find(on_link, share_case.gather(uplinks)) if on_link else None
    files = [each.config for each in status.reports(subject.trees) if each.config]
    return list(share.propose(subject.name, case, files[0] if files else ""))


def _members(subject: Subject, found: Found, *, probing: bool) -> list[Finding]:
    upstream = share_members.gather(
        subject.name,
        subject.ifindex,
        subject.link.mac,
        subject.addresses,
        default_by_ra=any(route.by_ra for route in subject.own_routes),
    )
    downstream: list[Member] = []
    findings: list[Finding] = []
    for name in found.downstream:
        try:
            downstream.append(_member(name, subject.routes))
        except Exception as error:  # the interface was deleted
            findings.append(cannot_check(f"the share on {name}", error))
    prefixes = _prefixes(found, upstream)
    winners = {prefix: share_members.winner(prefix, upstream.ifindex) for prefix in prefixes}
    findings += share_members.both_sides(upstream, downstream, winners)
    by_ra = any(route.by_ra for route in subject.own_routes)
    findings += _outside(subject, found, prefixes)
    findings += share_members.expiring(upstream, prefixes, by_ra=by_ra)
    for member in (upstream, *downstream):
        findings += share_members.proxies(member, prefixes)
    daemons = {each.pid for each in status.reports(subject.trees)}
    routers = [parse_address(each.address) for each in found.report.routers] if found.report else []
    for member in downstream:
        findings += share_members.on_downstream(member)
        findings += _others(member, daemons, relay=found.relay)
        if member.quiet:
            continue
        loop = share_loop.seen(
            upstream,
            member,
            _hosts(found, member.name),
            routers,
            _own_gateways(subject, downstream),
        )
        is_certain = loop is not None and loop.level is Level.FAILURE
        if probing and not is_certain:
            loop = None  # the probe tells
            if share_loop.reaches(upstream, member):
                loop = share_loop.finding(upstream.name, member.name)
        findings += [loop] if loop else []
    if probing:
        findings += _answerers((upstream, *downstream), prefixes)
    findings += _firewall(subject, [each for each in downstream if not each.quiet], prefixes)
    return findings


def _answerers(members: Iterable[Member], prefixes: list[Prefix]) -> Iterable[Finding]:
    for member in members:
        for prefix in () if member.quiet else prefixes:
            mac = share_probe.answerer(member, prefix)
            if mac is not None:
                yield share_probe.answers_for_all(member.name, mac, prefix)


def _outside(subject: Subject, found: Found, prefixes: list[Prefix]) -> list[Finding]:
    members = {subject.link.ifindex, subject.ifindex}
    links_behind = share_case.gather(members).links
    others = [link for link in links_behind if link.name not in found.downstream]
    rules = subject.known_rules
    return list(share_members.outside(subject.name, others, prefixes, rules, found.file))


def _member(name: str, routes: dict[str, list[DefaultRoute]]) -> Member:
    link = links.any_link(name)
    above = link.l3_ifindex
    called = socket.if_indextoname(above) if above != link.ifindex else name
    return share_members.gather(
        called,
        above,
        link.mac if links.has_mac(link) else b"",
        own_addresses(above),
        default_by_ra=any(route.by_ra for route in routes.get(called, ())),
    )


def _prefixes(found: Found, upstream: Member) -> list[Prefix]:
    """Return the shared prefixes: of the report, of the file, or those of the addresses."""
    if found.report is not None and found.running and found.report.prefixes:
        return [parse_prefix(each.prefix) for each in found.report.prefixes]
    if found.share is not None and found.share.prefixes:
        return list(found.share.prefixes)
    return sorted(upstream.on_link)


def _hosts(found: Found, interface: str) -> dict[bytes, bytes]:
    """Return the MACs of the learned hosts on an interface, by address."""
    hosts = found.report.hosts if found.report else []
    return {
        parse_address(each.address): parse_mac(each.mac)
        for each in hosts
        if each.interface == interface and each.mac
    }


def _own_gateways(subject: Subject, downstream: list[Member]) -> dict[bytes, str]:
    """Return the gateways of the upstream interface that are addresses of this host itself."""
    gateways = set(subject.gateways)
    return {
        own.address: member.name
        for member in downstream
        if gateways and not member.quiet
        for own in own_addresses(member.ifindex)
        if own.address in gateways
    }


def _others(member: Member, daemons: set[int], *, relay: bool) -> Iterable[Finding]:
    """Return findings about other senders of advertisements on a downstream interface."""
    running: tuple[Listener, ...] = ()
    if member.soliciting:  # the search for processes takes time
        running = listeners.gather(member.name, member.ifindex, None, daemons).listeners
    managed = manager.gather(member.name, member.ifindex)
    yield from share_members.advertisers(member, running, managed, relay=relay)


def _firewall(
    subject: Subject, downstream: list[Member], prefixes: list[Prefix]
) -> Iterable[Finding]:
    ruleset = subject.firewall.ruleset
    if ruleset is None:  # the firewall's check reports that
        return
    names = [member.name for member in downstream]
    yield from share_firewall.judge(ruleset, subject.above, names, prefixes)
    for name in names:
        yield from share_firewall.discovery(ruleset, name)
