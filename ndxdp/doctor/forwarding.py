"""Forwarding, router advertisements, and the default route, which depends on both.

A Linux host that forwards acts as a router, and ignores router advertisements unless the
interface's own accept_ra is 2. Turning forwarding on removes the default routes of advertisements
(rt6_purge_dflt_routers). The kernel does not read `conf.all.accept_ra`.

A prefix that a `local` route delivers to this host itself (AnyIP) needs no forwarding.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from ndxdp.doctor import anyip
from ndxdp.doctor.finding import Finding, failure, note, warning
from ndxdp.doctor.manager import Manager
from ndxdp.errors import NdxdpError
from ndxdp.netlink import sysctl
from ndxdp.netlink.fib import DefaultRoute
from ndxdp.rules.address import address_text

_UNKNOWN = anyip.Delivery()


@dataclass(frozen=True, slots=True)
class Facts:
    """Sysctls and default routes; fields without a description are sysctls of the interface.

    Attributes:
        all_forwarding: conf.all.forwarding.
        force_forwarding: Exists from Linux 6.17 on.
        all_accept_ra: conf.all.accept_ra.
        routes: Default routes by the interface; None if they are not known.
        elsewhere: Other interfaces with default routes.
        at_risk: Interfaces whose default routes came from advertisements; the kernel would remove
            these when forwarding is turned on.
        has_global: The interface has a global address.
        manager: The program that configures the interface.
        delivery: Where the kernel delivers packets for the answered prefixes.
        absent: The kernel has no IPv6.
        quiet: The interface has no MAC address, so ndxdp answers nothing there.
    """

    interface: str
    disabled: bool
    all_forwarding: bool
    forwarding: bool
    force_forwarding: bool
    accept_ra: int
    all_accept_ra: int
    defrtr: bool
    pinfo: bool
    autoconf: bool
    routes: tuple[DefaultRoute, ...] | None
    elsewhere: tuple[str, ...]
    at_risk: tuple[str, ...]
    has_global: bool
    manager: Manager | None = None
    delivery: anyip.Delivery = _UNKNOWN
    absent: bool = False
    quiet: bool = False


def gather(
    interface: str,
    routes: dict[str, list[DefaultRoute]] | None,
    has_global: bool,
    manager: Manager | None,
    delivery: anyip.Delivery = _UNKNOWN,
    *,
    quiet: bool = False,
) -> Facts:
    """Read the sysctls of an interface.

    Args:
        interface: The interface.
        routes: Default routes by the name of their interface; None if they are not known.
        has_global: The interface has a global address.
        manager: The program that configures the interface.
        delivery: Where the kernel delivers packets for the answered prefixes.
        quiet: The interface has no MAC address.

    Raises:
        NdxdpError: The sysctls cannot be read.
    """
    seen = sysctl.read("net", "ipv6", "conf", "all", "forwarding") is not None
    absent = not seen and not has_ipv6()
    if not seen and not absent:
        raise NdxdpError("cannot read /proc/sys/net/ipv6", "is /proc mounted?")
    known = routes or {}
    here = None if routes is None else tuple(known.get(interface, ()))
    at_risk = (
        name
        for name, some in known.items()
        if any(route.by_ra for route in some) and sysctl.conf(name, "accept_ra") == 1
    )
    return Facts(
        interface,
        disabled=bool(sysctl.conf(interface, "disable_ipv6")),
        all_forwarding=bool(sysctl.conf("all", "forwarding")),
        forwarding=bool(sysctl.conf(interface, "forwarding")),
        force_forwarding=bool(sysctl.conf(interface, "force_forwarding")),
        accept_ra=sysctl.conf(interface, "accept_ra"),
        all_accept_ra=sysctl.conf("all", "accept_ra"),
        defrtr=bool(sysctl.conf(interface, "accept_ra_defrtr")),
        pinfo=bool(sysctl.conf(interface, "accept_ra_pinfo")),
        autoconf=bool(sysctl.conf(interface, "autoconf")),
        routes=here,
        elsewhere=tuple(sorted(name for name in known if name != interface)),
        at_risk=tuple(sorted(at_risk)),
        has_global=has_global,
        manager=manager,
        delivery=delivery,
        absent=absent,
        quiet=quiet,
    )


def has_ipv6() -> bool:
    """Return whether the kernel has IPv6; otherwise it creates no IPv6 socket."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def judge(facts: Facts) -> list[Finding]:
    """Return findings about IPv6 itself, forwarding, and the default route."""
    if facts.absent:
        return [
            failure(
                "this kernel has no IPv6",
                "it was booted with ipv6.disable=1, or has no IPv6 module: remove the parameter"
                " from the boot loader's configuration, and reboot",
                "cat /proc/cmdline",
            )
        ]
    if facts.disabled:
        return [
            failure(
                f"IPv6 is disabled on {facts.interface}",
                "disable_ipv6 is 1: the interface has no IPv6 addresses and receives no packets",
                sysctl.cure(sysctl.setting(facts.interface, "disable_ipv6", 0)),
            )
        ]
    found = [*anyip.judge(facts.delivery), *_forwarding(facts)]
    if facts.routes is not None:
        found += [*_default_route(facts, facts.routes), *_autoconf(facts)]
    return found


def _forwarding(facts: Facts) -> list[Finding]:
    name = facts.interface
    if not facts.delivery.needs_forwarding:
        return []
    keep = [sysctl.setting(each, "accept_ra", 2) for each in facts.at_risk]
    spare = (
        " (accept_ra=2 is set first: without it the kernel removes the default route of"
        f" {facts.at_risk[0]})"
        if keep
        else ""
    )
    if facts.quiet:
        if facts.all_forwarding or facts.force_forwarding:
            return []
        return [note("this host does not forward IPv6, which containers or guests would need")]
    if not facts.all_forwarding and not facts.force_forwarding:
        return [
            failure(
                "this host does not forward IPv6",
                f"the kernel drops packets for containers or guests that come in by {name}{spare}"
                f"{_hint_of_anyip(facts)}",
                sysctl.cure(*keep, sysctl.setting("all", "forwarding", 1)),
            )
        ]
    if not facts.forwarding and not facts.force_forwarding:
        keep = [sysctl.setting(name, "accept_ra", 2)] if name in facts.at_risk else []
        return [
            warning(
                f"forwarding is off on {name}, but on for the host",
                "the kernel forwards, but `routed` and `neighbour` rules answer nothing on the"
                " interface",
                sysctl.cure(*keep, sysctl.setting(name, "forwarding", 1)),
            )
        ]
    return []


def _hint_of_anyip(facts: Facts) -> str:
    """Return a clause on AnyIP, the other possible purpose of an `always` rule; "" without one."""
    prefix = facts.delivery.forwarded
    if prefix is None:
        return ""
    return f"; if this host itself has the addresses of {prefix}, instead: {anyip.cure(prefix)}"


def _hint_of_all(facts: Facts) -> str:
    """Return a clause if conf.all.accept_ra was set, which has no effect; else ""."""
    if facts.all_accept_ra == 2 and facts.accept_ra != 2:
        return "; conf.all.accept_ra=2 has no effect, each interface has its own"
    return ""


def _accept(facts: Facts) -> str:
    """Return the command that makes the interface accept router advertisements."""
    if facts.manager and facts.manager.accept_ra:
        return facts.manager.accept_ra
    return sysctl.cure(sysctl.setting(facts.interface, "accept_ra", 2))


def _default_route(facts: Facts, routes: tuple[DefaultRoute, ...]) -> list[Finding]:
    name = facts.interface
    if routes:
        lives = [route.expires for route in routes if route.by_ra]
        finite = [seconds for seconds in lives if seconds is not None]
        expired = [route for route in routes if route.has_expired]
        if expired and len(expired) == len(routes):
            return [_expired(facts, expired[0])]
        if finite and facts.forwarding and facts.accept_ra == 1:
            return [
                failure(
                    f"the default route of {name} expires in {min(finite)} s",
                    f"a host that forwards renews the route only with accept_ra=2 on {name}"
                    f"{_hint_of_all(facts)}",
                    _accept(facts),
                )
            ]
        return []
    if facts.elsewhere:
        others = ", ".join(facts.elsewhere)
        return [note(f"the IPv6 default route leads out of {others}, not {name}")]
    if facts.quiet:
        return [
            failure(
                f"there is no IPv6 default route by {name}",
                "none was configured; a route by this interface needs no gateway",
                f"ip -6 route add default dev {name}",
            )
        ]
    if facts.accept_ra == 0 or (facts.forwarding and facts.accept_ra == 1):
        is_router = "a host that forwards ignores router advertisements unless accept_ra is 2"
        ignored = "the kernel ignores router advertisements: accept_ra is 0"
        why = is_router if facts.accept_ra else ignored
        return [
            failure(
                f"there is no IPv6 default route by {name}",
                f"{why}{_hint_of_all(facts)}; then the next advertisement brings the route",
                _accept(facts),
            )
        ]
    if not facts.defrtr:
        return [
            failure(
                f"there is no IPv6 default route by {name}",
                "the kernel accepts router advertisements, but not their default route:"
                " accept_ra_defrtr is 0; after the change, the next advertisement brings the route",
                sysctl.cure(sysctl.setting(name, "accept_ra_defrtr", 1)),
            )
        ]
    return [
        failure(
            f"there is no IPv6 default route by {name}",
            "no router advertisement brought one, and none was configured: replace fe80::1 by your"
            " provider's gateway",
            f"ip -6 route add default via fe80::1 dev {name}",
        )
    ]


def _expired(facts: Facts, route: DefaultRoute) -> Finding:
    """Return a finding about an expired route, which the kernel still lists for a while.

    The kernel does not use such a route (rt6_check_expired).
    """
    name = facts.interface
    gateway = address_text(route.gateway) if route.gateway else ""
    via = f"via {gateway} " if gateway else ""
    what = f"the default route {via}dev {name} has expired: the kernel does not use it any more"
    if not route.by_ra:
        return failure(
            what,
            "the route was configured with a lifetime (expires), and was not renewed",
            f"ip -6 route replace default {via}dev {name}",
        )
    if facts.accept_ra == 0 or (facts.forwarding and facts.accept_ra == 1):
        return failure(
            what,
            f"the kernel ignores router advertisements (accept_ra is {facts.accept_ra})"
            f"{_hint_of_all(facts)}; after the change, the next advertisement renews the route",
            _accept(facts),
        )
    return failure(
        what,
        "no router advertisement has renewed the route: the router is down or sends none, or a"
        " filter drops them. --probe solicits an advertisement, which renews the route",
        f"ndxdp doctor {name} --probe",
    )


def _autoconf(facts: Facts) -> list[Finding]:
    """Return a finding if the interface makes no address of the prefixes that routers offer."""
    taken = facts.accept_ra == 2 or (facts.accept_ra == 1 and not facts.forwarding)
    if facts.quiet or facts.has_global or not taken or (facts.pinfo and facts.autoconf):
        return []
    keys = [
        key
        for key, on in (("accept_ra_pinfo", facts.pinfo), ("autoconf", facts.autoconf))
        if not on
    ]
    return [
        warning(
            f"{facts.interface} has no address of a router's prefix",
            "the kernel accepts router advertisements, but makes no addresses of their prefixes:"
            f" {' and '.join(keys)} {'are' if len(keys) > 1 else 'is'} 0; after the change, the"
            " next advertisement brings one",
            sysctl.cure(*(sysctl.setting(facts.interface, key, 1) for key in keys)),
        )
    ]
