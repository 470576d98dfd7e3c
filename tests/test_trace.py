"""`ndxdp trace`: each decision is shown, in every mode; one tracer, and how it ends."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from pathlib import Path

import pytest

from ndxdp.kernel import abi
from ndxdp.ndp.message import decode_own
from ndxdp.observe import pcap
from tests import packets
from tests.fixtures import network
from tests.fixtures.documented import json_of, shape
from tests.fixtures.network import (
    BEHIND,
    HOST_MAC,
    PINS,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    a_way_behind,
    call,
    done,
    eventually,
    ndxdp,
    sh,
)
from tests.fixtures.traced import (
    OTHER,
    OTHER_MAC,
    Tracing,
    flood,
    in_mode,
    opened,
    seen,
    send,
    solicitation,
    trace_deadline,
)

TRACE_LIFETIME = 3_000_000_000  # ns until tracing ends unless a tracer renews it

# ---- what it shows -------------------------------------------------------------------------------


def test_lines(in_each_mode: Network) -> None:
    """Print one line for each solicitation, in order."""
    with Tracing("trace") as tracing:
        assert in_each_mode.answers()
        assert in_each_mode.silent(OTHER)
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


def test_json(in_each_mode: Network) -> None:
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
def test_pcap(in_each_mode: Network, tmp_path: Path) -> None:
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


# ---- one tracer, and how it ends -----------------------------------------------------------------


def test_a_second_tracer_is_refused(in_each_mode: Network) -> None:
    """Refuse a second tracer until the first one has ended."""
    with Tracing("trace") as tracing:
        for command in ("trace", "top"):
            refused = ndxdp(command, "-i", UPLINK)
            assert (refused.code, refused.out) == (1, "")
            assert refused.err == (
                f"ndxdp: {UPLINK} is being traced already\n"
                "  hint: end the other `ndxdp trace` or `ndxdp top` first\n"
            )
        assert in_each_mode.answers()
        assert seen(tracing.end()) == (1, 1, 0)
    with Tracing("trace") as tracing:
        assert in_each_mode.answers()
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


def test_a_killed_tracer_expires(in_each_mode: Network) -> None:
    """Stop tracing 3 s after a killed tracer's last renewal; the next tracer can start."""
    with Tracing("trace") as tracing:
        tracing.process.kill()
        tracing.process.wait()
        left = trace_deadline()
        assert 0 < left <= time.monotonic_ns() + TRACE_LIFETIME
        eventually(lambda: time.monotonic_ns() > left)
    with opened() as maps:
        before = maps.traced()
        assert in_each_mode.answers()
        assert maps.traced() == before
    with Tracing("trace") as tracing:
        assert in_each_mode.answers()
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
