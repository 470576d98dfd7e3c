"""Compilation by bcc, in a child process.

The distribution installs bcc for the system's Python. Importing bcc would cost the daemon 77 MB,
and compiling another 100 MB. So a child process runs bcc_child.py with the numbers of the open maps
and returns instructions. The parent, which has the maps, loads the instructions like those of the
prebuilt object, so that LLVM needs no privileges.

bcc needs a directory of kernel headers, although the program needs no header of the running kernel.
bcc does not find the directory on a kernel without installed headers, nor on Debian, which splits
the headers into two packages. Headers of any version suffice: they are joined in a directory of
symbolic links, and BCC_KERNEL_SOURCE names that directory.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from ndxdp.errors import NdxdpError

log = logging.getLogger(__name__)

PYTHON = "/usr/bin/python3"
_TIMEOUT = 60  # seconds; compiling takes one
_PARTS = ("include", "arch/x86/include", "arch/arm64/include")


def compile_program(program: str, map_fds: dict[str, int]) -> bytes:
    """Compile one entry point, and return its instructions, 8 bytes each.

    Args:
        program: The entry point.
        map_fds: The descriptors of the open maps by name; the instructions refer to them.

    Raises:
        NdxdpError: bcc or kernel headers are missing, or compiling failed.
    """
    source = resources.files("ndxdp") / "bpf"
    child = Path(__file__).with_name("bcc_child.py")
    with resources.as_file(source) as directory, tempfile.TemporaryDirectory() as headers:
        _join_headers(_header_directories(), Path(headers))
        defines = [f"-DNDXDP_FD_{name}={fd}" for name, fd in map_fds.items()]
        try:
            done = subprocess.run(
                [PYTHON, "-I", str(child), program, str(directory), *defines],
                env={"PATH": os.defpath, "BCC_KERNEL_SOURCE": headers},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except FileNotFoundError:
            raise NdxdpError(f"bcc needs {PYTHON}, which is missing", _HINT) from None
        except subprocess.TimeoutExpired:
            raise NdxdpError(f"bcc did not finish within {_TIMEOUT} s", _HINT) from None
    output = done.stderr.decode(errors="replace").strip()
    log.debug("%s", output)
    if done.returncode == _NO_BCC:
        raise NdxdpError(f"bcc is not installed for {PYTHON}", "apt install python3-bpfcc")
    if done.returncode or not done.stdout:
        raise NdxdpError("bcc could not compile the program", f"--debug shows why; {_HINT}")
    return done.stdout


_NO_BCC = 3
_HINT = "the prebuilt program needs no compiler: --loader prebuilt"


def _header_directories() -> list[Path]:
    """Return the directories with the headers of one kernel, the running kernel if possible.

    A directory such as linux-headers-6.1.0-1-amd64 has only a part of the headers. Its Makefile
    names the directory with the rest (Debian), or it has links to the rest (Ubuntu, Fedora).
    """
    candidates = [
        Path(f"/lib/modules/{os.uname().release}/build"),
        *sorted(Path("/usr/src").glob("linux-headers-*"), key=_version, reverse=True),
        *sorted(Path("/usr/src/kernels").glob("*"), key=_version, reverse=True),
    ]
    for candidate in candidates:
        if os.path.isdir(
            candidate / "include/generated"
        ):  # False, too, if this process may not look there
            makefile = candidate / "Makefile"
            named = (
                re.search(r"^include\s+(/\S+)/Makefile$", makefile.read_text(), re.MULTILINE)
                if makefile.is_file()
                else None
            )
            return [Path(named[1]), candidate] if named else [candidate]
    raise NdxdpError(
        "bcc needs a kernel-header directory, and none is installed",
        "any version serves: apt install linux-headers-amd64 (or -arm64)",
    )


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _join_headers(directories: list[Path], into: Path) -> None:
    for part in _PARTS:
        for directory in directories:
            for entry in _entries(directory / part):
                link = into / part / entry.name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(entry)


def _entries(directory: Path) -> Iterator[Path]:
    return directory.iterdir() if directory.is_dir() else iter(())
