"""Address hygiene where no router solicits: venet, tun, lo."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from ndxdp.upstream.deprecate import LABEL
from tests.fixtures.deprecated import (
    ADDRESSES,
    NO_MAC,
    ONE,
    THREE,
    TWO,
    VENET,
    deprecated,
    reload,
    venet,
    write,
)
from tests.fixtures.network import (
    BEHIND,
    BPFFS,
    FILES,
    UPLINK,
    Network,
    Running,
    call,
    done,
    eventually,
    ndxdp,
    sh,
)
from tests.fixtures.tap import ARPHRD_VOID, tun


def source() -> str:
    """Return the address from which the kernel would send to the Internet."""
    shown = json.loads(sh("ip", "-j", "-6", "route", "get", "2001:4860::1"))
    return str(shown[0]["prefsrc"])


def statuses() -> dict[str, Any]:
    found: dict[str, Any] = ndxdp("status", "--json").json()
    return found


# ---- an interface that no router solicits on -----------------------------------------------------


@pytest.mark.parametrize("kind", [ARPHRD_VOID, None], ids=["void", "none"])
def test_addresses_are_kept_without_a_mac(
    restored_net: Network, file: Path, kind: int | None
) -> None:
    with venet(kind):
        assert source() != ONE
        running = restored_net.run("-c", str(write(file, (VENET, ADDRESSES))))
        assert running.ready == (
            f"ready: {VENET} keeps its addresses; nothing is answered: {NO_MAC}\n"
        )
        eventually(lambda: deprecated() == {TWO, THREE})
        assert source() == ONE
        # ndxdp follows if a manager sets a lifetime again, or adds an address.
        sh("ip", "-6", "address", "change", f"{TWO}/128", "dev", VENET)
        sh("ip", "-6", "address", "add", "2001:db8:7::9/128", "dev", VENET)
        eventually(lambda: deprecated() == {TWO, THREE, "2001:db8:7::9"})
        ended = running.end()
        assert ended.code == 0
        assert f"ndxdp answers nothing on {VENET}: {NO_MAC}" in ended.err
        assert f"{VENET}: {TWO} is deprecated now" in ended.err


def test_without_a_bpf_file_system(restored_net: Network, file: Path) -> None:
    """Keep the addresses in containers of OpenVZ, which have no BPF."""
    with venet():
        sh("umount", str(BPFFS))
        try:
            running = restored_net.run("-c", str(write(file, (VENET, ADDRESSES))))
            eventually(lambda: deprecated() == {TWO, THREE})
            assert f"{VENET}  nothing is answered: {NO_MAC}\n" in done("status")
            assert [each["interface"] for each in statuses()["addresses"]] == [VENET]
            assert done("status", VENET).startswith(f"{VENET}  nothing is answered")
            assert running.end().code == 0
            done("detach", VENET)
            assert deprecated() == set()
        finally:
            sh("mount", "-t", "bpf", "bpf", str(BPFFS))


def test_the_loopback_interface(restored_net: Network, file: Path) -> None:
    try:
        for text in (ONE, TWO):
            sh("ip", "-6", "address", "add", f"{text}/128", "dev", "lo")
        running = restored_net.run("-c", str(write(file, ("lo", ADDRESSES))))
        eventually(lambda: deprecated("lo") == {TWO})  # ::1 stays, too
        assert running.end().code == 0
    finally:
        for text in (ONE, TWO):
            sh("ip", "-6", "address", "delete", f"{text}/128", "dev", "lo")


def test_status_check_and_metrics(restored_net: Network, file: Path) -> None:
    top = 'log_level = "info"\n[metrics]\nlisten = "[::1]:9878"\n'
    with venet():
        write(file, (VENET, ADDRESSES), (UPLINK, ""), top=top)
        checked = done("check", "-c", str(file)).splitlines()
        assert checked[1] == (
            f"{VENET}  nothing is answered: {NO_MAC}; deprecates: ::/0; prefers: ::1/-64"
        )
        running = restored_net.run("-c", str(file))
        eventually(lambda: deprecated() == {TWO, THREE})
        eventually(lambda: len(statuses()["addresses"][0]["deprecated"]) == 2)
        assert statuses()["addresses"] == [
            {
                "interface": VENET,
                "running": True,
                "answered": False,
                "why_unanswered": NO_MAC,
                "preferred": ["::1/-64"],
                "deprecate": ["::/0"],
                "deprecated": statuses()["addresses"][0]["deprecated"],
            }
        ]
        assert set(statuses()["addresses"][0]["deprecated"]) == {TWO, THREE}
        shown = done("status", VENET)
        assert shown.startswith(f"{VENET}  nothing is answered: {NO_MAC}\n  addresses deprecated 2")
        assert "preferred ::1/-64" in shown

        assert f'ndxdp_attached{{interface="{VENET}"}}' not in fetch("/metrics")
        assert f"Nothing is answered on {VENET}: {NO_MAC}" in fetch("/")
        assert f"{VENET} is not answering yet" not in fetch("/")
        assert running.end().code == 0
        after = done("status", VENET)
        assert (
            "no daemon keeps them deprecated: `ndxdp detach venet0` restores their lifetimes"
            in after
        )
        assert statuses()["addresses"][0]["running"] is False
        done("detach", VENET)
        assert deprecated() == set()
        assert statuses()["addresses"] == []


def fetch(path: str) -> str:
    """Return the exporter's response."""
    with urlopen(f"http://[::1]:9878{path}", timeout=20) as answer:
        return str(answer.read().decode())


def test_rules_are_refused_there(restored_net: Network, file: Path) -> None:
    """Refuse rules there with a cure; without rules, keep the addresses."""
    with venet():
        more = f'[[interface.prefix]]\nprefix = "{BEHIND}"\n{ADDRESSES}'
        write(file, (VENET, more))
        checked = ndxdp("check", "-c", str(file))
        assert checked.code == 0
        assert f"{VENET} has no MAC address: `run` refuses its [[interface.prefix]]" in checked.err
        running = Running(("-c", str(file)), wait=False)
        try:
            assert running.process.stderr is not None
            output = running.process.stderr.readline()
            assert (
                f"{VENET} has no MAC address: no router solicits there, and its rules answer"
                " nothing"
            ) in output
            assert deprecated() == set()
            write(file, (VENET, ADDRESSES))
            reload(running)
            eventually(lambda: deprecated() == {TWO, THREE})
            write(file, (VENET, more))
            reload(running)
            eventually(lambda: deprecated() == set())
        finally:
            assert running.end().code == 0


def test_tables_that_do_nothing_there(restored_net: Network, file: Path) -> None:
    with venet():
        more = f"[interface.gateway]\n[interface.announce]\n{ADDRESSES}"
        running = restored_net.run("-c", str(write(file, (VENET, more))))
        eventually(lambda: deprecated() == {TWO, THREE})
        output = running.end().err
        for table in ("gateway", "announce"):
            assert f"[interface.{table}] has no effect on {VENET}: {NO_MAC}" in output


@pytest.mark.parametrize("words", [("attach", VENET), ("run", "-i", VENET)], ids=["attach", "run"])
def test_there_is_nothing_to_answer(restored_net: Network, words: tuple[str, ...]) -> None:
    with venet():
        result = ndxdp(*words, "-n", BEHIND)
        assert result.code == 1
        assert result.err == (
            f"ndxdp: {VENET} has no MAC address: no router solicits there, and there is nothing to"
            " answer\n  hint: name the Ethernet interface that faces the upstream router; which of"
            f" its addresses {VENET} sends from is up to [interface.addresses] in a file for"
            " `ndxdp run -c`\n"
        )


def test_the_interface_is_deleted_and_created_again(restored_net: Network, file: Path) -> None:
    with contextlib.ExitStack() as first:
        first.enter_context(venet())
        running = restored_net.run("-c", str(write(file, (VENET, ADDRESSES))))
        eventually(lambda: deprecated() == {TWO, THREE})
        first.close()
        eventually(lambda: call("ip", "link", "show", VENET).code)
        with tun(VENET, ARPHRD_VOID):
            sh("ip", "link", "set", VENET, "up")
            for text in (ONE, TWO):
                sh("ip", "-6", "address", "add", f"{text}/128", "dev", VENET)
            eventually(lambda: deprecated() == {TWO})
            assert str(LABEL) not in sh("ip", "addrlabel", "list")
            ended = running.end()
            assert ended.code == 0
            assert f"{VENET} has gone; waiting for it" in ended.err


def test_a_renamed_interface_is_restored(restored_net: Network, file: Path) -> None:
    """Restore an interface that is renamed, and wait for another device of the configured name."""
    with venet():
        sh("sysctl", "-qw", f"net.ipv6.conf.{VENET}.keep_addr_on_down=1")
        running = restored_net.run("-c", str(write(file, (VENET, ADDRESSES))))
        eventually(lambda: deprecated() == {TWO, THREE})
        sh("ip", "link", "set", VENET, "down")
        assert deprecated() == {TWO, THREE}
        sh("ip", "link", "set", VENET, "name", "venet9")
        eventually(lambda: deprecated("venet9") == set())
        eventually(lambda: not (FILES / "addresses").exists())
        sh("ip", "link", "set", "venet9", "name", VENET)
        eventually(lambda: deprecated() == {TWO, THREE})
        assert running.end().code == 0


def test_two_daemons_at_one_interface(restored_net: Network, file: Path, tmp_path: Path) -> None:
    """Keep the addresses in the second daemon as well; it restores nothing."""
    with venet():
        running = restored_net.run("-c", str(write(file, (VENET, ADDRESSES))))
        eventually(lambda: deprecated() == {TWO, THREE})
        other = restored_net.run("-c", str(write(tmp_path / "other.toml", (VENET, ADDRESSES))))
        result = other.end()
        assert "are kept by a running `ndxdp run`" in result.err
        refused = ndxdp("detach", VENET)
        assert refused.code == 1
        assert "are kept by a running `ndxdp run`" in refused.err
        assert running.end().code == 0
