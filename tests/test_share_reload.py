"""A reload changes shares as docs/service.md says, and a host behind notices no more than that."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.nodes import LINK
from lab.shared_prefix import GUESTS, LAN0, LAN1, PREFIX
from tests.fixtures.network import eventually
from tests.fixtures.shared_link import AT_HOST, SharedHost, shared_link

ALONE = f'[[interface]]\nname = "{LINK}"\n'


@pytest.fixture
def site(privacy: None, tmp_path: Path) -> Iterator[SharedHost]:
    with shared_link(tmp_path) as made:
        yield made


def reload(site: SharedHost, file: Path, code: int = 0) -> str:
    """Reload the daemon's configuration, and return what the command says."""
    done = site.ndxdp("reload", "-c", str(file))
    assert done.code == code, done
    return done.out + done.err


@contextlib.contextmanager
def removed_routes(site: SharedHost, log: Path) -> Iterator[list[str]]:
    """Yield a list that has, after the block, the routes that the kernel has removed within it."""
    found: list[str] = []
    with log.open("w") as output:
        command = [*AT_HOST, "ip", "-6", "monitor", "route"]
        with subprocess.Popen(command, stdout=output) as monitor:
            try:
                _mark(site, log, "2001:db8:fade:1::/64")
                yield found
                _mark(site, log, "2001:db8:fade:2::/64")
            finally:
                monitor.terminate()
    lines = log.read_text().splitlines()
    found += [line for line in lines if line.startswith("Deleted") and "fade" not in line]


def _mark(site: SharedHost, log: Path, marker: str) -> None:
    """Add and remove a route until the monitor has seen it."""

    def seen() -> bool:
        site.lab.host.ip(f"route add {marker} dev {LAN0}")
        site.lab.host.ip(f"route delete {marker} dev {LAN0}")
        return marker in log.read_text()

    eventually(seen)


def attached(site: SharedHost) -> set[str]:
    return {each["interface"] for each in site.ndxdp("status", "--json").json()["interfaces"]}


def test_a_reload_changes_shares(site: SharedHost, tmp_path: Path) -> None:
    file = site.configure()
    site.start_again()
    clients = {link: site.lab.client(f"c-{link}", link) for link in (LAN0, LAN1)}
    site.lab.wait_for_addresses(*clients.values())
    addresses = {link: client.slaac(PREFIX) for link, client in clients.items()}
    everything = {address: link for link, address in addresses.items()}
    site.await_routes(everything)
    assert attached(site) >= {LINK, LAN0, LAN1, GUESTS}

    # Other limits: the hosts stay known, and no route is touched.
    eventually(lambda: len(site.report()["hosts"]) == len(site.routes()))
    known = {host["address"]: host["since"] for host in site.report()["hosts"]}
    with removed_routes(site, tmp_path / "routes") as removed:
        site.configure(max_hosts=50, expire=900)
        reload(site, file)
        eventually(lambda: site.report()["max_hosts"] == 50)
    assert not [line for line in removed if str(PREFIX.network_address)[:-2] in line]
    assert site.routes().items() >= everything.items()
    assert site.reaches(site.lab.internet, addresses[LAN0])
    eventually(lambda: {host["address"] for host in site.report()["hosts"]} >= set(known))
    assert {host["address"]: host["since"] for host in site.report()["hosts"]}.items() >= (
        known.items()
    )

    # One link less: its hosts are forgotten, and its program is detached.
    site.configure(downstream=[LAN0])
    reload(site, file)
    eventually(lambda: LAN1 not in site.routes().values())
    eventually(lambda: attached(site) == {LINK, LAN0})
    assert site.routes()[addresses[LAN0]] == LAN0
    assert site.reaches(site.lab.internet, addresses[LAN0])

    # A file with an error changes nothing.
    site.configure(downstream=[LINK])
    assert f"{LINK} is the upstream of this share" in reload(site, file, code=1)
    assert site.routes()[addresses[LAN0]] == LAN0
    assert site.reaches(site.lab.internet, addresses[LAN0])

    # No share: nothing of it is left.
    file.write_text(ALONE)
    reload(site, file)
    eventually(lambda: not site.routes())
    eventually(lambda: attached(site) == {LINK})
    assert not site.reaches(site.lab.internet, addresses[LAN0])
    rules = site.ndxdp("prefix", "list", LINK, "--json").json()
    assert "share" not in {rule["origin"] for rule in rules}
    assert rules  # the host's own addresses

    # The share again: the hosts are found again, without their doing anything.
    site.configure()
    reload(site, file)
    eventually(lambda: site.report().get("max_hosts") == 4096)
    for address in addresses.values():
        eventually(functools.partial(site.reaches, site.lab.internet, address), within=15)
    site.await_routes(everything)
    site.stop()


def test_a_start_with_another_file_removes_what_it_does_not_name(site: SharedHost) -> None:
    """An earlier daemon's routes stay on links that are shared still, and on no others."""
    site.start()
    clients = {link: site.lab.client(f"c-{link}", link) for link in (LAN0, LAN1)}
    site.lab.wait_for_addresses(*clients.values())
    addresses = {link: client.slaac(PREFIX) for link, client in clients.items()}
    site.await_routes({address: link for link, address in addresses.items()})
    site.stop()
    assert set(site.routes().values()) == {LAN0, LAN1}
    site.start(downstream=["lan0"])
    eventually(lambda: set(site.routes().values()) == {LAN0})
    assert site.reaches(site.lab.internet, addresses[LAN0])
    site.stop()
