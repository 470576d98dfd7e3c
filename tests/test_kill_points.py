"""SIGKILL at every moment of every change: the next start completes or undoes the change.

Each change is killed before the first of its changing system calls, then before the second, and so
on until it completes. After each kill ndxdp starts again, with another MAC than before, and must be
in step; then it is detached, and nothing may be left.

`make test-kills` sweeps every pair of modes, each kind of kernel and each way to start again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from lab.capture import packet_socket
from ndxdp.kernel import abi
from ndxdp.ndp.frame import TYPE_NA, icmpv6_type_of, lladdr_of, target_of
from ndxdp.rules.rule import CONFIG_ORIGIN
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_instance
from tests import packets
from tests.fixtures import network
from tests.fixtures.network import (
    BEHIND,
    FILES,
    HOST_MAC,
    PINS,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    call,
    eventually,
    leftovers,
    sh,
)
from tests.kills.kill_points import Step, Worker, class_prefixes

EVERYTHING = bool(os.environ.get("NDXDP_TEST_KILLS"))
"""Sweep all combinations, which takes long."""

OTHER_MAC = "02:00:00:00:00:22"
ADDED = "2001:db8:0:0:d::/80"
MANY = tuple(f"2001:db8::e:0:0:{n:x}/128" for n in range(1, 101))
"""Addresses for which the table of exact addresses has to grow."""
CLASSES = abi.FIRST_RULE_CLASSES + 6
"""Rule classes for which an interface needs hashes that it does not have at first."""
MODES = ("native", "generic", "tc")
KERNELS = ("links", "5.10", "netlink")


@dataclass(frozen=True)
class Change:
    """A change that is killed.

    Attributes:
        name: The change, and the kind of kernel.
        before: The steps that create the state before the change.
        step: The change.
        restarts: The ways to start again after a kill.
        answers: The target is answered for before the change and during it.
    """

    name: str
    before: tuple[Step, ...]
    step: Step
    restarts: tuple[Step, ...]
    answers: bool


def attach(mode: str, kernel: str, *more: str, switch: bool = False, size: int = 0) -> Step:
    return Step("attach", mode, kernel, (BEHIND, *more), size, switch)


def restart(mode: str, kernel: str) -> Step:
    """Return the step of a daemon that starts in the mode of its file."""
    if mode == "userspace":
        return Step("daemon", mode, kernel, (BEHIND, ADDED))
    return attach(mode, kernel, ADDED, switch=True)


def detach(kernel: str) -> Step:
    return Step("detach", kernel=kernel)


def every_change() -> Iterator[Change]:
    """Yield every change, in each mode and on each kind of kernel, with each way to start again."""
    for kernel in KERNELS:
        for mode in MODES:
            yield from _changes_in(mode, kernel)


def _changes_in(mode: str, kernel: str) -> Iterator[Change]:
    ways = (*(restart(each, kernel) for each in (*MODES, "userspace")), detach(kernel))
    here, again = attach(mode, kernel), attach("", kernel, ADDED)
    suspend = Step("suspend", mode, kernel)

    def change(name: str, before: tuple[Step, ...], step: Step, *, answers: bool = False) -> Change:
        return Change(f"{name}, {kernel}", before, step, (again, *ways), answers)

    yield change(f"attach {mode}", (), here)
    yield change(f"run {mode}", (), dataclasses.replace(here, verb="run"))
    yield change(f"renew {mode}", (here,), again, answers=True)
    yield change(f"resize {mode}", (here,), attach("", kernel, ADDED, size=2000), answers=True)
    for other in MODES:
        if other != mode:
            switched = attach(other, kernel, ADDED, switch=True)
            yield change(f"{mode} to {other}", (here,), switched, answers=True)
    yield change(f"reload {mode}", (here,), Step("reload", mode, kernel, (ADDED,)))
    grown = Step("reload", mode, kernel, (BEHIND, *MANY))
    for each in (
        change(f"grow {mode}", (here,), grown, answers=True),
        change(f"shrink {mode}", (here, grown), again, answers=True),
    ):
        # A daemon in userspace mode removes the rules of MANY only after it is ready.
        stays = tuple(way for way in each.restarts if way.mode != "userspace")
        yield dataclasses.replace(each, restarts=stays)
    with_hashes = Step("reload", mode, kernel, (BEHIND,), classes=CLASSES)
    filled = change(f"hashes {mode}", (here,), with_hashes, answers=True)
    same = dataclasses.replace(here, classes=CLASSES)
    yield dataclasses.replace(filled, restarts=(same, again, detach(kernel)))
    yield change(f"suspend {mode}", (here,), suspend)
    yield change(f"resume {mode}", (here, suspend), again)
    yield change(f"detach {mode}", (here,), detach(kernel))
    renamed = change(f"renamed {mode}", (here, Step("misname")), again, answers=True)
    yield dataclasses.replace(renamed, restarts=(again, *ways[:-1]))  # detach needs the old name
    serve = Step("serve", "userspace", kernel, (BEHIND, ADDED))
    yield change(f"{mode} suspended to userspace", (here, suspend), serve)
    yield change(f"userspace to {mode}", (serve,), here)
    # A daemon does this without ending in between.
    there, back = (
        Step("daemon", now, kernel, (BEHIND, ADDED), was=was)
        for now, was in (("userspace", mode), (mode, "userspace"))
    )
    for name, step in (
        (f"daemon: {mode} to userspace", there),
        (f"daemon: userspace to {mode}", back),
    ):
        yield Change(f"{name}, {kernel}", (), step, ways, answers=False)


IN_SHORT = (
    "renew native, links",
    "renew generic, netlink",
    "resize tc, links",
    "native to generic, links",
    "generic to native, netlink",
    "native to tc, 5.10",
    "tc to native, netlink",
    "generic to tc, links",
    "tc to generic, 5.10",
    "reload generic, links",
    "grow tc, links",
    "shrink generic, netlink",
    "hashes generic, links",
    "suspend tc, netlink",
    "resume native, links",
    "detach tc, netlink",
    "renamed generic, links",
    "userspace to tc, netlink",
    "tc suspended to userspace, links",
)
"""Each change once, on one kind of kernel; the points use the ways to start again in turn."""


class Bench:
    """The network, and queries of its state."""

    def __init__(self, net: Network, worker: Worker, router: socket.socket) -> None:
        self.net, self.worker, self._router = net, worker, router
        self.mac = HOST_MAC
        router.setblocking(True)
        router.settimeout(0.25)

    def change_mac(self) -> None:
        self.mac = OTHER_MAC if self.mac == HOST_MAC else HOST_MAC
        sh("ip", "link", "set", "dev", UPLINK, "address", self.mac)

    def answer(self, address: str = TARGET) -> str | None:
        """Solicit an address; return the MAC in the answer."""
        target = socket.inet_pton(socket.AF_INET6, address)
        frame = bytes(
            packets.to_group(address, ROUTER_LINK_LOCAL, eth_src=ROUTER_MAC)
            / packets.ns(address)
            / packets.sllao(ROUTER_MAC)
        )
        for _ in range(4):
            self._router.send(frame)
            give_up = time.monotonic() + 0.25
            with contextlib.suppress(TimeoutError):
                while time.monotonic() < give_up:
                    received, sender = self._router.recvfrom(65536)
                    outgoing = sender[2] == socket.PACKET_OUTGOING
                    if (
                        not outgoing
                        and icmpv6_type_of(received) == TYPE_NA
                        and target_of(received) == target
                    ):
                        return lladdr_of(received).hex(":")
        return None

    def take(self, step: Step) -> None:
        outcome = self.worker.take(step)
        assert not outcome.killed
        assert outcome.error == "", f"{step.verb} {step.mode}: {outcome.error}"

    def is_in_step(self, step: Step) -> None:
        """Check that the interface is in the state of the completed start."""
        trees = Trees()
        programs = network.xdp_ids() + network.tc_ids()
        left = [path for path in network.pins() if path.endswith(":new")]
        assert left == [], left
        with open_instance(trees.of(UPLINK), UPLINK) as instance:
            settings = instance.maps.settings()
            rules = instance.maps.rules().where(lambda rule: rule.origin == CONFIG_ORIGIN)
            classes = instance.maps.rule_classes()
            indexes = instance.maps.entries("vias")
        assert settings.mac.hex(":") == self.mac
        assert {str(prefix) for prefix in rules} == {*step.rules, *class_prefixes(step.classes)}
        if step.mode == "userspace":
            assert programs == [], programs
            assert settings.mode.label == "userspace"
            assert trees.pins.interfaces() == []
            assert not network.has_allmulti()
            assert not network.clsact()
            return
        assert trees.files.interfaces() == []
        assert programs == [network.program_id()]
        assert bool(network.xdp_ids()) == (settings.mode.label != "tc")
        if step.mode:
            assert settings.mode.label == step.mode
        assert self.answer() == self.mac
        if step.classes:
            label = next(
                each.label
                for slot, each in classes.items()
                if slot >= abi.FIRST_RULE_CLASSES and not each.dev
            )
            assert self.answer(label.replace("::/64", "::1")) == self.mac
            assert indexes == 1

    def is_clean(self) -> None:
        with contextlib.suppress(AssertionError):
            eventually(lambda: not leftovers())
        left = leftovers()
        assert left == [], left

    def clean_up(self) -> None:
        for root in (PINS, FILES):
            shutil.rmtree(root, ignore_errors=True)
        call("ip", "link", "set", "dev", UPLINK, "allmulticast", "off")
        for kind in ("xdpdrv", "xdpgeneric"):
            call("ip", "link", "set", "dev", UPLINK, kind, "off")
        call("tc", "qdisc", "delete", "dev", UPLINK, "clsact")
        with contextlib.suppress(AssertionError):
            eventually(lambda: not leftovers())


@pytest.fixture(scope="module")
def bench(privacy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("kill_points")
    with network.network() as net, contextlib.closing(Worker(directory)) as worker:
        net.pass_at_router()
        with packet_socket(ROUTER, ROUTER_LINK) as router:
            made = Bench(net, worker, router)
            yield made
            made.clean_up()  # empty directories


def swept(bench: Bench, change: Change, ways: Sequence[Step]) -> tuple[int, list[str]]:
    """Kill a change at every point; return the number of points, and the failures.

    Args:
        bench: The network.
        change: The change.
        ways: The ways to start again, which the points use in turn.
    """
    wedged = []
    for point, way in enumerate(itertools.cycle(ways), 1):
        for step in change.before:
            bench.take(step)
        outcome = bench.worker.take(change.step, kill_at=point)
        assert outcome.error == "", outcome.error
        try:
            if change.answers:
                assert bench.answer() == bench.mac, "no answer after the kill"
            bench.change_mac()
            if way.verb != "detach":
                bench.take(way)
                bench.is_in_step(way)
            ended = bench.worker.take(detach(way.kernel))
            if "is not attached" not in ended.error:
                assert ended.error == ""
            bench.is_clean()
        except AssertionError as error:
            wedged.append(f"{point}, {way.verb} {way.mode}: {str(error).splitlines()[0]}")
            bench.clean_up()
        if not outcome.killed:
            return point - 1, wedged
    raise AssertionError


CHANGES = {change.name: change for change in every_change()}


@pytest.mark.parametrize("name", CHANGES if EVERYTHING else IN_SHORT)
def test_the_next_start_completes_or_undoes_the_change(bench: Bench, name: str) -> None:
    """Complete or undo a change that was killed at any point, with the next start."""
    change = CHANGES[name]
    for ways in [[way] for way in change.restarts] if EVERYTHING else [change.restarts]:
        points, wedged = swept(bench, change, ways)
        print(f"{len(wedged)} of {points} points: {name}, then by turns {ways}")
        assert points > 0
        assert wedged == [], f"{len(wedged)} of {points}"


@pytest.fixture
def bridge(bench: Bench) -> Iterator[str]:
    name = "br9"
    sh("ip", "link", "add", name, "up", "type", "bridge")
    yield name
    sh("ip", "link", "delete", name)


@pytest.mark.parametrize("verb", ["serve", "detach"])
def test_a_bridge_is_restored(bench: Bench, bridge: str, verb: str) -> None:
    """Restore a bridge's mcast_router once `detach` completes."""

    def mcast_router() -> int:
        found: int = network.link_state(bridge)["linkinfo"]["info_data"]["mcast_router"]
        return found

    here = Step("attach", "tc", "netlink", (BEHIND,), interface=bridge)
    step = dataclasses.replace(here, verb=verb)
    for point in itertools.count(1):
        if verb == "detach":
            bench.take(here)
        killed = bench.worker.take(step, kill_at=point).killed
        if point % 2:
            bench.take(here)
            assert mcast_router() == 2
        ended = bench.worker.take(Step("detach", interface=bridge))
        assert ended.error == "" or "is not attached" in ended.error
        assert (leftovers(bridge), mcast_router()) == ([], 1), point
        if not killed:
            return
