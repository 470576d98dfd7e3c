"""`ndxdp trace` and `ndxdp top`: each decision is shown, in every mode, and answering continues."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.capture import packet_socket
from ndxdp.kernel import abi
from ndxdp.ndp.message import decode_own
from ndxdp.ndp.reason import Reason
from ndxdp.observe import pcap
from ndxdp.observe.heavy_hitters import HeavyHitters
from ndxdp.store.maps import Maps
from tests import packets
from tests.fixtures import network
from tests.fixtures.documented import json_of, shape
from tests.fixtures.network import (
    BEHIND,
    BPFFS,
    FILES,
    HOST_MAC,
    NDXDP,
    PINS,
    REPOSITORY,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Done,
    Network,
    a_way_behind,
    call,
    done,
    eventually,
    ndxdp,
    sh,
)

MINUTE = 60_000_000_000
TRACE_LIFETIME = 3_000_000_000  # ns until tracing ends unless a tracer renews it
OTHER = "2001:db8::d:1"  # no rule covers it
OTHER_MAC = "02:00:00:00:00:77"

# ---- what it shows -------------------------------------------------------------------------------

MODES = {
    "native": ("attach", "--mode", "native"),
    "generic": ("attach", "--mode", "generic"),
    "tc": ("attach", "--mode", "tc"),
    "userspace": ("run", "--mode", "userspace"),
}


@pytest.fixture(params=MODES)
def answering(request: pytest.FixtureRequest, net: Network) -> Iterator[Network]:
    """Attach in each mode, with one rule."""
    with in_mode(net, request.param):
        yield net


@pytest.fixture
def on_tc(net: Network) -> Iterator[Network]:
    with in_mode(net, "tc"):
        yield net


@contextlib.contextmanager
def in_mode(net: Network, mode: str) -> Iterator[None]:
    command, *how = MODES[mode]
    if mode == "native":
        net.pass_at_router()
    if command == "run":
        run = net.run("-i", UPLINK, *how, "-n", BEHIND)
        yield
        assert run.end() == (0, "", "")
    else:
        done(command, "-q", UPLINK, *how, "-n", BEHIND)  # native: a veth's peer may discard it
        yield
        done("detach", UPLINK)


class Tracing:
    """A running command that traces."""

    def __init__(self, *args: str, interface: str = UPLINK, stdout: int = subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            [*NDXDP, *args], stdout=stdout, stderr=subprocess.PIPE, cwd=REPOSITORY
        )
        self._interface = interface
        eventually(lambda: trace_deadline(interface) > time.monotonic_ns())

    def end(self, number: int = signal.SIGINT) -> Done:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> Done:
        """Wait for the command's end, and check that tracing is off."""
        out, err = self.process.communicate(timeout=20)
        if b"detached" not in err:
            assert trace_deadline(self._interface) == 0
        return Done(self.process.returncode, (out or b"").decode(), err.decode())

    def memory(self) -> int:
        """Return the maximum resident memory in bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    def __enter__(self) -> Tracing:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()


def trace_deadline(interface: str = UPLINK) -> int:
    """Return the map's trace_until."""
    with opened(interface) as maps:
        return maps.settings().trace_until


def opened(interface: str = UPLINK) -> Maps:
    (path,) = (path for root in (PINS, FILES) for path in root.glob(f"v*/{interface}"))
    return Maps.open(path) if BPFFS in path.parents else Maps.open_files(path)


def solicitation(target: str = TARGET, mac: str = ROUTER_MAC, *more: Any) -> bytes:
    whole = packets.to_group(target, ROUTER_LINK_LOCAL, eth_src=mac) / packets.ns(target)
    for option in more:
        whole /= option
    return bytes(whole)


def send(*frames: bytes) -> None:
    """Send frames from the router."""
    with packet_socket(ROUTER, ROUTER_LINK) as out:
        for frame in frames:
            out.send(frame)


def seen(result: Done) -> tuple[int, int, int]:
    """Return the numbers of seen, shown and lost events in the last line on stderr."""
    words = result.err.splitlines()[-1].replace(",", "").split()
    assert words[0] == "ndxdp:"
    numbers = [int(word) for word in words if word.isdecimal()]
    return numbers[0], numbers[-2], numbers[-1]


def test_lines(answering: Network) -> None:
    """Print one line for each solicitation, in order."""
    with Tracing("trace") as tracing:
        assert answering.answers()
        assert answering.silent(OTHER)
        result = tracing.end()
    assert result.code == 0
    rows = [line.split("  ") for line in result.out.splitlines()]
    who = f"{ROUTER_LINK_LOCAL} ({ROUTER_MAC})"
    assert [row[1:5] for row in rows] == [
        [UPLINK, who, TARGET, "answered"],
        [UPLINK, who, OTHER, "no_rule"],
    ]
    assert rows[0][5].startswith(f"{BEHIND} always (")
    assert rows[1][5] == "-"
    for row in rows:
        time.strptime(row[0], "%H:%M:%S.%f")
    assert result.err == "ndxdp: solicitations: 2 seen, 2 shown, 0 lost\n"


def test_json(answering: Network) -> None:
    with Tracing("trace", "--json", "--count", "2") as tracing:
        send(solicitation(), solicitation(OTHER))
        result = tracing.wait()
    answered, other = map(json.loads, result.out.splitlines())
    assert shape(answered) == shape(json_of("trace"))
    assert (answered["target"], answered["reason"]) == (TARGET, "answered")
    assert answered["rule"]["prefix"] == BEHIND
    assert answered["solicitation"] == solicitation().hex()
    assert decode_own(bytes.fromhex(answered["advertisement"])).checksum_correct
    assert (other["reason"], other["rule"], other["advertisement"]) == ("no_rule", None, None)
    assert set(other) == set(answered)


LONG = solicitation(TARGET, ROUTER_MAC, packets.sllao(ROUTER_MAC), packets.options(20))

EXCHANGES: list[tuple[bytes, bool]] = [
    (solicitation(TARGET, ROUTER_MAC, packets.sllao(ROUTER_MAC)), True),
    (solicitation(), True),
    (bytes(packets.dad(TARGET) / packets.ns(TARGET)), True),
    (LONG, True),
    (solicitation(OTHER), False),
]
"""Solicitations, and whether each is answered."""


def decoded(file: Path) -> list[dict[str, str]]:
    """Return tshark's fields of each frame."""
    names = (
        *("frame.len", "frame.cap_len", "icmpv6.type", "icmpv6.checksum.status"),
        *("icmpv6.nd.na.target_address", "ipv6.src", "_ws.malformed", "_ws.expert.severity"),
        "frame.time_epoch",
    )
    fields = [word for name in names for word in ("-e", name)]
    text = sh("tshark", "-r", str(file), "-T", "fields", *fields)
    return [dict(zip(names, line.split("\t"), strict=True)) for line in text.splitlines()]


@a_way_behind()
def test_pcap(answering: Network, tmp_path: Path) -> None:
    """Let tshark read each solicitation, followed by its answer; tcpdump cannot see these."""
    file = tmp_path / "trace.pcap"
    assert len(LONG) > abi.EVENT_FRAME
    began = time.time()
    with Tracing("trace", "--pcap", str(file)) as tracing:
        send(*(frame for frame, _ in EXCHANGES))
        send(solicitation())
        eventually(lambda: file.stat().st_size > 24 + 16 * 11 + 9 * 86)
        assert tracing.end().code == 0
    frames = iter(decoded(file))
    for frame, answered in [*EXCHANGES, EXCHANGES[1]]:
        ns = next(frames)
        kept = min(len(frame), abi.EVENT_FRAME)
        assert (ns["icmpv6.type"], ns["frame.len"]) == ("135", str(len(frame)))
        assert ns["frame.cap_len"] == str(kept)
        assert began - 60 < float(ns["frame.time_epoch"]) < time.time() + 60
        if kept == len(frame):  # otherwise its checksum is unknown
            assert (ns["icmpv6.checksum.status"], ns["_ws.malformed"]) == ("1", "")
        if answered:
            na = next(frames)
            assert (na["icmpv6.type"], na["frame.len"], na["frame.cap_len"]) == ("136", "86", "86")
            assert na["icmpv6.checksum.status"] == "1"
            assert (na["_ws.malformed"], na["_ws.expert.severity"]) == ("", "")
            assert na["icmpv6.nd.na.target_address"] == na["ipv6.src"] == TARGET
    assert list(frames) == []


def test_pcap_to_stdout(on_tc: Network, tmp_path: Path) -> None:
    with Tracing("trace", "--pcap", "-", "--count", "1") as tracing:
        send(solicitation())
        out, err = tracing.process.communicate(timeout=20)
    assert (tracing.process.returncode, err) == (
        0,
        b"ndxdp: solicitations: 1 seen, 1 shown, 0 lost\n",
    )
    file = tmp_path / "stdout.pcap"
    file.write_bytes(out)
    assert [frame["icmpv6.type"] for frame in decoded(file)] == ["135", "136"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), ["answered", "no_rule", "answered", "no_rule"]),
        (("--reason", "no_rule"), ["no_rule", "no_rule"]),
        (("--reason", "no_rule", "--reason", "answered"), ["answered", "no_rule"] * 2),
        (("--reason", "denied"), []),
        (("--target", TARGET), ["answered", "answered"]),
        (("--target", "2001:db8::d:0/112"), ["no_rule", "no_rule"]),
        (("--target", "::/0"), ["answered", "no_rule"] * 2),
        (("--target", "2001:db8:1::/48"), []),
        (("--from", ROUTER_LINK_LOCAL), ["answered", "no_rule"] * 2),
        (("--from", "fe80::77"), []),
        (("--from", OTHER_MAC), ["answered", "no_rule"]),
        (("--from", OTHER_MAC, "--reason", "answered"), ["answered"]),
        (("--from", OTHER_MAC, "--from", ROUTER_MAC), ["answered", "no_rule"] * 2),
    ],
)
def test_filters(on_tc: Network, options: tuple[str, ...], wanted: list[str]) -> None:
    with Tracing("trace", *options) as tracing:
        send(*(solicitation(t, mac) for mac in (ROUTER_MAC, OTHER_MAC) for t in (TARGET, OTHER)))
        eventually(lambda: sum(network.counts().values()) == 4)
        result = tracing.end()
    assert [line.split("  ")[4] for line in result.out.splitlines()] == wanted
    assert seen(result) == (4, len(wanted), 0)


def test_several_interfaces(on_tc: Network) -> None:
    """Trace all attached interfaces if none is named; each event names its interface."""
    sh("ip", "link", "add", "more.5", "address", HOST_MAC, "type", "veth", "peer", "name", "far")
    try:
        for name in ("far", "more.5"):
            sh("ip", "link", "set", name, "addrgenmode", "none", "up")
        done("attach", "more.5", "--mode", "tc", "-n", BEHIND)
        with Tracing("trace", "--count", "2") as tracing:
            eventually(lambda: trace_deadline("more:5") > 0)
            send(solicitation())
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
                out.bind(("far", 0))
                out.send(solicitation())
            result = tracing.wait()
        assert sorted(line.split("  ")[1] for line in result.out.splitlines()) == ["more.5", UPLINK]
        done("detach", "more.5")
    finally:
        call("ip", "link", "delete", "far")


# ---- one tracer, and how it ends ----------------------------------------------------------------


def test_a_second_tracer_is_refused(answering: Network) -> None:
    """Refuse a second tracer until the first one has ended."""
    with Tracing("trace") as tracing:
        for command in ("trace", "top"):
            refused = ndxdp(command, "-i", UPLINK)
            assert (refused.code, refused.out) == (1, "")
            assert refused.err == (
                f"ndxdp: {UPLINK} is being traced already\n"
                "  hint: end the other `ndxdp trace` or `ndxdp top` first\n"
            )
        assert answering.answers()
        assert seen(tracing.end()) == (1, 1, 0)
    with Tracing("trace") as tracing:
        assert answering.answers()
        assert seen(tracing.end()) == (1, 1, 0)


def test_a_refused_tracer_leaves_the_file_alone(on_tc: Network, tmp_path: Path) -> None:
    file = tmp_path / "trace.pcap"
    file.write_bytes(b"the first one's")
    with Tracing("trace") as tracing:
        assert ndxdp("trace", "--pcap", str(file)).code == 1
        tracing.end()
    assert file.read_bytes() == b"the first one's"


def test_it_ends_after_its_seconds(on_tc: Network) -> None:
    assert ndxdp("trace", "--seconds", "0.1") == (
        0,
        "",
        "ndxdp: solicitations: 0 seen, 0 shown, 0 lost\n",
    )
    assert trace_deadline() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(on_tc: Network, number: int) -> None:
    with Tracing("trace") as tracing:
        result = tracing.end(number)
    assert result == (0, "", "ndxdp: solicitations: 0 seen, 0 shown, 0 lost\n")


def test_a_killed_tracer_expires(answering: Network) -> None:
    """Stop tracing 3 s after a killed tracer's last renewal; the next tracer can start."""
    with Tracing("trace") as tracing:
        tracing.process.kill()
        tracing.process.wait()
        left = trace_deadline()
        assert 0 < left <= time.monotonic_ns() + TRACE_LIFETIME
        eventually(lambda: time.monotonic_ns() > left)
    with opened() as maps:
        before = maps.traced()
        assert answering.answers()
        assert maps.traced() == before
    with Tracing("trace") as tracing:
        assert answering.answers()
        assert seen(tracing.end()) == (1, 1, 0)


def test_its_directory_is_removed_with_the_interface(on_tc: Network) -> None:
    """Leave a killed tracer's directory; `detach`, at the end of the test, removes it."""
    with Tracing("trace") as tracing:
        tracing.process.kill()
        tracing.process.wait()
    assert [path.name for path in PINS.glob(f"v*/{UPLINK}/tracer")] == ["tracer"]


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_detaching_ends_it(net: Network, mode: str) -> None:
    with contextlib.ExitStack() as mode_of:
        mode_of.enter_context(in_mode(net, mode))
        tracing = Tracing("trace")
        mode_of.close()
        result = tracing.wait()
    assert result.code == 1
    assert result.err == (
        "ndxdp: solicitations: 0 seen, 0 shown, 0 lost\n"
        f"ndxdp: ndxdp was detached from {UPLINK} during the trace\n"
        f"  hint: ndxdp attach {UPLINK}\n"
    )


def test_renewing_the_program_does_not_end_it(on_tc: Network) -> None:
    with Tracing("trace", "--count", "2") as tracing:
        send(solicitation())
        done("attach", UPLINK, "--mode", "tc", "-n", "2001:db8::d:0/112")
        send(solicitation(OTHER))
        result = tracing.wait()
    assert [line.split("  ")[4] for line in result.out.splitlines()] == ["answered"] * 2


@pytest.mark.parametrize("extra", [(), ("--json",), ("--pcap", "-")], ids=str)
def test_a_closed_pipe_ends_it(on_tc: Network, extra: tuple[str, ...]) -> None:
    """End at once when the pipe is closed, as by `| head`, even without solicitations."""
    with Tracing("trace", *extra) as tracing:
        assert tracing.process.stdout is not None
        send(solicitation())
        assert tracing.process.stdout.read(24)
        tracing.process.stdout.close()
        assert tracing.process.wait(timeout=20) == 0
        assert tracing.process.stderr is not None
        assert tracing.process.stderr.read().count(b"\n") == 1
    assert trace_deadline() == 0


def test_a_stalled_reader_does_not_delay_the_end(on_tc: Network) -> None:
    """End at SIGTERM though the pipe is full and has no reader."""
    with Tracing("trace", "--json") as tracing:
        flood(5000, 1.0)
        tracing.process.send_signal(signal.SIGTERM)
        assert tracing.process.wait(timeout=20) == 0
        out, err = tracing.process.communicate()
    assert trace_deadline() == 0
    assert len(out) >= 1 << 15
    assert b"Traceback" not in err


# ---- under load ---------------------------------------------------------------------------------


def flood(rate: int, seconds: float) -> dict[str, Any]:
    """Solicit a different target for each frame at `rate`. See tests/fixtures/flood.py."""
    command = [
        *("nsenter", f"--net=/run/netns/{ROUTER}", sys.executable, "-m", "tests.fixtures.flood"),
        *(ROUTER_LINK, "--mac", ROUTER_MAC, "--prefix", BEHIND.partition("/")[0]),
        *("--rate", str(rate), "--seconds", str(seconds)),
    ]
    found: dict[str, Any] = call(*command).json()
    return found


def test_answers_do_not_suffer(answering: Network, tmp_path: Path) -> None:
    """Lose no answer at 5 000 a second while each is traced.

    One flood of three must show it: other work on this machine may delay the process of userspace
    mode for longer than its socket's buffer lasts.
    """
    for _ in range(3):
        with (tmp_path / "lines").open("w+b") as lines:
            with Tracing("trace", stdout=lines.fileno()) as tracing:
                sent = flood(5000, 2)
                result = tracing.end()
            lines.seek(0)
            rows = sum(1 for _ in lines)
        total, shown, lost = seen(result)
        assert rows == shown == total - lost
        assert shown > 0
        if sent["unanswered"] == 0:
            break
    assert sent["unanswered"] == 0
    assert total == sent["sent"]


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_a_flood(net: Network, mode: str, tmp_path: Path) -> None:
    """Trace 20 000 a second, first with a running tracer, then with a stopped one.

    Lost events are counted, and the tracer's memory does not grow.
    """
    with in_mode(net, mode), (tmp_path / "lines").open("w+b") as lines:
        with Tracing("trace", stdout=lines.fileno()) as tracing:
            before = tracing.memory()
            sent = flood(20_000, 1)["sent"]
            tracing.process.send_signal(signal.SIGSTOP)
            keep_traced()
            sent += flood(20_000, 1)["sent"]
            tracing.process.send_signal(signal.SIGCONT)
            grown = tracing.memory() - before
            result = tracing.end()
        lines.seek(0)
        rows = sum(1 for _ in lines)
        counted = sum(network.status()["reasons"].values())
    total, shown, lost = seen(result)
    assert total == counted
    assert mode == "userspace" or total == sent  # its socket may overflow
    assert rows == shown == total - lost
    assert lost > 10_000, "the flood was too small"
    assert shown > 500
    assert grown < 4 << 20


def keep_traced() -> None:
    """Extend tracing by a minute on behalf of a stopped tracer."""
    with opened() as maps:
        maps.set_trace(time.monotonic_ns() + MINUTE)


def test_sampling_a_flood(on_tc: Network) -> None:
    """Sample on each CPU separately, so the number is approximate; all events are seen."""
    with Tracing("trace", "--every", "100") as tracing:
        sent = flood(5000, 1)
        result = tracing.end()
    total, shown, lost = seen(result)
    assert "one of 100 examined" in result.err
    assert total == sent["sent"]
    assert lost == 0
    assert abs(shown - total / 100) <= os.cpu_count()  # type: ignore[operator]


# ---- top's heavy hitters -------------------------------------------------------------------------


def test_top(answering: Network) -> None:
    frames = [solicitation(TARGET, ROUTER_MAC)] * 12 + [solicitation(OTHER, OTHER_MAC)] * 5
    with Tracing("top", "--seconds", "60") as tracing:
        for frame in frames:
            send(frame)
        eventually(lambda: sum(network.status()["reasons"].values()) == len(frames))
        result = tracing.end()
    assert (result.code, result.err) == (0, "")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[0].startswith("17 solicitations in ")
    assert lines[0].endswith(" s, 0 of them lost")
    who = ROUTER_LINK_LOCAL
    assert lines[1:] == [
        "",
        f"{UPLINK} sources",
        f"12 {who} ({ROUTER_MAC}) answered 12",
        f"5 {who} ({OTHER_MAC}) no_rule 5",
        "",
        f"{UPLINK} targets",
        f"12 {TARGET} answered 12",
        f"5 {OTHER} no_rule 5",
    ]


def test_top_ends_after_its_seconds(on_tc: Network) -> None:
    result = ndxdp("top", "--seconds", "0.2", "--rows", "1")
    assert result.code == 0
    assert result.out.startswith("0 solicitations in 0.")
    assert trace_deadline() == 0


def test_busiest_are_found_in_bounded_memory() -> None:
    """Find two frequent keys among 200 000 that come once; the bounds hold for every key."""
    rng = random.Random(4861)
    size = 256
    keys = [*range(200_000), *[-1] * 20_000, *[-2] * 10_000]
    rng.shuffle(keys)
    hitters: HeavyHitters[int] = HeavyHitters(size)
    largest = 0
    for key in keys:
        hitters.add(key, Reason.NO_RULE if key % 2 else Reason.ANSWERED)
        largest = max(largest, len(hitters))
    assert largest <= 2 * size + 1
    true = Counter(keys)
    most = hitters.most(10)
    assert [one.key for one in most[:2]] == [-1, -2]
    assert hitters.error_bound <= len(keys) / size
    for one in most:
        assert true[one.key] - hitters.error_bound <= one.total <= true[one.key]
        assert one.total == sum(one.reasons.values())
    assert most[0].reasons.keys() == {Reason.NO_RULE}


def test_few_keys_are_all_counted() -> None:
    hitters: HeavyHitters[str] = HeavyHitters(2)
    for key in "abacabad":
        hitters.add(key, Reason.ANSWERED)
    assert hitters.error_bound == 0
    assert [(one.key, one.total) for one in hitters.most(2)] == [("a", 4), ("b", 2)]


# ---- invalid options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "result"),
    [
        (("--reason", "no_rul"), 2, "'no_rul' is not a reason\n  hint: did you mean 'no_rule'?"),
        (("--reason", "not_ns"), 2, "'not_ns' is not a reason"),
        (("--target", "2001:db8::1/64"), 2, "has bits set behind the first 64"),
        (("--from", "eth0"), 2, "'eth0' is not an IPv6 address"),
        (("--from", "33:33:00:00:00:01"), 2, "is no MAC that a host can have"),
        (("--json", "--pcap", "-"), 2, "--json and --pcap - cannot be combined"),
        (("--pcap", "/nowhere/file"), 1, "cannot write /nowhere/file: No such file"),
        (("--pcap", "/dev/full"), 1, "cannot write /dev/full: No space left"),
        (("-i", "eth9"), 1, "ndxdp is not attached to eth9"),
        (("--every", "0"), 2, "--every"),
        (("--count", "0"), 2, "--count"),
    ],
)
def test_invalid_options(on_tc: Network, words: tuple[str, ...], code: int, result: str) -> None:
    refused = ndxdp("trace", *words)
    assert (refused.code, refused.out) == (code, "")
    assert result in refused.err
    assert "Traceback" not in refused.err
    assert trace_deadline() == 0


def test_nothing_is_attached(net: Network) -> None:
    for command in ("trace", "top"):
        refused = ndxdp(command)
        assert refused.code == 1
        assert refused.err.startswith("ndxdp: ndxdp is attached to no interface\n")


def test_pcap_format() -> None:
    """Follow the draft: magic of nanoseconds, version 2.4, link type Ethernet, separate lengths."""
    header = pcap.header()
    assert header == bytes.fromhex("4d3cb2a1 0200 0400 00000000 00000000 ffff0000 01000000")
    record = pcap.record(5_000_000_007, b"abc", 1500)
    assert record == bytes.fromhex("05000000 07000000 03000000 dc050000") + b"abc"
