"""Build step that pyproject.toml cannot express: clang compiles the BPF program.

The sources are in bpf/. This step copies them and the compiled object to ndxdp/bpf/, which the
wheel contains: the object for the prebuilt loader, the sources for bcc.
"""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "bpf"
PACKAGE = HERE / "ndxdp" / "bpf"
# -mcpu=v2 (kernel 4.14) instead of clang's changing default: one object for every kernel.
CLANG = [
    "clang",
    "-target",
    "bpf",
    "-mcpu=v2",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Werror",
    # BTF contains the names of files: keep them independent of the build directory.
    f"-ffile-prefix-map={HERE}=/ndxdp",
]


class BuildPy(build_py):
    """Compile the BPF program, then collect the package's files."""

    def run(self):
        """Compile the BPF program into the package, with its sources beside the object."""
        PACKAGE.mkdir(exist_ok=True)
        for source in SOURCES.glob("*.[ch]"):
            shutil.copy(source, PACKAGE)
        # asm/types.h is below the architecture's name, where clang does not search for target bpf.
        arch = f"{platform.machine()}-linux-gnu"
        out = PACKAGE / "ndp_responder.o"
        command = [*CLANG, f"-I/usr/include/{arch}", "-c", str(SOURCES / "ndp_responder.c")]
        try:
            subprocess.run([*command, "-o", str(out)], check=True)
            subprocess.run(["llvm-strip", "-g", str(out)], check=True)
        except FileNotFoundError as error:
            sys.exit(
                f"ndxdp: {error.filename} is missing, which compiles the BPF program\n"
                "  hint: apt install clang llvm libbpf-dev linux-libc-dev"
            )
        except subprocess.CalledProcessError:
            # SystemExit, because setuptools continues an editable install after an Exception.
            sys.exit("ndxdp: the BPF program does not compile")
        super().run()


setup(cmdclass={"build_py": BuildPy})
