"""Changes of an attached interface by commands: rules added or deleted, answering paused."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from ndxdp.errors import NdxdpError, NoRoom, UsageError
from ndxdp.netlink import links
from ndxdp.netlink.netns import netns
from ndxdp.netlink.uplink_addresses import uplink_addresses
from ndxdp.rules.difference import Difference, difference, merge
from ndxdp.rules.pausing import is_marker, is_prefix, names_of, with_pauses, without_pauses
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import HOST_ORIGIN, OWN_LABEL, PAUSE_ORIGIN, Rule, owned_rule
from ndxdp.rules.ruleset import Rules
from ndxdp.session.kernel_tables import sync_local_routes
from ndxdp.session.link_check import on_link, refuse_broad, warn_of_neighbours
from ndxdp.session.preview import Preview, refuse_without_room
from ndxdp.session.session import Session
from ndxdp.store import handover
from ndxdp.store.directories import Tree
from ndxdp.store.instance import Instance, KernelInstance, open_instance
from ndxdp.store.maps import Maps
from ndxdp.store.ownership import refuse_elsewhere

log = logging.getLogger(__name__)

_FEW = 4096
"""Rules that a command looks up one by one. Reading a million takes as long as 100 000 lookups."""

_NEVER_ANSWERED = "the host's own and its gateway's addresses are never answered for"


def add_rules(
    tree: Tree, interface: str, rules: Rules, *, replacing: bool = False, force: bool = False
) -> None:
    """Add rules to live maps: all of them or, on an error, none.

    An equal rule that is already present stays unchanged, with its origin.

    Args:
        tree: The tree that has the interface.
        interface: The interface's name.
        rules: The rules to add.
        replacing: Replace different rules of the same origin.
        force: Accept rules that cover an on-link prefix of the interface.

    Raises:
        NdxdpError: A prefix has another rule, a rule is too broad, or the maps have no room.
    """
    with _writable(tree, interface) as session:
        maps = session.maps
        if not force:
            refuse_broad(interface, rules, lambda: on_link(maps.settings()))
        few = len(rules) <= _FEW and not _pauses(maps)
        actual = maps.rules_at(rules) if few else maps.rules()
        desired = _merged(rules, actual, replacing=replacing)
        _log_kept(interface, rules, actual)
        at = _apply(session, difference(desired, actual), actual, few=few)
        sync_local_routes(maps)
        tree.notify(interface, at)
        settings = maps.settings()
        if netns() == settings.netns:
            warn_of_neighbours(interface, settings.l3_ifindex, rules)


@contextlib.contextmanager
def _writable(tree: Tree, interface: str) -> Iterator[Session]:
    """Open an interface whose rules a command changes."""
    with Session.open(tree, interface) as session:
        instance = session.instance
        if isinstance(instance, KernelInstance) and not instance.reads_addresses():
            raise NdxdpError(
                f"an upgrade of {interface} was interrupted: its program reads other rules",
                f"ndxdp attach {interface} completes it, and so does a restart of the daemon",
            )
        yield session


def _merged(rules: Rules, actual: Rules, *, replacing: bool) -> Rules:
    """Merge rules into those of an interface, of which some may be paused."""
    merged = merge(rules, without_pauses(actual), replacing=replacing)
    return with_pauses(merged, names_of(actual))


def _pauses(maps: Maps) -> bool:
    """Return True if rules of an interface may be paused, so that all of them have to be read."""
    return any(each.origin == PAUSE_ORIGIN for each in maps.rule_classes().values())


def _apply(session: Session, change: Difference, actual: Rules, *, few: bool) -> int:
    """Write and remove rules, and prepare the daemon for it.

    Args:
        session: The interface.
        change: The rules to write and to remove.
        actual: The present rules.
        few: `actual` has only the rules of the command's prefixes.

    Returns:
        The time for Tree.notify().
    """
    directory = session.tree.path(session.interface)
    at = handover.announce(directory, chain(change.write, change.remove))
    try:
        if few:
            session.maps.apply_at(change, actual)
        else:
            session.maps.apply(change, actual)
    except NoRoom as error:
        raise _with_cure(error, session.tree, session.interface) from error
    return at


def _with_cure(error: NoRoom, tree: Tree, name: str) -> NdxdpError:
    """Return the error with the command that makes room on this interface."""
    room = error.max_addresses
    if not room:
        return error
    hint = f"make room: ndxdp attach {name} --max-addresses {room}; or use prefixes"
    if tree.is_locked(name):
        hint = (
            f"make room in its daemon's file: max_addresses = {room}, then ndxdp reload;"
            f" without a file: ndxdp run {name} --max-addresses {room} …"
        )
    return NdxdpError(error.message, hint)


def _log_kept(interface: str, rules: Rules, actual: Rules) -> None:
    """Log the rules that are already present with another origin, which they keep."""
    if not log.isEnabledFor(logging.INFO):
        return
    for prefix, rule, present in rules.paired_with(actual):
        if present.origin not in (rule.origin, HOST_ORIGIN):
            log.info(
                "%s: %s already has that rule; its origin stays '%s'",
                interface,
                prefix,
                present.origin,
            )


def delete_rules(
    tree: Tree, interface: str, named: Rules | None, origin: str, *, missing_ok: bool = False
) -> None:
    """Remove rules of one origin: all that are named or, on an error, none.

    Args:
        tree: The tree that has the interface.
        interface: The interface's name.
        named: Rules of which only the prefixes count; None for all rules of the origin.
        origin: The origin of the rules.
        missing_ok: Ignore prefixes that have no rule of the origin.

    Raises:
        NdxdpError: A prefix has no rule, or a rule of another origin.
    """
    _refuse_host(origin)
    with _writable(tree, interface) as session:
        few = named is not None and len(named) <= _FEW and not _pauses(session.maps)
        actual = session.maps.rules_at(named) if named and few else session.maps.rules()
        desired = _remaining(session.instance, actual, named, origin, missing_ok=missing_ok)
        at = _apply(session, difference(desired, actual), actual, few=few)
        tree.notify(interface, at)


def _refuse_host(origin: str) -> None:
    """Raise UsageError for the origin whose rules no command deletes."""
    if origin == HOST_ORIGIN:
        raise UsageError(f"rules of origin '{HOST_ORIGIN}' are ndxdp's own", _NEVER_ANSWERED)


def _remaining(
    instance: Instance, actual: Rules, named: Rules | None, origin: str, *, missing_ok: bool
) -> Rules:
    """Return the rules that a deletion leaves; see delete_rules()."""
    names, actual = names_of(actual), without_pauses(actual)
    if named is None:
        removed = actual.where(lambda rule: rule.origin == origin)
    else:
        removed = actual.restricted_to(named)
    if named is not None and not missing_ok:
        for prefix in named.without(actual):
            raise NdxdpError(f"{prefix} has no rule", "ndxdp prefix list shows all")
        for prefix, rule in removed.where(lambda rule: rule.origin != origin).pairs():
            raise NdxdpError(
                f"the rule of {prefix} is not of origin '{origin}' but of '{rule.origin}'",
                _NEVER_ANSWERED
                if rule.origin == HOST_ORIGIN
                else f"name it if you mean it: --origin {rule.origin}",
            )
    removed = removed.where(lambda rule: rule.origin == origin)
    # The host still has the addresses of owned rules, so these rules become holes.
    owned = removed.where(lambda rule: rule.owned)
    labels = _owners(instance) if owned else {}
    holes = {prefix: owned_rule(labels.get(prefix, OWN_LABEL)) for prefix in owned}
    return with_pauses(actual.without(removed) | holes, names)


def _owners(instance: Instance) -> dict[Prefix, str]:
    """Return the labels of the holes for the addresses that the interface and its gateways own."""
    device = instance.device()
    link = links.find_link(device) if device else None
    return uplink_addresses(link).owned if link else {}


# ---- previews ------------------------------------------------------------------------------------


def preview_addition(
    tree: Tree, interface: str, rules: Rules, *, replacing: bool = False, force: bool = False
) -> Preview:
    """Return what add_rules() would change, and raise what it would raise.

    All rules are read, however few change, because the room depends on all of them.
    """
    with _readable(tree, interface) as instance:
        maps = instance.maps
        settings = maps.settings()
        if not force:
            refuse_broad(interface, rules, lambda: on_link(settings))
        actual = maps.rules()
        desired = _merged(rules, actual, replacing=replacing)
        try:
            refuse_without_room(desired, actual, maps.max_entries("addresses"))
        except NoRoom as error:
            raise _with_cure(error, tree, interface) from error
        if netns() == settings.netns:
            warn_of_neighbours(interface, settings.l3_ifindex, rules)
    return Preview(interface, actual=actual, desired=desired)


def preview_deletion(
    tree: Tree, interface: str, named: Rules | None, origin: str, *, missing_ok: bool = False
) -> Preview:
    """Return what delete_rules() would change, and raise what it would raise."""
    _refuse_host(origin)
    with _readable(tree, interface) as instance:
        actual = instance.maps.rules()
        desired = _remaining(instance, actual, named, origin, missing_ok=missing_ok)
    return Preview(interface, actual=actual, desired=desired)


@contextlib.contextmanager
def _readable(tree: Tree, interface: str) -> Iterator[Instance]:
    """Open an interface of this network namespace for reading."""
    with open_instance(tree, interface, readonly=True) as instance:
        refuse_elsewhere(tree, instance)
        yield instance


# ---- pausing -------------------------------------------------------------------------------------


def set_paused(tree: Tree, interface: str, *, paused: bool) -> None:
    """Pause answering, or resume it, from the next solicitation on."""
    with Session.open(tree, interface) as session:
        settings = session.maps.settings()
        at = handover.announce(tree.path(interface))
        session.maps.set_settings(replace(settings, paused=paused))
        tree.notify(interface, at)  # a daemon also stops or starts other work


def set_names_paused(
    tree: Tree, interface: str, names: Iterable[str], *, paused: bool
) -> frozenset[str]:
    """Pause the rules of some classes and prefixes, or resume them; the other rules stay.

    Args:
        tree: The tree that has the interface.
        interface: The interface's name.
        names: Labels of rule classes, and prefixes as text.
        paused: Pause them.

    Returns:
        The names that no rule has at present. They stay paused for rules that come later.

    Raises:
        NdxdpError: The maps have no room for the notes of what is paused.
    """
    chosen = frozenset(names)
    with _writable(tree, interface) as session:
        actual = session.maps.rules()
        desired = _with_names(actual, chosen, paused=paused)
        change = difference(desired, actual)
        if change:
            at = _apply(session, change, actual, few=False)
            tree.notify(interface, at)
    return chosen - _named_by(actual, chosen)


def preview_names(
    tree: Tree, interface: str, names: Iterable[str], *, paused: bool
) -> tuple[Preview, frozenset[str]]:
    """Return what set_names_paused() would change, and what it would return."""
    chosen = frozenset(names)
    with _readable(tree, interface) as instance:
        actual = instance.maps.rules()
    desired = _with_names(actual, chosen, paused=paused)
    preview = Preview(interface, actual=_shown(actual), desired=_shown(desired))
    return preview, chosen - _named_by(actual, chosen)


def preview_paused(tree: Tree, interface: str, *, paused: bool) -> Preview:
    """Return what set_paused() would change."""
    with _readable(tree, interface) as instance:
        before = instance.maps.settings().paused
    return Preview(interface, before={"paused": before}, after={"paused": paused})


def still_paused(tree: Tree, interface: str) -> list[str]:
    """Return the names that are paused on an interface, sorted."""
    with _readable(tree, interface) as instance:
        return instance.maps.paused_names()


def _with_names(actual: Rules, names: frozenset[str], *, paused: bool) -> Rules:
    before = names_of(actual)
    return with_pauses(actual, before | names if paused else before - names)


def _named_by(actual: Rules, names: frozenset[str]) -> frozenset[str]:
    """Return the names that rules have, of those that are no prefixes."""
    labels = {rule.label for rule in actual.distinct_rules if rule.origin != PAUSE_ORIGIN}
    return frozenset(name for name in names if name in labels or is_prefix(name))


def _shown(rules: Rules) -> Rules:
    """Return the rules without those that only note what is paused."""
    notes = {prefix for prefix, _ in rules.where(_is_of_pause).pairs() if is_marker(prefix)}
    return rules.without(rules.at(notes))


def _is_of_pause(rule: Rule) -> bool:
    return rule.origin == PAUSE_ORIGIN
