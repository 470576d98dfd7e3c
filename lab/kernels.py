"""Debian's kernels of several releases, for the virtual machine of lab/vm.py.

The root file system stays that of Debian 12; only the kernel and its modules change. A difference
between two runs therefore comes from the kernel.

apt fetches a package with lists of its own, apart from this machine's, and the package is unpacked,
not installed. Its modules go on a disk of their own. An archive with the few modules that find the
disks is appended to Debian 12's initrd; the kernel unpacks one after the other.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from lab import vm
from lab.commands import LabError

_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEBIAN = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"

# Modules that an initrd needs beside their dependencies. A kernel may have some of them built in,
# or no longer have one: then there is no such file.
_FOR_INITRD = ("virtio_blk", "virtio_pci", "ext4", "crc32c_generic", "crc32c-intel", "crc32c")


class Source(NamedTuple):
    """The origin of a kernel's package: names for people, and for apt."""

    release: str
    archive: str
    suite: str


SOURCES: dict[str, Source | None] = {
    "5.10": Source("Debian 11", _SECURITY, "bullseye-security"),
    "6.1": None,  # the root file system's own
    "6.12": Source("Debian 13", _DEBIAN, "trixie"),
    "6.18": Source("Debian 13 backports", _DEBIAN, "trixie-backports"),
    "7.2": Source("Debian 13 backports", _DEBIAN, "trixie-backports"),
}
"""By the first part of their versions, oldest first."""


def release(name: str) -> str:
    """Return the release that a kernel belongs to."""
    source = SOURCES[name]
    return source.release if source else "Debian 12"


def kernel(name: str) -> vm.Kernel:
    """Return one of SOURCES, ready to boot; the first call fetches it."""
    source = SOURCES[name]
    own = vm.own_kernel()
    if source is None:
        return own
    made, is_there = vm.cached(f"kernel-{name}", *source, str(own.initrd.parent))
    if not is_there:
        print(f"fetching Linux {name} of {source.release}, once", flush=True)
        with tempfile.TemporaryDirectory(dir=vm.CACHE) as work:
            result = Path(work, "result")
            result.mkdir()
            _make_bootable(_fetch(name, source, Path(work)), own.initrd, result)
            result.rename(made)
    return vm.Kernel(made / "kernel", made / "initrd", made / "modules")


def _fetch(name: str, source: Source, work: Path) -> Path:
    """Fetch and unpack the newest package of that kernel."""
    apt, lists, packages, tree = (work / part for part in ("apt", "lists", "packages", "tree"))
    for directory in (apt, lists / "lists" / "partial", packages, tree):
        directory.mkdir(parents=True)
    (apt / "sources.list").write_text(
        f"deb [signed-by={_KEYS}] {source.archive} {source.suite} main\n"
    )
    (apt / "status").touch()
    options = [
        f"Dir::Etc::SourceList={apt}/sources.list",
        "Dir::Etc::SourceParts=-",
        f"Dir::State={lists}",
        f"Dir::State::Status={apt}/status",
        f"Dir::Cache={apt}",
        "Acquire::Languages=none",
        "APT::Sandbox::User=root",
        "APT::Architecture=amd64",
        "APT::Architectures=amd64",
    ]
    words = [word for option in options for word in ("-o", option)]
    vm.make("apt-update", "apt-get", *words, "update")
    image = re.compile(rf"linux-image-{re.escape(name)}\.[0-9][0-9.+~a-z-]*-amd64")
    found = [
        package
        for package in _packages(words, f"linux-image-{name}.")
        if image.fullmatch(package) and not re.search("-(cloud|rt)-", package)
    ]
    if not found:
        raise LabError(
            f"{source.archive} {source.suite} has no Linux {name}.",
            "Look where it is now, and say so in lab/kernels.py.",
        )
    newest = max(found, key=lambda package: [int(n) for n in re.findall(r"\d+", package)])
    # From 7.1 on the package is an empty one that depends on these two.
    parts = [newest, *(newest.replace("-image-", f"-{part}-") for part in ("binary", "modules"))]
    wanted = [part for part in parts if part in _packages(words, "linux-")]
    download = f'cd {packages} && exec apt-get "$@"'
    vm.make("apt-download", "sh", "-c", download, "sh", *words, "download", *wanted)
    for package in packages.iterdir():
        vm.make("unpack", "dpkg-deb", "-x", str(package), str(tree))
    return tree


def _packages(options: list[str], prefix: str) -> list[str]:
    """Return the package names with this beginning."""
    asked = ("apt-cache", *options, "pkgnames", prefix)
    return subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def _make_bootable(tree: Path, initrd: Path, result: Path) -> None:
    """Make `kernel`, `initrd` and the disk `modules`."""
    # The modules' directory depends on the release; depmod looks in one place.
    modules = tree / "lib" / "modules"
    if not modules.exists():
        modules.parent.mkdir(exist_ok=True)
        (tree / "usr" / "lib" / "modules").rename(modules)
    (image,) = (*tree.glob("boot/vmlinuz-*"), *modules.glob("*/vmlinuz"))
    shutil.copy(image, result / "kernel")
    (version,) = (path.name for path in modules.iterdir())
    vm.make("depmod", "depmod", "-b", str(tree), version)
    vm.make_disk(modules, result / "modules", "2G")

    few = tree / "few"
    for path in _with_dependencies(modules / version):
        copy = few / "usr" / "lib" / "modules" / version / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(modules / version / path, copy)
    (few / "lib").symlink_to("usr/lib")
    vm.make("depmod", "depmod", "-b", str(few), version)
    (few / "lib").unlink()
    listed = sorted(str(path.relative_to(few)) for path in few.rglob("*"))
    archive = subprocess.run(
        ("cpio", "--quiet", "--format=newc", "--create"),
        input="\n".join(listed).encode(),
        cwd=few,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    first = initrd.read_bytes()
    # An archive begins at a multiple of 4 bytes.
    (result / "initrd").write_bytes(first + bytes(-len(first) % 4) + archive)


def _with_dependencies(modules: Path) -> set[str]:
    """Return the module files that the initrd needs, and the files that depmod reads."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    lists = ("modules.order", "modules.builtin", "modules.builtin.modinfo")
    found = {name for name in lists if (modules / name).exists()}
    for path, dependencies in needs.items():
        if Path(path).name.partition(".")[0] in _FOR_INITRD:
            found |= {path, *dependencies}
    return found
