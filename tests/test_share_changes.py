"""A share through the life of its daemon, its hosts and its prefixes, under pings."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from lab.nodes import Node
from lab.shared_prefix import (
    INTERNET_ADDRESS,
    LAN0,
    LAN1,
    MACS,
    PREFIX,
)
from tests.fixtures.network import eventually
from tests.fixtures.shared_link import SharedHost, one_test, reload, shared_link


@pytest.fixture(scope="module")
def network(privacy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedHost]:
    with shared_link(Path(tmp_path_factory.mktemp("share"))) as made:
        yield made


@pytest.fixture
def site(network: SharedHost) -> Iterator[SharedHost]:
    """Return the network without a daemon and without clients."""
    with one_test(network) as lent:
        yield lent


@contextlib.contextmanager
def without_loss(*pairs: tuple[Node, IPv6Address]) -> Iterator[None]:
    """Ping each pair of a node and a target 100 times a second; fail if a ping is lost."""
    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(node.pinging(target)) for node, target in pairs]
        started = time.monotonic()
        time.sleep(0.5)
        yield
        time.sleep(0.5)
        seconds = time.monotonic() - started
        for (node, target), outcome in zip(pairs, outcomes, strict=True):
            pings = outcome()
            assert pings.lost == [], (node.name, target, pings)
            assert pings.sent > 20 * seconds, (pings.sent, seconds)


# ---- the daemon ----------------------------------------------------------------------------------


def test_the_daemon_ends_and_returns(site: SharedHost) -> None:
    """Kills, restarts, a reload and another loader cost no ping, in no direction.

    The next daemon adopts the routes, and knows since when a host is there.
    """
    lab = site.lab
    site.start("tc")
    a, b = lab.client("a", LAN0), lab.client("b", LAN1)
    lab.wait_for_addresses(a, b)
    wanted = {a.slaac(PREFIX): LAN0, b.slaac(PREFIX): LAN1}
    site.await_routes(wanted)
    site.await_adopted(wanted)
    since = {host["address"]: host["since"] for host in site.report()["hosts"]}
    pairs = (
        (lab.internet, a.slaac(PREFIX)),
        (a, INTERNET_ADDRESS),
        (lab.neighbour, a.slaac(PREFIX)),
        (a, lab.neighbour.slaac(PREFIX)),
        (a, b.slaac(PREFIX)),
    )
    for node, target in pairs:
        assert node.ping(target) == 1
    with without_loss(*pairs):
        site.kill()
        time.sleep(0.5)
        assert site.routes() == wanted
        site.start_again()
        site.await_adopted(wanted)
        site.stop()
        assert site.routes() == wanted
        time.sleep(0.5)
        running = site.start("tc", expire=300)
        site.configure("tc", expire=400)
        reload(running)
        site.await_adopted(wanted)
        site.stop()
        running = site.start("tc", loader="bcc")
        site.await_adopted(wanted)
    assert {host["address"]: host["since"] for host in site.report()["hosts"]} == since
    assert running.process.poll() is None


def test_routes_while_no_daemon_runs(site: SharedHost) -> None:
    """A host that has left, and a route that was deleted, do not come back."""
    lab = site.lab
    site.start()
    a, b, c = (lab.client(name, LAN0) for name in "abc")
    lab.wait_for_addresses(a, b, c)
    site.await_routes({node.slaac(PREFIX): LAN0 for node in (a, b, c)})
    site.kill()
    lab.host.run("ip", "-6", "route", "delete", f"{b.slaac(PREFIX)}/128", "dev", LAN0)
    site.start_again()
    site.await_adopted({a.slaac(PREFIX): LAN0, c.slaac(PREFIX): LAN0})
    assert site.reaches(lab.internet, b.slaac(PREFIX)), "it is found when it is asked for"


@pytest.mark.parametrize("router", ["asks", "remembers"])
def test_reboot(site: SharedHost, router: str) -> None:
    """Without routes and programs, each client is reached again when somebody asks for it.

    A router that still has this host's MAC for the clients does not ask. Then the host's kernel
    looks for them upstream, in vain.
    """
    lab = site.lab
    site.start()
    clients = [lab.client(f"c{n}", (LAN0, LAN1)[n % 2]) for n in range(8)]
    lab.wait_for_addresses(*clients)
    wanted = {node.slaac(PREFIX): (LAN0, LAN1)[n % 2] for n, node in enumerate(clients)}
    site.await_routes(wanted)
    for address in wanted:
        assert lab.internet.ping(address) == 1
    site.kill()
    site.clean()
    assert site.routes() == {}
    for node in (lab.host, lab.router) if router == "asks" else (lab.host,):
        node.forget_neighbours()
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        outcomes = [
            stack.enter_context(lab.internet.pinging(address, interval=0.1)) for address in wanted
        ]
        site.start_again()
        ready = time.monotonic() - started
        site.await_routes(wanted)
        found = time.monotonic() - started
        time.sleep(1)
        answers = [outcome() for outcome in outcomes]
    for answer in answers:
        assert set(range(answer.sent - 5, answer.sent + 1)).isdisjoint(answer.lost), answer
    print(f"the router {router}: ready after {ready:.2f} s, 8 hosts after {found:.2f} s")


# ---- hosts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("routers", ["one router", "two routers"])
def test_a_host_moves(site: SharedHost, routers: str) -> None:
    """A packet of its own is enough, of which its kernel needs to know nothing.

    If the host has the same MAC on both links, the guest knows one router. Otherwise the guest has
    to be told the other MAC.
    """
    lab = site.lab
    mac = MACS[LAN0 if routers == "one router" else LAN1]
    lab.host.ip(f"link set {LAN1} down\nlink set {LAN1} address {mac}\nlink set {LAN1} up")
    site.start()
    a, b = lab.client("a", LAN0), lab.client("b", LAN1)
    lab.wait_for_addresses(a, b)
    address = a.slaac(PREFIX)
    site.await_routes({address: LAN0})
    for link in (LAN1, LAN0) if routers == "one router" else (LAN1,):
        eventually(lambda: lab.internet.ping(address) == 1, within=15)
        with lab.internet.pinging(address, interval=0.05) as outcome:
            time.sleep(0.3)
            lab.move(a, link)
            a.ping(PREFIX[0xAB0], count=1, wait=0.1)  # solicits an address that nobody has
            site.await_routes({address: link})
            time.sleep(1)
            pings = outcome()
        assert pings.lost == list(range(pings.lost[0], pings.lost[-1] + 1)), "one gap"
        print(f"{routers}: to {link} with {len(pings.lost) * 50} ms of loss")
    site.await_count("counters", "moved", 2 if routers == "one router" else 1)


def test_an_interface_goes_and_returns(site: SharedHost) -> None:
    """A downstream link that is down loses its hosts; when it is up, they are found again."""
    lab = site.lab
    site.start()
    a, b = lab.client("a", LAN0), lab.client("b", LAN1)
    lab.wait_for_addresses(a, b)
    site.await_routes({a.slaac(PREFIX): LAN0, b.slaac(PREFIX): LAN1})
    lab.host.ip(f"link set {LAN0} down")
    eventually(lambda: site.state().hosts == {b.slaac(PREFIX): LAN1})
    lab.host.ip(f"link set {LAN0} up")
    eventually(lambda: site.reaches(lab.internet, a.slaac(PREFIX)), within=10)
    site.await_routes({a.slaac(PREFIX): LAN0})


def test_an_interface_that_comes_and_goes(site: SharedHost) -> None:
    """A pattern matches an interface that is made later, as a container engine's."""
    lab = site.lab
    site.start()
    lab.add_bridge("br-late")
    a = lab.client("a", "br-late")
    lab.wait_for_addresses(a)
    address = a.slaac(PREFIX)
    site.await_routes({address: "br-late"})
    assert site.reaches(lab.internet, address)
    assert site.reaches(a, lab.neighbour.slaac(PREFIX))
    lab.host.ip("link delete br-late")
    eventually(lambda: site.state().hosts == {})

    def names() -> set[str]:
        return {link["interface"] for link in site.report()["links"]}

    eventually(lambda: "br-late" not in names(), within=8)
    b = lab.client("b", LAN0)
    lab.wait_for_addresses(b)
    assert site.reaches(lab.internet, b.slaac(PREFIX))


# ---- the router ---------------------------------------------------------------------------------


def test_the_router_goes(site: SharedHost) -> None:
    """A router that says it is none any more is no default router of the clients either."""
    lab = site.lab
    site.start()
    a = lab.client("a", LAN0)
    lab.wait_for_addresses(a)
    assert a.routes("default") != []
    lab.stop_radvd()
    eventually(lambda: a.routes("default") == [])
    lab.start_radvd()
    eventually(lambda: a.routes("default") != [], within=8)
    assert site.reaches(a, INTERNET_ADDRESS)


def test_the_host_stops_sharing(site: SharedHost) -> None:
    """SIGTERM withdraws nothing: the program answers for those whose neighbour is alive."""
    lab = site.lab
    site.start("tc")
    a = lab.client("a", LAN0)
    lab.wait_for_addresses(a)
    site.await_routes({a.slaac(PREFIX): LAN0})
    assert lab.internet.ping(a.slaac(PREFIX)) == 1
    assert site.running
    site.running.process.send_signal(signal.SIGTERM)
    assert site.running.wait().code == 0
    assert a.routes("default") != []
    assert site.routes() == {a.slaac(PREFIX): LAN0}
    lab.router.forget_neighbours()
    assert lab.internet.ping(a.slaac(PREFIX)) == 1
