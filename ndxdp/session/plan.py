"""The plan of one attachment: a request, decided for one interface and one mode."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.kernel.abi import Mode, Restore
from ndxdp.kernel.loader import Loader
from ndxdp.ndp.limiter import Rate
from ndxdp.netlink.links import Link
from ndxdp.netlink.netns import netns
from ndxdp.netlink.uplink_addresses import UplinkAddresses
from ndxdp.rules.capacity import Shortage, room_for
from ndxdp.rules.difference import merge_owned, resolve_conflicts
from ndxdp.rules.pausing import names_of, with_pauses, without_pauses
from ndxdp.rules.rule import CONFIG_ORIGIN, HOST_ORIGIN, RUN_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.session.request import AttachRequest
from ndxdp.store.directories import Tree
from ndxdp.store.instance import open_instance
from ndxdp.store.records import Settings

_BURST = 100

GATEWAY_RATE = 10_000.0
"""Answers per second to each gateway, where there is any limit."""

_NOTHING_TO_RESTORE = Restore(0)


@dataclass(frozen=True, slots=True)
class CarriedState:
    """State that moves from pins to files, or from files to pins, when the backend changes.

    Attributes:
        rules: Rules that are not a process's own.
        paused: Whether answering is paused; None if the other backend has no state.
        restore: What detaching has to restore.
    """

    rules: Rules = field(default_factory=Rules)
    paused: bool | None = None
    restore: Restore = _NOTHING_TO_RESTORE


@dataclass(frozen=True, slots=True)
class AttachPlan:
    """A request with everything that was decided about it.

    Attributes:
        request: The request.
        link: The interface as the kernel has it.
        addresses: The addresses of the interface and of its gateways.
        mode: The mode to attach in.
        path: The interface's directory.
        refusals: The modes that were refused before, in the encoding of the settings.
        carried: The state of the other backend.
    """

    request: AttachRequest
    link: Link
    addresses: UplinkAddresses
    mode: Mode
    path: Path
    refusals: str
    carried: CarriedState

    def rules(self, actual: Rules, *, attached: bool) -> Rules:
        """Return the rules that the interface is to have.

        Args:
            actual: The present rules.
            attached: The present rules are in use. Otherwise a former `ndxdp run` left its own.

        Raises:
            NdxdpError: A prefix has another rule, or the requested table is too small.
        """
        origin = self.request.origin
        stale = {origin} if attached else {origin, RUN_ORIGIN}
        names = names_of(actual) | names_of(self.carried.rules)
        kept = without_pauses(actual).where(lambda rule: rule.origin not in stale)
        added = without_pauses(self.carried.rules) | self.request.rules
        if origin is not None:
            added, kept = resolve_conflicts(added, kept, origin)
        desired = with_pauses(merge_owned(added, kept, self.addresses.owned), names)
        room = self.request.options.max_addresses
        if room is not None and len(desired.addresses) > room:
            have = len(kept.addresses)
            lack = Shortage("addresses", have, len(desired.addresses) - have, room)
            raise lack.error(in_file=origin == CONFIG_ORIGIN)
        return desired

    def settings(self, before: Settings | None) -> Settings:
        """Return the settings; those that the request does not specify stay as `before`."""
        options, link = self.request.options, self.link
        is_new = (before is None or not before.ifindex) and self.carried.paused is None
        here = (link.ifindex, netns())
        settings = before or Settings(link.mac, *here, self.mode)
        if (settings.ifindex, settings.netns) != here:
            settings = replace(settings, ifindex=here[0], netns=here[1], restore=Restore(0))
        is_unwritten = before is None or not before.ifindex  # a file that was just created
        return replace(
            self._limited(settings, is_unwritten=is_unwritten),
            restore=settings.restore | self.carried.restore,
            paused=settings.paused or bool(self.carried.paused) or (is_new and options.paused),
            mac=link.mac,
            link_local=self.addresses.link_local,
            l3_ifindex=link.l3_ifindex,
            mode=self.mode,
            bcc=options.loader is Loader.BCC,
            refusals=self.refusals,
        )

    def _limited(self, settings: Settings, *, is_unwritten: bool) -> Settings:
        """Return settings with the requested rate limits."""
        options = self.request.options
        if options.rate is None and options.burst and not settings.rate_interval:
            raise UsageError("--burst without a rate limits nothing", "give --rate, too")
        interval = settings.rate_interval
        if options.rate is not None:
            interval = round(1e9 / options.rate) if options.rate else 0
        credit = interval * ((options.burst or settings.burst or _BURST) - 1)
        settings = replace(settings, rate_interval=interval, rate_credit=credit)
        if options.interface_rate is not None:
            total = _per_second(options.interface_rate)
            settings = replace(settings, total_interval=total.interval, total_credit=total.credit)
        gateway_rate = options.gateway_rate
        if gateway_rate is None and is_unwritten:
            gateway_rate = GATEWAY_RATE
        if gateway_rate is not None:
            share = _per_second(gateway_rate)
            settings = replace(
                settings, gateway_interval=share.interval, gateway_credit=share.credit
            )
        if options.gateway_rate is not None and not settings.limits:
            raise UsageError(
                "--gateway-rate without a limit is no share",
                "give --rate or --interface-rate, too",
            )
        return settings


def _per_second(rate: float) -> Rate:
    """Return the limit that admits `rate` a second, and as many at once; 0 for none."""
    if not rate:
        return Rate()
    interval = round(1e9 / rate)
    return Rate(interval, max(1_000_000_000 - interval, 0))


def carry_over(tree: Tree, interface: str) -> CarriedState:
    """Return the state that an interface's directory has in the other backend's tree.

    The caller writes the state to its own tree and then removes that directory.
    """
    try:
        with open_instance(tree, interface) as former:
            rules, settings = former.maps.rules(), former.maps.settings()
    except NdxdpError:
        return CarriedState()
    if not settings.ifindex:  # files of a process that was killed before it had written them
        return CarriedState()
    kept = rules.where(lambda rule: rule.origin not in (HOST_ORIGIN, RUN_ORIGIN))
    owned = kept.where(lambda rule: rule.owned)
    freed = {prefix: replace(rule, owned=False) for prefix, rule in owned.pairs()}
    return CarriedState(kept | freed, settings.paused, settings.restore & Restore.MCAST_ROUTER)


def attached_otherwise(interface: str, mode: Mode) -> NdxdpError:
    """Return the error for an interface that is attached in another mode than requested."""
    return NdxdpError(
        f"ndxdp is attached to {interface} in {mode.label} mode",
        f"ndxdp detach {interface} first",
    )


def too_small(max_addresses: int, have: int, reason: str) -> NdxdpError:
    """Return the error for a table of addresses that cannot be created or filled."""
    return NdxdpError(
        f"a table of {max_addresses} addresses could not be filled ({reason})",
        f"--max-addresses {room_for(have)} has room for the {have} rules that are there; or memory"
        " is short: dmesg shows it",
    )
