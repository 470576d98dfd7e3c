"""ndxdp on arm64, in two emulations: `make test-arm64`.

QEMU's emulation of programs runs Debian's clang for arm64, which must make the same object as the
clang of this machine. QEMU's emulation of machines boots Debian 12's kernel for arm64, with the
Debian package in an initramfs: ndxdp attaches in each mode, and a neighbour in another network
namespace solicits it. mmdebstrap unpacks the root file system below build/roots, once.

    python -m tests.scenarios.arm64 PACKAGE
"""

from __future__ import annotations

import contextlib
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from unittest import mock

from tests.fixtures.network import REPOSITORY, sh

ROOT = REPOSITORY / "build" / "roots" / "arm64"
OBJECT = REPOSITORY / "ndxdp" / "bpf" / "ndp_responder.o"

_COMPILER = ("clang", "llvm", "libbpf-dev", "linux-libc-dev")
_HOST = ("python3", "libbpf1", "iproute2", "kmod", "busybox-static", "ndisc6", "linux-image-arm64")
_MODULES = ("veth", "sch_ingress", "cls_bpf")
_NOT_NEEDED = (  # in the initramfs
    *("./boot", "./usr/include", "./usr/lib/llvm-14", "./usr/share/doc", "./usr/share/locale"),
    *("./usr/share/man", "./lib/modules", "./usr/lib/modules", "./var/cache", "./var/lib/apt"),
    *("./usr/lib/gcc", "./usr/lib/aarch64-linux-gnu/libLLVM-14.so.1"),
)

_TIMEOUT = 900  # seconds; an emulated processor needs minutes

_INIT = """\
#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
ip() { /bin/ip "$@"; }  # busybox prefers its own
for place in proc:proc sysfs:sys devtmpfs:dev tmpfs:run bpf:sys/fs/bpf; do
    busybox mkdir -p /${place#*:}
    busybox mount -t ${place%%:*} ${place%%:*} /${place#*:}
done
busybox uname -srm
for module in @MODULES@; do modprobe $module; done
ip link set lo up
ip link add eth0 type veth peer name r0
ip netns add router
ip link set r0 netns router
ip link set eth0 up
ip -n router link set r0 up
ip address add 2001:db8::2/64 dev eth0 nodad
ip -n router address add 2001:db8::1/64 dev r0 nodad
busybox sleep 3

check() {  # check WHAT COMMAND...: print whether the command succeeds
    what=$1
    shift
    if "$@" >/run/said 2>&1; then echo "ok      $what"
    else echo "FAILED  $what"; busybox cat /run/said; fi
}
solicit() { ip netns exec router ndisc6 -1 -q -r 3 -w 5000 2001:db8:0:0:c::10 r0; }
answered() { ndxdp explain 2001:db8:0:0:c::10 | busybox grep -q "^reason   answered:"; }
silent() { ! solicit; }

check "the command starts" ndxdp --version
check "nobody answers before" silent
# What XDP sends from a veth arrives only if its peer runs XDP, too.
busybox mkdir /sys/fs/bpf/router
check "a peer that runs XDP" busybox nsenter --net=/run/netns/router \\
    ndxdp --bpffs /sys/fs/bpf/router attach r0 --mode native -n 2001:db8:ffff::1
for mode in native generic tc; do
    check "attached in $mode mode" ndxdp attach eth0 --mode $mode -n 2001:db8:0:0:c::/80
    check "explain runs the program" answered
    check "a neighbour gets an answer" solicit
    check "detached" ndxdp detach eth0
done
ndxdp run eth0 --mode userspace -n 2001:db8:0:0:c::/80 >/run/ready 2>&1 &
busybox timeout 60 busybox sh -c 'until busybox grep -q ready /run/ready; do busybox sleep 1; done'
check "a process answers in userspace mode" solicit
kill %1
echo "END"
busybox poweroff -f
"""


def root() -> Path:
    """Return the root file system; the first call unpacks it. Only this needs the network."""
    if not ROOT.is_dir():
        fresh = ROOT.with_name("arm64.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        packages = ",".join((*_COMPILER, *_HOST))
        no_more = "--aptopt=APT::Install-Recommends false"
        _run(
            *("mmdebstrap", "--architectures=arm64", "--variant=extract", no_more),
            *(f"--include={packages}", "bookworm", str(fresh)),
        )
        fresh.rename(ROOT)
    return ROOT


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}{shlex.join(command)} failed")


def compile_there(out: Path) -> None:
    """Compile the program by clang for arm64, with the flags of setup.py."""
    with mock.patch("setuptools.setup"):
        clang = runpy.run_path(str(REPOSITORY / "setup.py"))["CLANG"]
    flags = [flag for flag in clang[1:] if "-prefix-map" not in flag]
    work = "/tmp/work"  # in the root file system, below a mount that vanishes with the namespace
    compiler = f"{work}/qemu /usr/lib/llvm-14/bin"
    script = f"""\
mount -t tmpfs tmpfs {ROOT}/tmp && mkdir {ROOT}{work}
cp "$(command -v qemu-aarch64-static)" {ROOT}{work}/qemu && cp -r {REPOSITORY}/bpf {ROOT}{work}
chroot {ROOT} {compiler}/clang {shlex.join(flags)} -ffile-prefix-map={work}=/ndxdp \\
    -I/usr/include/aarch64-linux-gnu -c {work}/bpf/ndp_responder.c -o {work}/o
chroot {ROOT} {compiler}/llvm-strip -g {work}/o
cp {ROOT}{work}/o {out}
"""
    _run("unshare", "--mount", "sh", "-ec", script)


def initramfs(package: Path, work: Path) -> Path:
    """Pack the root file system, the package, the modules and the script that runs first."""
    tree = work / "tree"
    _run("dpkg-deb", "-x", str(package), str(tree))
    (modules,) = ROOT.glob("lib/modules/*")
    # depmod wants all modules; the archive has those that are needed, and their dependencies.
    _run("depmod", "-b", str(ROOT), modules.name)
    place = tree / "lib" / "modules" / modules.name
    for path in {*_with_dependencies(modules), *modules.glob("modules.*")}:
        copy = place / path.relative_to(modules)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    init = tree / "init"
    init.write_text(_INIT.replace("@MODULES@", " ".join(_MODULES)))
    init.chmod(0o755)
    archive = work / "initramfs"
    prune = " -o ".join(f"-path {each}" for each in _NOT_NEEDED)
    script = f"""\
cd {ROOT} && find . \\( {prune} \\) -prune -o -print0 | cpio -0 -o -H newc --quiet >{archive}
cd {tree} && find . -print0 | cpio -0 -o -H newc --quiet >>{archive}
"""
    _run("sh", "-ec", script)
    return archive


def _with_dependencies(modules: Path) -> set[Path]:
    """Return the files of _MODULES and of the modules that they need."""
    lines = (modules / "modules.dep").read_text().splitlines()
    needs = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    found: set[str] = set()
    for name, more in needs.items():
        if Path(name).name.partition(".")[0] in _MODULES:
            found |= {name, *more}
    return {modules / name for name in found}


def boot(archive: Path) -> Generator[str, None, None]:
    """Boot Debian's kernel with the initramfs; yield the lines of its console."""
    (kernel,) = ROOT.glob("boot/vmlinuz-*")
    command = (
        *("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57", "-smp", "2", "-m", "3G"),
        *("-display", "none", "-serial", "stdio", "-monitor", "none", "-nic", "none", "-no-reboot"),
        *("-kernel", str(kernel), "-initrd", str(archive)),
        *("-append", "console=ttyAMA0 quiet panic=-1 rdinit=/init"),
    )
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as machine:
        assert machine.stdout
        limit = threading.Timer(_TIMEOUT, machine.kill)
        limit.start()
        try:
            for line in machine.stdout:
                yield line.rstrip()
        finally:
            limit.cancel()
            machine.kill()


def booted(package: Path, work: Path) -> int:
    """Print what the machine prints; return the number of failures."""
    began, failed, checks, ended = time.monotonic(), 0, 0, False
    with contextlib.closing(boot(initramfs(package, work))) as console:
        for line in console:
            print(f"  {line}", flush=True)
            failed += line.startswith("FAILED")
            checks += line.startswith("ok")
            ended = ended or line == "END"
    print(f"arm64: {checks} passed, {failed} failed, {time.monotonic() - began:.0f} s")
    return failed + (not ended)


def main() -> int:
    if len(sys.argv) != 2 or os.geteuid() != 0:
        print("usage, as root: python -m tests.scenarios.arm64 PACKAGE")
        return 2
    root()
    with tempfile.TemporaryDirectory(prefix="ndxdp-arm64-") as directory:
        work = Path(directory)
        compile_there(work / "o")
        version = sh("qemu-aarch64-static", "--version").splitlines()[0]
        if (work / "o").read_bytes() != OBJECT.read_bytes():
            print(f"FAILED  clang for arm64 makes another object ({version})")
            return 1
        print(f"ok      clang for arm64 makes the same object ({version})", flush=True)
        return 1 if booted(Path(sys.argv[1]), work) else 0


if __name__ == "__main__":
    sys.exit(main())
