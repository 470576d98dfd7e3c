"""Interfaces that ndxdp has pins or files of, and that are deleted, renamed or elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from ndxdp.doctor import namespace
from ndxdp.doctor.finding import Finding, cannot_look, failure, unseen, warning
from ndxdp.errors import NdxdpError
from ndxdp.netlink.netns import netns
from ndxdp.store.directories import Trees
from ndxdp.store.instance import KernelInstance, open_instance


@dataclass(frozen=True, slots=True)
class Facts:
    """The remains of an interface that is not there.

    Attributes:
        trouble: Why its pins or files could not be read, None if they could.
        called: The device's present name, '' if no device of this namespace has its program.
        elsewhere: It belongs to another network namespace, which exists.
        namespace: A path of that, '' if none leads there.
    """

    interface: str
    trouble: NdxdpError | None = None
    called: str = ""
    elsewhere: bool = False
    namespace: str = ""


def gather(trees: Trees, interface: str) -> Facts | None:
    """Look at what ndxdp has of an interface that is not there; None if it has nothing."""
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
    name = facts.interface
    if facts.trouble is not None:
        there_is_none = failure(
            f"there is no interface '{name}', but ndxdp has something of it",
            "it was deleted or renamed, or is in another network namespace",
            f"ndxdp detach {name}",
        )
        return [there_is_none, cannot_look(f"what ndxdp has of {name}", facts.trouble)]
    if facts.elsewhere:
        there = namespace.enter(facts.namespace, "ndxdp", "doctor", name)
        cure = there if facts.namespace else ""
        return [unseen(f"cannot look at {name}: it is in another network namespace", cure)]
    if facts.called:
        return [
            warning(
                f"the interface '{name}' is called {facts.called} now",
                "ndxdp goes on answering there, under the former name",
                f"ndxdp attach {facts.called}",
            )
        ]
    return [
        failure(
            f"there is no interface '{name}': it was deleted or renamed",
            "ndxdp has rules for it, and keeps them: a running daemon or `ndxdp attach` goes on"
            " with them once it is back. If it is not to come back, remove them",
            f"ndxdp detach {name}",
        )
    ]
