"""`ndxdp run` and the verbosity of commands; interrupts at any moment."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fixtures import features, network
from tests.fixtures.network import (
    BEHIND,
    NDXDP,
    REPOSITORY,
    TARGET,
    UPLINK,
    Network,
    allmulti_count,
    call,
    done,
    eventually,
    has_allmulti,
    is_answered,
    leftovers,
    ndxdp,
    remove_instance,
    rules,
    sh,
    status,
)
from tests.fixtures.without_links import _WITHOUT_LINKS, attach, attach_without_links, programs

# ---- run -----------------------------------------------------------------------------------------


def test_a_killed_run_answers_no_more(net: Network) -> None:
    run = net.run("-i", UPLINK, "--mode", "tc", "-n", BEHIND)
    assert run.end(signal.SIGKILL).code == -signal.SIGKILL
    if features.lacks("tcx"):
        assert net.answers(), "a filter outlives the process"
    else:
        eventually(lambda: not programs())
        assert net.silent()
    assert allmulti_count() == 0
    assert status()["attached"] is features.lacks("tcx")
    attach("tc", "-n", TARGET)
    assert net.answers()
    shown = status()
    assert shown["held_by"] == "pins"
    done("detach", UPLINK)
    assert leftovers() == []
    assert shown["rules"]["by_source"] == {"host": 3, "manual": 1}


def test_run_keep_leaves_it_answering(net: Network) -> None:
    run = net.run("-i", UPLINK, "--mode", "tc", "-n", BEHIND, "--keep")
    done("prefix", "add", "2001:db8::d:0:0:1")
    assert run.end() == (0, "", "")
    assert net.answers()
    assert status()["held_by"] == "pins"
    assert has_allmulti()

    # Another one takes over: its rules are in the place of the first one's.
    with net.solicited_continuously() as missed:
        run = net.run("-i", UPLINK, "--mode", "tc", "-n", TARGET, "--keep")
    assert not missed
    by_source = {prefix: rule["source"] for prefix, rule in rules().items()}
    assert by_source[TARGET] == "run"
    assert by_source["2001:db8::d:0:0:1"] == "manual"
    assert BEHIND not in by_source
    assert status()["held_by"] == "run"
    assert run.end(signal.SIGKILL).code == -signal.SIGKILL
    assert net.answers()
    done("detach", UPLINK)
    assert leftovers() == []


def test_run_keep_takes_over_an_attached_program(attached: Network) -> None:
    before = status()["program"]["id"]
    run = attached.run("-i", UPLINK, "--mode", "tc", "-n", TARGET, "--keep")
    assert status()["held_by"] == "run"
    assert status()["program"]["id"] != before
    assert {BEHIND, TARGET} <= set(rules())
    sh("ip", "address", "add", "2001:db8::c:0:0:22/128", "dev", UPLINK, "nodad")
    eventually(lambda: is_answered("2001:db8::c:0:0:22") is False)
    assert run.end() == (0, "", "")
    assert attached.answers()


def test_run_refuses_an_interface_that_attach_keeps(attached: Network) -> None:
    before = network.snapshot()
    refused = ndxdp("run", "-i", UPLINK, "--mode", "tc", "-n", TARGET)
    assert (refused.code, refused.out) == (1, "")
    assert "--keep" in refused.err
    assert network.snapshot() == before


# ---- verbosity -----------------------------------------------------------------------------------


def test_verbosity(net: Network) -> None:
    assert "veth" in ndxdp("attach", UPLINK, "--mode", "native").err
    remove_instance()
    assert ndxdp("attach", "-q", UPLINK, "--mode", "native").err == ""
    remove_instance()
    sh("ip", "link", "add", "second", "up", "type", "bridge")
    try:
        for words in (("-q", "attach"), ("attach", "-v"), ("--debug", "attach", "-q")):
            refused = ndxdp(*words, "second", "--mode", "native")
            assert refused.code == 1
            assert "second does not run XDP" in refused.err
            assert (len(refused.err.splitlines()) > 2) is ("--debug" in words)
    finally:
        sh("ip", "link", "delete", "second")


def test_verbose_output_lists_the_actions(net: Network) -> None:
    found = [
        ndxdp(*words)
        for words in (
            ("-v", "attach", UPLINK, "--mode", "tc", "-n", BEHIND),
            ("attach", "-v", UPLINK, "--loader", "prebuilt"),
            ("detach", "-v", UPLINK),
        )
    ]
    assert [result.code for result in found] == [0, 0, 0]
    assert all(UPLINK in result.err for result in found)


def test_verbose_run_lists_what_it_follows(net: Network) -> None:
    run = net.run("-v", "-i", UPLINK, "--mode", "tc", "-n", BEHIND)
    sh("ip", "address", "add", "2001:db8::c:0:0:22/128", "dev", UPLINK, "nodad")
    eventually(lambda: is_answered("2001:db8::c:0:0:22") is False)
    ended = run.end()
    assert (ended.code, ended.out) == (0, "")
    assert "2001:db8::c:0:0:22" in ended.err


# ---- interrupting --------------------------------------------------------------------------------


_MOMENTS = random.Random(1).sample(range(100, 400, 5), 9)  # ms; attach takes some 300


def test_an_interrupted_attach_is_complete_or_undone(net: Network) -> None:
    """Complete or undo an attach that a signal interrupts, on three interfaces at once."""

    def interrupt(name: str, number: int, moments: list[int]) -> None:
        for moment in moments:
            process = subprocess.Popen(
                [*NDXDP, "attach", name, "--mode", "tc", "-n", BEHIND],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=REPOSITORY,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment / 1000)
            process.send_signal(number)
            process.communicate(timeout=10)
            left = leftovers(name)
            if left and number != signal.SIGKILL:
                assert has_allmulti(name), moment
                assert network.tc_ids(name) == [network.program_id(name)], moment
                assert BEHIND in done("prefix", "list", "-i", name), moment
            if number == signal.SIGKILL and moment % 2:
                done("attach", name, "--mode", "tc", "-n", BEHIND)
                assert network.tc_ids(name) == [network.program_id(name)], moment
            if leftovers(name):
                done("detach", name)
            assert leftovers(name) == [], moment

    attach()  # or the lock's directory comes and goes
    signals = {"up1": signal.SIGINT, "up2": signal.SIGTERM, "up3": signal.SIGKILL}
    for name in signals:
        sh("ip", "link", "add", name, "up", "type", "bridge")
    try:
        with ThreadPoolExecutor() as pool:
            ended = [
                pool.submit(interrupt, name, number, _MOMENTS[index::3])
                for index, (name, number) in enumerate(signals.items())
            ]
        for each in ended:
            each.result()
        remove_instance()
    finally:
        for name in signals:
            sh("ip", "link", "delete", name)


# ---- at the worst moment -------------------------------------------------------------------------


# Preloaded, it sends a signal to its process right after the first call of a kind.
_SIGNAL_AFTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static void reached(const char *call, long number)
{
	static int done;

	if (done || strcmp(getenv("AFTER_CALL"), call) || atoi(getenv("AFTER_NUMBER")) != number)
		return;
	done = 1;
	kill(getpid(), atoi(getenv("SIGNAL")));
}

long syscall(long number, ...)
{
	long (*real)(long, ...) = dlsym(RTLD_NEXT, "syscall");
	long a[6], result;
	va_list list;

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	result = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (number == SYS_bpf)
		reached("bpf", a[0]);
	return result;
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
	ssize_t (*real)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");
	ssize_t result = real(fd, data, size, flags);

	if (size >= 16)
		reached("netlink", ((const unsigned short *)data)[2]);
	return result;
}
"""


@pytest.fixture(scope="session")
def signal_after(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("signal_after") / "signal_after.so"
    options = ("-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", str(made))
    sh("clang", *options, stdin=_SIGNAL_AFTER)
    return made


OBJ_PIN, LINK_CREATE = ("bpf", "6"), ("bpf", "28")
NEW_LINK, NEW_QDISC, DEL_FILTER = ("netlink", "16"), ("netlink", "36"), ("netlink", "45")


@pytest.mark.parametrize(
    ("command", "moment", "number"),
    [
        pytest.param("attach", OBJ_PIN, signal.SIGKILL, id="first pin"),
        pytest.param("attach", LINK_CREATE, signal.SIGTERM, id="attached, TERM"),
        pytest.param("attach", LINK_CREATE, signal.SIGKILL, id="attached"),
        pytest.param("attach", NEW_LINK, signal.SIGTERM, id="allmulti on, TERM"),
        pytest.param("attach", NEW_LINK, signal.SIGKILL, id="allmulti on"),
        pytest.param("attach*", NEW_QDISC, signal.SIGKILL, id="clsact made"),
        pytest.param("detach", NEW_LINK, signal.SIGKILL, id="allmulti off"),
        pytest.param("detach*", DEL_FILTER, signal.SIGTERM, id="filter gone, TERM"),
        pytest.param("detach*", DEL_FILTER, signal.SIGKILL, id="filter gone"),
    ],
)
def test_the_worst_moments(
    net: Network, signal_after: Path, command: str, moment: tuple[str, str], number: int
) -> None:
    """Leave a complete state or none after a signal; detach repairs the state after SIGKILL.

    command: with a star, as on a kernel without BPF links.
    """
    if command == "detach":
        attach("tc", "-n", BEHIND)
    elif command == "detach*":
        attach_without_links("tc", BEHIND)
    words = {
        "attach": [*NDXDP, "attach", UPLINK, "--mode", "tc", "-n", BEHIND],
        "attach*": [sys.executable, "-c", _WITHOUT_LINKS, UPLINK, "tc", BEHIND],
    }.get(command, [*NDXDP, "detach", UPLINK])
    when = dict(zip(("AFTER_CALL", "AFTER_NUMBER"), moment, strict=True))
    preload = {"LD_PRELOAD": str(signal_after), "SIGNAL": str(int(number))}
    ended = call(*words, env=when | preload)
    assert ended.code == (-number if number == signal.SIGKILL else 130), ended

    left = leftovers()
    if left and (number == signal.SIGKILL or (has_allmulti() and net.answers())):
        done("detach", UPLINK)
        left = leftovers()
    remove_instance()
    call("tc", "qdisc", "delete", "dev", UPLINK, "clsact")
    assert left == []
