"""What attaching to an interface and answering for it from userspace have in common."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.kernel.abi import Mode, Restore
from ndxdp.kernel.loader import Loader
from ndxdp.ndp.limiter import Rate
from ndxdp.netlink.addresses import link_local_address
from ndxdp.netlink.links import Link
from ndxdp.netlink.netns import netns
from ndxdp.rules.rule import HOST_ORIGIN, RUN_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.store.directories import Tree
from ndxdp.store.instance import open_instance
from ndxdp.store.records import Settings

_BURST = 100

GATEWAY_RATE = 10_000.0
"""Answers per second to each gateway, where there is any limit."""

_NOTHING_TO_RESTORE = Restore(0)


@dataclass(frozen=True, slots=True)
class Options:
    """How to attach. None: as it is attached now, else the default.

    mode: None by default for `auto`: native, tc, and userspace where a process stays.
    rate: answers per second to one MAC, 0 (the default) for no limit; burst: how many at once,
        100 by default.
    interface_rate: answers per second to all MACs but the gateways', 0 (the default) for no limit.
    gateway_rate: answers per second to each gateway, to which no other limit applies; 10000 by
        default, 0 for no limit.
    max_addresses: size of the table of exact addresses.
    links: False takes the way of a kernel without BPF links.
    image: another object than the shipped one.
    paused: answering begins paused, where nothing is attached yet; what is attached stays as it is.
    """

    mode: Mode | None = None
    loader: Loader = Loader.PREBUILT
    rate: float | None = None
    burst: int | None = None
    interface_rate: float | None = None
    gateway_rate: float | None = None
    max_addresses: int | None = None
    links: bool = True
    image: bytes | None = None
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Legacy:
    """What pins leave to files, or files to pins. left: what is still to be put back.

    paused: None if there is nothing in the other place.
    """

    rules: Rules = field(default_factory=Rules)
    paused: bool | None = None
    restore: Restore = _NOTHING_TO_RESTORE


@dataclass(frozen=True, slots=True)
class Plan:
    """One attachment, decided: where, how, and whether it outlives the process.

    steps: the modes that could not be had, as the settings keep them. legacy: what the other
    place leaves to this one.
    """

    link: Link
    mode: Mode
    options: Options
    keep: bool
    path: Path
    steps: str
    legacy: Legacy


def settings_of(plan: Plan, before: Settings | None) -> Settings:
    """Return the settings for a plan; what the plan does not specify stays as it was before."""
    rate, burst, link = plan.options.rate, plan.options.burst, plan.link
    is_new = (before is None or not before.ifindex) and plan.legacy.paused is None
    settings = before or Settings(link.mac, link.ifindex, netns(), plan.mode)
    if rate is None and burst and not settings.rate_interval:
        raise UsageError("--burst without a rate limits nothing", "give --rate, too")
    interval = settings.rate_interval
    if rate is not None:
        interval = round(1e9 / rate) if rate else 0
    credit = interval * ((burst or settings.burst or _BURST) - 1)
    settings = replace(settings, rate_interval=interval, rate_credit=credit)
    if plan.options.interface_rate is not None:
        total = _per_second(plan.options.interface_rate)
        settings = replace(settings, total_interval=total.interval, total_credit=total.credit)
    gateway_rate = plan.options.gateway_rate
    if gateway_rate is None and (before is None or not before.ifindex):  # a file just made
        gateway_rate = GATEWAY_RATE
    if gateway_rate is not None:
        share = _per_second(gateway_rate)
        settings = replace(settings, gateway_interval=share.interval, gateway_credit=share.credit)
    if plan.options.gateway_rate is not None and not settings.limits:
        raise UsageError(
            "--gateway-rate without a limit is no share", "give --rate or --interface-rate, too"
        )
    here = (link.ifindex, netns())
    if (settings.ifindex, settings.netns) != here:
        settings = replace(settings, ifindex=here[0], netns=here[1], restore=Restore(0))
    return replace(
        settings,
        restore=settings.restore | plan.legacy.restore,
        paused=settings.paused or bool(plan.legacy.paused) or (is_new and plan.options.paused),
        mac=link.mac,
        link_local=link_local_address(link.ifindex),
        l3_ifindex=link.l3_ifindex,
        mode=plan.mode,
        bcc=plan.options.loader is Loader.BCC,
        steps=plan.steps,
    )


def _per_second(rate: float) -> Rate:
    """Make the limit that admits `rate` a second, and as many at once; 0 for none."""
    if not rate:
        return Rate()
    interval = round(1e9 / rate)
    return Rate(interval, max(1_000_000_000 - interval, 0))


def inherited(tree: Tree, interface: str) -> Legacy:
    """What is in the other place: rules that are not a process's own, and what is to be put back.

    Taking them over is the caller's, who then removes them there.
    """
    try:
        with open_instance(tree, interface) as left:
            rules, settings = left.maps.rules(), left.maps.settings()
    except NdxdpError:
        return Legacy()
    if not settings.ifindex:  # files of a process that was killed before it had written them
        return Legacy()
    kept = rules.where(lambda rule: rule.origin not in (HOST_ORIGIN, RUN_ORIGIN))
    held = kept.where(lambda rule: rule.owned)
    freed = {prefix: replace(rule, owned=False) for prefix, rule in held.pairs()}
    return Legacy(kept | freed, settings.paused, settings.restore & Restore.MCAST_ROUTER)


def attached_otherwise(interface: str, mode: Mode) -> NdxdpError:
    return NdxdpError(
        f"ndxdp is attached to {interface} in {mode.label} mode",
        f"ndxdp detach {interface} first",
    )


def too_small(max_addresses: int, have: int, why: str) -> NdxdpError:
    return NdxdpError(
        f"a table of {max_addresses} addresses could not be filled ({why})",
        f"{have} rules are there: is --max-addresses too small, or memory short?",
    )


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep SIGINT and SIGTERM waiting while several kernel objects change together."""
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)
