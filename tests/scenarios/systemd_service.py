"""The service under a real systemd, booted as Debian 12 boots it: `make test-service`.

Runs in the virtual machine of lab/vm.py, and changes its network and units freely. The program
prints a line for each check that holds; for one that fails, the traceback and the journal.

    up0 (veth), up1 (veth), eth0 (virtio-net) ---- netns router: eth0, far1, eth1
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ndxdp.ndp.frame import OVERRIDE, SOLICITED, flags_of
from tests.fixtures import network
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST,
    REPOSITORY,
    ROUTER,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Done,
    Network,
    call,
    eventually,
    sh,
)

HOME = Path("/opt/ndxdp")
NDXDP = str(HOME / "bin" / "ndxdp")
CONFIG = Path("/etc/ndxdp/ndxdp.toml")
DROP_IN = Path("/etc/systemd/system/ndxdp.service.d/bcc.conf")
SECOND, SECOND_FAR = "up1", "far1"
SECOND_TARGET = "2001:db8:0:1:c::1"
NIC, NIC_FAR = "eth0", "eth1"
NIC_TARGET = "2001:db8:0:2:c::1"
LATER_TARGET = "2001:db8::d:0:0:77"
CONTAINER_NETWORK, CONTAINER = "2001:db8:0:3::/64", "2001:db8:0:3::77"

PATIENCE = 60  # seconds; the processor is emulated

UP0 = f"""
[[interface]]
name = "{UPLINK}"
[[interface.prefix]]
prefix = "{BEHIND}"
"""
LATER = f"""
[[interface.prefix]]
prefix = "{LATER_TARGET}"
[interface.announce]
advertise = true
[interface.gateway]
source = "{TARGET}"
[interface.addresses]
deprecate = ["{HOST}"]
"""
DOCKER = """
[[interface.docker]]
network = "exposed"
"""


def second(keys: str) -> str:
    return f"""
[[interface]]
name = "{SECOND}"
{keys}
[[interface.prefix]]
prefix = "2001:db8:0:1:c::/80"
"""


AT_NIC = f"""
[[interface]]
name = "{NIC}"
[[interface.prefix]]
prefix = "2001:db8:0:2:c::/80"
"""

CHECKS: list[Callable[[Network], str | None]] = []


def check(function: Callable[[Network], str | None]) -> Callable[[Network], str | None]:
    """Register a check, in order of definition; print its docstring, followed by its result."""
    CHECKS.append(function)
    return function


# ---- queries and actions -------------------------------------------------------------------------


def systemctl(*words: str) -> Done:
    return call("systemctl", *words)


def show(name: str) -> str:
    return sh("systemctl", "show", "--value", "-p", name, "ndxdp").strip()


def journal(*options: str) -> str:
    return sh("journalctl", "-q", "-b", "-o", "cat", "-u", "ndxdp", *options)


def status(interface: str) -> dict[str, Any]:
    shown = json.loads(sh(NDXDP, "status", "--json"))["interfaces"]
    found: dict[str, Any] = next(each for each in shown if each["interface"] == interface)
    return found


def mode(interface: str) -> str:
    found: str = status(interface)["mode"]
    return found


def configure(text: str) -> None:
    CONFIG.write_text(text)


def start() -> None:
    done = systemctl("start", "ndxdp")
    assert done.code == 0, journal()


def restart(text: str, *detached: str) -> None:
    """Restart the service with another configuration, after a detach of the named interfaces."""
    sh("systemctl", "stop", "ndxdp")
    for interface in detached:
        call(NDXDP, "detach", interface)
    configure(text)
    start()


def reload() -> None:
    done = systemctl("reload", "ndxdp")
    assert done.code == 0, (done, journal())


def answers(net: Network, target: str = TARGET, link: str = network.ROUTER_LINK) -> bool:
    found = net.ask(target, link=link)
    return found is not None and found.source == target


@contextmanager
def restarted(net: Network) -> Iterator[None]:
    """Expect the block to end the main process, systemd to restart it, and no answer to be lost."""
    before, count = show("MainPID"), int(show("NRestarts"))
    program = network.program_id()
    with net.solicited_continuously() as missed:
        yield
        eventually(lambda: int(show("NRestarts")) > count, within=PATIENCE)
        eventually(lambda: show("ActiveState") == "active", within=PATIENCE)
        eventually(lambda: show("MainPID") not in ("0", before), within=PATIENCE)
    assert not missed
    assert mode(UPLINK) == "tc"
    assert network.program_id() != program, "it was not renewed"


# ---- installing ----------------------------------------------------------------------------------


@check
def installed(net: Network) -> str:
    """install-service writes a unit without findings of systemd-analyze"""
    output = sh(NDXDP, "install-service")
    assert CONFIG.exists(), output
    sh("systemctl", "daemon-reload")
    verified = call("systemd-analyze", "verify", "/etc/systemd/system/ndxdp.service")
    assert (verified.code, verified.err) == (0, ""), verified
    assert show("LoadState") == "loaded"
    return show("FragmentPath")


@check
def score(net: Network) -> str:
    """systemd-analyze security rates the unit at most 2.4"""
    output = sh("systemd-analyze", "security", "--no-pager", "ndxdp")
    found = re.search(r"exposure level for ndxdp.service: ([\d.]+)", output)
    assert found, output
    assert float(found[1]) <= 2.4
    return found[1]


@check
def example(net: Network) -> None:
    """the example configuration starts nothing, and the journal gives the reason"""
    assert systemctl("start", "ndxdp").code == 1
    assert "no interface is configured" in journal("-p", "err")
    sh("systemctl", "stop", "ndxdp")


@check
def started(net: Network) -> str:
    """enable --now waits for READY"""
    configure(UP0 + second('mode = "userspace"') + AT_NIC)
    done = systemctl("enable", "--now", "ndxdp")
    assert done.code == 0, (done, journal())
    assert (show("ActiveState"), show("SubState")) == ("active", "running")
    assert show("StatusText") == f"interfaces: {UPLINK}, {SECOND}, {NIC}"
    return show("StatusText")


@check
def modes(net: Network) -> str:
    """a program answers on veth and virtio-net, not the userspace path"""
    found = {name: mode(name) for name in (UPLINK, NIC)}
    assert found[UPLINK] == "tc", status(UPLINK)
    assert found[NIC] in ("native", "tc"), status(NIC)
    assert answers(net)
    assert answers(net, NIC_TARGET, NIC_FAR)
    return str(found)


@check
def userspace(net: Network) -> None:
    """the userspace path answers on the interface that is configured for it"""
    assert mode(SECOND) == "userspace"
    assert answers(net, SECOND_TARGET, SECOND_FAR)


@check
def confined(net: Network) -> str:
    """the main process has four capabilities, a filter of system calls, and no new privileges"""
    fields = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{show('MainPID')}/status").read_text().splitlines()
    )
    wanted = sum(1 << number for number in (12, 13, 38, 39))  # NET_ADMIN, NET_RAW, PERFMON, BPF
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert int(fields[name], 16) == wanted, fields
    assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
    mounts = Path(f"/proc/{show('MainPID')}/mounts").read_text().splitlines()
    last = {line.split()[1]: line.split()[3].split(",")[0] for line in mounts}
    assert last["/sys/fs/bpf"] == "rw"
    for path in ("/", "/sys", "/proc/sys", "/sys/fs/cgroup"):
        assert last[path] == "ro", mounts
    return f"resident {fields['VmRSS'].strip()}"


@check
def clean(net: Network) -> None:
    """the journal has no warning since the start"""
    this = f"_SYSTEMD_INVOCATION_ID={show('InvocationID')}"
    assert "ready: up0" in sh("journalctl", "-q", this)
    assert not sh("journalctl", "-q", "-p", "warning", this)
    assert "Traceback" not in journal()


# ---- its life ------------------------------------------------------------------------------------


@check
def reloaded(net: Network) -> None:
    """reload applies another file: a rule, groups, announcements, gateway care, deprecation"""
    pid = show("MainPID")
    assert not answers(net, LATER_TARGET)
    configure(UP0 + LATER + second('mode = "userspace"') + AT_NIC)
    with net.advertisements() as frames:
        reload()
        eventually(lambda: answers(net, LATER_TARGET), within=PATIENCE)
        group = "ff02::1:ff00:77"
        eventually(lambda: group in sh("ip", "-6", "maddr", "show", UPLINK), within=PATIENCE)
        eventually(lambda: "deprecated" in sh("ip", "-6", "address", "show", "to", HOST))
        neighbour = ("ip", "-6", "neigh", "show", GATEWAY, "dev", UPLINK)
        eventually(lambda: ROUTER_MAC in sh(*neighbour), within=PATIENCE)
        time.sleep(1)
    flags = OVERRIDE | SOLICITED
    announced = [frame for frame in frames if flags_of(frame) & flags == OVERRIDE]
    assert announced, [frame.hex() for frame in frames]
    assert show("MainPID") == pid


@check
def bad(net: Network) -> str:
    """reload fails with a bad file, the old one stays in effect, and the status says so"""
    CONFIG.write_text(CONFIG.read_text().replace(BEHIND, "2001:db8::/300"))
    done = systemctl("reload", "ndxdp")
    assert done.code == 1, done
    eventually(lambda: show("StatusText").startswith("cannot reload: "))
    text = show("StatusText")
    assert "prefix" in text
    assert "cannot reload" in journal("-p", "err")
    assert show("ActiveState") == "active"
    assert answers(net)
    assert answers(net, LATER_TARGET)
    configure(UP0 + LATER + second('mode = "userspace"') + AT_NIC)
    reload()
    assert show("StatusText").startswith("interfaces: ")
    return text


@check
def stopped(net: Network) -> None:
    """stop leaves the programs answering, and start takes over the pins without losing an answer"""
    counted = sum(status(UPLINK)["reasons"].values())
    with net.solicited_continuously() as missed:
        sh("systemctl", "stop", "ndxdp")
        assert show("ActiveState") == "inactive"
        assert show("Result") == "success"
        assert answers(net)
        assert answers(net, NIC_TARGET, NIC_FAR)
        start()
    assert not missed
    assert sum(status(UPLINK)["reasons"].values()) > counted + 10
    assert mode(UPLINK) == "tc"
    assert answers(net, SECOND_TARGET, SECOND_FAR)


@check
def killed(net: Network) -> None:
    """kill -9 of the main process: systemd restarts it, and no answer is lost"""
    with restarted(net):
        os.kill(int(show("MainPID")), 9)


@check
def hung(net: Network) -> None:
    """SIGSTOP of the main process: the watchdog ends it, systemd restarts it, no answer is lost"""
    with restarted(net):
        os.kill(int(show("MainPID")), 19)
    assert "Watchdog timeout" in journal()


# ---- what else the sandbox must allow ------------------------------------------------------------


@check
def userspace_survives(net: Network) -> None:
    """the userspace path's counters outlive the restarts"""
    assert mode(SECOND) == "userspace"
    counted = status(SECOND)["reasons"]["answered"]
    assert counted > 0
    assert answers(net, SECOND_TARGET, SECOND_FAR)


@check
def docker(net: Network) -> str:
    """a container of Docker is answered for, though Docker's socket belongs to root"""
    Path("/etc/docker").mkdir(exist_ok=True)
    options = {
        "bridge": "none", "iptables": False, "ip6tables": False, "ip-forward": False,
        "storage-driver": "vfs", "exec-opts": ["native.cgroupdriver=cgroupfs"],
    }  # fmt: skip
    Path("/etc/docker/daemon.json").write_text(json.dumps(options))
    sh("systemctl", "start", "docker")
    sh("sh", "-c", "tar -C / -c bin/busybox usr/bin/busybox 2>/dev/null | docker import - tiny")
    sh("docker", "network", "create", "--ipv6", "--subnet", CONTAINER_NETWORK, "exposed")
    configure(UP0 + DOCKER)
    reload()
    run = ("docker", "run", "-d", "--network", "exposed", "--ip6", CONTAINER)
    sh(*run, "--security-opt", "apparmor=unconfined", "tiny", "/bin/busybox", "sleep", "3600")
    eventually(lambda: answers(net, CONTAINER), within=PATIENCE)
    return sh("stat", "-c", "%A %U:%G", "/run/docker.sock").strip()


@check
def generic(net: Network) -> None:
    """generic mode answers in the sandbox"""
    restart(UP0 + second('mode = "generic"'), SECOND)
    assert mode(SECOND) == "generic"
    assert answers(net, SECOND_TARGET, SECOND_FAR)


@check
def bcc(net: Network) -> None:
    """bcc compiles in the sandbox"""
    restart(UP0 + second('mode = "tc"\nloader = "bcc"'), SECOND)
    assert (mode(SECOND), status(SECOND)["loader"]) == ("tc", "bcc")
    assert answers(net, SECOND_TARGET, SECOND_FAR)


@check
def bcc_drop_in(net: Network) -> None:
    """the drop-in of docs/service.md makes headers below /lib/modules readable"""
    release = os.uname().release
    build = Path(f"/lib/modules/{release}/build")
    build.unlink()
    shutil.move(f"/usr/src/linux-headers-{release}", build)
    text = (REPOSITORY / "docs" / "service.md").read_text()
    found = re.search(r"^```ini\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    restart(UP0 + second('mode = "tc"\nloader = "bcc"'), SECOND)
    assert "none is installed" in journal("-p", "err", "-n", "5")
    DROP_IN.parent.mkdir()
    DROP_IN.write_text(found[1])
    sh("systemctl", "daemon-reload")
    sh("systemctl", "restart", "ndxdp")
    assert (mode(SECOND), status(SECOND)["loader"]) == ("tc", "bcc")
    assert answers(net, SECOND_TARGET, SECOND_FAR)
    DROP_IN.unlink()
    sh("systemctl", "daemon-reload")


@check
def odd(net: Network) -> str:
    """a configuration in /root works, with a name full of systemd's special characters"""
    file = Path("/root/a b%h$HOME${x};'c\"\\d.toml")
    file.write_text(UP0)
    sh(NDXDP, "install-service", "-c", str(file))
    sh("systemctl", "daemon-reload")
    sh("systemctl", "restart", "ndxdp")
    assert f"{file}: good" in journal("-n", "20")
    assert answers(net)
    return file.name


@check
def detached(net: Network) -> None:
    """stop and detach leave nothing, and the unit can be removed"""
    sh("systemctl", "disable", "--now", "ndxdp")
    for interface in (UPLINK, SECOND, NIC):
        call(NDXDP, "detach", interface)
        assert not network.leftovers(interface), network.leftovers(interface)
    assert sh(NDXDP, "status") == "ndxdp is attached to no interface\n"


@check
def provoked(net: Network) -> None:
    """the journal has only warnings and errors that these checks provoked"""
    output = sh("journalctl", "-q", "-o", "cat", "-p", "warning", "_SYSTEMD_UNIT=ndxdp.service")
    assert "Traceback" not in journal()
    known = ("no interface is configured", "has no prefix length", "none is installed", "  hint: ")
    assert [line for line in output.splitlines() if not any(part in line for part in known)] == []
    assert all(part in output for part in known)


# ---- running them --------------------------------------------------------------------------------


def install() -> None:
    """Install the wheel's files as pip does, without pip."""
    sh("python3", "-m", "venv", "--without-pip", str(HOME))
    (site,) = HOME.glob("lib/python3*/site-packages")
    shutil.copytree(REPOSITORY / "ndxdp", site / "ndxdp")
    (site / "borrowed.pth").write_text("/opt/python\n")
    script = Path(NDXDP)
    script.write_text(f"#!{HOME}/bin/python\nfrom ndxdp.cli.main import main\nmain()\n")
    script.chmod(0o755)


def connect() -> None:
    sh("ip", "netns", "add", ROUTER)
    network.connect()
    sh("ip", "link", "add", SECOND, "type", "veth", "peer", SECOND_FAR, "netns", ROUTER)
    sh("ip", "link", "set", NIC_FAR, "netns", ROUTER)
    for name in (SECOND, NIC):
        sh("ip", "link", "set", name, "up")
    for name in (SECOND_FAR, NIC_FAR):
        sh("ip", "-n", ROUTER, "link", "set", name, "addrgenmode", "none", "up")
        sh("ip", "-n", ROUTER, "address", "add", "fe80::1/64", "dev", name, "nodad")


def main() -> int:
    if "NDXDP_VM_SYSTEMD" not in os.environ:
        print("This is for a machine of its own: make test-service", file=sys.stderr)
        return 1
    print(f"{sh('systemctl', '--version').splitlines()[0]}, Linux {os.uname().release}")
    install()
    connect()
    net, failed = Network(), 0
    chosen = sys.argv[1:]
    for function in CHECKS:
        if chosen and function.__name__ not in chosen:
            continue
        began = time.monotonic()
        try:
            more = function(net)
        except Exception:
            failed += 1
            print(f"FAILED  {function.__doc__}\n{traceback.format_exc()}\n{journal('-n', '30')}")
        else:
            took = time.monotonic() - began
            print(f"ok      {function.__doc__}{f': {more}' if more else ''} ({took:.0f} s)")
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
