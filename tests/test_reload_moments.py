"""A reload that arrives while a failing attempt with the former configuration is under way."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fixtures.network import BEHIND, Done, Running, eventually, rules
from tests.test_reload import OTHER, Service, service

__all__ = ["service"]  # a fixture

_HELD = """
import pathlib, sys, time
from ndxdp.cli.main import main
from ndxdp.daemon.follower import Follower
from ndxdp.daemon.lifecycle import Lifecycle
from ndxdp.daemon.uplink import Uplink
from ndxdp.errors import NdxdpError

directory, moment = pathlib.Path(sys.argv.pop(1)), sys.argv.pop(1)
begin, follow, set_spec = Lifecycle.begin, Follower.follow, Uplink.set_spec

def fail_after_the_reload():
    (directory / "held").touch()
    for _ in range(1000):
        if (directory / "reloaded").exists():
            break
        time.sleep(0.01)
    raise NdxdpError("the former one fails")

def begin_held(self, spec, **how):
    if not (directory / "held").exists():
        fail_after_the_reload()
    return begin(self, spec, **how)

def follow_held(self, desired_by=None):
    if desired_by is None or (directory / "held").exists():
        return follow(self, desired_by)
    if self.rules:
        fail_after_the_reload()
    link = follow(self, desired_by)
    self._loop.call_soon_threadsafe(self._state.write_rules)  # as a container does that starts
    return link

def set_noticed(self, spec):
    outcome = set_spec(self, spec)
    (directory / "reloaded").touch()
    return outcome

if moment == "begin":
    Lifecycle.begin = begin_held
else:
    Follower.follow = follow_held
Uplink.set_spec = set_noticed
main()
"""


@pytest.mark.parametrize("moment", ["begin", "write"])
def test_a_reload_during_an_attempt_that_fails(
    service: Service, tmp_path: Path, moment: str
) -> None:
    """Put it in force at once: neither refuse it for the failure nor wait for the next attempt."""
    service.write(BEHIND)
    command = (sys.executable, "-c", _HELD, str(tmp_path), moment)
    service.running = Running(("-c", str(tmp_path / "ndxdp.toml")), command, wait=False)
    eventually((tmp_path / "held").exists, within=20)
    service.write(OTHER)
    assert service.reload() == Done(0, "", "")
    assert (tmp_path / "reloaded").exists()
    assert {each for each in rules() if "/80" in each} == {OTHER}
    log = service.end()
    assert "trying again later" not in log
    assert "not in step" not in log
