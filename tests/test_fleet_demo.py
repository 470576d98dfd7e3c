"""The demonstration of shared addresses, in namespaces of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fixtures.network import call


def test_the_demonstration(privacy: None) -> None:
    """Run the program of `make demo-fleet`: it ends as it promises, and leaves nothing behind."""
    done = call(
        *(sys.executable, "lab/fleet_demo.py"),
        *("--ndxdp", f"{Path(sys.executable).parent}/ndxdp"),
    )
    assert done.code == 0, done
    assert "0 solicitations were answered by two hosts" in done.out
    assert done.out.count("is repaired, and takes nothing") == 2
    assert done.out.splitlines()[-1].startswith("As expected:")
    assert call("ip", "netns").out == ""
    assert "mgmt0" not in call("ip", "link").out
    assert "/bpf " not in Path("/proc/mounts").read_text().replace("/sys/fs/bpf ", "")


def test_a_machine_that_lacks_ndxdp(privacy: None, tmp_path: Path) -> None:
    done = call(sys.executable, "lab/fleet_demo.py", "--ndxdp", str(tmp_path / "ndxdp"))
    assert done.code == 1
    assert "There is no ndxdp at " in done.err
