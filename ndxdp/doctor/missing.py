"""Missing interfaces of which ndxdp has pins or files: deleted, renamed or moved."""

from __future__ import annotations

from dataclasses import dataclass

from ndxdp.doctor import namespace
from ndxdp.doctor.finding import Finding, cannot_check, failure, unseen, warning
from ndxdp.errors import NdxdpError
from ndxdp.netlink.netns import netns
from ndxdp.store.directories import Trees
from ndxdp.store.instance import KernelInstance, open_instance


@dataclass(frozen=True, slots=True)
class Facts:
    """Remains of an interface that does not exist.

    Attributes:
        interface: The name of the interface.
        error: Why its pins or files could not be read; None if they were.
        called: The device's present name; "" if no device of this namespace has its program.
        elsewhere: The interface is in another network namespace, which exists.
        namespace: A path of that namespace; "" if there is none.
    """

    interface: str
    error: NdxdpError | None = None
    called: str = ""
    elsewhere: bool = False
    namespace: str = ""


def gather(trees: Trees, interface: str) -> Facts | None:
    """Read the pins or files of an interface that does not exist; None if there are none."""
    try:
        tree = next((tree for tree in trees if tree.path(interface).is_dir()), None)
        if tree is None:
            return None
        with open_instance(tree, interface, readonly=True) as instance:
            settings = instance.maps.settings()
            if settings.netns == netns():
                return Facts(interface, called=instance.device() or "")
            if isinstance(instance, KernelInstance) and instance.is_dead(settings):
                return Facts(interface)
            where = namespace.path_of(settings.netns)
            return Facts(interface, elsewhere=True, namespace=where)
    except NdxdpError as error:
        return Facts(interface, error)
    except OSError as error:
        return Facts(interface, NdxdpError(f"{interface}: {error.strerror or error}"))


def judge(facts: Facts) -> list[Finding]:
    """Return a finding about an interface of which only the pins or files of ndxdp are left."""
    name = facts.interface
    if facts.error is not None:
        there_is_none = failure(
            f"there is no interface '{name}', but ndxdp has pins or files of it",
            "the interface was deleted or renamed, or is in another network namespace",
            f"ndxdp detach {name}",
        )
        return [there_is_none, cannot_check(f"the pins or files of {name}", facts.error)]
    if facts.elsewhere:
        there = namespace.enter(facts.namespace, "ndxdp", "doctor", name)
        cure = there if facts.namespace else ""
        return [unseen(f"cannot check {name}: it is in another network namespace", cure)]
    if facts.called:
        return [
            warning(
                f"the interface '{name}' is called {facts.called} now",
                "ndxdp continues to answer there, under the former name",
                f"ndxdp attach {facts.called}",
            )
        ]
    return [
        failure(
            f"there is no interface '{name}': it was deleted or renamed",
            "ndxdp keeps its rules: a running daemon or `ndxdp attach` uses them when the interface"
            " comes back. If it does not come back, remove them",
            f"ndxdp detach {name}",
        )
    ]
