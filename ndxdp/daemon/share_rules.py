"""The rules by which the program answers on the interfaces of a share. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ndxdp.config.model import Share
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import SHARE_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules

OWN_ADDRESSES = "own addresses"
"""The label of the rules for the host's own addresses on other interfaces."""

OWN_ROUTERS = "own routers"
"""The label of the rules for its link-local addresses on other downstream interfaces."""


def share_rules(
    share: Share, prefixes: Iterable[Prefix], local: Iterable[bytes], routers: Iterable[bytes] = ()
) -> Rules:
    """Return the rules of an interface of a share.

    For each prefix, the program answers for neighbours on the other interfaces. It does not defend
    them against DAD: the kernel's entry for a host that has moved may be old, so the daemon asks
    first. The kernel answers for the host's own addresses only on the interface that has them; on
    the others, the program does. A node that has moved here without noticing looks for the default
    router that it knew, and finds it by the program's answer, too.

    Args:
        share: The share.
        prefixes: The shared prefixes.
        local: The host's own addresses inside them, 16 bytes each. Those of the interface that is
            answered on are holes there, as for any rules.
        routers: The host's link-local addresses on the other downstream interfaces.
    """
    dev = (share.upstream, *share.downstream)
    asking = Profile(defend=False)
    own = Rule(Answer.LOCAL, origin=SHARE_ORIGIN, label=OWN_ADDRESSES)
    router = Rule(Answer.ALWAYS, asking, SHARE_ORIGIN, OWN_ROUTERS)
    return Rules(
        {own: AddressSet.of(local), router: AddressSet.of(routers)},
        {
            prefix: Rule(Answer.NEIGHBOUR, asking, SHARE_ORIGIN, str(prefix), dev=dev)
            for prefix in prefixes
        },
    )
