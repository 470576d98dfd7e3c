"""The disks of the lab's machines: Debian 12 as installed anywhere, and this repository.

debootstrap makes a Debian once, below build/lab, and no machine writes to it. It contains the
packages that the provisioning scripts ask for, as the machines reach nothing outside.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from lab.commands import LabError

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / "build" / "lab"

REPOSITORY_DISK = "ndxdp"
"""Label of the disk with the repository, which machines mount at /ndxdp."""

_RELEASE = "bookworm"
_INSTALLED = (
    *("linux-image-amd64", "initramfs-tools", "kmod", "udev", "systemd", "systemd-sysv", "dbus"),
    *("iproute2", "iputils-ping", "procps", "python3", "libbpf1", "qemu-guest-agent"),
)
_LATER = ("prometheus", "nftables", "docker.io", "apparmor", "busybox-static")
_SERVICES = (
    "prometheus",
    "prometheus-node-exporter",
    "nftables",
    "docker.service",
    "docker.socket",
    "containerd",
)

# The packages that the scripts install are there, because unpacking takes an emulated processor
# minutes. Their services do not run before a script starts them.
_PREPARE = f"""\
set -eu
export DEBIAN_FRONTEND=noninteractive
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
apt-get update
apt-get install -y --no-install-recommends {" ".join(_LATER)}
for service in {" ".join(_SERVICES)}; do
    systemctl disable $service
done
rm /usr/sbin/policy-rc.d
echo 'LABEL={REPOSITORY_DISK} /ndxdp ext4 ro 0 0' >>/etc/fstab
mkdir /ndxdp
rm -f /etc/hostname /etc/resolv.conf
: >/etc/machine-id  # each machine makes its own; if there were none, systemd would ask questions
"""


def check_machine() -> None:
    """Raise LabError unless this machine can make disks and emulate."""
    needed = ("debootstrap", "mkfs.ext4", "qemu-img", "qemu-system-x86_64", "setpriv", "unshare")
    if missing := [name for name in needed if not shutil.which(name)]:
        raise LabError(
            f"The lab's machines need {', '.join(missing)}.",
            "Debian: apt install debootstrap e2fsprogs qemu-system-x86 qemu-utils util-linux",
        )
    if platform.machine() != "x86_64":
        raise LabError(
            f"The machines' Debian is for x86_64, and this is {platform.machine()}.",
            "debootstrap runs the programs that it installs.",
        )


def debian() -> Path:
    """Return the directory with `disk`, `kernel` and `initrd`, and make it if it is missing."""
    ingredients = "\n".join((_RELEASE, *_INSTALLED, _PREPARE))
    made = CACHE / f"debian-{hashlib.sha256(ingredients.encode()).hexdigest()[:12]}"
    if made.exists():
        return made
    if os.geteuid() != 0:
        raise LabError("The first run makes a root file system, which takes root.", "Try sudo.")
    print(f"making a root file system of Debian {_RELEASE}, once: some minutes", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob("debian-*"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        tree, result = Path(work, "tree"), Path(work, "result")
        result.mkdir()
        # Its mounts must be gone when the tree is deleted.
        apart = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        bootstrap = ("debootstrap", "--variant=minbase", f"--include={','.join(_INSTALLED)}")
        _make("debootstrap", *apart, *bootstrap, _RELEASE, str(tree))
        _make("apt", *apart, "chroot", str(tree), "sh", "-c", _PREPARE)
        (kernel,) = tree.glob("boot/vmlinuz-*")
        (initrd,) = tree.glob("boot/initrd.img-*")
        shutil.copy(kernel, result / "kernel")
        shutil.copy(initrd, result / "initrd")
        _make_disk(tree, result / "disk", "6G")
        result.rename(made)
    return made


def repository(tree: Path, disk: Path) -> None:
    """Make a disk with the files of a directory, for /ndxdp."""
    _make_disk(tree, disk, "128M", "-L", REPOSITORY_DISK)


def overlay(base: Path, disk: Path) -> None:
    """Make a disk that begins as `base` and stores changes in its own file."""
    _make("qemu-img", "qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", disk)


def _make_disk(tree: Path, disk: Path, size: str, *options: str) -> None:
    """Make an ext4 file system; unused blocks take no space."""
    features = ("-O", "^has_journal", "-E", "lazy_itable_init=0", "-m", "0", *options)
    _make("mkfs", "mkfs.ext4", "-q", *features, "-d", str(tree), str(disk), size)


def _make(name: str, *command: str | Path) -> None:
    log = CACHE / f"{name}.log"
    with log.open("w") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    if done.returncode:
        printed = log.read_text(errors="replace").strip().splitlines()
        raise LabError(f"{name} failed ({done.returncode}), see {log}.", "\n".join(printed[-5:]))
