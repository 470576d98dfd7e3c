"""The network of the tests of shares works without ndxdp, if its kernels get the same by hand.

So the other tests of shares show ndxdp, and fail for no other reason than ndxdp.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lab.nodes import LINK
from lab.shared_prefix import GATEWAY, GUESTS, INTERNET_ADDRESS, LAN0, LAN1, PREFIX
from tests.fixtures.network import call
from tests.fixtures.shared_link import DISCOVERY_LINKS, shared_link


def test_the_network_needs_a_share(privacy: None, tmp_path: Path) -> None:
    """Without ndxdp no client has an address; with the kernel's own tables by hand, all works."""
    with shared_link(tmp_path) as site:
        lab = site.lab
        clients = {link: lab.client(f"c-{link[:4]}", link) for link in (LAN0, LAN1, GUESTS)}
        time.sleep(4)  # radvd advertises every 3 to 4 seconds
        assert [client.addresses(PREFIX) for client in clients.values()] == [[], [], []]
        neighbour = lab.neighbour.slaac(PREFIX)
        assert lab.internet.ping(neighbour) == 1
        assert lab.router.ping(lab.host.slaac(PREFIX)) == 1
        addresses = {link: client.slaac(PREFIX) for link, client in clients.items()}
        for link, client in clients.items():
            client.ip(f"address add {addresses[link]}/64 dev {LINK} nodad")
            client.ip(f"route add default via {lab.link_local(link)} dev {LINK}")
        assert not site.reaches(lab.internet, addresses[LAN0])
        assert not site.reaches(clients[LAN0], INTERNET_ADDRESS)
        lab.host.sysctl(*(f"{link}.proxy_ndp=1" for link in DISCOVERY_LINKS))
        delays = (f"net.ipv6.neigh.{link}.proxy_delay=0" for link in DISCOVERY_LINKS)
        lab.host.run("sysctl", "-qw", *delays)
        for link, address in addresses.items():
            lab.host.ip(f"route add {address}/128 dev {link}")
            for other in {*DISCOVERY_LINKS} - {link}:
                lab.host.ip(f"neighbour add proxy {address} dev {other}")
            for upstream in (GATEWAY, neighbour):
                lab.host.ip(f"neighbour add proxy {upstream} dev {link}")
        for link, client in clients.items():
            for node in (lab.internet, lab.router, lab.neighbour):
                assert site.reaches(node, addresses[link]), (node.name, link)
            for target in (INTERNET_ADDRESS, neighbour, *addresses.values()):
                assert site.reaches(client, target), (link, target)


def test_the_demonstration(privacy: None) -> None:
    """Run the program of `make demo-share`: it ends as it promises, and leaves nothing behind."""
    done = call(
        *(sys.executable, "lab/share_demo.py"),
        *("--ndxdp", f"{Path(sys.executable).parent}/ndxdp"),
    )
    assert done.code == 0, done
    assert "1. Without ndxdp" in done.out
    assert done.out.count(": answered\n") == 4
    assert done.out.splitlines()[-1].startswith("As expected:")
    assert call("ip", "netns").out == ""
