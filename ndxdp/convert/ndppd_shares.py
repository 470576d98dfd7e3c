"""Rules of ndppd for which no route exists, converted into [[share]]. Pure.

`iface` needs a route to the target, or no packet reaches it. With `autowire yes`, ndppd adds a host
route for each target that has answered; without it, ndppd users add routes by other means. A share
of ndxdp learns the hosts, and sets their routes.
"""

from __future__ import annotations

from collections.abc import Mapping

from ndxdp.config.model import Resolve
from ndxdp.config.share_tables import parse_shared
from ndxdp.convert.draft import Draft, DraftInterface, DraftRule, DraftShare, Note
from ndxdp.convert.ndppd_rules import Method
from ndxdp.convert.width import Host
from ndxdp.errors import UsageError
from ndxdp.rules.breadth import WIDEST
from ndxdp.rules.interface_name import DEV_MAX, INTERFACE_MAX
from ndxdp.rules.prefix import Prefix


def move_into_shares(
    draft: Draft,
    methods: Mapping[str, Mapping[Prefix, Method]],
    autowired: Mapping[str, int],
    host: Host,
) -> None:
    """Move the rules that need a share out of their interfaces, and add the shares.

    Args:
        draft: The draft, whose rules have their answers.
        methods: The method that each rule names itself, by interface and prefix.
        autowired: The line of `autowire yes`, by interface.
        host: Facts of this machine.
    """
    # Of sections for both directions, that of the uplink has the upstream interface.
    ordered = sorted(draft.interfaces, key=lambda each: each.name not in host.uplinks)
    for interface in ordered:
        own, line = methods[interface.name], autowired.get(interface.name)
        if any(interface.name in share.downstream for share in draft.shares):
            _leave_to_share(draft, interface, own)
            continue
        wanting = [
            rule for rule in interface.rules if rule.dev and _needs(rule, line is not None, host)
        ]
        share = _share(draft, interface, wanting, own, line)
        if share is not None:
            draft.shares.append(share)
        elif line is not None:
            note = "autowire is left out: no rule here that it concerns becomes part of a share"
            interface.notes.append(Note(line, note))
    draft.interfaces = [each for each in draft.interfaces if not _is_empty(each, draft.shares)]


def _needs(rule: DraftRule, autowired: bool, host: Host) -> bool:
    """Return True if nothing but a share makes a route to the targets of an `iface` rule."""
    if autowired:
        return True
    return all(
        name not in host.uplinks and host.leads(rule.prefix, name) is False for name in rule.dev
    )


def _leave_to_share(draft: Draft, interface: DraftInterface, own: Mapping[Prefix, Method]) -> None:
    """Leave out the rules of a downstream interface that its share has the effect of."""
    share = next(each for each in draft.shares if interface.name in each.downstream)
    for rule in list(interface.rules):
        if rule.dev and share.members.issuperset(rule.dev):
            interface.rules.remove(rule)
            sentence = (
                f"the rule for {rule.prefix} on {interface.name} is left out: the share of"
                f" {share.upstream} answers on both sides"
            )
            share.notes.append(Note(own[rule.prefix].line, sentence))


def _share(
    draft: Draft,
    interface: DraftInterface,
    wanting: list[DraftRule],
    own: Mapping[Prefix, Method],
    autowired: int | None,
) -> DraftShare | None:
    """Return the share for these rules of an interface, which loses them; None without one."""
    share = DraftShare(interface.name, relay=False)
    wide: list[DraftRule] = []
    moved: list[DraftRule] = []
    # The widest first: a prefix that another one contains needs no place of its own.
    for rule in sorted(wanting, key=lambda rule: rule.prefix.length):
        is_wide = rule.prefix.length < WIDEST
        inside = bool(wide) or any(prefix.covers(rule.prefix) for prefix in share.prefixes)
        why = _why_not_here(rule, share, draft.shares)
        if not why and not inside and not is_wide:
            why = _refusal(rule.prefix)
        if why:
            sentence = f"the rule for {rule.prefix} becomes no share, and needs a route: {why}"
            rule.notes.append(Note(own[rule.prefix].line, sentence))
            continue
        if is_wide:
            wide.append(rule)
        elif not inside:
            share.prefixes.append(rule.prefix)
        moved.append(rule)
        share.downstream += [name for name in rule.dev if name not in share.downstream]
    if not moved:
        return None
    if wide:
        share.prefixes.clear()
        share.notes.append(
            Note(
                own[wide[0].prefix].line,
                f"{wide[0].prefix} is no prefix of a link: the share is for those that the routers"
                " advertise",
            )
        )
    for rule in moved:
        interface.rules.remove(rule)
    _explain(share, moved, own, autowired)
    if interface.deadline == Resolve().deadline:
        interface.deadline = None
    return share


def _why_not_here(rule: DraftRule, share: DraftShare, others: list[DraftShare]) -> str:
    """Return why a rule cannot be part of a share, given the other shares; "" if it can."""
    names = (share.upstream, *rule.dev)
    for name in names:
        if len(name.encode()) > INTERFACE_MAX:
            return f"{name} is an alternative name"
        if any(name in other.members for other in others):
            return f"{name} is in another share"
    for other in others:
        if any(each.covers(rule.prefix) or rule.prefix.covers(each) for each in other.prefixes):
            return f"the share of {other.upstream} has the prefix"
    every = dict.fromkeys((share.upstream, *share.downstream, *rule.dev))
    if len(" ".join(every).encode()) > DEV_MAX:
        return f"the interfaces of a share take at most {DEV_MAX} bytes"
    return ""


def _refusal(prefix: Prefix) -> str:
    """Return why a share cannot have a prefix; "" if it can."""
    try:
        parse_shared(str(prefix))
    except UsageError as error:
        return error.message
    return ""


def _explain(
    share: DraftShare,
    moved: list[DraftRule],
    own: Mapping[Prefix, Method],
    autowired: int | None,
) -> None:
    """Add to a share where it comes from, and what it does otherwise than ndppd."""
    first = min(moved, key=lambda rule: own[rule.prefix].line)
    if autowired is not None:
        share.notes.append(
            Note(
                autowired, "autowire becomes a share, which learns the hosts and sets their routes"
            )
        )
    else:
        share.notes.append(
            Note(
                own[first.prefix].line,
                f"no route of this machine leads to {first.prefix} by {', '.join(first.dev)}, so a"
                " share learns the hosts there and sets their routes; if routes exist where ndxdp"
                ' will run, write an [[interface.prefix]] with answer = "neighbour" instead',
            )
        )
    if any(not rule.router for rule in moved):
        share.notes.append(
            Note(0, "router no is left out: the answers of a share always have the R flag")
        )
    if len(share.downstream) > 1:
        share.comments.append("a share looks for each host on all interfaces of downstream")
    share.comments.append(
        'ndppd passes on no router advertisements; "relay" does, if nothing else on this host sends'
        " them downstream (radvd)"
    )


def _is_empty(interface: DraftInterface, shares: list[DraftShare]) -> bool:
    """Return True if a table for the interface would add nothing to what its share has."""
    shared = any(interface.name in share.members for share in shares)
    if not shared or interface.rules or interface.deadline is not None:
        return False
    home = next(share for share in shares if interface.name in share.members)
    home.notes += interface.notes
    return True
