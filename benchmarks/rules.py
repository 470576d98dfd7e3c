"""Cost of the number of rules: per solicitation, for loading, and in kernel memory."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from benchmarks.contestants import process
from benchmarks.wire import LINK, NDXDP, REPOSITORY, SPREAD, Wire, host_command, in_host
from ndxdp.kernel import libbpf
from ndxdp.store.directories import Trees

_BASE = IPv6Address("2001:db8:0:1:c::").packed
_IDLE = 0.5  # seconds
_WITHIN = 60  # seconds for a daemon to apply a change

EXACT = (1, 1_000, 100_000, 1_000_000)
PREFIXES = 100_000


def sizes(quick: bool) -> dict[str, tuple[int, bool]]:
    """Return the number of rules of each set, and whether the rules are prefixes."""
    most = EXACT[:-1] if quick else EXACT
    exact = {_named(count): (count, False) for count in most}
    return exact | {f"{PREFIXES:,} prefixes".replace(",", " "): (PREFIXES, True)}


def _named(count: int) -> str:
    return f"{count:,} address{'es' if count > 1 else ''}".replace(",", " ")


def by_number(wire: Wire, quick: bool, times: int, rounds: int) -> dict[str, Any]:
    """Return for each set: the time to attach, memory, and ns for a solicitation.

    ns: the solicitations cover all rules in turn. some_ns: they cover the same few thousand rules.
    """
    found: dict[str, Any] = {}
    asked: list[bytes] = []
    at: dict[str, tuple[int, int]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        programs: dict[str, int] = {}
        for name, (count, prefixes) in sizes(quick).items():
            file = folder / "rules"
            # Prefixes have other targets than their own addresses, so each set has its own.
            targets = write_rules(file, count, prefixes)
            at[name] = (len(asked), len(targets))
            asked += targets
            found[name] = _attach(file, count)
            programs[name] = libbpf.get_pinned(str(Trees().pins.base / LINK / "program"))
            stack.callback(os.close, programs[name])
            # The maps live as long as the program's descriptor.
            in_host(*NDXDP, "-q", "detach", LINK)
        wire.ask(asked)
        for _ in range(rounds):
            for name, program in programs.items():
                first, every = at[name]
                for kind, count in (("ns", every), ("some_ns", min(every, SPREAD))):
                    making = wire.ns_per_run(
                        wire.program("pass"), times, first=first, targets=count
                    )
                    whole = wire.ns_per_run(program, times, first=first, targets=count)
                    found[name].setdefault(kind, []).append(round(whole - making, 2))
    return found


def write_rules(file: Path, count: int, prefixes: bool) -> list[bytes]:
    """Write so many random rules to a file; return a target for each, in another order."""
    rng = random.Random(count)
    lines: list[str] = []
    targets: list[bytes] = []
    seen: set[bytes] = set()
    while len(lines) < count:
        address = _BASE[:10] + rng.randbytes(6)
        length = rng.randrange(96, 128) if prefixes else 128
        number = int.from_bytes(address, "big") >> 128 - length << 128 - length
        packed = number.to_bytes(16, "big")
        if packed in seen:
            continue
        seen.add(packed)
        lines.append(
            f"{IPv6Address(packed)}/{length}\n" if prefixes else f"{IPv6Address(packed)}\n"
        )
        targets.append(address)
    file.write_text("".join(lines))
    rng.shuffle(targets)
    return targets


def _attach(file: Path, count: int) -> dict[str, Any]:
    room = ("--max-addresses", str(max(count + 1000, 131072)))
    began = time.monotonic()
    in_host(*NDXDP, "-q", "attach", LINK, "--mode", "native", "--file", str(file), *room)
    attach_s = round(time.monotonic() - began, 3)
    return {"rules": count, "attach_s": attach_s, "kernel_MB": memory(Trees().pins.base / LINK)}


def memory(directory: Path) -> float:
    """Return the MB that the pinned maps of the rules take, by the kernel's count."""
    total = 0
    for name in ("addresses", "address_table", "hints", "prefixes"):
        if not (directory / name).exists():
            continue  # a version whose addresses are in a hash
        shown = json.loads(
            subprocess.run(
                ["bpftool", "-j", "map", "show", "pinned", str(directory / name)],
                capture_output=True,
                check=True,
            ).stdout
        )
        total += int(shown["bytes_memlock"])
    return round(total / 1e6, 2)


# ---- a daemon with many addresses ---------------------------------------------------------------


def daemon(count: int, repeats: int) -> list[dict[str, float]]:
    """Measure `ndxdp run -c` with so many exact addresses from a file: loading, reloading, memory.

    A reload ends when the daemon has compared the kernel's rules with the file and is idle.
    """
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rules(folder / "addresses", count, False)
        configuration = folder / "ndxdp.toml"
        configuration.write_text(
            f'[[interface]]\nname = "{LINK}"\nmode = "native"\non_stop = "detach"\n'
            f"max_addresses = {max(count + 1000, 131072)}\n"
            '[[interface.prefix]]\nfile = "addresses"\n'
        )
        for _ in range(repeats):
            found.append(_run(configuration))
    return found


def _run(configuration: Path) -> dict[str, float]:
    reading = _reading(configuration)
    with tempfile.TemporaryFile("w+") as log:
        began = time.monotonic()
        started = subprocess.Popen(
            host_command(*NDXDP, "run", "-c", str(configuration)),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=REPOSITORY,
        )
        try:
            assert started.stdout is not None
            if not started.stdout.readline().startswith("ready"):
                raise SystemExit("The daemon did not start.")
            loaded = time.monotonic() - began
            _settle(started.pid)
            resident, most = _status(started.pid, "VmRSS:"), _status(started.pid, "VmHWM:")
            before = _cpu_seconds(started.pid)
            _reload(started, log.fileno())
            _settle(started.pid)
            reload = _cpu_seconds(started.pid) - before
            after = _status(started.pid, "VmRSS:")
        finally:
            started.send_signal(signal.SIGTERM)
            started.communicate(timeout=_WITHIN)
    return {
        "load_s": round(loaded, 3),
        "read_s": round(reading, 3),
        "reload_s": round(reload, 3),
        "beyond_reading_s": round(reload - reading, 3),
        "resident_MB": round(resident / 1024, 1),
        "resident_after_reload_MB": round(after / 1024, 1),
        "most_MB": round(most / 1024, 1),
    }


def _reading(configuration: Path) -> float:
    """Return the seconds to read the configuration with its file."""
    code = (
        "import sys, time; from ndxdp.config import reader; began = time.monotonic();"
        " reader.load(sys.argv[1]); print(time.monotonic() - began)"
    )
    done = subprocess.run(
        [NDXDP[0], "-c", code, str(configuration)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    return float(done.stdout)


def _reload(started: subprocess.Popen[str], log: int) -> None:
    give_up = time.monotonic() + _WITHIN
    started.send_signal(signal.SIGHUP)
    while b"reloaded" not in os.pread(log, 1 << 16, 0):
        if time.monotonic() > give_up:
            raise SystemExit("The daemon does not reload.")
        time.sleep(0.01)


def _settle(pid: int) -> None:
    """Wait until a process has finished its work and has been idle for a while."""
    spent, since = -1.0, time.monotonic()
    give_up = since + _WITHIN
    while time.monotonic() < min(since + _IDLE, give_up):
        time.sleep(0.05)
        now = _cpu_seconds(pid)
        if now > spent + 0.011:  # an occasional tick is not work
            spent, since = now, time.monotonic()


def _cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def ndppd(count: int) -> dict[str, float]:
    """Return the memory of ndppd with as many addresses."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rules(folder / "addresses", count, False)
        rules = "".join(
            f"  rule {line} {{ static }}\n" for line in (folder / "addresses").read_text().split()
        )
        (folder / "ndppd.conf").write_text(f"proxy {LINK} {{\n{rules}}}\n")
        with process("ndppd", "-c", str(folder / "ndppd.conf")) as started:
            time.sleep(1)
            return {"resident_MB": round(_status(started.pid, "VmRSS:") / 1024, 1)}
