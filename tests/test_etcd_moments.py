"""Shared addresses of an interface that is taken out of the configuration, while it is ending."""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Thread

from lab.etcd_member import encode
from tests.fixtures.etcd import Cluster
from tests.fixtures.network import UPLINK, eventually, ndxdp
from tests.test_etcd_daemon import ONE, TWO, Host, host

__all__ = ["host"]  # a fixture

_HELD = """
import pathlib, sys, time
from ndxdp.cli.main import main
from ndxdp.daemon.follower import Follower

directory, follow = pathlib.Path(sys.argv.pop(1)), Follower.follow

def follow_held(self, desired_by=None):
    if (directory / "hold").exists():
        (directory / "held").touch()
        while (directory / "hold").exists():
            time.sleep(0.01)
    return follow(self, desired_by)

Follower.follow = follow_held
main()
"""


def held(cluster: Cluster) -> bool:
    """Return True if a host holds the address."""
    # Each change wakes the part of the daemon that gives addresses up.
    cluster.put("vlan7/other", {"prefix": TWO, "hosts": ["h2"]}, "/ndxdp/v1/shared/")
    key = encode("/ndxdp/v1/holders/vlan7/web")
    return "kvs" in cluster.call("/v3/kv/range", {"key": key})


def test_an_interface_that_ends_answers_for_nothing_that_another_host_may_take(
    host: Host, one: Cluster, tmp_path: Path
) -> None:
    one.put("vlan7/web", {"prefix": ONE}, "/ndxdp/v1/shared/")
    host.write()
    host.run((sys.executable, "-c", _HELD, str(tmp_path)))
    host.answers(ONE)
    (tmp_path / "hold").touch()
    assert ndxdp("prefix", "add", UPLINK, "2001:db8::c:0:0:1ff").code == 0
    eventually((tmp_path / "held").exists)
    host.file.write_text(host.file.read_text().replace(f'"{UPLINK}"', '"absent0"'))
    reloading = Thread(target=ndxdp, args=("reload", "-c", str(host.file)))
    reloading.start()
    try:
        eventually(lambda: not held(one))
        assert host.net.silent(ONE)
    finally:
        (tmp_path / "hold").unlink()
        reloading.join()
