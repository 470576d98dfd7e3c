"""Imports only ever point down. The lists below are the design; the code is held to them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ndxdp"

# A module imports only what stands below it. A new module needs its place here.
LAYERS = (
    "ndxdp.__main__",
    "ndxdp.cli",
    "ndxdp.cli_trace",
    "ndxdp.cli_doctor",
    "ndxdp.cli_prefix",
    "ndxdp.cli_reload",
    "ndxdp.options",
    "ndxdp.doctor.examination",
    "ndxdp.doctor.arrival",
    "ndxdp.doctor.breadth",
    "ndxdp.doctor.containers",
    "ndxdp.doctor.daemon",
    "ndxdp.doctor.engine",
    "ndxdp.doctor.exposure",
    "ndxdp.doctor.firewall",
    "ndxdp.doctor.netfilter",
    "ndxdp.doctor.forwarding",
    "ndxdp.doctor.anyip",
    "ndxdp.doctor.gateway",
    "ndxdp.doctor.limits",
    "ndxdp.doctor.listeners",
    "ndxdp.doctor.manager",
    "ndxdp.doctor.missing",
    "ndxdp.doctor.probe",
    "ndxdp.doctor.program",
    "ndxdp.doctor.reception",
    "ndxdp.doctor.source",
    "ndxdp.doctor.namespace",
    "ndxdp.doctor.sysctl",
    "ndxdp.doctor.finding",
    "ndxdp.doctor",
    "ndxdp.daemon",
    "ndxdp.listening",
    "ndxdp.exporter",
    "ndxdp.connections",
    "ndxdp.page",
    "ndxdp.metrics",
    "ndxdp.status",
    "ndxdp.render",
    "ndxdp.service",
    "ndxdp.preflight",
    "ndxdp.trace",
    "ndxdp.pcap",
    "ndxdp.busiest",
    "ndxdp.notify",
    "ndxdp.uplink",
    "ndxdp.shared",
    "ndxdp.heartbeat",
    "ndxdp.resolver",
    "ndxdp.attendants",
    "ndxdp.care",
    "ndxdp.job",
    "ndxdp.reconcile",
    "ndxdp.userspace",
    "ndxdp.responder",
    "ndxdp.serving",
    "ndxdp.renames",
    "ndxdp.link_neighbours",
    "ndxdp.detaching",
    "ndxdp.recovery",
    "ndxdp.plan",
    "ndxdp.instance",
    "ndxdp.ladder",
    "ndxdp.beacon",
    "ndxdp.wire.gateway",
    "ndxdp.wire.hygiene",
    "ndxdp.wire.announce",
    "ndxdp.wire.packet",
    "ndxdp.wire.transmit",
    "ndxdp.wire.offload",
    "ndxdp.wire.neighbours",
    "ndxdp.wire.netlink",
    "ndxdp.wire.membership",
    "ndxdp.wire.fanout",
    "ndxdp.wire.onlink",
    "ndxdp.wire.fib",
    "ndxdp.wire.names",
    "ndxdp.wire.raw",
    "ndxdp.wire",
    "ndxdp.kernel.loader",
    "ndxdp.kernel.attach",
    "ndxdp.kernel.hook_order",
    "ndxdp.kernel.tc_filters",
    "ndxdp.kernel.maps",
    "ndxdp.kernel.records",
    "ndxdp.kernel.storage",
    "ndxdp.kernel.jiffies",
    "ndxdp.kernel.events",
    "ndxdp.kernel.pins",
    "ndxdp.kernel.filesystem",
    "ndxdp.kernel.watch",
    "ndxdp.kernel.bcc_loader",
    "ndxdp.kernel.bpf_hooks",
    "ndxdp.kernel.bpf_maps",
    "ndxdp.kernel.bpf_programs",
    "ndxdp.kernel.libbpf",
    "ndxdp.kernel.abi",
    "ndxdp.kernel",
    "ndxdp.wire.netns",
    "ndxdp.wire.rtnetlink",
    "ndxdp.convert.ndpresponder",
    "ndxdp.convert.container_run",
    "ndxdp.convert.ndppd",
    "ndxdp.convert.ndppd_rules",
    "ndxdp.convert.ndppd_syntax",
    "ndxdp.convert.width",
    "ndxdp.convert.draft",
    "ndxdp.convert",
    "ndxdp.config_reader",
    "ndxdp.config",
    "ndxdp.sources.docker",
    "ndxdp.sources.answers",
    "ndxdp.sources.json_pieces",
    "ndxdp.sources.http",
    "ndxdp.sources",
    "ndxdp.breadth",
    "ndxdp.rules",
    "ndxdp.lifetimes",
    "ndxdp.report",
    "ndxdp.locks",
    "ndxdp.trust",
    "ndxdp.policy",
    "ndxdp.addresses",
    "ndxdp.neighbour",
    "ndxdp.ndp",
    "ndxdp.document",
    "ndxdp.locator",
    "ndxdp.state",
    "ndxdp.backoff",
    "ndxdp.files",
    "ndxdp.printable",
    "ndxdp.errors",
    "ndxdp.threads",
    "ndxdp.lean",
    "ndxdp",
)

# Run by another Python, by its path: imports nothing of ours, and is imported by nobody.
APART = ("ndxdp.kernel.bcc_child",)

# What costs or is dangerous has one door.
DOORS = {
    "bcc": ("ndxdp.kernel.bcc_child",),
    "click": (
        "ndxdp.cli",
        "ndxdp.cli_doctor",
        "ndxdp.cli_prefix",
        "ndxdp.cli_reload",
        "ndxdp.cli_trace",
        "ndxdp.options",
    ),
    "ctypes": (
        "ndxdp.kernel.bpf_hooks",
        "ndxdp.kernel.bpf_maps",
        "ndxdp.kernel.bpf_programs",
        "ndxdp.kernel.filesystem",
        "ndxdp.kernel.libbpf",
        "ndxdp.kernel.watch",
        "ndxdp.lean",
        "ndxdp.wire.packet",
    ),
    "prometheus_client": ("ndxdp.metrics",),
    "pyroute2": ("ndxdp.wire.netlink",),
}


def module_of(path: Path) -> str:
    """`ndxdp/kernel/abi.py` -> `ndxdp.kernel.abi`; a package is its __init__.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, those in functions and under TYPE_CHECKING too."""
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


def test_every_module_has_its_place() -> None:
    assert set(FILES) == {*LAYERS, *APART}


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_down(module: str) -> None:
    below = LAYERS[LAYERS.index(module) + 1 :] if module in LAYERS else ()
    ours = [(line, name) for line, name in imports(module) if name.partition(".")[0] == "ndxdp"]
    upward = [f"{module}:{line}: {name}" for line, name in ours if name not in below]
    assert not upward


@pytest.mark.parametrize("module", sorted(FILES))
def test_others_come_in_by_their_door(module: str) -> None:
    for line, name in imports(module):
        top = name.partition(".")[0]
        if top == "ndxdp" or (top in sys.stdlib_module_names and top not in DOORS):
            continue
        assert module in DOORS.get(top, ()), f"{module}:{line}: {name}"


@pytest.mark.parametrize(
    "code",
    [
        "import ndxdp.cli",
        "import sys, ndxdp.cli; sys.argv[1:] = ['--help']; ndxdp.cli.main()",
        "import sys, ndxdp.cli; sys.argv[1:] = ['attach', '--help']; ndxdp.cli.main()",
    ],
    ids=["import", "help", "attach-help"],
)
def test_the_command_line_pays_for_nothing_it_does_not_use(code: str) -> None:
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
    assert "ndxdp.cli" in loaded
    costly = {"pyroute2", "prometheus_client", "asyncio", "ndxdp.kernel.libbpf", "ctypes"}
    assert not loaded & costly
