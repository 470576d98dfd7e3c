"""Doctor continues if one check is impossible, and reports that as a finding.

Each test removes something that a check reads: a link, a library, a file of /proc, a right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.doctor import bad, conf, findings, follow
from tests.fixtures.network import (
    BEHIND,
    FILES,
    NDXDP,
    PINS,
    ROUTER,
    TARGET,
    UPLINK,
    Done,
    Network,
    call,
    connect,
    done,
    eventually,
    ndxdp,
    python,
    remove_instance,
    sh,
)

DOCTOR = [*NDXDP, "doctor"]

Findings = list[dict[str, str]]

_RUN = "import sys, ndxdp.cli.main\nsys.argv[1:] = {args!r}\nndxdp.cli.main.main()\n"


@pytest.fixture
def answering(net: Network) -> Iterator[Network]:
    """Yield a host that forwards and answers, at tc."""
    conf("forwarding", 1, "all")
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    yield net
    remove_instance()
    conf("forwarding", 0, "all")


def findings_of(result: Done, interface: str = UPLINK) -> Findings:
    """Return the findings on an interface, and check the exit code; stderr must be empty."""
    assert result.err == "", result
    report: dict[str, Any] = json.loads(result.out)
    assert result.code == report["exit_code"]
    (one,) = [each for each in report["interfaces"] if each["interface"] == interface]
    found: Findings = one["findings"]
    return found


def with_code(code: str, *args: str) -> Findings:
    """Return the findings of a doctor that runs some lines of Python first."""
    words = ["doctor", UPLINK, "--json", *args]
    return findings_of(python(f"{code}\n{_RUN.format(args=words)}"))


def hidden(where: str, *args: str) -> Findings:
    """Return the findings of a doctor that finds a directory empty."""
    script = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
    command = ("unshare", "--mount", "sh", "-c", script, where, *DOCTOR, UPLINK, "--json", *args)
    return findings_of(call(*command))


def unseen(found: Findings) -> list[str]:
    return [each["what"] for each in found if each["level"] == "unseen"]


def rest(found: Findings, *checks: str) -> Findings:
    """Return the findings of all other checks."""
    return [each for each in found if each["check"] not in checks]


# ---- each check fails alone ----------------------------------------------------------------------

_FAILS = """
import ndxdp.doctor.{module} as module
def gather(*args, **named):
    raise {error}
module.gather = gather
"""
_NEED_RULES = ("arrival", "reception", "listeners", "firewall", "exporter", "limits")


@pytest.mark.parametrize(
    ("module", "also"),
    [
        ("manager", ()),
        ("forwarding", ()),
        ("gateway", ()),
        ("probe", ("gateway",)),
        ("source", ()),
        ("reception", ()),
        ("program", _NEED_RULES),
        ("arrival", ()),
        ("listeners", ()),
        ("firewall", ()),
        ("exposure", ()),
        ("containers", ("engine",)),
        ("etcd", ()),
        ("fleet", ()),
        ("limits", ()),
    ],
)
def test_a_check_that_fails_is_a_finding(
    answering: Network, module: str, also: tuple[str, ...], tmp_path: Path
) -> None:
    options = ["--watch", "0.1", "--docker-socket", str(tmp_path / "none")]
    options += ["--probe"] if module == "probe" else []
    check = {"exposure": "exporter"}.get(module, module)
    before = findings(*options)
    for error in ("OSError(13, 'Permission denied')", "KeyError('no such thing')"):
        found = with_code(_FAILS.format(module=module, error=error), *options)
        (finding,) = [each for each in found if each["check"] == check]
        assert finding["level"] == "unseen"
        assert finding["what"].startswith("cannot check ")
        assert finding["what"].endswith(
            ": permission denied" if "OSError" in error else ": KeyError: 'no such thing'"
        )
        assert rest(found, check, *also) == rest(before, check, *also)


def test_the_hint_of_an_error_is_kept(answering: Network) -> None:
    code = "from ndxdp.errors import NdxdpError\n" + _FAILS.format(
        module="limits", error="NdxdpError('they are away', 'look there')"
    )
    finding = with_code(code)[-1]
    assert finding["what"] == "cannot check the limits: they are away"
    assert finding["why"] == "look there"


def test_the_last_line_makes_no_claim_about_unseen_checks(answering: Network) -> None:
    code = _FAILS.format(module="limits", error="OSError(13, 'Permission denied')")
    shown = python(f"{code}\n{_RUN.format(args=['doctor'])}")
    assert shown.code == 0
    assert shown.out.splitlines()[-1] == "all is well, as far as could be seen"


# ---- facts that the kernel does not show --------------------------------------------------------


def test_no_sysctls(answering: Network) -> None:
    found = hidden("/proc/sys/net")
    assert unseen(found) == ["cannot check forwarding: cannot read /proc/sys/net/ipv6"]
    assert rest(found, "forwarding") == rest(findings(), "forwarding")


def test_no_proc(answering: Network) -> None:
    checks = {each["check"] for each in hidden("/proc") if each["level"] == "unseen"}
    unseen = {"forwarding", "daemon", "program", "share", "etcd", "fleet", "listeners", "exporter"}
    assert checks == unseen


DENIED = """
import errno, socket
class Socket(socket.socket):
    def __init__(self, family=-1, *args, **named):
        if family == socket.{family}:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        super().__init__(family, *args, **named)
socket.socket = Socket
"""


def test_no_netlink(answering: Network) -> None:
    """Continue without AF_NETLINK, as in a sandbox."""
    found = with_code(DENIED.format(family="AF_NETLINK"))
    assert {each["level"] for each in found} == {"note", "unseen"}
    assert f"ndxdp answers on {UPLINK} in tc mode" in [each["what"] for each in found]
    assert found[0]["check"] == "link"
    assert {"forwarding", "gateway", "source"} <= {
        each["check"] for each in found if each["level"] == "unseen"
    }


def test_a_kernel_without_ipv6(answering: Network) -> None:
    code = DENIED.format(family="AF_INET6")
    code += "from pathlib import Path\nimport ndxdp.netlink.sysctl as s\ns._ROOT = Path('/none')\n"
    (found,) = [each for each in with_code(code) if each["level"] == "failure"]
    assert found["what"] == "this kernel has no IPv6"
    follow(found["cure"])


def test_no_capabilities(answering: Network) -> None:
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    found = findings_of(call(*bare, *DOCTOR, UPLINK, "--json", "--probe", "--watch", "0.1"))
    assert {each["check"] for each in found if each["level"] == "unseen"} >= {
        "probe",
        "arrival",
        "firewall",
    }
    assert {each["level"] for each in found} == {"note", "unseen"}
    (firewall,) = [each for each in found if each["check"] == "firewall"]
    assert (firewall["why"], firewall["cure"]) == ("run this as root", "")


# ---- libbpf --------------------------------------------------------------------------------------

_NO_LIBBPF = """
import ctypes
load = ctypes.CDLL
def no(name, *args, **named):
    if name and "bpf" in name:
        raise OSError(f"{name}: cannot open shared object file")
    return load(name, *args, **named)
ctypes.CDLL = no
"""


def test_no_libbpf(answering: Network) -> None:
    found = with_code(_NO_LIBBPF)
    (finding,) = [each for each in found if each["level"] not in ("note", "unseen")]
    assert (finding["check"], finding["level"]) == ("program", "warning")
    assert finding["what"].endswith(f"program on {UPLINK}: libbpf.so.1 is not installed")
    assert finding["cure"] == "apt install libbpf1"
    others = ("program", "reception", "limits")
    assert rest(found, *others) == rest(findings(), *others)


def test_no_libbpf_and_nothing_attached(net: Network) -> None:
    conf("forwarding", 1, "all")
    found = with_code(_NO_LIBBPF)
    (finding,) = [each for each in found if each["level"] == "warning"]
    assert finding["what"] == f"ndxdp can answer on {UPLINK} in userspace mode only"
    assert finding["cure"] == "apt install libbpf1"
    conf("forwarding", 0, "all")


# ---- missing links -------------------------------------------------------------------------------


@pytest.fixture
def other(answering: Network) -> Iterator[str]:
    """Add a second link, with a default route."""
    sh("ip", "link", "add", "other0", "type", "veth", "peer", "name", "far0")
    sh("ip", "link", "set", "far0", "up")
    sh("ip", "link", "set", "other0", "up")
    sh("ip", "-6", "address", "add", "2001:db8:7::2/64", "dev", "other0", "nodad")
    sh("ip", "-6", "route", "add", "default", "via", "fe80::7", "dev", "other0", "metric", "9")
    yield "other0"
    sh("ip", "link", "delete", "other0")


def interfaces(result: Done) -> list[str]:
    assert result.err == "", result
    return [each["interface"] for each in json.loads(result.out)["interfaces"]]


def test_a_link_that_was_deleted(other: str) -> None:
    sh("ip", "link", "delete", UPLINK)
    result = ndxdp("doctor", "--json")
    assert interfaces(result) == [UPLINK, other]
    assert findings_of(ndxdp("doctor", UPLINK, "--json")) == findings_of(result)
    (finding,) = findings_of(result)
    assert (finding["check"], finding["level"]) == ("link", "failure")
    assert finding["what"] == f"there is no interface '{UPLINK}': it was deleted or renamed"
    assert any(each["check"] == "source" for each in findings_of(result, other))
    follow(finding["cure"])
    again = ndxdp("doctor", "--json")
    assert interfaces(again) == [other]
    assert not PINS.exists()


def test_a_link_that_was_deleted_comes_back(answering: Network) -> None:
    sh("ip", "link", "delete", UPLINK)
    assert findings_of(ndxdp("doctor", "--json"))[0]["level"] == "failure"
    eventually(lambda: answering.at_router("ip", "link", "show", "eth0").code != 0)
    connect()
    assert "ndxdp attach" in bad()[0]["cure"]
    done("attach", UPLINK, "--mode", "tc")
    assert bad() == []


def test_a_link_that_a_daemon_waits_for(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    prefix = f'[[interface.prefix]]\nprefix = "{BEHIND}"\n'
    file.write_text(f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\n{prefix}')
    running = net.run("-c", str(file))
    try:
        assert net.answers(TARGET)
        sh("ip", "link", "delete", UPLINK)
        (finding,) = findings_of(ndxdp("doctor", UPLINK, "--json"))
        assert (finding["check"], finding["level"]) == ("link", "failure")
        assert "a running daemon or `ndxdp attach` uses" in finding["why"]
        eventually(lambda: net.at_router("ip", "link", "show", "eth0").code != 0)
        connect()
        eventually(lambda: net.answers(TARGET))
        conf("forwarding", 1, "all")
        assert bad() == []
    finally:
        running.end()
        remove_instance()
        conf("forwarding", 0, "all")


def test_a_link_that_was_renamed(answering: Network) -> None:
    for line in (f"{UPLINK} down", f"{UPLINK} name up1", "up1 up"):
        sh("ip", "link", "set", *line.split())
    try:
        (finding,) = findings_of(ndxdp("doctor", "--json"))
        assert (finding["check"], finding["level"]) == ("link", "warning")
        assert finding["what"] == f"the interface '{UPLINK}' is called up1 now"
        follow(finding["cure"])
        assert interfaces(ndxdp("doctor", "--json")) == ["up1"]
        assert answering.answers(TARGET)
    finally:
        remove_instance("up1")
        sh("ip", "link", "delete", "up1")


def test_a_link_of_another_namespace(answering: Network) -> None:
    """Give a command that enters the other namespace, which shares the BPF file system."""
    result = answering.at_router(*DOCTOR, "--json")
    (finding,) = findings_of(result)
    assert (finding["check"], finding["level"]) == ("link", "unseen")
    assert finding["what"] == f"cannot check {UPLINK}: it is in another network namespace"
    assert finding["cure"].startswith("nsenter --net=/proc/")
    assert finding["cure"].endswith(f"ndxdp doctor {UPLINK}")
    follow(finding["cure"])


def test_a_link_of_the_same_name_in_another_namespace(answering: Network) -> None:
    at = answering.at_router
    assert at("ip", "link", "add", UPLINK, "type", "veth", "peer", "name", "far1").code == 0
    assert at("ip", "link", "set", UPLINK, "up").code == 0
    found = findings_of(at(*DOCTOR, UPLINK, "--json"))
    whats = [each["what"] for each in found]
    assert (
        f"ndxdp answers on {UPLINK} of another network namespace, not on {UPLINK} of this one"
        in whats
    )
    assert f"ndxdp answers on {UPLINK} in tc mode" not in whats
    assert f"{UPLINK} is not in allmulti" not in whats


def test_pins_of_a_named_namespace(net: Network) -> None:
    """Enter the other namespace by its name if it has one."""
    done_there = net.at_router(*NDXDP, "attach", "eth0", "--mode", "tc", "-n", BEHIND)
    assert done_there.code == 0, done_there
    try:
        (finding,) = findings_of(ndxdp("doctor", "--json"), "eth0")
        assert finding["cure"] == f"nsenter --net=/run/netns/{ROUTER} ndxdp doctor eth0"
    finally:
        assert net.at_router(*NDXDP, "detach", "eth0").code == 0


@pytest.mark.parametrize("check", ["manager", "source", "limits"])
def test_a_link_that_is_deleted_during_the_checks(answering: Network, check: str) -> None:
    code = (
        f"import subprocess, ndxdp.doctor.{check} as module\nlook = module.gather\n"
        "def gather(*args, **named):\n"
        f"    subprocess.run(['ip', 'link', 'delete', '{UPLINK}'])\n"
        "    return look(*args, **named)\n"
        "module.gather = gather\n"
    )
    found = with_code(code, "--watch", "0.1")
    assert found[-1]["check"] == "link"
    assert found[-1]["what"] == f"{UPLINK} was deleted during the examination"
    assert "program" in {each["check"] for each in found}


def test_a_link_that_is_down_is_examined(answering: Network) -> None:
    sh("ip", "link", "set", UPLINK, "down")
    found = findings()
    assert [each["what"] for each in found if each["level"] == "failure"] == [f"{UPLINK} is down"]
    assert f"ndxdp answers on {UPLINK} in tc mode" in [each["what"] for each in found]


def test_words_that_name_no_interface(answering: Network) -> None:
    for name, code in (("eth9", 1), ("a b", 2)):
        result = ndxdp("doctor", name)
        assert (result.code, result.out) == (code, "")
        assert "hint: " in result.err


# ---- pins and files ------------------------------------------------------------------------------


def test_pins_of_another_version(answering: Network) -> None:
    (pins,) = PINS.glob("v*")
    former = pins.with_name("v1")
    pins.rename(former)
    (finding,) = bad()
    assert (finding["check"], finding["level"]) == ("program", "warning")
    assert "an ndxdp of another ABI version (v1" in finding["what"]
    assert finding["cure"] == f"rm -r {former / UPLINK}"
    follow(finding["cure"])
    assert bad() == []
    former.rmdir()


@pytest.mark.parametrize("name", ["settings", "groups", "rules"])
@pytest.mark.parametrize("damage", ["cut short", "filled", "away"])
def test_damaged_files_of_userspace(net: Network, name: str, damage: str) -> None:
    conf("forwarding", 1, "all")
    running = net.run("-i", UPLINK, "--mode", "userspace", "-n", BEHIND, "-n", TARGET)
    running.close()
    try:
        (path,) = FILES.glob(f"v*/{UPLINK}/{name}")
        size = path.stat().st_size
        if damage == "away":
            path.unlink()
        else:
            path.write_bytes(b"\xff" * (size if damage == "filled" else max(size - 1, 1)))
        found = findings_of(ndxdp("doctor", UPLINK, "--json"))
        (finding,) = [each for each in found if each["check"] == "program"]
        assert finding["level"] in (("failure", "unseen") if damage == "filled" else ("failure",))
        assert {"gateway", "source"} <= {each["check"] for each in found}
        assert finding["cure"] == f"ndxdp detach {UPLINK}"
        follow(finding["cure"])
        assert bad() == []
    finally:
        ndxdp("detach", UPLINK)
        conf("forwarding", 0, "all")


def test_damaged_files_that_a_process_holds(net: Network) -> None:
    """Print no cure while a process uses the files, because `detach` would refuse."""
    running = net.run("-i", UPLINK, "--mode", "userspace", "-n", BEHIND)
    try:
        (path,) = FILES.glob(f"v*/{UPLINK}/rules")
        os.truncate(path, 9)  # a removed file would be restored
        (finding,) = [
            each
            for each in findings_of(ndxdp("doctor", UPLINK, "--json"))
            if each["check"] == "program"
        ]
        assert (finding["level"], finding["cure"]) == ("failure", "")
    finally:
        running.close()
        ndxdp("detach", UPLINK)


def test_a_file_where_a_directory_should_be(net: Network) -> None:
    conf("forwarding", 1, "all")
    PINS.mkdir()
    FILES.write_text("")
    try:
        assert [each["level"] for each in findings_of(ndxdp("doctor", "--json"))].count(
            "failure"
        ) == 0
    finally:
        os.unlink(FILES)
        PINS.rmdir()
        conf("forwarding", 0, "all")
