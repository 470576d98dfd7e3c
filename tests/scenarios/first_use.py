"""The README's installation on fresh Debian 12 and 13, with the time of each step: `make test-deb`.

The program reads the steps from the README, and runs them in a release's root file system, on the
host of lab.topology: behind a router that solicits, and behind a filter against spoofing. It ends
when the router's ping reaches the container. The packages that apt needs are there already, so that
no step waits for a download. There is no systemd: for `systemctl enable --now`, the commands of the
unit run.

    python -m tests.scenarios.first_use PACKAGE [RELEASE...]

It ignores other releases than Debian 12 and 13.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab import private
from lab.commands import stop
from lab.topology import CONTAINER_ADDRESS, HOST, INTERNET_ADDRESS, ROUTER, Lab
from tests.fixtures.network import REPOSITORY, eventually
from tests.scenarios.debian_releases import ROOTS, Host, fetch_needed, overlay, prepare

RELEASES = ("bookworm", "trixie")
_UNIT = "/usr/lib/systemd/system/ndxdp.service"


def readme() -> tuple[list[str], str]:
    """Return the commands of the README's section Install, and its configuration file."""
    section = (REPOSITORY / "README.md").read_text().partition("\n## Install\n")[2]
    section = section.partition("\n## ")[0]
    (console,) = re.findall(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (toml,) = re.findall(r"^```toml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    commands = [line.removeprefix("# ") for line in console.splitlines()]
    return [line.partition("  #")[0].rstrip() for line in commands], toml


class FirstUse:
    """The steps in one root file system."""

    def __init__(self, host: Host, lab: Lab, toml: str, package: Path) -> None:
        self._host, self._lab, self._toml, self._package = host, lab, toml, package
        self.daemon: subprocess.Popen[str] | None = None

    def step(self, line: str) -> str:
        """Run one line of the README; return the last line of its output."""
        words = shlex.split(line)
        steps: dict[str, Callable[[list[str]], str]] = {
            "apt": self._apt,
            "editor": self._editor,
            "systemctl": self._systemctl,
            "ndxdp": self._ndxdp,
        }
        return steps[words[0]](words)

    def _apt(self, words: list[str]) -> str:
        verb, path = words[1:]
        place = self._host.path(path.removeprefix("."))
        place.parent.mkdir(exist_ok=True)
        shutil.copy(self._package, place)
        offline = ("-y", "-o", "APT::Sandbox::User=root")
        self._host.sh("sh", "-c", shlex.join(["apt", *offline, verb, path]))
        return self._host.sh("dpkg-query", "-W", "ndxdp").strip()

    def _editor(self, words: list[str]) -> str:
        path = self._host.path(words[1])
        assert path.is_file(), "the package brings the file"
        path.write_text(self._toml)
        return f"{len(self._toml.splitlines())} lines"

    def _systemctl(self, words: list[str]) -> str:
        assert words == ["systemctl", "enable", "--now", "ndxdp"]
        unit = self._host.path(_UNIT).read_text()
        (before,) = re.findall(r"^ExecStartPre=/usr/bin/(.*)$", unit, re.MULTILINE)
        (start,) = re.findall(r"^ExecStart=/usr/bin/(.*)$", unit, re.MULTILINE)
        self._ndxdp(shlex.split(before))
        command = self._host.inside(*shlex.split(start))
        self.daemon = self._lab.popen(HOST, *command, stdout=subprocess.PIPE)
        assert self.daemon.stdout
        return self.daemon.stdout.readline().strip()

    def _ndxdp(self, words: list[str]) -> str:
        done = self._lab.run(HOST, *self._host.inside(*words), check=False)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip().splitlines()[0]

    def reached(self) -> bool:
        """Return True if a ping from beyond the router reaches the container."""
        return self._lab.ping(ROUTER, CONTAINER_ADDRESS, source=INTERNET_ADDRESS) > 0


def inside(release: str, package: Path) -> int:
    """Run the steps of one release, inside private namespaces."""
    commands, toml = readme()
    host = Host(release, overlay(ROOTS / release))
    with Lab() as lab:
        use = FirstUse(host, lab, toml, package)
        assert not use.reached(), "nothing answers before"
        began = time.monotonic()
        for line in commands:
            started = time.monotonic()
            said = use.step(line)
            print(f"{release}: {time.monotonic() - started:5.1f} s  {line}  ({said})", flush=True)
        started = time.monotonic()
        eventually(use.reached, within=10)
        now = time.monotonic()
        print(f"{release}: {now - started:5.1f} s  the router's ping reaches the container")
        print(f"{release}: {now - began:5.1f} s  in all")
        assert use.daemon
        stop(use.daemon)
        assert use.reached(), "the kernel answers without the daemon"
        lab.run(HOST, *host.inside("ndxdp", "detach", "--all"))
    return 0


def main() -> int:
    words = sys.argv[1:]
    if words[:1] == ["--inside"] and private.inside():
        return inside(words[1], Path(words[2]))
    if not words:
        print("usage, as root: python -m tests.scenarios.first_use PACKAGE [RELEASE...]")
        return 2
    package = Path(words[0]).absolute()
    chosen = [each for each in words[1:] or RELEASES if each in RELEASES]
    again = (sys.executable, "-m", "tests.scenarios.first_use", "--inside")
    codes = []
    for release in chosen:
        prepare(release, package)
        fetch_needed(ROOTS / release, package)
        codes.append(private.run([*again, release, str(package)]))
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
