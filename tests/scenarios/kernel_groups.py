"""Groups of tests, one after the other, for another kernel than the one that runs here.

`python -m tests.scenarios.kernel_groups [NAME …]`, run by `make test-kernels` in the virtual
machine of lab/vm.py. A line of JSON for each group goes to /dev/ttyS1, for lab/kernel_matrix.py
to read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

# Under emulation a command takes a second or two. So only those parts of long test files run that
# depend on the kernel.
GROUPS: dict[str, tuple[str, ...]] = {
    # Every packet, in each mode and with both loaders: test runs, and real frames.
    "packets": ("tests/test_program.py",),
    # Each mode on a real driver, and the mode that `auto` chooses there.
    "virtio-net": ("tests/scenarios/virtio_nic.py",),
    # The mode that `auto` chooses on each other kind of interface, and why no better one.
    "ladder": (
        *("tests/test_auto.py", "tests/test_auto_missing.py", "tests/test_auto_vlan.py"),
        "-k",
        "not userspace and not snooping and (test_veth or bridge or macvlan or tap or occupied"
        " or test_without_cap or no_bpf or vlan_interface or test_hidden_vlan or test_bond)",
    ),
    # Attach, renew and detach, with links and without; kills, renames, and programs of others. None
    # of these loses an answer.
    "lifecycle": (
        *("tests/test_commands.py", "tests/test_run.py", "tests/test_without_links.py"),
        *("tests/test_backends.py", "tests/test_live.py"),
        "-k",
        "until_detach or each_loader or (until_a_signal and not userspace) or killed_run"
        " or (carries_over and not userspace)"
        " or keep_leaves or bpf_links or others_survive or qdisc_of_ours or by_hand"
        " or follows_a_rename or loses_nothing or foreign_program"
        " or (capabilities_suffice and prebuilt)",
    ),
    # The packet socket, which needs few kernel features.
    "userspace": (
        *("tests/test_serving.py", "tests/test_serving_changes.py"),
        *("tests/test_backends.py", "tests/test_fanout.py"),
        "-k",
        "test_fanout or (userspace and (until_a_signal or test_status)) or counted_once"
        " or rate_limit or after_sigkill or (carries_over and not tc) or down_and_up",
    ),
    # The answers that depend on the kernel's own tables.
    "routes": ("tests/test_routed.py", "-k", "test_routes or states or stale or first_ping"),
}

_ALL = "pytest"  # pytest ended without a report
_REPORT = Path("/dev/ttyS1")


def main() -> int:
    code = 0
    with tempfile.TemporaryDirectory() as directory, _REPORT.open("w") as report:
        for name in sys.argv[1:] or GROUPS:
            print(f"---- {name}", flush=True)
            started = time.monotonic()
            found = _run(name, Path(directory))
            seconds = round(time.monotonic() - started)
            print(json.dumps({"group": name, "seconds": seconds, **found}), file=report, flush=True)
            code = code or int(found["failed"] > 0)
        print(json.dumps({"release": os.uname().release}), file=report)
    return code


def _run(name: str, directory: Path) -> dict[str, Any]:
    """Run one group; run failed tests once more, as some waits are too short on a busy machine."""
    command = [
        sys.executable,
        "-m",
        "tests",
        *GROUPS[name],
        "-q",
        "--tb=short",
        "-o",
        "junit_family=xunit1",
    ]
    results = [directory / f"{name}-{number}" for number in (1, 2)]
    subprocess.run([*command, f"--junitxml={results[0]}"])
    found = read(results[0])
    if found["failed"]:
        subprocess.run([*command, "--last-failed", f"--junitxml={results[1]}"])
        found = merged(found, read(results[1]))
    return found


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merge the results of two runs, of which the second had only the failed tests of the first."""
    for output, other in ((first, second), (second, first)):
        if output["names"] == [_ALL]:
            return {**other, "again": []}
    again = sorted({*first["names"]} - {*second["names"]})
    return {
        **first,
        "passed": first["passed"] + len(again),
        "failed": len({*second["names"]}),
        "names": second["names"],
        "again": again,
        "noted": first["noted"] + second["noted"],
    }


def read(result: Path) -> dict[str, Any]:
    """Read pytest's report: the counts by outcome, the failed tests, the recorded properties."""
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    failed: list[str] = []
    skipped: set[str] = set()
    noted: list[list[str | None]] = []
    if not result.exists():
        return {**counts, "failed": 1, "names": [_ALL], "why": [], "noted": []}
    for case in ElementTree.parse(result).iter("testcase"):
        outcome = next((part.tag for part in case if part.tag != "properties"), "passed")
        outcome = {"error": "failed", "failure": "failed"}.get(outcome, outcome)
        counts[outcome if outcome in counts else "passed"] += 1
        if outcome == "failed":
            failed.append(f"{case.get('classname', '')}.{case.get('name')}")
        skipped |= {str(part.get("message")) for part in case.iter("skipped")}
        noted += [[part.get("name"), part.get("value")] for part in case.iter("property")]
    counts["failed"] = len({*failed})  # a test that fails in its teardown as well is listed twice
    return {**counts, "names": sorted({*failed}), "why": sorted(skipped), "noted": noted}


if __name__ == "__main__":
    sys.exit(main())
