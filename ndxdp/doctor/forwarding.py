"""Forwarding, router advertisements, and the default route that depends on both.

A Linux host that forwards takes itself for a router, and ignores router advertisements unless the
interface's own accept_ra is 2. Turning forwarding on removes the default routes that came from
them (rt6_purge_dflt_routers). `conf.all.accept_ra` is read by nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from ndxdp.doctor import sysctl
from ndxdp.doctor.finding import Finding, failure, note, warning
from ndxdp.doctor.manager import Manager
from ndxdp.wire.fib import DefaultRoute


@dataclass(frozen=True, slots=True)
class Facts:
    """Sysctls of the interface, unless their names say otherwise.

    force_forwarding: from Linux 6.17 on. routes: default routes by the interface.
    elsewhere: other interfaces that have default routes. at_risk: interfaces, whose default
    routes the kernel has from advertisements, and would remove when forwarding is turned on.
    quiet: the interface has no MAC address, so that ndxdp answers for nothing there.
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
    routes: tuple[DefaultRoute, ...]
    elsewhere: tuple[str, ...]
    at_risk: tuple[str, ...]
    has_global: bool
    manager: Manager | None = None
    quiet: bool = False


def gather(
    interface: str,
    routes: dict[str, list[DefaultRoute]],
    has_global: bool,
    manager: Manager | None,
    *,
    quiet: bool = False,
) -> Facts:
    """routes: default routes by the name of their interface."""
    here = tuple(routes.get(interface, ()))
    at_risk = (
        name
        for name, some in routes.items()
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
        elsewhere=tuple(sorted(name for name in routes if name != interface)),
        at_risk=tuple(sorted(at_risk)),
        has_global=has_global,
        manager=manager,
        quiet=quiet,
    )


def judge(facts: Facts) -> list[Finding]:
    if facts.disabled:
        return [
            failure(
                f"IPv6 is switched off on {facts.interface}",
                "disable_ipv6 is 1: the interface has no IPv6 addresses and receives nothing",
                sysctl.cure(sysctl.setting(facts.interface, "disable_ipv6", 0)),
            )
        ]
    return [*_forwarding(facts), *_default_route(facts), *_autoconf(facts)]


def _forwarding(facts: Facts) -> list[Finding]:
    name = facts.interface
    keep = [sysctl.setting(each, "accept_ra", 2) for each in facts.at_risk]
    spare = (
        f" (accept_ra=2 comes first: else the default route of {facts.at_risk[0]} goes)"
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
                f"what comes in by {name} for containers or guests is thrown away{spare}",
                sysctl.cure(*keep, sysctl.setting("all", "forwarding", 1)),
            )
        ]
    if not facts.forwarding and not facts.force_forwarding:
        keep = [sysctl.setting(name, "accept_ra", 2)] if name in facts.at_risk else []
        return [
            warning(
                f"forwarding is off on {name} itself, but on for the host",
                "the kernel forwards, but rules `routed` and `neighbour` answer for nothing there",
                sysctl.cure(*keep, sysctl.setting(name, "forwarding", 1)),
            )
        ]
    return []


def _trap(facts: Facts) -> str:
    """What somebody tried in vain."""
    if facts.all_accept_ra == 2 and facts.accept_ra != 2:
        return "; conf.all.accept_ra=2 has no effect, each interface has its own"
    return ""


def _accept(facts: Facts) -> str:
    """The command for router advertisements to be taken."""
    if facts.manager and facts.manager.accept_ra:
        return facts.manager.accept_ra
    return sysctl.cure(sysctl.setting(facts.interface, "accept_ra", 2))


def _default_route(facts: Facts) -> list[Finding]:
    name = facts.interface
    if facts.routes:
        lives = [route.expires for route in facts.routes if route.by_ra]
        finite = [seconds for seconds in lives if seconds is not None]
        if finite and facts.forwarding and facts.accept_ra == 1:
            return [
                failure(
                    f"the default route of {name} is gone in {min(finite)} s",
                    f"a host that forwards renews it only with accept_ra=2 on {name}{_trap(facts)}",
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
                "nobody set one; there it needs no gateway",
                f"ip -6 route add default dev {name}",
            )
        ]
    if facts.accept_ra == 0 or (facts.forwarding and facts.accept_ra == 1):
        is_router = "a host that forwards ignores router advertisements unless accept_ra is 2"
        why = is_router if facts.accept_ra else "router advertisements are ignored: accept_ra is 0"
        return [
            failure(
                f"there is no IPv6 default route by {name}",
                f"{why}{_trap(facts)}; the next advertisement brings it",
                _accept(facts),
            )
        ]
    if not facts.defrtr:
        return [
            failure(
                f"there is no IPv6 default route by {name}",
                "router advertisements are taken, but not their default route: accept_ra_defrtr"
                " is 0",
                sysctl.cure(sysctl.setting(name, "accept_ra_defrtr", 1)),
            )
        ]
    return [
        failure(
            f"there is no IPv6 default route by {name}",
            "no router advertisement brought one, and nobody set one: put in your provider's"
            " gateway",
            f"ip -6 route add default via fe80::1 dev {name}",
        )
    ]


def _autoconf(facts: Facts) -> list[Finding]:
    """No address, though a router may have offered a prefix."""
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
            f"{facts.interface} makes itself no address",
            f"router advertisements are taken, but not their prefixes: {' and '.join(keys)} 0;"
            " the next advertisement brings one",
            sysctl.cure(*(sysctl.setting(facts.interface, key, 1) for key in keys)),
        )
    ]
