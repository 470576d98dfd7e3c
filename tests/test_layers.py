"""Imports point down, in the order of the folders below."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ndxdp"

# Folders and modules of the package, from the top: each imports only from those below it. The order
# of the modules in a folder follows from their imports, which form no circle.
FLOORS = (
    "__main__",
    "cli",
    "proposal",
    "doctor",
    "inventory",
    "daemon",
    "observe",
    "session",
    "upstream",
    "store",
    "hooks",
    "netlink",
    "sockets",
    "convert",
    "config",
    "sources",
    "sharing",
    "fleet",
    "rules",
    "ndp",
    "runtime",
    "systemd_unit",
    "backoff",
    "resting_reader",
    "pace",
    "files",
    "kernel",
    "progress",
    "printable",
    "errors",
    "threads",
    "boot_clock",
    "memory",
    "__init__",
)

# Another Python runs this file by its path: it imports nothing of ndxdp, and no module imports it.
APART = ("ndxdp.kernel.bcc_child",)

# Only these modules import an expensive or dangerous library.
DOORS = {
    "bcc": ("ndxdp.kernel.bcc_child",),
    "click": ("ndxdp.cli",),
    "ctypes": (
        "ndxdp.kernel",
        "ndxdp.memory",
        "ndxdp.sockets.packet",
    ),
    "h11": ("ndxdp.sources.http",),
    "prometheus_client": ("ndxdp.observe.metrics",),
    "pyroute2": ("ndxdp.netlink.messages",),
    "rich": ("ndxdp.cli.rich_table",),
}


def module_of(path: Path) -> str:
    """Convert `ndxdp/kernel/abi.py` to `ndxdp.kernel.abi`; a package is its __init__.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every import, also in functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write relative imports out"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in FILES else node.module


def floor_of(module: str) -> int:
    """Return the index in FLOORS; `ndxdp` itself is its __init__.py."""
    parts = module.split(".")
    return FLOORS.index(parts[1] if len(parts) > 1 else "__init__")


def ours(module: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each import of a module of the package."""
    for line, name in imports(module):
        if name.partition(".")[0] == "ndxdp":
            yield line, name


def test_every_module_has_its_place() -> None:
    tops = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES.values()}
    assert tops == set(FLOORS)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_down(module: str) -> None:
    inside = module.count(".") > 1
    upward = [
        f"{module}:{line}: {name}"
        for line, name in ours(module)
        if floor_of(name) < floor_of(module) or (floor_of(name) == floor_of(module) and not inside)
    ]
    assert not upward


def test_modules_of_a_folder_form_no_circle() -> None:
    graph = {module: {name for _, name in ours(module)} for module in FILES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_separate_programs_are_independent() -> None:
    for module in APART:
        assert not list(ours(module))
        assert all(module != name for other in FILES for _, name in ours(other))


@pytest.mark.parametrize("module", sorted(FILES))
def test_libraries_have_one_door(module: str) -> None:
    for line, name in imports(module):
        top = name.partition(".")[0]
        if top == "ndxdp" or (top in sys.stdlib_module_names and top not in DOORS):
            continue
        doors = DOORS.get(top, ())
        assert any(f"{module}.".startswith(f"{door}.") for door in doors), (
            f"{module}:{line}: {name}"
        )


@pytest.mark.parametrize(
    "code",
    [
        "import ndxdp.cli.main",
        "import sys, ndxdp.cli.main; sys.argv[1:] = ['--help']; ndxdp.cli.main.main()",
        "import sys, ndxdp.cli.main; sys.argv[1:] = ['attach', '--help']; ndxdp.cli.main.main()",
    ],
    ids=["import", "help", "attach-help"],
)
def test_the_command_line_imports_only_what_it_uses(code: str) -> None:
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))\n" + code
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    loaded = set(done.stderr.split())
    assert "ndxdp.cli.main" in loaded
    costly = {"pyroute2", "prometheus_client", "rich", "asyncio", "h11", "ctypes"}
    assert not loaded & {*costly, "ndxdp.kernel.libbpf"}
