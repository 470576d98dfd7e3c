"""The rights in etcd that docs/fleet.md grants to a host are enough for shared addresses."""

from __future__ import annotations

import re
import time
from pathlib import Path

from lab.etcd_member import encode
from tests.fixtures import etcd
from tests.fixtures.network import REPOSITORY, UPLINK, Network, eventually, ndxdp
from tests.test_etcd_daemon import ONE

LEASE = 3
ROOT = "/ndxdp/v1/"


def documented() -> list[tuple[str, str]]:
    """Return the rights of docs/fleet.md for the host h1: READ or READWRITE, and the beginning."""
    page = (REPOSITORY / "docs" / "fleet.md").read_text()
    found = re.findall(
        r"^# etcdctl role grant-permission node7 --prefix=true (read|readwrite) (\S+)$",
        page,
        re.MULTILINE,
    )
    return [(kind.upper(), key.replace("node7", "h1")) for kind, key in found]


def test_the_documented_rights_are_enough(net: Network, tmp_path: Path) -> None:
    """A daemon with them takes a moved address, renews its lease, and gives the address up."""
    (first, *rest), password = documented(), tmp_path / "password"
    password.write_text("secret\n")
    with etcd.cluster(tmp_path / "etcd") as cluster:
        assert first == ("READ", f"{ROOT}hosts/h1/")
        cluster.add_user("h1", "secret", first[1])
        for kind, key in rest:
            cluster.permit(key, kind)

        def keys(beginning: str) -> int:
            end = beginning[:-1] + "0"
            asked = {"key": encode(ROOT + beginning), "range_end": encode(ROOT + end)}
            return int(cluster.call("/v3/kv/range", asked).get("count", 0))

        cluster.put("a", {"host": "h1"}, f"{ROOT}moves/vlan7/")
        cluster.put("a", {"prefix": ONE}, f"{ROOT}shared/vlan7/")
        file = tmp_path / "ndxdp.toml"
        file.write_text(
            f'[etcd]\nendpoints = ["{cluster.members[0].url}"]\nhost = "h1"\nlease = {LEASE}\n'
            f'user = "h1"\npassword_file = "{password}"\n'
            f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\non_stop = "detach"\n'
            f'[[interface.etcd]]\nsegment = "vlan7"\n'
        )
        run = net.run("-c", str(file))
        eventually(lambda: net.answers(ONE), within=20)
        time.sleep(2 * LEASE)
        eventually(lambda: net.answers(ONE), within=20)
        assert (keys("holders/vlan7/"), keys("members/vlan7/"), keys("moves/vlan7/")) == (1, 1, 0)
        assert "denied" not in ndxdp("status").out
        assert "403" not in run.end_cleanly()
        assert (keys("holders/vlan7/"), keys("members/vlan7/")) == (0, 0)
