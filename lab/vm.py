"""Tests in a virtual machine that runs Debian 12's own kernel, independent of the kernel here.

    python -m lab.vm [--timeout SECONDS] [-- pytest's arguments]
    python -m lab.vm --systemd [--timeout SECONDS]

A kernel decides which programs it verifies and where programs can be attached, so a result on this
machine's kernel says nothing about the oldest supported one. QEMU emulates the processor: it needs
no /dev/kvm, but minutes where others take seconds. So only the program's tests run by default, and
a test that fails by a timeout of its own proves nothing.

The parts that are slow to make stay below build/vm: a root file system by debootstrap, and the
Python packages of the tests. No run changes them; a guest writes to overlays that vanish with it.
Every run packs the repository again, with the objects compiled here: the guest has no compiler.

With --systemd, systemd boots the guest and runs tests/scenarios/systemd_service.py. Otherwise the
first process is a script.

The guest reaches nothing outside. A QEMU hub joins its two virtio-net NICs, eth0 and eth1, to each
other and to nothing else (QEMU warns of that). The NICs are down and outside of the namespaces of
the tests. A test that needs a NIC's driver moves one in:

    nsenter --net=$NDXDP_VM_NETNS ip link set eth0 netns $$

When those namespaces end, the kernel returns the NICs.

The same root file system can boot another kernel (lab/kernels.py).

The exit code is that of the tests, or 1 for a guest that ended without one, as a kernel does that
oopses.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lab.commands import LabError, exit_code
from lab.programs import build_xdp_pass

DEFAULT_TESTS = (
    *("tests/test_program.py", "tests/test_ndp.py"),
    *("tests/test_auto.py", "tests/test_auto_missing.py", "tests/test_auto_vlan.py"),
)
"""The tests that run by default."""

_REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = _REPOSITORY / "build" / "vm"
"""The directory of the parts that are made once."""

_OBJECT = _REPOSITORY / "ndxdp" / "bpf" / "ndp_responder.o"

_RELEASE = "bookworm"
_GUEST_PYTHON = "3.11"
_PACKAGES = (
    *("linux-image-amd64", "initramfs-tools", "kmod", "udev", "util-linux", "procps"),
    *("python3", "libbpf1", "python3-bpfcc", "linux-headers-amd64"),
    *("bpftool", "ethtool", "iproute2", "iputils-ping", "ndisc6", "ndppd", "nftables"),
    *("systemd", "docker.io", "busybox-static"),
)

# The root file system knows nothing else of the tests. The rest comes with the archive, on
# /dev/vdc.
_FIRST_PROCESS = """\
#!/bin/sh
mount -t tmpfs tmpfs /mnt && tar -x -C /mnt -f /dev/vdc && exec sh /mnt/run-tests
"""

# The first process for pytest. If it ends early, the kernel panics, which ends QEMU. It loads
# modules beforehand for sysctls that tests set, and because not all load on demand. The result has
# a separate serial line, to which nothing else is written.
_RUN_TESTS = """\
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export PYTHONPATH=/opt/python PYTHONDONTWRITEBYTECODE=1
export NDXDP_VM_NETNS=/mnt/netns {environment}

there() {{ mountpoint -q "$2" || {{ mkdir -p "$2"; mount -t "$1" "$1" "$2"; }}; }}
there proc /proc
there sysfs /sys
there devtmpfs /dev
there devpts /dev/pts
there tmpfs /dev/shm
there tmpfs /run
there tmpfs /tmp
there bpf /sys/fs/bpf
mkdir /opt/python
mount -o ro /dev/vdb /opt/python
{modules}
modprobe -a veth bridge br_netfilter macvlan 8021q bonding dummy tun virtio_net \\
    nf_tables cls_bpf sch_ingress
ip link set lo up
touch $NDXDP_VM_NETNS
mount --bind /proc/self/ns/net $NDXDP_VM_NETNS

stty -F /dev/console -onlcr
echo "Linux $(uname -r), $(nproc) processors, $(python3 --version)"
cd /mnt/repository
# Every command that a test runs would compile it anew, which takes longer than all the rest.
python3 -m compileall -q ndxdp
code=0
python3 -m {module} {arguments} </dev/null || code=$?
echo "tests ended with $code" >/dev/ttyS1
echo o >/proc/sysrq-trigger
sleep infinity
"""

# The first process for tests of the service: systemd, as Debian boots it, but without the units
# that packages have enabled. Docker is installed, and the tests start it.
_RUN_SYSTEMD = """\
set -eu
mkdir /opt/python
mount -o ro /dev/vdb /opt/python
{modules}
rm -f /etc/systemd/system/*.wants/*
[ -s /etc/machine-id ] || echo 00000000000000000000000000000001 >/etc/machine-id
cat >/etc/systemd/system/tests.service <<'END'
[Unit]
After=multi-user.target

[Service]
Type=oneshot
WorkingDirectory=/mnt/repository
Environment=PYTHONPATH=/opt/python PYTHONDONTWRITEBYTECODE=1 HOME=/root LANG=C.UTF-8
Environment=NDXDP_VM_SYSTEMD=1 {environment}
ExecStart=/usr/bin/python3 -u -m {module} {arguments}
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
ExecStopPost=/bin/sh -c 'echo "tests ended with $$EXIT_STATUS" >/dev/ttyS1'
ExecStopPost=/bin/sh -c 'echo o >/proc/sysrq-trigger'
END
mkdir -p /etc/systemd/system/graphical.target.wants
ln -s ../tests.service /etc/systemd/system/graphical.target.wants/
ln -s /dev/null /etc/systemd/system/serial-getty@ttyS0.service
exec /lib/systemd/systemd
"""


class Kernel(NamedTuple):
    """A kernel that boots the root file system. modules: a disk for /lib/modules, or None."""

    image: Path
    initrd: Path
    modules: Path | None = None


def run(
    arguments: Sequence[str],
    timeout: float,
    *,
    systemd: bool = False,
    module: str = "tests",
    kernel: Kernel | None = None,
    report: Path | None = None,
) -> int:
    """Run a Python module of the repository in a guest, or the tests of the service.

    kernel: another kernel than the root file system's. report: receives the module's output on
    /dev/ttyS1, with a last line for the exit code.

    Returns:
        The exit code.

    Raises:
        LabError: The guest ended without an exit code, or did not end within `timeout` s.
    """
    check_machine()
    made, packages = root(), _python_packages()
    kernel = kernel or own_kernel()
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        archive, report = Path(work, "repository.tar"), report or Path(work, "report")
        script = (_RUN_SYSTEMD if systemd else _RUN_TESTS).format(
            module="tests.scenarios.systemd_service" if systemd else module,
            modules="mount -o ro /dev/vdd /lib/modules" if kernel.modules else "",
            arguments=shlex.join(arguments),
            environment=_environment(),
        )
        _pack(archive, script)
        disks = [made / "disk", packages, archive]
        if kernel.modules:
            disks.append(kernel.modules)
        _boot(kernel, disks, report, timeout)
        output = report.read_text(errors="replace") if report.exists() else ""
    ended = re.search(r"^tests ended with (\d+)\s*$", output, re.MULTILINE)
    if not ended:
        raise LabError("The machine ended before the tests did.", "Its last output is above.")
    return int(ended[1])


def check_machine() -> None:
    """Raise LabError that names what this machine lacks."""
    needed = ("debootstrap", "mkfs.ext4", "qemu-system-x86_64", "setpriv", "unshare")
    if missing := [name for name in needed if not shutil.which(name)]:
        raise LabError(
            f"The virtual machine needs {', '.join(missing)}.",
            "Debian: apt install debootstrap e2fsprogs qemu-system-x86 util-linux",
        )
    if platform.machine() != "x86_64":
        raise LabError(
            f"The virtual machine's Debian is for x86_64, and this is {platform.machine()}.",
            "debootstrap runs the programs that it installs.",
        )
    if not _OBJECT.exists():
        raise LabError("The BPF program is not compiled.", "Try it after `make build`.")


# ---- parts that are made once
# ---------------------------------------------------------------------


def root() -> Path:
    """Return the directory with Debian: `disk`, `kernel` and `initrd`."""
    made, is_there = cached("debian", _RELEASE, *_PACKAGES, _FIRST_PROCESS)
    if is_there:
        return made
    if os.geteuid() != 0:
        raise LabError("The first run makes a root file system, which takes root.", "Try sudo.")
    print(f"making a root file system of Debian {_RELEASE}, once: some minutes", flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        tree, result = Path(work, "tree"), Path(work, "result")
        result.mkdir()
        # debootstrap's mounts must be gone when the tree is deleted.
        make(
            "debootstrap",
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}"),
            *(_RELEASE, str(tree)),
        )
        first = tree / "run-tests"
        first.write_text(_FIRST_PROCESS)
        first.chmod(0o755)
        (kernel,) = tree.glob("boot/vmlinuz-*")
        (initrd,) = tree.glob("boot/initrd.img-*")
        shutil.copy(kernel, result / "kernel")
        shutil.copy(initrd, result / "initrd")
        shutil.rmtree(tree / "var" / "cache" / "apt")
        make_disk(tree, result / "disk", "4G")
        result.rename(made)
    return made


def own_kernel() -> Kernel:
    """Return the kernel of the root file system."""
    return Kernel(root() / "kernel", root() / "initrd")


def _python_packages() -> Path:
    """Make a disk with the packages of pyproject.toml, independent of this machine's Python."""
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    made, is_there = cached("python", _GUEST_PYTHON, *wanted)
    if is_there:
        return made
    print("fetching the tests' Python packages for it, once", flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        tree, result = Path(work, "tree"), Path(work, "result")
        make(
            "pip",
            *(sys.executable, "-m", "pip", "install", "--disable-pip-version-check"),
            *("--python-version", _GUEST_PYTHON, "--only-binary", ":all:", "--target", str(tree)),
            *wanted,
        )
        make_disk(tree, result, "1G")
        result.rename(made)
    return made


def cached(name: str, *ingredients: str) -> tuple[Path, bool]:
    """Return the path for a thing made of these ingredients, and whether it exists.

    If it does not exist, older versions with other ingredients are deleted.
    """
    key = hashlib.sha256("\n".join(ingredients).encode()).hexdigest()[:12]
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{name}-{key}"
    if path.exists():
        return path, True
    for old in CACHE.glob(f"{name}-*"):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()
    return path, False


def make_disk(tree: Path, disk: Path, size: str) -> None:
    """Make an ext4 file system with the files of a directory; unused blocks take no space."""
    features = ("-O", "^has_journal", "-E", "lazy_itable_init=0", "-m", "0")
    make("mkfs", "mkfs.ext4", "-q", *features, "-d", str(tree), str(disk), size)


def make(name: str, *command: str, stdin: bytes = b"") -> None:
    """Run a command whose output goes to a log; LabError names the log if the command fails."""
    log = CACHE / f"{name}.log"
    with log.open("w") as output:
        done = subprocess.run(command, input=stdin, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        printed = log.read_text(errors="replace").strip().splitlines()
        raise LabError(f"{name} failed ({done.returncode}), see {log}.", "\n".join(printed[-5:]))


# ---- parts that every run makes -----------------------------------------------------------------


def _environment() -> str:
    words = f"NDXDP_TEST_PATIENCE=5 COLUMNS={shutil.get_terminal_size().columns}"
    return words if sys.stdout.isatty() else words + " NO_COLOR=1"  # its console resembles one


def _pack(archive: Path, script: str) -> None:
    """Pack the repository, its compiled objects, and the script that runs the tests."""
    with tarfile.open(archive, "w") as packed, tempfile.NamedTemporaryFile("w") as written:
        written.write(script)
        written.flush()
        packed.add(written.name, "run-tests")
        packed.add(_REPOSITORY, "repository", filter=_wanted)
        packed.add(build_xdp_pass(), "repository/build/xdp_pass.o")


def _wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return the files that people edit, and ndxdp/bpf, without files that tools made."""
    name = Path(member.name).name
    unwanted = name in (".git", ".venv", "build", "__pycache__") or name.endswith(
        ("_cache", ".egg-info")
    )
    return None if unwanted else member


def _boot(kernel: Kernel, disks: list[Path], report: Path, timeout: float) -> None:
    """Start the guest, copy its output to stdout, and wait for its end."""
    # A guest in trouble ends at once: it panics and reboots, and -no-reboot turns that into its
    # end.
    parameters = (
        "root=/dev/vda rw init=/run-tests console=ttyS0 net.ifnames=0 quiet panic=1 oops=panic"
        " systemd.show_status=no"
    )
    machine = [
        *("setpriv", "--pdeathsig", "KILL"),
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "3072"),
        *("-nodefaults", "-display", "none", "-no-reboot", "-device", "virtio-rng-pci"),
        *("-serial", "stdio", "-serial", f"file:{report}"),
        *("-kernel", str(kernel.image), "-initrd", str(kernel.initrd)),
        *("-append", parameters),
    ]
    for disk in disks:
        machine += ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
    for number, end in enumerate(("left", "right"), start=1):
        device = f"virtio-net-pci,netdev={end},mac=02:00:00:00:ee:0{number},romfile="
        machine += ["-netdev", f"hubport,id={end},hubid=0", "-device", device]
    guest = subprocess.Popen(machine, stdin=subprocess.DEVNULL)
    try:
        guest.wait(timeout)
    except subprocess.TimeoutExpired as error:
        raise LabError(
            f"The machine was still running after {timeout:g} s, and was stopped.",
            "Give it longer with --timeout, or less to do.",
        ) from error
    finally:
        guest.kill()
        guest.wait()


@exit_code
def main() -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.vm", description="Run tests under Debian 12's kernel, emulated."
    )
    parser.add_argument("--timeout", type=float, default=900, metavar="SECONDS")
    parser.add_argument(
        "--systemd", action="store_true", help="run tests/scenarios/systemd_service.py"
    )
    parser.add_argument("arguments", nargs="*", help="arguments for pytest, after `--`")
    options = parser.parse_args()
    arguments = options.arguments
    if not arguments and not options.systemd:
        arguments = [path for path in DEFAULT_TESTS if (_REPOSITORY / path).exists()]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run(arguments, options.timeout, systemd=options.systemd)


if __name__ == "__main__":
    sys.exit(main())
