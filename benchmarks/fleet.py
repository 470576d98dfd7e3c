"""Cost of shared addresses with many hosts: time to follow, and the load of etcd. Needs root.

    python -m benchmarks.fleet [--sizes 10 100 1000] [--addresses 100] [--lease 20]

A real cluster of etcd with three members, one real daemon, and simulated hosts, all on this
machine, so that they share its CPUs. The simulated hosts run the code of ndxdp that talks to etcd
and decides who answers (benchmarks/fleet_hosts.py), without a kernel. Each segment has at most 20
hosts; the real daemon is in the first one.

The figures are, for each number of hosts: the time until every address has a holder; while nothing
changes, the requests per second to etcd, its CPU time, and that of the real daemon; and the time
from the beginning of a write of a new address to the answer of the real daemon on the wire, and to
the decision of a simulated host that holds it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.daemon import _answers, _cpu, _kilobytes
from benchmarks.wire import REPOSITORY
from lab import private
from lab.capture import packet_socket
from lab.etcd_member import encode
from lab.etcd_nodes import EtcdNodes
from lab.fleet import KEYS, ROUTER, ROUTER_MAC, SEGMENT, SHARED, Fleet
from lab.nodes import LINK, wait_until
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac

RESULTS = REPOSITORY / "benchmarks" / "results" / "fleet.json"
NDXDP = [sys.executable, "-m", "ndxdp"]

SIZES = (10, 100, 1000)
SEGMENT_HOSTS = 20  # at most
_BATCH = 100  # keys of a transaction; etcd permits 128
_PROCESSES = 4  # of simulated hosts, at most
_EVERY = 0.001  # seconds between two solicitations
_WITHIN = 30.0  # seconds for the answer to a new address
_SETTLE = 10.0  # seconds until nothing happens any more after the start


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of hosts")
    parser.add_argument("--addresses", type=int, default=100, help="shared addresses of each host")
    parser.add_argument("--lease", type=int, default=20, help="seconds")
    parser.add_argument("--idle", type=float, default=60, help="seconds of measurement")
    parser.add_argument("--more", type=int, default=100, help="the number of further addresses")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file for the figures")
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.fleet", *sys.argv[1:]])
    found = [measure(size, arguments) for size in arguments.sizes]
    print_table(found)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "python": sys.version[:7]}
    figures = {"machine": machine, "lease_s": arguments.lease, "sizes": found}
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def segment_of(number: int) -> str:
    """Return the segment of a host; the real daemon is host 0."""
    return SEGMENT if number < SEGMENT_HOSTS else f"{SEGMENT}{number // SEGMENT_HOSTS}"


def host_name(number: int) -> str:
    """Return the name of a host; the real daemon is host 0."""
    return "h1" if number == 0 else f"s{number:04}"


def measure(size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures for a number of hosts."""
    print(f"{size} hosts, {arguments.addresses} addresses each", flush=True)
    with Fleet(NDXDP, hosts=1, members=3) as fleet, contextlib.ExitStack() as stack:
        fleet.configure(lease=arguments.lease)
        write_addresses(fleet.etcd, size, arguments.addresses)
        total: int = size * arguments.addresses
        began = time.monotonic()
        fleet.hosts[0].start()
        simulated = stack.enter_context(simulated_hosts(fleet.etcd, size, arguments.lease))

        def all_held() -> bool:
            return count_keys(fleet.etcd, f"{KEYS}holders/") == total

        wait_until(all_held, "not every address has a holder", 900)
        found: dict[str, Any] = {"hosts": size, "addresses": total}
        found["all_held_s"] = time.monotonic() - began
        time.sleep(_SETTLE)
        found |= idle(fleet, simulated, arguments.idle)
        found |= follow(fleet, simulated, arguments)
        process = fleet.hosts[0].process
        assert process is not None
        found["resident_kB"] = _kilobytes(process.pid, "status", "VmRSS:")
    for key, value in found.items():
        print(f"    {key}: {value:.4g}" if isinstance(value, float) else f"    {key}: {value}")
    sys.stdout.flush()
    return found


def address_of(number: int) -> str:
    """Return a shared address."""
    return str(SHARED[number + 1])


def write_addresses(etcd: EtcdNodes, size: int, each: int) -> None:
    """Write the shared addresses. Each names one host, so that all hosts have equally many."""
    puts = []
    for host in range(size):
        hosts = [host_name(host)]
        for number in range(each):
            key = f"{KEYS}shared/{segment_of(host)}/{host:04}-{number:03}"
            value = {"prefix": address_of(host * each + number), "hosts": hosts}
            puts.append({"key": encode(key), "value": encode(json.dumps(value))})
    for at in range(0, len(puts), _BATCH):
        etcd.call("/v3/kv/txn", {"success": [{"request_put": p} for p in puts[at : at + _BATCH]]})


def count_keys(etcd: EtcdNodes, prefix: str) -> int:
    """Return the number of keys that begin with a text."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    asked = {"key": encode(prefix), "range_end": encode(end), "count_only": True}
    return int(etcd.call("/v3/kv/range", asked).get("count") or 0)


# ---- simulated hosts -----------------------------------------------------------------------------


class Simulated:
    """A process of simulated hosts."""

    def __init__(self, endpoints: list[str], numbers: list[int], lease: int) -> None:
        names = [f"{host_name(number)}:{segment_of(number)}" for number in numbers]
        words = [sys.executable, "-m", "benchmarks.fleet_hosts", ",".join(endpoints), str(lease)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        self._ask(" ".join(names))

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("The simulated hosts have ended.")
        return answer

    def latencies(self) -> dict[str, float]:
        """Return when each further address was taken, in seconds of CLOCK_MONOTONIC."""
        found: dict[str, float] = json.loads(self._ask("taken"))
        return found

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def simulated_hosts(etcd: EtcdNodes, size: int, lease: int) -> Iterator[list[Simulated]]:
    """Run all hosts but the first during the block."""
    endpoints = [member.url for member in etcd.members]
    processes: list[Simulated] = []
    try:
        for part in range(min(_PROCESSES, size - 1)):
            numbers = list(range(1 + part, size, _PROCESSES))
            processes.append(Simulated(endpoints, numbers, lease))
        yield processes
    finally:
        for each in processes:
            each.close()


# ---- figures -------------------------------------------------------------------------------------


def requests(etcd: EtcdNodes) -> dict[str, float]:
    """Return the number of requests that etcd's members have handled, by method."""
    found: dict[str, float] = {}
    for member in etcd.members:
        text = urlopen(f"{member.url}/metrics", timeout=10).read().decode()
        pattern = r'^grpc_server_started_total\{.*grpc_method="(\w+)".*\} (\S+)$'
        for method, number in re.findall(pattern, text, re.MULTILINE):
            found[method] = found.get(method, 0.0) + float(number)
    return found


def idle(fleet: Fleet, simulated: list[Simulated], seconds: float) -> dict[str, Any]:
    """Return what everybody does while no key changes."""
    process = fleet.hosts[0].process
    assert process is not None
    members = [member.pid for member in fleet.etcd.members]

    def snapshot() -> tuple[float, int, int, int, dict[str, float]]:
        return (
            time.monotonic(),
            _cpu(process.pid)[1],
            sum(_cpu(pid)[1] for pid in members),
            sum(_cpu(each.process.pid)[1] for each in simulated),
            requests(fleet.etcd),
        )

    before = snapshot()
    time.sleep(seconds)
    after = snapshot()
    lasted = after[0] - before[0]
    daemon, etcd, hosts = ((after[n] - before[n]) / 1e9 / lasted for n in (1, 2, 3))  # type: ignore[operator]
    by_method = {
        method: (number - before[4].get(method, 0.0)) / lasted
        for method, number in after[4].items()
        if number != before[4].get(method, 0.0)
    }
    return {
        "requests_per_s": sum(by_method.values()),
        "requests_by_method": {method: round(rate, 2) for method, rate in by_method.items()},
        "etcd_cpu": etcd,
        "daemon_cpu": daemon,
        "simulated_cpu": hosts,
        "etcd_resident_kB": sum(_kilobytes(pid, "status", "VmRSS:") for pid in members),
    }


def follow(
    fleet: Fleet, simulated: list[Simulated], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the times from writes of new addresses to the answers, and to decisions."""
    size, more = max(arguments.sizes), arguments.more
    answered, began = [], {}
    base = size * arguments.addresses + 1000
    for number in range(more):
        address = address_of(base + number)
        key = f"{KEYS}shared/{SEGMENT}/new-{number:04}"
        answered.append(time_to_answer(fleet, key, address))
    if simulated:
        for number in range(more):
            key = f"{KEYS}shared/{SEGMENT}/sim-{number:04}"
            began[f"sim-{number:04}"] = time.monotonic()
            value = {"prefix": address_of(base + more + number), "hosts": [host_name(1)]}
            fleet.etcd.put(key, value)
            time.sleep(0.1)
        time.sleep(5)
    taken = {name: at for each in simulated for name, at in each.latencies().items()}
    lasted = [taken[name] - at for name, at in began.items() if name in taken]
    return {
        "answered_p50_s": percentile(answered, 50),
        "answered_p99_s": percentile(answered, 99),
        "decided_p50_s": percentile(lasted, 50) if lasted else None,
        "decided_p99_s": percentile(lasted, 99) if lasted else None,
    }


def percentile(values: list[float], part: int) -> float:
    """Return a percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[part - 1]


def time_to_answer(fleet: Fleet, key: str, address: str) -> float:
    """Write a shared address that the real daemon is to take; return the seconds to its answer."""
    target, source = parse_address(address), parse_address("fe80::1")
    mac = parse_mac(ROUTER_MAC)
    question = solicit(mac, target, source=source, sllao=mac)
    with packet_socket(ROUTER, LINK) as wire:
        wire.settimeout(_EVERY)
        began = time.monotonic()
        value = {"prefix": address, "hosts": [host_name(0)]}
        writer = threading.Thread(target=fleet.etcd.put, args=(key, value))
        writer.start()
        while time.monotonic() < began + _WITHIN:
            wire.send(question)
            until = time.monotonic() + _EVERY
            while time.monotonic() < until:
                with contextlib.suppress(TimeoutError):
                    frame, origin = wire.recvfrom(2048)
                    heard = time.monotonic()
                    is_ours = origin[2] != socket.PACKET_OUTGOING and len(frame) == 86
                    if is_ours and _answers(frame, target, source):
                        writer.join()
                        return heard - began
    raise SystemExit(f"There was no answer for {address}: {fleet.hosts[0].log()[-2000:]}")


def print_table(found: list[dict[str, Any]]) -> None:
    """Print the figures as a table of Markdown."""
    rows: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("shared addresses", lambda f: f"{f['addresses']}"),
        ("all have a holder after", lambda f: f"{f['all_held_s']:.0f} s"),
        ("requests/s to etcd, idle", lambda f: f"{f['requests_per_s']:.0f}"),
        ("CPU of etcd's three members, idle", lambda f: f"{f['etcd_cpu']:.1%}"),
        ("CPU of the real daemon, idle", lambda f: f"{f['daemon_cpu']:.2%}"),
        ("memory of the real daemon", lambda f: f"{f['resident_kB'] / 1024:.0f} MB"),
        ("from the write to the answer, p50", lambda f: f"{f['answered_p50_s'] * 1000:.0f} ms"),
        ("from the write to the answer, p99", lambda f: f"{f['answered_p99_s'] * 1000:.0f} ms"),
    )
    print("| hosts |" + "".join(f" {each['hosts']} |" for each in found))
    print("|---|" + "---|" * len(found))
    for name, text in rows:
        print(f"| {name} |" + "".join(f" {text(each)} |" for each in found))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
