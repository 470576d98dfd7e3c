"""Cost of rules from etcd: memory of the daemon, and time to follow. Needs root.

    python -m benchmarks.etcd [--keys 100000] [--more 20]

One real member of etcd runs beside the daemon, so that both share the CPUs. The figures are: memory
with five keys by http:// and by https://; with many keys, the time from exec to the answer for the
last of them, and memory; and for each further key, the time from the beginning of the write to the
answer on the wire, and the CPU time of the daemon.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.daemon import _cpu, _kilobytes, _process
from benchmarks.wire import REPOSITORY, host_command, make_links
from lab import private
from tests.fixtures import etcd  # so do the tests
from tests.fixtures.etcd import Cluster

RESULTS = REPOSITORY / "benchmarks" / "results" / "etcd.json"

FEW = 5
_SETTLE = 8.0  # seconds: the first check comes after two


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--more", type=int, default=20, help="the number of further keys")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="the file to write the figures to"
    )
    parser.add_argument("--outside", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.etcd", *sys.argv[1:]])

    if not arguments.outside:
        make_links()
        # etcd and the daemon are in the namespace of the host, solicitors in this one.
        words = [sys.executable, "-m", "benchmarks.etcd", "--outside", str(os.getpid())]
        return subprocess.run(host_command(*words, *sys.argv[1:]), cwd=REPOSITORY).returncode

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["no etcd"] = _memory(_command(folder, None), "ndxdp, 1 prefix, no etcd")
        files = etcd.certificates(folder / "pki")
        for word, pki in (("http", None), ("https", files)):
            with etcd.cluster(folder / word, files=pki) as cluster:
                cluster.put_all(_values(FEW))
                command = _command(folder, cluster)
                found[word] = _memory(command, f"ndxdp, {FEW} keys, {word}")
                if pki is None:
                    cluster.put_all(_values(arguments.keys))
                    found["many"] = _many(command, cluster, arguments)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "python": sys.version[:7]}
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n")
    return 0


def _address(number: int) -> str:
    return f"2001:db8:0:1:c:0:{number >> 16:x}:{number & 0xFFFF:x}"


def _values(count: int, first: int = 1) -> dict[str, object]:
    return {f"vlan7/{n:07}": {"prefix": _address(n)} for n in range(first, first + count)}


def _command(folder: Path, cluster: Cluster | None) -> list[str]:
    lines = '[[interface]]\nname = "eth0"\non_stop = "detach"\n'
    if cluster is None:
        lines += f'[[interface.prefix]]\nprefix = "{_address(1)}"\n'
    else:
        lines += '[[interface.etcd]]\nsegment = "vlan7"\n'
        lines += f'[etcd]\nendpoints = ["{cluster.members[0].url}"]\nhost = "h1"\n'
        if cluster.files:
            lines += f'ca = "{cluster.files.ca}"\ncertificate = "{cluster.files.client}"\n'
            lines += f'key = "{cluster.files.client_key}"\n'
    configuration = folder / "ndxdp.toml"
    configuration.write_text(lines)
    return [sys.executable, "-m", "ndxdp", "-q", "run", "-c", str(configuration)]


def _memory(command: list[str], name: str) -> dict[str, int]:
    with _process(command) as process:
        time.sleep(_SETTLE)
        return _print_memory(process.pid, name)


def _print_memory(pid: int, name: str) -> dict[str, int]:
    found = {
        "resident_kB": _kilobytes(pid, "status", "VmRSS:"),
        "proportional_kB": _kilobytes(pid, "smaps_rollup", "Pss:"),
        "private_kB": _kilobytes(pid, "smaps_rollup", "Private_Dirty:"),
    }
    words = (f"{value / 1024:5.1f} MB {key[:-3]}" for key, value in found.items())
    print(f"{name + ':':<30} {', '.join(words)}", flush=True)
    return found


@contextlib.contextmanager
def _asking(number: int, outside: int) -> Iterator[subprocess.Popen[str]]:
    """Solicit an address every millisecond; the process prints the time of the answer."""
    command = ["nsenter", f"--net=/proc/{outside}/ns/net", sys.executable]
    command += ["-m", "benchmarks.daemon", "--solicit", _address(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as asker:
        assert asker.stdout is not None
        asker.stdout.readline()  # it has begun
        yield asker


def _answered(asker: subprocess.Popen[str]) -> float:
    assert asker.stdout is not None
    line = asker.stdout.readline()
    if not line:
        raise SystemExit("There was no answer.")
    return float(line)


def _many(command: list[str], cluster: Cluster, arguments: argparse.Namespace) -> dict[str, Any]:
    keys, more, outside = arguments.keys, arguments.more, arguments.outside
    with _asking(keys, outside) as asker:
        began = time.monotonic()
        with _process(command) as process:
            in_step = _answered(asker) - began
            cpu = _cpu(process.pid)[1] / 1e9
            print(f"{keys} keys in step after {in_step:.1f} s, {cpu:.1f} s of CPU time", flush=True)
            time.sleep(_SETTLE)
            memory = _print_memory(process.pid, f"ndxdp, {keys} keys")
            lasted, spent = [], []
            for number in range(keys + 1, keys + 1 + more):
                with _asking(number, outside) as asking:
                    before = _cpu(process.pid)[1]
                    wrote = time.monotonic()
                    cluster.put_all(_values(1, number))
                    lasted.append(_answered(asking) - wrote)
                    time.sleep(0.5)
                    spent.append((_cpu(process.pid)[1] - before) / 1e9)
            print(
                f"one more key: answered after {statistics.median(lasted) * 1000:.0f} ms,"
                f" {statistics.median(spent) * 1000:.0f} ms of CPU time",
                flush=True,
            )
    return {
        "keys": keys,
        "in_step_s": in_step,
        "cpu_s": cpu,
        "memory": memory,
        "one_more_s": lasted,
        "one_more_cpu_s": spent,
    }


if __name__ == "__main__":
    sys.exit(main())
