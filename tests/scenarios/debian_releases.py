"""The .deb on Debian 12, 13 and Ubuntu 24.04, from installation to purge: `make test-deb`.

debootstrap makes each release's root file system below build/roots, with the packages that apt
needs; no run changes it. The package is installed in an overlay, in namespaces that vanish with it,
where the router of tests.fixtures.network solicits. There is no systemd: the virtual machines of
`make test-service` and of the lab test the service. The program prints a line for each check.

    python -m tests.scenarios.debian_releases PACKAGE NEWER FORMER OLDER [RELEASE...]

FORMER is a package whose maps have the layout before this one, and OLDER one whose layout is older
still.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lab import private
from ndxdp import __version__
from ndxdp.kernel import abi
from ndxdp.netlink.host_routes import PROTOCOL
from tests.fixtures import network
from tests.fixtures.network import BEHIND, REPOSITORY, TARGET, UPLINK, Done, Network, call, sh

RELEASES = {"bookworm": "3.11", "trixie": "3.13", "noble": "3.12"}
"""The Python version of each release. Trixie comes before noble, because it has noble's keyring."""
ROOTS = REPOSITORY / "build" / "roots"

# Files that dpkg and apt keep of any package that was once installed.
_DPKG = re.compile(r"/var/(lib/dpkg|lib/apt|lib/systemd|cache|log)(/|$)")

CONFIG = f"""
[[interface]]
name = "{UPLINK}"
mode = "tc"
[[interface.prefix]]
prefix = "{BEHIND}"
"""


_PACKAGES = ("package.deb", "newer.deb", "former.deb", "older.deb")
"""The names of the packages in the root file system, in the order of the arguments."""


class Host:
    """A release's root file system, and commands in it."""

    def __init__(self, release: str, root: Path) -> None:
        self.release, self.root = release, root

    def call(self, *command: str) -> Done:
        return call(*self.inside(*command))

    def inside(self, *command: str) -> list[str]:
        known = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root")
        quiet = "DEBIAN_FRONTEND=noninteractive"
        return ["env", "-i", *known, quiet, "chroot", str(self.root), *command]

    def sh(self, *command: str) -> str:
        done = self.call(*command)
        assert done.code == 0, f"{' '.join(command)}: {done.out}{done.err}"
        return done.out

    def apt(self, *words: str) -> str:
        options = ("-y", "--no-install-recommends", "-o", "APT::Sandbox::User=root")
        return self.sh("apt-get", *options, *words)

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def files(self) -> set[str]:
        """Return the paths of all files, without mounted file systems."""
        found = sh("find", str(self.root), "-xdev", "-mindepth", "1").splitlines()
        return {name.removeprefix(str(self.root)) for name in found}


Check = Callable[[Host, Network], str | None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register a check, in order of definition; print its docstring, followed by its result."""
    CHECKS.append(function)
    return function


def needed(host: Host) -> list[str]:
    """Return the packages that apt would install for ndxdp. They are installed first."""
    output = host.apt("install", "--simulate", "./package.deb")
    new = re.search(r"following NEW packages will be installed:\n((?:  .*\n)+)", output)
    assert new, output
    return [name for name in new[1].split() if name != "ndxdp"]


@check
def installed(host: Host, net: Network) -> str:
    """apt installs it, and it starts nothing"""
    assert needed(host) == []
    host.apt("install", "./package.deb")
    assert host.path("/etc/ndxdp/ndxdp.toml").is_file()
    assert not list(host.path("/etc/systemd/system").rglob("ndxdp*"))
    assert network.leftovers() == []
    version = host.sh("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    assert version == RELEASES[host.release]
    assert list(host.path("/usr/lib/ndxdp/ndxdp/cli/__pycache__").glob("main.cpython-*.pyc"))
    return f"Python {version}"


@check
def proposed(host: Host, net: Network) -> None:
    """`init` replaces the package's example by a file that `check` accepts"""
    sh("ip", "link", "add", "virbr0", "up", "type", "bridge")
    sh("ip", "-6", "address", "add", f"{TARGET}/80", "dev", "virbr0", "nodad")
    try:
        output = host.sh("ndxdp", "init", "--yes")
    finally:
        sh("ip", "link", "delete", "virbr0")
    assert "/etc/ndxdp/ndxdp.toml: good" in output, output
    assert f'prefix = "{BEHIND}"' in host.path("/etc/ndxdp/ndxdp.toml").read_text()
    assert host.path("/etc/sysctl.d/60-ndxdp.conf").is_file()
    host.path("/etc/ndxdp/ndxdp.toml").write_text("# nothing yet\n")


@check
def commands(host: Host, net: Network) -> str:
    """--version, check and doctor print the expected output"""
    assert __version__ in host.sh("ndxdp", "--version")
    empty = host.call("ndxdp", "check")
    assert empty.code == 2, empty
    assert "no interface is configured" in empty.err, empty
    host.path("/etc/ndxdp/ndxdp.toml").write_text(CONFIG)
    assert host.sh("ndxdp", "check").splitlines()[0] == "/etc/ndxdp/ndxdp.toml: good"
    doctor = host.call("ndxdp", "doctor", UPLINK)
    assert doctor.code in (0, 1, 2), doctor
    assert doctor.out, doctor
    assert "Traceback" not in doctor.err
    return f"doctor: {doctor.out.strip().splitlines()[-1]}"


@check
def completed(host: Host, net: Network) -> None:
    """bash completes commands and options"""
    for typed, expected in ((["ndxdp", "att"], "attach"), (["ndxdp", "run", "--kee"], "--keep")):
        words = " ".join(typed)
        script = (
            "source /usr/share/bash-completion/completions/ndxdp;"
            f" COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1};"
            " _ndxdp_completion ndxdp; echo ${COMPREPLY[@]}"
        )
        assert host.sh("bash", "-c", script).strip() == expected


@check
def attached(host: Host, net: Network) -> str:
    """`attach` answers in XDP and in tc, and `detach` ends it"""
    net.pass_at_router()
    for mode in ("native", "tc"):
        host.sh("ndxdp", "attach", UPLINK, "--mode", mode, "-n", BEHIND)
        assert net.answers(), mode
        assert "answered:" in host.sh("ndxdp", "explain", TARGET)
        host.sh("ndxdp", "detach", UPLINK)
        assert net.silent(), mode
        assert network.leftovers() == []
    return f"libbpf {host.sh('dpkg-query', '-W', '-f', '${Version}', 'libbpf1')}"


@check
def upgraded(host: Host, net: Network) -> str:
    """an upgrade to a newer package loses no answer"""
    daemon = net.run("-c", "/etc/ndxdp/ndxdp.toml", command=host.inside("ndxdp"))
    assert net.answers()
    with net.solicited_continuously() as missed:
        host.apt("install", "./newer.deb")
        # There is no systemd here; the postinst would run `systemctl try-restart`.
        assert daemon.end().code == 0
        daemon = net.run("-c", "/etc/ndxdp/ndxdp.toml", command=host.inside("ndxdp"))
    assert missed == []
    assert host.path("/etc/ndxdp/ndxdp.toml").read_text() == CONFIG
    assert daemon.end().code == 0
    assert net.answers(), "the program stays"
    return host.sh("dpkg-query", "-W", "-f", "${Version}", "ndxdp")


@check
def former_map_layout(host: Host, net: Network) -> str:
    """an upgrade from the former map layout loses no answer, and keeps the rules of commands"""
    host.apt("install", "--allow-downgrades", "./former.deb")
    assert net.silent(), "the older package detaches the newer program, too"
    host.sh("ndxdp", "attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    host.sh("ndxdp", "prefix", "add", "-i", UPLINK, "2001:db8::77", "--origin", "mine")
    (former,) = _layouts()
    assert former == f"v{max(abi.FORMER_VERSIONS)}"
    with net.solicited_continuously() as missed:
        output = host.apt("install", "./newer.deb")
        assert _layouts() == {f"v{abi.VERSION}"}
        daemon = net.run("-c", "/etc/ndxdp/ndxdp.toml", command=host.inside("ndxdp"))
    assert missed == []
    assert "another map layout" not in output, output
    assert net.answers("2001:db8::77")
    assert daemon.end().code == 0
    return f"from {former}"


@check
def another_map_layout(host: Host, net: Network) -> str:
    """an upgrade from another map layout detaches the old program, and names the lost rules"""
    host.apt("install", "--allow-downgrades", "./older.deb")
    assert net.silent(), "the older package detaches the newer program, too"
    assert not _layouts()
    daemon = net.run("-c", "/etc/ndxdp/ndxdp.toml", command=host.inside("ndxdp"))
    host.sh("ndxdp", "prefix", "add", "-i", UPLINK, "2001:db8::77", "--origin", "mine")
    assert daemon.end().code == 0
    sh("ip", "link", "add", "spare", "up", "type", "veth", "peer", "spare-far")
    userspace = ("-i", "spare", "--mode", "userspace", "-n", BEHIND)
    assert net.run(*userspace, command=host.inside("ndxdp")).end().code == 0
    (other,) = _layouts()
    assert other != f"v{abi.VERSION}"
    assert net.answers(), "of the old program"
    with unanswered(net) as seconds:
        output = host.apt("install", "./newer.deb")
        # There is no systemd here; the postinst would run `systemctl start`.
        daemon = net.run("-c", "/etc/ndxdp/ndxdp.toml", command=host.inside("ndxdp"))
        assert net.answers()
    assert "another map layout" in output, output
    assert f"  {UPLINK}  2001:db8::77 always (mine)" in output, output
    assert "(config" not in output, output
    assert "(host" not in output, output
    assert _layouts() == {f"v{abi.VERSION}"}
    sh("ip", "link", "delete", "spare")
    assert net.silent("2001:db8::77")
    assert daemon.end().code == 0
    return f"from {other}, {seconds[0]:.1f} s without an answer"


def _layouts() -> set[str]:
    """Return the ABI versions that have pins or files."""
    roots = (network.PINS, network.FILES)
    return {path.parent.name for root in roots for path in root.glob("v*/*")}


@contextlib.contextmanager
def unanswered(net: Network) -> Iterator[list[float]]:
    """Let the router solicit for the block; then the list has the longest gap between answers.

    The target must be answered for at the end of the block.
    """
    answered, stop = [time.monotonic()], threading.Event()

    def keep_asking() -> None:
        ended = False
        while not ended:
            ended = stop.is_set()
            if net.ask(TARGET, wait=0.1) is not None:
                answered.append(time.monotonic())

    thread = threading.Thread(target=keep_asking)
    thread.start()
    longest: list[float] = []
    try:
        yield longest
    finally:
        stop.set()
        thread.join()
    longest.append(max(later - former for former, later in itertools.pairwise(answered)))


@check
def removed(host: Host, net: Network) -> None:
    """removal detaches the program, removes its pins and routes, and keeps the configuration"""
    assert net.answers()
    assert f"{PROTOCOL}\tndxdp\n" in host.path("/etc/iproute2/rt_protos.d/ndxdp.conf").read_text()
    # As the daemon adds one to a learned host.
    sh(*f"ip -6 route add 2001:db8:77::1/128 dev {UPLINK} proto {PROTOCOL}".split())
    host.apt("remove", "ndxdp")
    assert net.silent()
    assert sh("ip", "-6", "route", "show", "proto", str(PROTOCOL)) == ""
    assert network.leftovers() == []
    assert not host.path("/usr/bin/ndxdp").exists()
    assert not host.path("/usr/lib/ndxdp").exists(), "nor what Python compiled"
    assert host.path("/etc/ndxdp/ndxdp.toml").read_text() == CONFIG


@check
def installed_again(host: Host, net: Network) -> None:
    """installed again, it works with the configuration that was kept"""
    host.apt("install", "./newer.deb")
    assert host.path("/etc/ndxdp/ndxdp.toml").read_text() == CONFIG
    net.run("-c", "/etc/ndxdp/ndxdp.toml", command=host.inside("ndxdp")).end()
    assert net.answers()


def purged(host: Host, net: Network, before: set[str]) -> str:
    """purge leaves the host as it was: files, pins, links"""
    host.apt("purge", "ndxdp")
    assert net.silent()
    left = [*network.leftovers(), *(pin for pin in network.pins() if "ndxdp" in pin)]
    assert not left, left
    after = host.files()
    changed = sorted(name for name in before ^ after if not _DPKG.match(name))
    assert not changed, changed
    ours = [name for name in after if "ndxdp" in name]
    assert not ours, ours
    return f"{len(after)} files and directories"


# ---- where ---------------------------------------------------------------------------------------


def prepare(release: str, package: Path) -> None:
    """Make the root file system, with the packages that apt needs. Only this needs the network."""
    root = ROOTS / release
    if root.is_dir():
        return
    fresh = ROOTS / f"{release}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    ROOTS.mkdir(parents=True, exist_ok=True)
    options, origin = ["--variant=minbase"], [release, str(fresh)]
    if release == "noble":
        prepare("trixie", package)
        options += [f"--keyring={_keyring()}"]
        # debootstrap uses this script for every Ubuntu release
        origin += ["http://archive.ubuntu.com/ubuntu", "gutsy"]
    _run("debootstrap", *options, *origin)
    _fetch(fresh, "apt-get $APT update")
    fetch_needed(fresh, package)
    fresh.rename(root)


def fetch_needed(root: Path, package: Path) -> None:
    """Download what apt would install with a package, recommended packages included."""
    shutil.copy(package, root / "package.deb")
    keep = "-o APT::Keep-Downloaded-Packages=true"
    _fetch(root, f"apt-get $APT {keep} install -y --download-only ./package.deb")
    (root / "package.deb").unlink()


def _keyring() -> Path:
    """Return Ubuntu's keys, from a package that Debian 13 has and Debian 12 lacks."""
    keys = ROOTS / "keys"
    if not keys.is_dir():
        for package in download("trixie", "ubuntu-keyring"):
            _run("dpkg-deb", "-x", str(package), str(keys))
            package.unlink()
    return keys / "usr/share/keyrings/ubuntu-archive-keyring.gpg"


def download(release: str, *packages: str) -> list[Path]:
    """Download packages of a prepared release; the caller deletes them."""
    root = ROOTS / release
    _fetch(root, f"cd /root && apt-get $APT download {' '.join(packages)}")
    return sorted(root.glob("root/*.deb"))


def _fetch(root: Path, script: str) -> None:
    """Run lines of shell in a root file system, with this host's network."""
    known = root / "etc" / "resolv.conf"
    known.unlink(missing_ok=True)
    shutil.copy("/etc/resolv.conf", known)
    lines = f"mount -t proc proc /proc; APT='-o APT::Sandbox::User=root'; {script}"
    _run("unshare", "--mount", "chroot", str(root), "sh", "-c", lines)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n{' '.join(command)} failed")


def overlay(lower: Path) -> Path:
    """Mount a writable overlay above `lower`, in memory; it vanishes with these namespaces."""
    base = Path("/run/release")
    root, work, upper = (base / name for name in ("root", "work", "upper"))
    for directory in (root, work, upper):
        directory.mkdir(parents=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    sh("mount", "-t", "overlay", "overlay", "-o", options, str(root))
    sh("mount", "-t", "proc", "proc", str(root / "proc"))
    sh("mount", "-t", "tmpfs", "tmpfs", str(root / "run"))
    for name in ("sys", "dev"):
        sh("mount", "--rbind", f"/{name}", str(root / name))
    return root


def inside(release: str, packages: Sequence[str]) -> int:
    """Run all checks of one release, inside private namespaces."""
    began = time.monotonic()
    host = Host(release, overlay(ROOTS / release))
    for path, name in zip(packages, _PACKAGES, strict=True):
        shutil.copy(path, host.path(name))
    others = needed(host)
    host.apt("install", *others)
    print(f"ok      {release}: apt knows what it depends on ({len(others)} packages)", flush=True)
    host.path("/etc/sysctl.d").mkdir(exist_ok=True)  # a real host has it, of procps
    before, failed = host.files(), 0
    checks: list[tuple[Check, str | None]] = [(each, each.__doc__) for each in CHECKS]
    checks.append((functools.partial(purged, before=before), purged.__doc__))
    with network.network() as net:
        for function, what in checks:
            try:
                more = function(host, net)
            except Exception:
                failed += 1
                print(f"FAILED  {release}: {what}\n{traceback.format_exc()}", flush=True)
            else:
                print(f"ok      {release}: {what}{f' ({more})' if more else ''}", flush=True)
    print(f"{release}: {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def main() -> int:
    words = sys.argv[1:]
    if words[:1] == ["--inside"] and private.inside():
        return inside(words[1], words[2:])
    if len(words) < len(_PACKAGES) or os.geteuid() != 0:
        program = "python -m tests.scenarios.debian_releases"
        print(f"usage, as root: {program} PACKAGE NEWER FORMER OLDER [RELEASE...]")
        return 2
    count = len(_PACKAGES)
    packages, chosen = words[:count], words[count:] or list(RELEASES)
    again = (sys.executable, "-m", "tests.scenarios.debian_releases", "--inside")
    codes = []
    for release in chosen:
        if release not in RELEASES:
            print(f"{release} is none of {', '.join(RELEASES)}")
            return 2
        prepare(release, Path(packages[0]))
        codes.append(private.run([*again, release, *packages]))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
