"""Random changes to the daemon and around it, each with the answers that it may lose."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from ndxdp.kernel import abi
from tests.fixtures.fake_engine import Fake
from tests.fixtures.network import BPFFS, call, ndxdp, sh
from tests.soak import world
from tests.soak.router import Group
from tests.soak.service import RESTART, Service
from tests.soak.world import MODES, Uplink

_SOON = 30.0  # seconds within which everything must work again after any change
_LATE = 120.0  # seconds after which there is no hope
_ENGINE = 6.0  # seconds within which containers that come or go are seen
_PAUSES = 0.2, 3.0  # seconds between two changes


class Stuck(Exception):
    """Failure to recover within two minutes; continuing would show nothing more."""


class Changes:
    """Random changes.

    Attributes:
        made: The number of changes of each kind.
        problems: Texts of the problems found.
        without: Names of changes that are not made.
    """

    def __init__(
        self,
        seed: str,
        uplinks: list[Uplink],
        engine: Fake,
        service: Service,
        config: Path,
        without: Collection[str] = (),
    ) -> None:
        self.made: Counter[str] = Counter()
        self.problems: list[str] = []
        self._rng = random.Random(seed)
        self._uplinks, self._engine, self._service = uplinks, engine, service
        self._config, self._without = config, without
        self._listed: dict[str, set[str]] = {each.name: set() for each in uplinks}
        self._macs = 0
        self._refused = ""

    def begin(self) -> None:
        """Start the daemon, and wait until all links are answered."""
        self._write()
        with contextlib.ExitStack() as windows:
            for each in self._uplinks:
                each.link.mode = each.mode
                windows.enter_context(each.link.window("before the first attach"))
            self._service.start()
            for each in self._uplinks:
                self._until_answered(each, "the start")

    def pause(self) -> float:
        return self._rng.uniform(*_PAUSES)

    def make(self, *, ending: bool) -> None:
        """Make one change. ending: The run is near its end, so make none that ends the daemon."""
        possible = {
            change: weight
            for change, weight in _CHANGES.items()
            if not (ending and change in _ENDS) and change.__name__ not in self._without
        }
        change = self._rng.choices([*possible], [*possible.values()])[0]
        self.made[change.__name__] += 1
        change(self)

    # ---- the configuration file

    def _write(self) -> None:
        text = world.configuration(self._uplinks, self._listed, self._engine.path)
        self._config.write_text(text)

    def reload_rules(self) -> None:
        """Reload with other prefixes, and now and then other modes."""
        rng = self._rng
        changing: dict[Group, bool] = {}
        modes = {}
        for each in self._uplinks:
            for prefix in rng.sample(sorted(each.listed), rng.randrange(3)):
                self._listed[each.name] ^= {prefix}
                group = each.listed[prefix]
                changing[group] = prefix in self._listed[each.name]
                group.become(None)
        if rng.random() < 0.4:
            each = rng.choice(self._uplinks)
            modes[each.name] = each.mode
            each.mode = each.link.mode = rng.choice(MODES)
        self._write()
        if not self._reload():
            self.problems.append(f"a good configuration was not reloaded: {self._refused}")
        self.problems += [
            f"{each.name} ({each.mode}): reloaded, but not in step"
            for each in self._uplinks
            if not self._is_in_step(each)
        ]
        for group, answered in changing.items():
            group.become(answered)

    def reload_nonsense(self) -> None:
        """Reload an invalid file: nothing may change."""
        good = self._config.read_text()
        faults = ('mode = "fast"', 'prefix = "ff02::/16"', "answer =", 'name = "up0"\nname = 1')
        self._config.write_text(f"{good}\n[[interface]]\nname = 'x'\n{self._rng.choice(faults)}\n")
        if self._reload():
            self.problems.append("a wrong configuration was reloaded")
        self._config.write_text(good)

    def _reload(self) -> bool:
        """Make the daemon reload; return whether it accepted the file."""
        done = ndxdp("reload", "-c", str(self._config))
        if done.code not in (0, 1) or "Traceback" in done.err:
            self.problems.append(f"ndxdp reload: {done}")
        self._refused = done.err
        return done.code == 0

    def _is_in_step(self, each: Uplink) -> bool:
        """Return True if the maps have the rules of the file, and the mode is the file's."""
        status = ndxdp("status", each.name, "--json")
        listed = ndxdp("prefix", "list", "-i", each.name, "--json")
        if status.code or listed.code:
            return False
        found = {rule["prefix"] for rule in listed.json()}
        mode = status.json()["interfaces"][0]["mode"]
        return bool(mode == each.mode) and found & {*each.listed} == self._listed[each.name]

    # ---- commands

    def prefix_by_hand(self) -> None:
        """Add or delete rules with `ndxdp prefix`."""
        rng = self._rng
        each = rng.choice(self._uplinks)
        on = rng.random() < 0.5
        groups = [group for group in each.manual.values() if group.answered is not on]
        chosen = rng.sample(groups, min(len(groups), rng.randrange(1, 4)))
        for group in chosen:
            group.become(None)
        if chosen:
            names = [group.name for group in chosen]
            self._command("prefix", "add" if on else "del", "-i", each.name, *names)
        for group in chosen:
            group.become(on)

    def query(self) -> None:
        """Query the daemon with commands and a scrape."""
        self._command("status")
        self._command("status", "--json")
        self._command("prefix", "list", "-i", self._rng.choice(self._uplinks).name)
        for path in ("metrics", ""):
            try:
                with urllib.request.urlopen(f"http://{world.METRICS}/{path}", timeout=_SOON) as got:
                    got.read()
            except OSError as error:
                self.problems.append(f"/{path}: {error}")

    def _command(self, *words: str) -> None:
        done = ndxdp(*words)
        if done.code or "Traceback" in done.err:
            self.problems.append(f"ndxdp {' '.join(words)}: {done}")

    # ---- the process

    def kill(self) -> None:
        """Send SIGKILL, sometimes change something while the daemon is dead, and start it again."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Send SIGTERM and start again, as `systemctl restart` does."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        userspace = [each for each in self._uplinks if each.mode == "userspace"]
        coming = {
            group: bool(group.answered if group.settling is None else group.settling)
            for each in self._uplinks
            for group in each.containers.values()
            if group.settling is not None or each in userspace
        }
        # A process that ends in userspace mode removes its rules; a killed one cannot.
        by_hand = [group for each in userspace for group in each.manual.values()]
        if number == signal.SIGTERM:
            for group in by_hand:
                group.become(None)
        for group, answered in coming.items():  # no daemon follows the engine
            group.become_after(answered, _LATE)
        changed = self._rng.choice(self._uplinks) if self._rng.random() < 0.3 else None
        with contextlib.ExitStack() as windows:
            for each in userspace:
                windows.enter_context(each.link.window("no daemon, in userspace mode"))
            code = self._service.end(number)
            if code != (0 if number == signal.SIGTERM else -number):
                self.problems.append(f"signal {number} ended the daemon with {code}")
            if changed:
                self._set_mac(changed)
            time.sleep(RESTART)
            self._start_again()
            for each in userspace:
                self._until_answered(each, "the end of the daemon")
        if changed:
            self._until_answered(changed, "a new MAC while no daemon ran")
            changed.link.macs = {changed.mac}
        for group, answered in coming.items():
            group.become_after(answered, _ENGINE)
        if number == signal.SIGTERM:
            for group in by_hand:
                group.become(False)

    def _start_again(self) -> None:
        since = self._service.position()
        self._service.start()
        deadline = time.monotonic() + _SOON
        while self._service.text(since).count("ready:") < len(self._uplinks):
            if time.monotonic() > deadline:
                self.problems.append("not ready within 30 s after a start")
                return
            time.sleep(0.05)

    # ---- the network

    def mac(self) -> None:
        """Change an interface's MAC: answers continue, soon with the new MAC."""
        each = self._rng.choice(self._uplinks)
        self._set_mac(each)
        self._until_answered(each, "a new MAC")
        each.link.macs = {each.mac}

    def _set_mac(self, each: Uplink) -> None:
        self._macs += 1
        each.mac = b"\x02\1" + self._macs.to_bytes(3, "big") + bytes((each.number,))
        each.link.macs.add(each.mac)
        sh("ip", "link", "set", each.name, "address", each.mac.hex(":"))

    def flap(self) -> None:
        """Set an interface down, and up again."""
        each = self._rng.choice(self._uplinks)
        with each.link.window("link down"):
            sh("ip", "link", "set", each.name, "down")
            time.sleep(self._rng.uniform(0, 1))
            world.bring_up(each)
            self._until_answered(each, "a flap")

    def delete(self) -> None:
        """Delete an interface, and create another of the same name."""
        each = self._rng.choice(self._uplinks)
        with each.link.window("interface deleted"):
            each.link.close()
            for group in each.manual.values():
                group.become(None)
            sh("ip", "link", "delete", each.name)
            time.sleep(self._rng.uniform(0, 2))
            world.connect(each)
            self._until_answered(each, "another interface of the name")
        deadline = time.monotonic() + _SOON
        while not self._is_in_step(each):
            if time.monotonic() > deadline:
                self.problems.append(f"{each.name}: not in step 30 s after it was there again")
                break
            time.sleep(0.1)
        listed = ndxdp("prefix", "list", "-i", each.name, "--json").json()
        found = {rule["prefix"] for rule in listed}
        for prefix, group in each.manual.items():
            group.become(prefix in found)

    def unpin(self) -> None:
        """Remove an interface's pins: answers continue, and the daemon restores the pins."""
        kernel = [each for each in self._uplinks if each.mode != "userspace"]
        if not kernel:
            return
        each = self._rng.choice(kernel)
        for path in (BPFFS / "ndxdp").glob(f"v*/{each.name}"):
            shutil.rmtree(path)
        deadline = time.monotonic() + _SOON
        while call(*("test", "-e"), f"{BPFFS}/ndxdp/v{abi.VERSION}/{each.name}/program").code:
            if time.monotonic() > deadline:
                self.problems.append(f"{each.name}: the pins did not come back within 30 s")
                return
            time.sleep(0.1)

    def _until_answered(self, each: Uplink, what: str) -> None:
        """Wait until an interface answers with its MAC."""
        began = time.monotonic()
        if not world.wait_until(each.link, each.mac, _SOON):
            self.problems.append(f"{each.name} ({each.mode}): no answer 30 s after {what}")
            if not world.wait_until(each.link, each.mac, _LATE):
                raise Stuck(f"{each.name} ({each.mode}): no answer any more after {what}")
            self.problems[-1] += f", but after {time.monotonic() - began:.0f} s"

    # ---- Docker

    def containers(self) -> None:
        """Start or stop some containers."""
        for each in self._rng.sample(self._uplinks, 2):
            for group in self._rng.sample(sorted(each.containers.values(), key=_name), 2):
                running = bool(group.answered if group.settling is None else group.settling)
                group.become_after(not running, _ENGINE)
        self._engine.containers = [
            world.listed_container(each, address)
            for each in self._uplinks
            for address, group in each.containers.items()
            if (group.answered if group.settling is None else group.settling)
        ]
        self._engine.send_event()

    def engine_away(self) -> None:
        """Stop the engine for a moment: its containers' rules are kept."""
        self._engine.close()
        time.sleep(self._rng.uniform(0, 2))
        self._engine.open()


def _name(group: Group) -> str:
    return group.name


_CHANGES: dict[Callable[[Changes], None], float] = {
    Changes.reload_rules: 6,
    Changes.reload_nonsense: 1,
    Changes.prefix_by_hand: 6,
    Changes.query: 1,
    Changes.kill: 2,
    Changes.restart: 0.5,
    Changes.mac: 3,
    Changes.flap: 3,
    Changes.delete: 1.5,
    Changes.unpin: 1,
    Changes.containers: 4,
    Changes.engine_away: 0.5,
}
"""The frequency of each change, relative to the others."""

_ENDS = {Changes.kill, Changes.restart}
