"""Other programs on the interface: ndxdp attaches before them, and reports where it cannot.

The other programs come from lab/tc_programs.c: `take` ends the chain, as Cilium's and Beyla's do;
`leave` does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import packet_socket
from lab.programs import build_tc_programs
from ndxdp.hooks import attachment
from ndxdp.ndp.frame import TYPE_NA, TYPE_NS, icmpv6_type_of, target_of
from ndxdp.netlink import tc_filters
from ndxdp.rules.rule_lists import compile_rules
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.store.directories import Trees
from tests import test_run
from tests.fixtures import network
from tests.fixtures.doctor import bad, follow, notes
from tests.fixtures.features import needs
from tests.fixtures.network import (
    BEHIND,
    BPFFS,
    NDXDP,
    ROUTER,
    ROUTER_LINK,
    TARGET,
    UPLINK,
    Network,
    call,
    done,
    eventually,
    ndxdp,
    sh,
    status,
)
from tests.fixtures.without_links import attach_without_links
from tests.test_run import LINK_CREATE, OBJ_PIN

signal_after = test_run.signal_after
pytestmark = pytest.mark.usefixtures("privacy")

U32 = ("u32", "match", "u32", "0", "0", "flowid", "1:1")
"""A filter that ends the chain for each frame."""

_BPF_F_BEFORE = 1 << 3
_UNPRIVILEGED = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


@contextlib.contextmanager
def loaded(name: str, called: str = "") -> Iterator[Path]:
    """Load and pin a program of tc_programs.c, renamed to `called` if that is not empty."""
    folder = BPFFS / "others"
    with tempfile.TemporaryDirectory() as work:
        made = build_tc_programs()
        if called:
            made = Path(work, "renamed.o")
            compile_as(name, called, "lab/tc_programs.c", made)
            name = called
        sh("bpftool", "prog", "loadall", str(made), str(folder), "type", "classifier")
    try:
        yield folder / name
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def compile_as(function: str, called: str, source: str, made: Path) -> None:
    options = ("-O2", "-target", "bpf", f"-D{function}={called}", "-c", source)
    sh("clang", *options, "-o", str(made))


@contextlib.contextmanager
def tcx(name: str = "take", *, first: bool = True, called: str = "") -> Iterator[int]:
    """Attach a foreign program at tcx, before or after all others; yield its id."""

    class Opts(ctypes.Structure):
        _fields_ = (("size", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("_", ctypes.c_uint32))

    libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    before = network.tc_ids()
    with loaded(name, called) as path:
        program = libbpf.bpf_obj_get(str(path).encode())
        opts = Opts(ctypes.sizeof(Opts), _BPF_F_BEFORE if first else 0)
        ifindex = network.link_state()["ifindex"]
        link = libbpf.bpf_link_create(program, ifindex, 46, ctypes.byref(opts))
        assert link >= 0, link
        os.close(program)
    (number,) = set(network.tc_ids()) - set(before)
    try:
        yield number
    finally:
        os.close(link)
        eventually(lambda: number not in network.tc_ids())


@contextlib.contextmanager
def qdisc() -> Iterator[None]:
    """Add a clsact qdisc that is not ndxdp's."""
    sh("tc", "qdisc", "add", "dev", UPLINK, "clsact")
    try:
        yield
    finally:
        sh("tc", "qdisc", "delete", "dev", UPLINK, "clsact")


def add_filter(*words: str, program: str = "take") -> None:
    """Add a filter at ingress; without a kind, one that runs a program of tc_programs.c."""
    kind: tuple[str, ...] = ()
    if "u32" not in words:
        kind = ("bpf", "da", "obj", str(build_tc_programs()), "sec", f"tc/{program}")
    sh("tc", "filter", "add", "dev", UPLINK, "ingress", *words, *kind)


def our_place() -> tuple[int, int]:
    """Return priority and handle of ndxdp's filter, as tc shows them."""
    number = network.program_id()
    (line,) = (each for each in network.filters() if re.search(rf" id {number}\b", each))
    shown = re.search(r"pref (\d+) .*handle (0x[0-9a-f]+)", line)
    assert shown, line
    return int(shown[1]), int(shown[2], 16)


def before() -> list[tuple[str, str]]:
    return [(each["hook"], each["name"]) for each in status()["programs_before"]]


def metric() -> dict[str, int]:
    """Return `ndxdp_programs_before` by hook."""
    found = re.findall(
        r'^ndxdp_programs_before\{hook="(\w+)",interface="up0"\} (\d+)\.0$',
        done("metrics"),
        re.MULTILINE,
    )
    return {hook: int(count) for hook, count in found}


def is_alone() -> None:
    """Assert that status, doctor and metrics report no program before ndxdp's."""
    shown = status()
    assert (shown["programs_before"], shown["warnings"]) == ([], [])
    assert metric() == {"xdp": 0, "tcx": 0, "tc": 0}
    assert [each for each in bad() if each["check"] == "program"] == []


def doctor_cure(words: str) -> str:
    """Check that doctor has one finding on the program; return its cure."""
    (found,) = (each for each in bad() if each["check"] == "program")
    assert (found["level"], words in found["what"]) == ("warning", True)
    return found["cure"]


# ---- tcx ----------------------------------------------------------------------------------------


@needs("tcx")
def test_another_program_was_there_first(net: Network) -> None:
    with tcx() as theirs:
        done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
        assert net.answers()
        assert network.tc_ids() == [network.program_id(), theirs]
        is_alone()
        done("detach", UPLINK)
        assert network.tc_ids() == [theirs]


@needs("tcx")
def test_another_program_attaches_before_ndxdp(attached: Network) -> None:
    """Name a program that attached before ndxdp; doctor's command puts ndxdp first again."""
    with tcx() as theirs:
        assert attached.silent()
        assert before() == [("tcx", "take")]
        warning = (
            f"tcx program 'take' (id {theirs}) may take solicitations before ndxdp sees them;"
            f" `ndxdp attach {UPLINK}` puts ndxdp first"
        )
        assert status()["warnings"] == [warning]
        assert f"  WARNING   {warning}\n" in done("status")
        explained = ndxdp("explain", TARGET)
        assert "reason   answered" in explained.out
        assert f"{UPLINK}: tcx program 'take' (id {theirs}) may take solicit" in explained.err
        assert metric() == {"xdp": 0, "tcx": 1, "tc": 0}
        cure = doctor_cure(f"tcx program 'take' (id {theirs}) may take solicitations")
        assert cure == f"ndxdp attach {UPLINK}"
        follow(cure)
        assert attached.answers()
        assert network.tc_ids() == [network.program_id(), theirs]
        is_alone()


@needs("tcx")
def test_another_program_is_detached_again(attached: Network) -> None:
    with tcx():
        assert attached.silent()
    assert attached.answers()
    is_alone()


@needs("tcx")
def test_renewing_comes_first_and_loses_nothing(attached: Network) -> None:
    """Renew at the first place without losing an answer or sending one twice."""
    with packet_socket(ROUTER, ROUTER_LINK) as packets:
        packets.setblocking(False)
        with contextlib.ExitStack() as others, attached.solicited_continuously() as missed:
            for count in range(4):
                others.enter_context(tcx("leave"))
                done("attach", UPLINK)
                assert network.tc_ids()[0] == network.program_id()
                assert len(network.tc_ids()) == 2 + count
        asked, answers = count_frames(packets)
    assert missed == []
    assert 0 < asked == answers


def count_frames(packets: socket.socket) -> tuple[int, int]:
    """Return the number of solicitations that left the router, and of answers that came."""
    asked = answers = 0
    target = socket.inet_pton(socket.AF_INET6, TARGET)
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, address = packets.recvfrom(65536)
            if target_of(frame) != target:
                continue
            outgoing = address[2] == 4  # PACKET_OUTGOING
            asked += outgoing and icmpv6_type_of(frame) == TYPE_NS
            answers += not outgoing and icmpv6_type_of(frame) == TYPE_NA
    return asked, answers


@needs("tcx")
@pytest.mark.parametrize("moment", [LINK_CREATE, OBJ_PIN], ids=["attached", "pinned"])
def test_a_renewal_that_is_killed_leaves_an_answer(
    attached: Network, signal_after: Path, moment: tuple[str, str]
) -> None:
    """Keep the old or the new program if a renewal is killed; `attach` repairs the rest."""
    when = dict(zip(("AFTER_CALL", "AFTER_NUMBER"), moment, strict=True))
    preload = {"LD_PRELOAD": str(signal_after), "SIGNAL": str(int(signal.SIGKILL))}
    with tcx("leave") as theirs:
        killed = call(*NDXDP, "attach", UPLINK, env=when | preload)
        assert killed.code == -signal.SIGKILL
        assert attached.answers()
        assert status()["attached"]
        done("attach", UPLINK)
        eventually(lambda: network.tc_ids() == [network.program_id(), theirs])
        assert attached.answers()
        is_alone()


@contextlib.contextmanager
def booted_by_systemd() -> Iterator[None]:
    """Simulate a boot by systemd for sd_booted(3); /run is private."""
    mark = Path("/run/systemd/system")
    mark.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(mark.parent)


@needs("tcx")
@pytest.mark.parametrize("on_stop", ["keep", "detach"])
def test_a_daemon_comes_first_when_it_starts(net: Network, tmp_path: Path, on_stop: str) -> None:
    """Take the first place at the start only; status names a program that takes it later."""
    written = tmp_path / "ndxdp.toml"
    written.write_text(
        f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\non_stop = "{on_stop}"\n'
        f'[[interface.prefix]]\nprefix = "{BEHIND}"\n'
    )
    with tcx("take", first=False):
        daemon = net.run("-c", str(written))
        assert net.answers()
        is_alone()
        with tcx() as theirs:
            assert net.silent()
            (warning,) = status()["warnings"]
            assert f"tcx program 'take' (id {theirs})" in warning
            assert "a restart of ndxdp puts ndxdp first" in warning
            with booted_by_systemd():
                assert doctor_cure("tcx program 'take'") == "systemctl restart ndxdp"
            daemon.end(signal.SIGTERM)
            daemon = net.run("-c", str(written))
            assert net.answers()
            assert network.tc_ids()[0] == network.program_id()
            is_alone()
        daemon.end(signal.SIGTERM)
    if on_stop == "keep":
        done("detach", UPLINK)


@needs("tcx")
def test_a_run_is_first_too(net: Network) -> None:
    with tcx():
        run = net.run("-i", UPLINK, "--mode", "tc", "-n", BEHIND)
        assert net.answers()
        is_alone()
        assert run.end() == (0, "", "")


@needs("tcx")
def test_an_unprivileged_reader_sees_no_claim_about_tcx(attached: Network) -> None:
    """Report nothing about tcx without CAP_NET_ADMIN, because the kernel shows nothing."""
    with tcx():
        shown = call(*_UNPRIVILEGED, *NDXDP, "status", "--json")
        (interface,) = shown.json()["interfaces"]
        assert (shown.code, interface["attached"]) == (0, True)
        assert (interface["programs_before"], interface["warnings"]) == (None, [])
        scraped = call(*_UNPRIVILEGED, *NDXDP, "metrics")
        assert (scraped.code, "ndxdp_programs_before{" in scraped.out) == (0, False)
        assert 'ndxdp_attached{interface="up0"} 1.0' in scraped.out


# ---- clsact -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("pref", "7", "protocol", "all"), id="pref 7"),
        pytest.param(("pref", "1", "protocol", "all"), id="pref 1, shared"),
        pytest.param(("protocol", "ipv6"), id="the kernel's choice"),
        pytest.param(("pref", "2", "protocol", "all", *U32), id="u32"),
    ],
)
def test_a_filter_was_there_first(net: Network, words: tuple[str, ...]) -> None:
    with qdisc():
        add_filter(*words)
        theirs = network.filters()
        attach_without_links("tc", BEHIND)
        assert our_place() == (1, attachment.TC_HANDLE)
        assert net.answers()
        assert set(theirs) < set(network.filters())
        is_alone()
        done("detach", UPLINK)
        assert network.filters() == theirs


def test_a_filter_of_another_protocol_is_not_in_the_way(net: Network) -> None:
    """Ignore the priorities of other protocols: an IPv4 filter sees no solicitation."""
    with qdisc():
        add_filter("pref", "1", "protocol", "ip", *U32)
        attach_without_links("tc", BEHIND)
        assert our_place()[0] == 2
        assert net.answers()
        is_alone()
        done("detach", UPLINK)


def test_no_place_before_it_is_free(net: Network) -> None:
    """Warn if a u32 filter has the first priority, which different kinds cannot share."""
    with qdisc():
        add_filter("pref", "1", "protocol", "all", *U32)
        theirs = network.filters()
        with pytest.MonkeyPatch.context() as patch:
            found: list[str] = []
            patch.setattr(
                "ndxdp.store.instance.log.warning", lambda form, *words: found.append(form % words)
            )
            attach_a_filter(BEHIND)
        assert found == [f"{UPLINK}: tc filter 'u32' may take solicitations before ndxdp sees them"]
        assert our_place()[0] == 2
        assert net.silent()
        assert set(theirs) < set(network.filters())
        assert before() == [("tc", "u32")]
        assert metric() == {"xdp": 0, "tcx": 0, "tc": 1}
        place = our_place()
        attach_without_links("tc")
        assert our_place() == place
        done("detach", UPLINK)
        assert network.filters() == theirs


def test_a_filter_is_added_before_ndxdp(net: Network) -> None:
    """Add the renewed filter at the front of its priority, where the newest one runs first."""
    attach_without_links("tc", BEHIND)
    add_filter("pref", "1", "protocol", "all")
    assert net.silent()
    ((hook, name),) = before()
    assert (hook, "take" in name) == ("tc", True)
    assert doctor_cure("tc filter") == f"ndxdp attach {UPLINK}"
    attach_without_links("tc")
    assert our_place() == (1, attachment.TC_HANDLE + 1)
    assert net.answers()
    is_alone()
    add_filter("pref", "1", "protocol", "all", program="leave")
    with net.solicited_continuously() as missed:
        attach_without_links("tc")
    assert missed == []
    assert our_place() == (1, attachment.TC_HANDLE)
    is_alone()
    done("detach", UPLINK)
    assert network.clsact()  # of ndxdp, but in use
    assert len([line for line in network.filters() if " id " in line]) == 2
    sh("tc", "qdisc", "delete", "dev", UPLINK, "clsact")


def test_moving_a_filter_keeps_the_record_of_the_qdisc(net: Network) -> None:
    attach_without_links("tc", BEHIND)
    add_filter("pref", "1", "protocol", "all")
    attach_without_links("tc")
    sh(*f"tc filter delete dev {UPLINK} ingress pref 1 handle 1 protocol all bpf".split())
    done("detach", UPLINK)
    assert network.leftovers() == []


def attach_a_filter(*prefixes: str) -> None:
    """Attach in this process as on a kernel without BPF links."""
    request = AttachRequest(UPLINK, compile_rules(prefixes), AttachOptions(links=False))
    Session.attach(Trees(), request).close()


def attach_as_before(*prefixes: str) -> None:
    """Attach a filter as an older ndxdp did, always at one priority."""
    with pytest.MonkeyPatch.context() as patch:
        place = attachment._Place(0x6E64, 0x6E64)
        patch.setattr(attachment, "_best", lambda filters: place)
        attach_a_filter(*prefixes)


def test_the_place_of_an_older_version(net: Network) -> None:
    """Find the filter of an older ndxdp; move it only if another filter is before it."""
    attach_as_before(BEHIND)
    assert our_place() == (0x6E64, 0x6E64)
    assert net.answers()
    old = network.program_id()
    attach_without_links("tc")
    assert our_place() == (0x6E64, 0x6E64)
    assert network.tc_ids() == [network.program_id()] != [old]
    add_filter("pref", "7", "protocol", "all")
    assert net.silent()
    attach_without_links("tc")
    assert our_place() == (1, 0x6E64)
    assert net.answers()
    is_alone()
    sh("tc", "filter", "delete", "dev", UPLINK, "ingress", "pref", "7")
    done("detach", UPLINK)
    assert network.leftovers() == []
    attach_as_before(BEHIND)
    done("detach", UPLINK)
    assert network.leftovers() == []


@needs("tcx")
def test_a_filter_of_ours_is_behind_tcx(net: Network) -> None:
    """Move from clsact to tcx on renewal if a foreign tcx program is there, which runs first."""
    attach_without_links("tc", BEHIND)
    with tcx() as theirs:
        assert net.silent()
        assert before() == [("tcx", "take")]
        follow(doctor_cure("tcx program 'take'"))
        assert network.tc_ids() == [network.program_id(), theirs]
        assert not network.clsact()
        assert net.answers()
        is_alone()
        done("detach", UPLINK)
    assert network.leftovers() == []


@needs("tcx")
def test_a_filter_is_behind_our_tcx(attached: Network) -> None:
    with qdisc():
        add_filter("pref", "1", "protocol", "all", *U32)
        assert attached.answers()
        is_alone()


def test_a_filter_is_shown_to_unprivileged_users(net: Network) -> None:
    """Report an attached filter to unprivileged users, who cannot see tcx programs."""
    attach_without_links("tc", BEHIND)
    shown = call(*_UNPRIVILEGED, *NDXDP, "status", "--json")
    assert (shown.code, shown.json()["interfaces"][0]["attached"]) == (0, True), shown
    done("detach", UPLINK)


def test_filters_are_read_as_tc_shows_them(net: Network) -> None:
    """List filters in the order in which they run, with all parts of their places."""
    with qdisc():
        for words in (
            ("pref", "9", "protocol", "ip", *U32),
            ("pref", "3", "protocol", "all"),
            ("pref", "3", "protocol", "all", "handle", "7"),
            ("pref", "5", "protocol", "ipv6", *U32),
            ("pref", "2", "chain", "4", "protocol", "all", *U32),
        ):
            add_filter(*words)
        found = tc_filters.at_ingress(network.link_state()["ifindex"])
        assert [(each.priority, each.kind, each.sees_ipv6) for each in found] == [
            (3, "bpf", True),
            (3, "bpf", True),
            *[(5, "u32", True)] * 2,  # a hash table, and the filter in it
            *[(9, "u32", False)] * 2,
        ]
        bpf = [each for each in found if each.kind == "bpf"]
        assert [each.handle for each in bpf] == [7, 1]
        assert [each.program for each in bpf] == network.tc_ids()
    assert tc_filters.at_ingress(network.link_state()["ifindex"]) == []
    assert tc_filters.at_ingress(99999) == []


# ---- XDP ----------------------------------------------------------------------------------------


@pytest.fixture
def dispatcher(tmp_path: Path) -> Path:
    """Compile an XDP program with the name of libxdp's dispatcher."""
    made = tmp_path / "dispatcher.o"
    compile_as("pass", "xdp_dispatcher", "lab/xdp_pass.c", made)
    return made


@needs("xdp")
@pytest.mark.parametrize("theirs", ["xdpgeneric", "xdpdrv"])
def test_a_libxdp_dispatcher(net: Network, dispatcher: Path, theirs: str) -> None:
    """Name the dispatcher in the refusal; tc works behind it."""
    sh("ip", "link", "set", "dev", UPLINK, theirs, "obj", str(dispatcher), "sec", "xdp")
    (number,) = network.xdp_ids()
    called = f"libxdp dispatcher 'xdp_dispatcher' (id {number})"
    for mode in ("native", "generic"):
        refused = ndxdp("attach", UPLINK, "-q", "--mode", mode)
        assert refused.code == 1
        assert f"{UPLINK} already runs a {called}, which ndxdp does not replace" in refused.err
        assert "xdp-loader status" in refused.err
    assert any(called in note for note in notes())
    done("attach", UPLINK, "-n", BEHIND)
    assert net.answers()
    shown = status()
    assert shown["mode"] == "tc"
    assert [each["hook"] for each in shown["programs_before"]] == ["xdp"]
    assert shown["warnings"] == []
    sentence = f"{called} sees each frame first: ndxdp answers the solicitations that it passes"
    assert f"  before    {sentence}\n" in done("status")
    assert metric() == {"xdp": 1, "tcx": 0, "tc": 0}
    assert any(
        expected.startswith(f"{called} sees each frame of {UPLINK} first") for expected in notes()
    )
    done("detach", UPLINK)
    sh("ip", "link", "set", "dev", UPLINK, theirs, "off")


@needs("xdp")
def test_xdp_is_before_userspace_and_tc_is_not(net: Network, dispatcher: Path) -> None:
    run = net.run("-i", UPLINK, "--mode", "userspace", "-n", BEHIND)
    with qdisc():
        add_filter("pref", "1", "protocol", "all")
        assert net.answers()
        is_alone()
        sh("ip", "link", "set", "dev", UPLINK, "xdpgeneric", "obj", str(dispatcher), "sec", "xdp")
        assert before() == [("xdp", "xdp_dispatcher")]
        assert status()["warnings"] == []
        sh("ip", "link", "set", "dev", UPLINK, "xdpgeneric", "off")
    assert run.end() == (0, "", "")


@needs("xdp")
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_no_program_is_before_xdp(net: Network, mode: str) -> None:
    net.pass_at_router()
    assert ndxdp("attach", UPLINK, "-q", "--mode", mode, "-n", BEHIND).code == 0
    with qdisc():
        add_filter("pref", "1", "protocol", "all", *U32)
        assert net.answers()
        is_alone()
    done("detach", UPLINK)
