"""The userspace path as a user has it: `ndxdp run --mode userspace`, and the other commands.

It answers what the program answers (test_userspace.py). These tests start, change, stop and kill
it, and remove its interface and its files.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp.ndp.frame import eth_destination_of
from tests import packets
from tests.fixtures import network
from tests.fixtures.network import (
    BEHIND,
    FILES,
    GATEWAY,
    HOST,
    HOST_LINK_LOCAL,
    NDXDP,
    PINS,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    a_way_behind,
    allmulti_count,
    call,
    done,
    eventually,
    explain,
    leftovers,
    ndxdp,
    rules,
    sh,
    status,
    timeless,
    without_gateway,
)
from tests.fixtures.serving import (
    ANOTHER,
    CANNOT,
    OTHER,
    USERSPACE,
    counted,
    counts,
    directory,
    send,
    serve,
    solicitation,
)
from tests.test_bad_input import as_nobody, refused

# ---- run, and the commands beside it -------------------------------------------------------------


def test_rules_hold_from_the_next_solicitation_on(net: Network, tmp_path: Path) -> None:
    run = serve(net)
    assert net.silent(OTHER)
    assert done("prefix", "add", OTHER, "2001:db8:0:0:e::/96") == ""
    assert net.answers(OTHER)
    assert net.answers("2001:db8::e:0:0:5")
    done("prefix", "add", "--answer", "never", TARGET)
    assert net.silent()
    listing = tmp_path / "guests.txt"
    listing.write_text(f"{ANOTHER}  # a guest\n")
    done("prefix", "add", "--file", str(listing))
    assert net.answers(ANOTHER)

    listed = rules()
    assert {prefix: rule["source"] for prefix, rule in listed.items()} == {
        BEHIND: "run",
        OTHER: "manual",
        ANOTHER: "manual",
        TARGET: "manual",
        "2001:db8:0:0:e::/96": "manual",
        HOST: "host",
        HOST_LINK_LOCAL: "host",
        GATEWAY: "host",
    }
    assert listed[ANOTHER]["label"] == "guests.txt"
    text = done("prefix", "list").splitlines()
    assert f"{ANOTHER} always (manual, guests.txt)" in text
    assert f"{TARGET} never (manual)" in text

    assert done("prefix", "del", OTHER, TARGET) == ""
    assert net.silent(OTHER)
    assert net.answers()
    refused(ndxdp("prefix", "del", BEHIND), CANNOT, "'run'")
    refused(ndxdp("prefix", "add", "--override", ANOTHER), CANNOT, ANOTHER)
    assert done("prefix", "add", ANOTHER) == ""
    refused(ndxdp("prefix", "add", "--answer", "never", ANOTHER), CANNOT, ANOTHER)
    done("prefix", "del", "--source", "run", BEHIND)
    assert net.silent()
    done("prefix", "del", "--all")
    assert {rule["source"] for rule in rules().values()} == {"host"}
    assert net.silent(ANOTHER)
    assert run.end() == (0, "", "")


# ---- counting ------------------------------------------------------------------------------------


MIX: dict[str, tuple[bytes, int]] = {
    "answered": (solicitation(), 5),
    "answered_dad": (bytes(packets.dad(TARGET) / packets.ns(TARGET)), 2),
    "no_rule": (solicitation(OTHER), 3),
    "denied": (solicitation(GATEWAY), 4),
    "bad_hop_limit": (solicitation(hlim=64), 2),
    "bad_checksum": (solicitation()[:56] + bytes(2) + solicitation()[58:], 1),
    "bad_length": (solicitation()[:70], 1),
    "other_vlan": (solicitation()[:12] + bytes.fromhex("81000064") + solicitation()[12:], 2),
}
"""A frame for each reason, and how often it is sent."""
NOT_COUNTED = [
    bytes(packets.to_group(TARGET) / packets.na(TARGET).payload.payload),
    solicitation()[:40],
    bytes(60),
]


@a_way_behind()
def test_every_solicitation_is_counted_once(net: Network) -> None:
    run = serve(net)
    with net.advertisements() as frames:
        send([frame for frame, times in MIX.values() for _ in range(times)] + NOT_COUNTED)
        send([solicitation()])
        found = counted(sum(times for _, times in MIX.values()) + 1)
    assert found == {reason: times for reason, (_, times) in MIX.items()} | {"answered": 6}
    assert len(frames) == 6 + 2
    shown = status()
    assert {reason: count for reason, count in shown["reasons"].items() if count} == found
    by_label = {group["label"]: group for group in shown["groups"]}
    assert (by_label[BEHIND]["solicited"], by_label[BEHIND]["answered"]) == (8, 8)
    assert (by_label["gateway"]["solicited"], by_label["gateway"]["answered"]) == (4, 0)
    assert shown["socket"] == {"overflows": 0, "errors": 0}
    assert run.end() == (0, "", "")


def test_overflowing_solicitations_are_counted(net: Network) -> None:
    """Count the solicitations that find no room in the socket of a stopped process."""
    run = serve(net)
    sent = 4000
    run.process.send_signal(signal.SIGSTOP)
    send([solicitation(OTHER)] * sent)
    run.process.send_signal(signal.SIGCONT)

    def seen() -> bool:
        return sum(counts().values()) + overflows() >= sent

    def overflows() -> int:
        found: int = status()["socket"]["overflows"]
        return found

    eventually(seen, within=20)
    assert net.answers()
    assert counted(sent - overflows() + 1) == {"no_rule": sent - overflows(), "answered": 1}
    assert 0 < overflows() < sent
    assert f"  socket    overflows {overflows()}, errors 0" in done("status").splitlines()
    assert run.end() == (0, "", "")


def test_a_flood_leaves_room_for_others(net: Network) -> None:
    """Answer other MACs during a flood of one MAC, which fills only its own queue.

    There are several queues once solicitations have found no room for a while. It is not known in
    advance which MACs share a queue, but each has one, and few share it.
    """
    run = serve(net, "--rate", "0.001", "--burst", "10")
    sent = 0

    def flood() -> None:
        """Send 1000 solicitations of one MAC, which are read after SIGCONT."""
        nonlocal sent
        run.process.send_signal(signal.SIGSTOP)
        send([solicitation()] * 1000)
        sent += 1000

    macs = [f"02:00:00:00:01:{n:02x}" for n in range(64)]
    asked = [
        packets.to_group(TARGET, ROUTER_LINK_LOCAL, eth_src=mac)
        / packets.ns(TARGET)
        / packets.sllao(mac)
        for mac in macs
    ]

    def all_are_counted() -> bool:
        overflows: int = status()["socket"]["overflows"]
        return sum(counts().values()) + overflows >= sent

    def answers_to_others() -> Counter[str]:
        nonlocal sent
        for _ in range(8):
            flood()
            run.process.send_signal(signal.SIGCONT)
            time.sleep(0.1)
        flood()
        with net.advertisements() as frames:
            send([bytes(frame) for frame in asked])
            sent += len(asked)
            run.process.send_signal(signal.SIGCONT)
            eventually(all_are_counted, within=20)
        answers = Counter(eth_destination_of(frame).hex(":") for frame in frames)
        del answers[ROUTER_MAC]
        return answers

    answers = eventually(answers_to_others, within=20)
    assert set(answers.values()) == {1}
    assert len(macs) / 2 < len(answers) <= len(macs)
    assert run.end() == (0, "", "")


@pytest.fixture
def nothing_leaves() -> Iterator[None]:
    """Let the uplink's queue accept no frame: send() fails with ENOBUFS, as on a busy NIC."""
    sh("tc", "qdisc", "add", "dev", UPLINK, "root", "pfifo", "limit", "0")
    yield
    call("tc", "qdisc", "delete", "dev", UPLINK, "root")


def test_an_answer_that_cannot_be_sent(net: Network, nothing_leaves: None) -> None:
    run = serve(net)
    sent = 200
    with net.advertisements() as frames:
        send([solicitation()] * sent + [solicitation(OTHER)] * 7)
        assert counted(sent + 7) == {"send_failed": sent, "no_rule": 7}
    assert frames == []
    shown = status()
    assert shown["socket"] == {"overflows": 0, "errors": sent}
    assert f"  socket    overflows 0, errors {sent}" in done("status").splitlines()
    by_label = {group["label"]: group for group in shown["groups"]}
    assert (by_label[BEHIND]["solicited"], by_label[BEHIND]["answered"]) == (sent, 0)

    sh("tc", "qdisc", "delete", "dev", UPLINK, "root")
    assert net.answers()
    assert counted(sent + 8) == {"send_failed": sent, "no_rule": 7, "answered": 1}
    assert run.end() == (0, "", "")


def test_some_answers_cannot_be_sent(net: Network) -> None:
    """Count each answer of a batch by its own result, sent or not."""
    run = serve(net)
    # 1 byte/s after the first 1000: everything that is queued after them waits for ever.
    tbf = ("tbf", "rate", "8bit", "burst", "1000", "limit", "500")
    sh("tc", "qdisc", "add", "dev", UPLINK, "root", *tbf)
    sent = 100
    with net.advertisements() as frames:
        send([solicitation(), solicitation(OTHER)] * sent)
        found = counted(2 * sent)
    sh("tc", "qdisc", "delete", "dev", UPLINK, "root")
    assert sum(found.values()) == 2 * sent
    assert found["no_rule"] == sent
    assert found["answered"] + found["send_failed"] == sent
    assert 0 < len(frames) <= found["answered"] < sent
    assert status()["socket"]["errors"] == found["send_failed"]
    assert net.answers()
    assert run.end() == (0, "", "")


def test_rate_limit(net: Network) -> None:
    with without_gateway():
        run = serve(net, "--rate", "0.001", "--burst", "3")
        shown = status()
        assert (shown["rate"], shown["burst"]) == (pytest.approx(0.001), 3)
        assert [net.ask(TARGET, wait=0.3) is not None for _ in range(5)] == [True] * 3 + [False] * 2
        assert counted(5) == {"answered": 3, "rate_limited": 2}
        assert "limit     0.001 answers/s, 3 at once" in done("status")
        # Another neighbour has a budget of its own.
        other_mac = "02:00:00:00:00:03"
        frame = packets.to_group(TARGET, ROUTER_LINK_LOCAL, eth_src=other_mac) / packets.ns(TARGET)
        send([bytes(frame / packets.sllao(other_mac))])
        assert counted(6) == {"answered": 4, "rate_limited": 2}
        assert run.end() == (0, "", "")


def test_the_table_of_addresses_is_full(net: Network) -> None:
    words = [word for n in range(1, 7) for word in ("-n", f"2001:db8::c:0:0:{n:x}")]
    run = net.run(*USERSPACE, *words, "--max-addresses", "10")  # three are the host's
    done("prefix", "add", "2001:db8::c:0:0:7")
    assert net.answers("2001:db8::c:0:0:7")
    assert status()["rules"]["max_addresses"] == 10
    before = rules()
    refusal = ndxdp("prefix", "add", OTHER, "2001:db8:0:0:e::/96")
    refused(refusal, CANNOT, "10 addresses", "limit of 10")
    assert "--max-addresses" in refusal.err
    assert rules() == before
    assert net.silent(OTHER)
    assert net.silent("2001:db8::e:0:0:1")
    done("prefix", "del", "2001:db8::c:0:0:7")
    done("prefix", "add", OTHER)
    assert net.answers(OTHER)
    assert run.end() == (0, "", "")

    refusal = ndxdp("run", *USERSPACE, *words, "--max-addresses", "8")
    refused(refusal, CANNOT, "more than the limit of 8")
    assert leftovers() == []


# ---- a second process ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["tc", "generic"])
def test_refused_beside_an_attached_program(net: Network, mode: str) -> None:
    done("attach", UPLINK, "--mode", mode, "-n", BEHIND)
    before = network.snapshot()
    refusal = call("timeout", "20", *NDXDP, "run", *USERSPACE, "-n", BEHIND)
    refused(refusal, CANNOT, f"attached to {UPLINK} in {mode} mode")
    assert f"ndxdp detach {UPLINK}" in refusal.err
    assert network.snapshot() == before
    assert not FILES.exists()
    done("detach", UPLINK)


def test_two_interfaces_side_by_side(net: Network) -> None:
    sh("ip", "link", "add", "second", "up", "type", "bridge")
    try:
        first = serve(net)
        done("attach", "second", "--mode", "tc", "-n", TARGET)
        shown = ndxdp("status", "--json").json()["interfaces"]
        assert [(entry["interface"], entry["mode"]) for entry in shown] == [
            ("second", "tc"),
            (UPLINK, "userspace"),
        ]
        assert explain("-i", UPLINK, TARGET)["rule"]["prefix"] == BEHIND
        assert explain("-i", "second", TARGET)["rule"]["prefix"] == TARGET
        done("detach", "second")
        assert first.end() == (0, "", "")
    finally:
        sh("ip", "link", "delete", "second")


def test_a_run_directory_of_ones_own(net: Network, tmp_path: Path) -> None:
    own = tmp_path / "run"
    run = net.run(*USERSPACE, "-n", BEHIND, command=(*NDXDP, "--run-directory", str(own)))
    assert net.answers()
    assert not FILES.exists()
    assert "userspace" in done("--run-directory", str(own), "status")
    result = ndxdp("status", env={"NDXDP_RUN_DIRECTORY": str(own)})
    assert timeless(result.out) == timeless(done("--run-directory", str(own), "status"))
    assert run.end() == (0, "", "")
    assert not own.exists()


# ---- killed --------------------------------------------------------------------------------------


@pytest.fixture
def killed(net: Network) -> Network:
    """Kill a run after one answer and one rule added by hand."""
    run = serve(net)
    done("prefix", "add", OTHER, "--no-router")
    assert net.answers(OTHER)
    assert counted(1) == {"answered": 1}  # a moment after the answer
    run.kill()
    return net


def test_rules_and_files_stay_after_sigkill(killed: Network) -> None:
    assert killed.silent()
    assert allmulti_count() == 0
    shown = status()
    assert (shown["attached"], shown["mode"]) == (False, "userspace")
    assert "not attached" in done("status").splitlines()[0]
    assert set(rules()) >= {BEHIND, OTHER}
    assert done("detach", UPLINK) == ""
    assert leftovers() == []
    assert not FILES.exists()
    assert done("status") == "ndxdp is attached to no interface\n"


@pytest.mark.parametrize("words", [("attach", UPLINK), ("attach", UPLINK, "--mode", "generic")])
def test_attach_after_a_run_was_killed(killed: Network, words: tuple[str, ...]) -> None:
    before = rules()[OTHER]
    done(*words, "-n", TARGET)
    assert list(FILES.glob("v*")) == []
    assert set(rules()) == {TARGET, OTHER, HOST, HOST_LINK_LOCAL, GATEWAY}
    assert rules()[OTHER] == before
    assert killed.answers()
    assert killed.answers(OTHER)
    assert status()["attached"] is True
    done("detach", UPLINK)


def test_a_refused_attach_leaves_the_state_of_a_killed_run(killed: Network) -> None:
    before = {path.name: path.read_bytes() for path in directory().iterdir()}
    assert ndxdp("attach", UPLINK, "--max-addresses", "1").code == CANNOT
    assert {path.name: path.read_bytes() for path in directory().iterdir()} == before
    assert not PINS.exists()
    done("detach", UPLINK)


def test_killed_at_any_moment(net: Network) -> None:
    """Take over or clean up what a killed run left half done."""
    for moment in range(150, 700, 50):
        # --foreground: otherwise `timeout` kills itself as well, and the sockets may still be open.
        until = ("timeout", "--foreground", "-s", "KILL", str(moment / 1000))
        before = [*until, *NDXDP, "run", *USERSPACE]
        call(*before, "-n", BEHIND)
        if moment % 100:
            run = serve(net)
            assert run.end() == (0, "", ""), moment
        elif leftovers():
            done("detach", UPLINK)
        assert leftovers() == [], moment
    assert list(FILES.glob("v*")) == []


def test_debris_of_files(killed: Network) -> None:
    """Start from scratch if files are damaged; `detach` removes them."""
    for command in (("detach", UPLINK), ("attach", UPLINK), ("run", *USERSPACE, "-n", BEHIND)):
        run = serve(killed)
        run.kill()
        (directory() / "settings").unlink()
        if command[0] == "run":
            run = serve(killed)
            assert killed.answers()
            assert run.end() == (0, "", "")
        else:
            done(*command)
            assert list(FILES.glob("v*")) == []
        if command[0] == "attach":
            done("detach", UPLINK)
        assert leftovers() == []


# ---- users without write access ------------------------------------------------------------------


COMMANDS = [
    ("status",),
    ("status", UPLINK),
    ("prefix", "list"),
    ("explain", TARGET),
    ("prefix", "add", OTHER),
    ("prefix", "del", "--all", "--source", "run"),
    ("detach", UPLINK),
    ("attach", UPLINK),
    ("run", *USERSPACE),
]


def test_by_a_user_without_any_right(net: Network) -> None:
    run = serve(net)
    before = {path.name: path.read_bytes() for path in directory().iterdir()}
    for words in COMMANDS:
        result = as_nobody(*words)
        refused(result, CANNOT)
    assert {path.name: path.read_bytes() for path in directory().iterdir()} == before
    assert net.answers()
    assert run.end() == (0, "", "")


def test_by_a_user_who_may_read(net: Network) -> None:
    """Let the group of the files read them, and change nothing."""
    run = serve(net)
    for path in (directory(), *directory().iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == (0o710 if path.is_dir() else 0o640)
        os.chown(path, -1, 65534)
    assert net.answers()
    eventually(lambda: counts().get("answered") == 1)  # counted a moment after the answer
    before = {path.name: path.read_bytes() for path in directory().iterdir()}
    for words in COMMANDS[:4]:
        seen = as_nobody(*words)
        assert (seen.code, seen.err) == (0, "")
        assert timeless(seen.out) == timeless(done(*words))
    for words in COMMANDS[4:]:
        refused(as_nobody(*words), CANNOT)
    assert {path.name: path.read_bytes() for path in directory().iterdir()} == before
    assert net.answers()
    assert run.end() == (0, "", "")


def test_an_interface_that_cannot_be(net: Network) -> None:
    """Refuse an impossible interface with one sentence, and leave nothing."""
    refused(ndxdp("run", "-i", "nowhere0", "--mode", "userspace"), CANNOT, "nowhere0")
    refused(ndxdp("run", "-i", "lo", "--mode", "userspace"), CANNOT, "lo")
    sh("ip", "link", "set", UPLINK, "down")
    refused(ndxdp("run", *USERSPACE), CANNOT, f"{UPLINK} is down")
    assert leftovers() == []
    assert not FILES.exists()
