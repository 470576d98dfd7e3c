"""The BPF programs of the lab, compiled when they are needed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lab.commands import run_command

_REPOSITORY = Path(__file__).resolve().parent.parent


def build_xdp_pass() -> Path:
    """Compile xdp_pass.c unless the object exists; return the object's path."""
    return _build("xdp_pass.c")


def build_tc_programs() -> Path:
    """Compile tc_programs.c unless the object exists; return the object's path."""
    return _build("tc_programs.c")


def _build(name: str) -> Path:
    source = Path(__file__).with_name(name)
    target = _REPOSITORY / "build" / Path(name).with_suffix(".o")
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            made = Path(work, target.name)
            run_command(["clang", "-O2", "-target", "bpf", "-c", str(source), "-o", str(made)])
            made.replace(target)  # a complete file or none: other processes may be building too
    return target
