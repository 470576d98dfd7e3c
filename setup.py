"""The build step that pyproject.toml cannot say: clang compiles the BPF program.

bpf/ is what people edit. Its files and the object made of them go to ndxdp/bpf/, from where the
wheel takes them: the object for the prebuilt loader, the sources for bcc.
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
# -mcpu=v2 (kernel 4.14) rather than clang's default of the day: one object for every kernel.
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
    # BTF names the files: not by where they were built, but alike everywhere.
    f"-ffile-prefix-map={HERE}=/ndxdp",
]


class BuildPy(build_py):
    """Compile, then collect the package's files."""

    def run(self):
        PACKAGE.mkdir(exist_ok=True)
        for source in SOURCES.glob("*.[ch]"):
            shutil.copy(source, PACKAGE)
        # asm/types.h lies below the architecture's name, which clang does not look in for bpf.
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
            # Not an Exception: setuptools would carry on with an editable install without it.
            sys.exit("ndxdp: the BPF program does not compile")
        super().run()


setup(cmdclass={"build_py": BuildPy})
