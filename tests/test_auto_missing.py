"""`auto` without features of the kernel, without rights, and without a BPF file system."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from ndxdp.errors import ModeUnavailable
from ndxdp.kernel import bpf_maps, bpf_programs, libbpf
from ndxdp.kernel.abi import MapSpec, Mode
from ndxdp.rules.rule_lists import compile_rules
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.store.directories import Trees
from tests.fixtures import network
from tests.fixtures.auto import CANNOT, VETH, WITHOUT_BPF, Tap, steps_down, tapped
from tests.fixtures.network import (
    BEHIND,
    HOST_MAC,
    NDXDP,
    TARGET,
    UPLINK,
    Network,
    call,
    done,
    leftovers,
    status,
    timeless,
)
from tests.test_bad_input import refused

WITHOUT_ANY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", *NDXDP)
"""A command of root without capabilities, as in an unprivileged container."""

# ---- a tap, which runs XDP in its driver ---------------------------------------------------------


@pytest.fixture(params=["blocking", "nonblocking"])
def tap(net: Network, request: pytest.FixtureRequest) -> Iterator[Tap]:
    with tapped(request.param == "blocking") as made:
        yield made


# ---- a foreign program has the XDP slot ----------------------------------------------------------


def attach(interface: str, mode: Mode) -> None:
    """Attach without rules, in this process."""
    request = AttachRequest(interface, options=AttachOptions(mode))
    Session.attach(Trees(), request).close()


# ---- an older kernel, simulated (scenarios/kernel_groups.py runs real ones) ----------------------


def test_xdp_of_an_older_kernel(net: Network, tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find the reason if the kernel refuses a program with EINVAL, and choose tc."""
    load = bpf_programs.load_object

    def refuse_xdp(image: bytes, program: str, map_fds: dict[str, int]) -> int:
        if program == Mode.NATIVE.program:
            raise libbpf.BpfError(errno.EINVAL, "bpf_object__load")
        return load(image, program, map_fds)

    monkeypatch.setattr(bpf_programs, "load_object", refuse_xdp)
    monkeypatch.setattr(bpf_programs, "xdp_has_frags", lambda: False)
    Session.attach(Trees(), AttachRequest(Tap.name, compile_rules([BEHIND]))).close()
    why = "the kernel has no XDP for frames in several pieces, which came with Linux 5.18"
    assert (status(Tap.name)["mode"], steps_down(Tap.name)) == ("tc", {"native": why})
    assert tap.ask(TARGET) == (HOST_MAC, TARGET)
    done("detach", Tap.name)
    with pytest.raises(ModeUnavailable, match=why):
        attach(Tap.name, Mode.GENERIC)

    # EINVAL for another reason stays an error.
    monkeypatch.setattr(bpf_programs, "xdp_has_frags", lambda: True)
    with pytest.raises(ModeUnavailable, match="refused the program"):
        attach(Tap.name, Mode.GENERIC)


@pytest.mark.parametrize(
    ("number", "small", "why"),
    [
        (errno.EPERM, True, "the kernel lets this process lock too little memory"),
        (errno.EPERM, False, "the kernel does not let this process make a BPF map"),
        (errno.EINVAL, True, "the kernel does not know the type of the BPF map 'requests'"),
    ],
)
def test_maps_of_an_older_kernel(
    net: Network, monkeypatch: pytest.MonkeyPatch, number: int, small: bool, why: str
) -> None:
    create = bpf_maps.create

    def refuse(spec: MapSpec, inner_fd: int = 0) -> int:
        if spec.name == "requests" or (spec.name == "small" and not small):
            raise libbpf.BpfError(number, "bpf_map_create")
        return create(spec, inner_fd)

    monkeypatch.setattr(bpf_maps, "create", refuse)
    with pytest.raises(ModeUnavailable, match=why):
        attach(UPLINK, Mode.TC)
    assert leftovers() == []


# ---- a process that may not use BPF --------------------------------------------------------------


NO_MAP = "the kernel does not let this process make a BPF map (Operation not permitted)"


def test_without_cap_bpf(net: Network) -> None:
    run = net.run("-i", UPLINK, "-n", BEHIND, command=WITHOUT_BPF)
    ready = f"ready: {UPLINK} answers in userspace mode (native: {VETH}; tc: {NO_MAP}), rules: 1\n"
    assert run.ready == ready
    assert net.answers()
    shown = status()
    assert (shown["mode"], shown["program"], shown["loader"]) == ("userspace", None, None)
    assert steps_down() == {"native": VETH, "tc": NO_MAP}
    text = done("status").splitlines()
    assert text[:3] == [
        f"{UPLINK}  userspace, locked by a running `ndxdp run`",
        f"  not       native: {VETH}",
        f"  not       tc: {NO_MAP}",
    ]
    shown_without = call(*WITHOUT_BPF, "status")
    assert (shown_without.code, shown_without.err) == (0, "")
    assert timeless(shown_without.out) == timeless(done("status"))
    assert call(*WITHOUT_BPF, "prefix", "add", "2001:db8::d:0:0:1") == (0, "", "")
    assert net.answers("2001:db8::d:0:0:1")
    ended = run.end()
    assert (ended.code, ended.out) == (0, "")
    # The service's log has it once.
    assert ended.err == f"ndxdp: answering from userspace (native: {VETH}; tc: {NO_MAP})\n"
    assert leftovers() == []


def test_a_common_reason_is_given_once(net: Network, tap: Tap) -> None:
    run = net.run("-i", Tap.name, "-n", BEHIND, command=WITHOUT_BPF)
    assert f"in userspace mode (native, tc: {NO_MAP})" in run.ready
    assert tap.ask(TARGET) == (HOST_MAC, TARGET)
    assert f"  not       native, tc: {NO_MAP}" in done("status").splitlines()
    assert steps_down(Tap.name) == {"native": NO_MAP, "tc": NO_MAP}
    assert run.end().code == 0


def test_userspace_needs_cap_net_raw_alone(net: Network) -> None:
    run = net.run("-i", UPLINK, "--mode", "userspace", "-n", BEHIND, command=WITHOUT_BPF)
    assert run.ready == f"ready: {UPLINK} answers in userspace mode, rules: 1\n"
    assert net.answers()
    assert steps_down() == {}
    assert run.end() == (0, "", "")


def test_without_any_capability(net: Network) -> None:
    output = refused_without_capabilities("run", "-i", UPLINK, "-n", BEHIND)
    assert VETH in output
    assert NO_MAP in output
    assert "CAP_NET_RAW" in output
    output = refused_without_capabilities("run", "-i", UPLINK, "--mode", "userspace", "-n", BEHIND)
    assert "packet socket" in output
    assert "CAP_NET_RAW" in output


def refused_without_capabilities(*words: str) -> str:
    before = network.snapshot()
    result = call(*WITHOUT_ANY, *words)
    refused(result, CANNOT)
    assert leftovers() == []
    assert network.snapshot() == before
    return result.err


@pytest.mark.parametrize("words", [("attach", UPLINK), ("run", "--keep", "-i", UPLINK)])
def test_without_cap_bpf_nothing_stays(net: Network, words: tuple[str, ...]) -> None:
    """Refuse commands that leave no process, without the right to load a program."""
    before = network.snapshot()
    refused(call(*WITHOUT_BPF, *words, "-n", BEHIND), CANNOT, NO_MAP)
    refused(call(*WITHOUT_BPF, *words, "-n", BEHIND, "--mode", "tc"), CANNOT, NO_MAP)
    assert network.snapshot() == before
    assert leftovers() == []


def test_without_cap_bpf_beside_an_attached_program(attached: Network) -> None:
    """Refuse to start without the right to read the pins: two instances would both answer."""
    before = network.snapshot()
    for mode in ("auto", "tc", "userspace"):
        refused(call(*WITHOUT_BPF, "run", "-i", UPLINK, "--mode", mode, "-n", BEHIND), CANNOT)
    assert network.snapshot() == before
    with attached.advertisements() as frames:
        assert attached.answers()
    assert len(frames) == 1


# ---- no BPF file system --------------------------------------------------------------------------


NOWHERE = "there is no BPF file system at "
UNMOUNTED = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'while umount /sys/fs/bpf 2>&-; do :; done; exec "$@"',
    "sh",
    *NDXDP,
)


@pytest.mark.parametrize(
    ("command", "where"),
    [((*NDXDP, "--bpffs", "/nonexistent"), "/nonexistent"), (UNMOUNTED, "/sys/fs/bpf")],
    ids=["elsewhere", "unmounted"],
)
def test_no_bpf_file_system(net: Network, command: tuple[str, ...], where: str) -> None:
    run = net.run("-i", UPLINK, "-n", BEHIND, command=command)
    assert f"in userspace mode (native, tc: {NOWHERE}{where})" in run.ready
    assert net.answers()
    assert steps_down() == {"native": NOWHERE + where, "tc": NOWHERE + where}
    shown = call(*command, "status")
    assert shown.code == 0
    assert timeless(shown.out) == timeless(done("status"))
    assert call(*command, "prefix", "add", "2001:db8::d:0:0:1") == (0, "", "")
    assert net.answers("2001:db8::d:0:0:1")
    ended = run.end()
    assert (ended.code, len(ended.err.splitlines())) == (0, 1)
    assert leftovers() == []

    refused(call(*command, "attach", UPLINK, "-n", BEHIND), CANNOT, NOWHERE + where)
    refused(call(*command, "run", "--keep", "-i", UPLINK), CANNOT, NOWHERE + where)
    refused(call(*command, "run", "-i", UPLINK, "--mode", "tc"), CANNOT, NOWHERE + where)
    assert leftovers() == []


@pytest.mark.parametrize("mode", ["auto", "userspace"])
def test_bpf_file_system_that_is_read_only(net: Network, mode: str) -> None:
    """Answer from userspace if the BPF file system is read-only, as in some containers."""
    read_only = ("unshare", "--mount", "sh", "-c")
    remount = 'mount -o remount,bind,ro /sys/fs/bpf && exec "$@"'
    command = (*read_only, remount, "sh", *NDXDP)
    run = net.run("-i", UPLINK, "--mode", mode, "-n", BEHIND, command=command)
    assert f"{UPLINK} answers in userspace mode" in run.ready
    assert net.answers()
    assert run.end().code == 0
    refused(call(*command, "attach", UPLINK), CANNOT)
