"""ndxdp in a container, by the image and the compose file that ship: `make test-image`.

A private dockerd builds the image from packaging/container/Containerfile, with Debian 12's root
file system (tests.scenarios.debian_releases) as the base. docker-compose starts the container from
packaging/container/compose.yaml, with the capabilities that the file lists and no others. The
router of tests.fixtures.network solicits. The program prints a line for each check.

All checks run twice: with Debian 13's Docker, unpacked below build/roots, and the unchanged file;
and with Debian 12's Docker, which does not know CAP_BPF, and the capability that docs/containers.md
names instead.

    python -m tests.scenarios.container_image PACKAGE
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from lab import private
from ndxdp import __version__
from tests.fixtures import engine, network
from tests.fixtures.engine import Engine
from tests.fixtures.network import BEHIND, REPOSITORY, UPLINK, Done, Network, call, eventually, sh
from tests.scenarios import debian_releases

BASE = "bookworm"
CONTAINER = REPOSITORY / "packaging" / "container"
COMPOSE = CONTAINER / "compose.yaml"
CONFIG = Path("/etc/ndxdp/ndxdp.toml")
SOCKET = Path("/var/run/docker.sock")
CONTAINERS, FOUND = "2001:db8::d:0:0:0/80", "2001:db8::d:0:0:77"


NAMES = {12: "NET_ADMIN", 13: "NET_RAW", 21: "SYS_ADMIN", 38: "PERFMON", 39: "BPF"}
"""Capabilities by number (linux/capability.h)."""
OLD = "20.10"


def configuration(mode: str, more: str = "") -> str:
    return f"""
[[interface]]
name = "{UPLINK}"
mode = "{mode}"
{more}
[[interface.prefix]]
prefix = "{BEHIND}"
"""


EVERYTHING = f"""
[[interface.docker]]
network = "exposed"
[interface.announce]
advertise = true
[interface.gateway]
[interface.addresses]
deprecate = ["{network.HOST}"]
"""


class Docker:
    """The docker commands, run against the private engine."""

    def __init__(self, made: Engine) -> None:
        self.engine = made
        self._env = {"DOCKER_HOST": f"unix://{made.socket}", "DOCKER_BUILDKIT": "0"}
        self.version = self.sh("docker", "version", "-f", "{{.Server.Version}}").strip()
        self._compose, self.capabilities = COMPOSE, {"BPF", "NET_ADMIN", "NET_RAW", "PERFMON"}
        if self.version.startswith(OLD):
            self.capabilities = {"NET_ADMIN", "NET_RAW", "SYS_ADMIN"}
            self._compose = Path("/run/compose.yaml")
            lines = re.sub(r"(?m)^ *- PERFMON .*\n", "", COMPOSE.read_text())
            self._compose.write_text(lines.replace("- BPF ", "- SYS_ADMIN "))

    def call(self, *words: str) -> Done:
        env = os.environ | self._env
        done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=240)
        return Done(done.returncode, done.stdout, done.stderr)

    def sh(self, *words: str) -> str:
        done = self.call(*words)
        assert done.code == 0, f"{' '.join(words)}: {done.out}{done.err}"
        return done.out

    def compose(self, *words: str) -> str:
        return self.sh("docker-compose", "-p", "ndxdp", "-f", str(self._compose), *words)

    def log(self) -> str:
        done = self.call("docker", "logs", "ndxdp")
        return done.out + done.err

    def up(self, mode: str, more: str = "") -> None:
        """Start the container, and wait until its log has the `ready` line."""
        CONFIG.write_text(configuration(mode) + more)
        self.compose("up", "-d")
        try:
            eventually(lambda: "ready:" in self.log(), within=20)
        except AssertionError:
            raise AssertionError(self.log()) from None

    def down(self) -> None:
        self.compose("down")


def built(docker: Docker, package: Path) -> str:
    """the image is built from the Containerfile, and runs ndxdp"""
    context = Path("/run/context")
    context.mkdir()
    shutil.copy(CONTAINER / "Containerfile", context)
    shutil.copy(package, context / "ndxdp.deb")
    root = debian_releases.ROOTS / BASE
    # The engine copies the whole tree for each layer; these directories are large.
    without = [f"--exclude=./usr/share/{name}" for name in ("doc", "info", "locale", "man")]
    tar = ("tar", *without, "-C", str(root), "-c", ".")
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as packed:
        imported = ("docker", "import", "-", f"debian:{BASE}-slim")
        env = os.environ | {"DOCKER_HOST": f"unix://{docker.engine.socket}"}
        done = subprocess.run(
            imported, stdin=packed.stdout, capture_output=True, text=True, env=env
        )
    assert done.returncode == 0, done.stderr
    file = str(context / "Containerfile")
    docker.sh("docker", "build", "--network", "host", "-t", "ndxdp", "-f", file, str(context))
    assert __version__ in docker.sh("docker", "run", "--rm", "--network=none", "ndxdp", "--version")
    return docker.sh("docker", "image", "inspect", "-f", "{{.Config.Cmd}}", "ndxdp").strip()


def answering(docker: Docker, net: Network) -> str:
    """the container answers in XDP and tc, and the kernel continues without it"""
    net.pass_at_router()
    for mode in ("native", "tc"):
        docker.up(mode)
        assert net.answers(), docker.log()
        assert "answered" in docker.sh("docker", "exec", "ndxdp", "ndxdp", "status")
        docker.down()
        assert net.answers(), "without a container"
        docker.up(mode)
        assert net.answers(), "taken up again"
        docker.down()
        detached(docker)
        assert net.silent()
    return "native, tc"


def detached(docker: Docker) -> None:
    """Detach as docs/containers.md describes, and check that nothing remains."""
    docker.compose("run", "--rm", "ndxdp", "detach", "--all")
    assert network.leftovers() == []


def following(docker: Docker, net: Network) -> None:
    """Docker, announcements, gateway care and address hygiene work with these capabilities"""
    docker.up("tc", EVERYTHING)
    docker.engine.make_network("exposed", "2001:db8::d:0:0:0/80")
    docker.engine.run("pot", "exposed", address=FOUND)
    eventually(lambda: net.answers(FOUND), within=10)
    shown = docker.sh("docker", "exec", "ndxdp", "ndxdp", "prefix", "list")
    assert FOUND in shown
    assert "deprecated" in eventually(
        lambda: found if "deprecated" in (found := sh("ip", "-6", "address", "show")) else ""
    )
    output = docker.log()
    assert "not permitted" not in output, output
    assert "could not" not in output, output
    # Reload as docs/containers.md describes.
    CONFIG.write_text(
        configuration("tc") + '\n[[interface.prefix]]\nprefix = "2001:db8::e:0:0:1"\n'
    )
    docker.sh("docker", "kill", "-s", "HUP", "ndxdp")
    eventually(lambda: net.answers("2001:db8::e:0:0:1"), within=10)
    docker.down()
    detached(docker)


def userspace(docker: Docker, net: Network) -> None:
    """userspace mode works with these capabilities"""
    docker.up("userspace")
    assert net.answers(), docker.log()
    docker.down()
    assert net.silent()
    detached(docker)


def confined(docker: Docker, net: Network) -> str:
    """the container has these capabilities, no new privileges, and can write only its own files"""
    docker.up("tc")
    status = docker.sh("docker", "exec", "ndxdp", "cat", "/proc/1/status")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    for kind in ("CapEff", "CapBnd"):
        bits = int(fields[kind], 16)
        assert {NAMES.get(bit) for bit in range(64) if bits >> bit & 1} == docker.capabilities
    assert fields["NoNewPrivs"].strip() == "1"
    assert docker.call("docker", "exec", "ndxdp", "touch", "/usr/x").code != 0
    assert docker.call("docker", "exec", "ndxdp", "touch", "/etc/ndxdp/x").code != 0
    docker.down()
    detached(docker)
    assert fields["Seccomp"].strip() == "2", "Docker's own filter"
    return ", ".join(sorted(docker.capabilities))


def inside(package: Path) -> int:
    failed = 0
    # compose.yaml names paths of the host. In this mount namespace /etc is a copy, /run is empty.
    for name in ("upper", "work"):
        Path("/run/etc", name).mkdir(parents=True)
    options = "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work"
    sh("mount", "-t", "overlay", "overlay", "-o", options, "/etc")
    for path in (CONFIG.parent, Path("/run/ndxdp")):
        path.mkdir()
    with engine.engine() as made, network.network() as net:
        SOCKET.symlink_to(made.socket)
        docker = Docker(made)
        print(f"Docker {docker.version}")
        checks: list[Callable[[Docker, Network], str | None]] = [answering, following, userspace]
        checks.append(confined)
        try:
            print(f"ok      {built.__doc__} ({built(docker, package)})", flush=True)
            for check in checks:
                more = check(docker, net)
                print(f"ok      {check.__doc__}{f' ({more})' if more else ''}", flush=True)
        except Exception:
            failed = 1
            print(f"FAILED\n{traceback.format_exc()}\n{docker.log()}")
        finally:
            docker.call("docker", "rm", "-f", "ndxdp")
            # dockerd keeps this mount for containers with the host's network.
            call("umount", str(made.folder / "exec" / "netns" / "default"))
            SOCKET.unlink()
            shutil.rmtree("/run/ndxdp", ignore_errors=True)
    print(f"{failed} failed")
    return failed


def fetch_docker() -> Path:
    """Unpack Debian 13's Docker for use here, without runc, which requires Debian 13's libc."""
    there = debian_releases.ROOTS / "docker"
    if not there.is_dir():
        fresh = debian_releases.ROOTS / "docker.new"
        packages = ("containerd", "docker.io", "docker-cli")
        for package in debian_releases.download("trixie", *packages):
            sh("dpkg-deb", "-x", str(package), str(fresh))
            package.unlink()
        for runc in fresh.glob("usr/*bin/runc"):
            runc.unlink()
        fresh.rename(there)
    return there


def main() -> int:
    words = sys.argv[1:]
    if words[:1] == ["--inside"] and private.inside():
        return inside(Path(words[1]))
    if len(words) != 1 or os.geteuid() != 0:
        print("usage, as root: python -m tests.scenarios.container_image PACKAGE")
        return 2
    package = Path(words[0]).absolute()
    for release in (BASE, "trixie"):
        debian_releases.prepare(release, package)
    newer = fetch_docker()
    again = (sys.executable, "-m", "tests.scenarios.container_image", "--inside", str(package))
    codes = [private.run(again)]
    os.environ["PATH"] = f"{newer}/usr/bin:{newer}/usr/sbin:{os.environ['PATH']}"
    codes.append(private.run(again))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
