"""bcc, in a child process that compiles and is gone.

bcc comes from the distribution and lives in the system's Python; imported here it would cost
the daemon 77 MB, compiling another 100. So the child runs bcc_child.py, is told the numbers of
the open maps, and answers with instructions. They are loaded by the process that holds the
maps, like those of the prebuilt object: one way to the verifier, and no privilege for LLVM.

bcc wants a kernel-header directory, though the program needs none of the running kernel's. Its
rules for finding one fail on a kernel without installed headers, and on Debian, which splits
them in two packages. Any installed headers serve: they are joined in a directory of links that
BCC_KERNEL_SOURCE points to.
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
_TIMEOUT = 60  # seconds; it takes one
_PARTS = ("include", "arch/x86/include", "arch/arm64/include")


def compile_program(program: str, map_fds: dict[str, int]) -> bytes:
    """The instructions of one entry point, 8 bytes each, referring to `map_fds` by number."""
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
            raise NdxdpError(f"{PYTHON} is missing, which bcc needs", _HINT) from None
        except subprocess.TimeoutExpired:
            raise NdxdpError(f"bcc did not finish within {_TIMEOUT} s", _HINT) from None
    said = done.stderr.decode(errors="replace").strip()
    log.debug("%s", said)
    if done.returncode == _NO_BCC:
        raise NdxdpError(f"bcc is not installed for {PYTHON}", "apt install python3-bpfcc")
    if done.returncode or not done.stdout:
        raise NdxdpError("bcc could not compile the program", f"--debug shows why; {_HINT}")
    return done.stdout


_NO_BCC = 3
_HINT = "the prebuilt program needs no compiler: --loader prebuilt"


def _header_directories() -> list[Path]:
    """Directories that together hold one kernel's headers, the running kernel's if they are here.

    A directory like linux-headers-6.1.0-1-amd64 names the one that holds the rest in its
    Makefile (Debian), or has links to it (Ubuntu, Fedora).
    """
    candidates = [
        Path(f"/lib/modules/{os.uname().release}/build"),
        *sorted(Path("/usr/src").glob("linux-headers-*"), key=_version, reverse=True),
        *sorted(Path("/usr/src/kernels").glob("*"), key=_version, reverse=True),
    ]
    for candidate in candidates:
        if os.path.isdir(candidate / "include/generated"):  # also False where it may not look
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
