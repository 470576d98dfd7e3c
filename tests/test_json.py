"""`--json` of each command: the documented fields, with the same facts as the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.documented import json_of, shape
from tests.fixtures.network import (
    BEHIND,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    done,
    ndxdp,
    sh,
)

ELSEWHERE = "2001:db8::d:0:0:99"


# ---- explain --exit-code -------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--json",), ("-i", UPLINK), ("--unicast",)])
def test_explain_tells_a_script_whether_there_is_an_answer(
    attached: Network, more: tuple[str, ...]
) -> None:
    answered = ndxdp("explain", "--exit-code", TARGET, *more)
    assert (answered.code, answered.err) == (0, "")
    silent = ndxdp("explain", "--exit-code", ELSEWHERE, *more)
    assert (silent.code, silent.err) == (3, "")
    assert "no_rule" in silent.out
    assert ndxdp("explain", ELSEWHERE, *more) == (0, silent.out, "")
    done("pause", UPLINK)
    assert ndxdp("explain", "--exit-code", TARGET, *more).code == 3
    done("resume", UPLINK)


def test_an_error_of_explain_is_no_silence(attached: Network) -> None:
    assert ndxdp("explain", "--exit-code", "nonsense").code == 2
    done("detach", UPLINK)
    assert ndxdp("explain", "--exit-code", TARGET).code == 1


# ---- check ---------------------------------------------------------------------------------------


def check(path: Path, code: int = 0) -> Any:
    """Return the JSON of `check`; the messages on stderr are those of the text output."""
    text, data = ndxdp("check", str(path)), ndxdp("check", str(path), "--json")
    assert (text.code, data.code) == (code, code)
    assert text.err == data.err
    return json.loads(data.out)


def test_check_of_a_good_file(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[[interface]]\nname = "{UPLINK}"\n'
        f'[[interface.prefix]]\nprefix = "2001:db8::/64"\n'
        f'[[interface.docker]]\nnetwork = "web"\n'
        f'[[share]]\nupstream = "{UPLINK}"\ndownstream = ["br-*"]\n'
    )
    sh("ip", "link", "add", "br-1", "type", "bridge")
    sh("sysctl", "-qw", f"net.ipv6.conf.{UPLINK}.forwarding=1", "net.ipv6.conf.br-1.forwarding=1")
    try:
        found = check(file)
    finally:
        sh("ip", "link", "delete", "br-1")
    documented = json_of("check")
    documented["shares"][0]["prefixes"] = []
    assert shape(found) == shape(documented)
    assert found["shares"][0]["here"] == ["br-1"]
    assert (found["file"], found["good"], found["errors"]) == (str(file), True, [])
    (warning,) = found["warnings"]
    assert "`run` leaves this rule out" in warning["message"]
    assert warning["hint"]
    (interface,) = found["interfaces"]
    assert interface["rules"] == {"addresses": 0, "prefixes": 1}
    assert f"{UPLINK}  {'; '.join(interface['summary'])}" in ndxdp("check", str(file)).out


def test_check_of_a_file_that_run_cannot_do_here(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text(f'[[interface]]\nname = "lo"\n[[interface.prefix]]\nprefix = "{BEHIND}"\n')
    found = check(file)
    assert found["good"] is True
    assert "lo has no MAC address" in found["warnings"][0]["message"]
    assert found["warnings"][0]["hint"] == ""


def test_check_of_a_bad_file(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text('[[interface]]\nname = "eth0"\nnonsense = 1\nmode = "x"\n')
    found = check(file, code=2)
    assert (found["good"], found["interfaces"], found["warnings"]) == (False, [], [])
    first, second = found["errors"]
    assert "nonsense" in first["message"] + second["message"]
    assert first["hint"]
    assert shape(found["errors"]) == shape(json_of("check")["warnings"])
    found = check(tmp_path / "none.toml", code=2)
    assert "none.toml" in found["errors"][0]["message"]


# ---- convert -------------------------------------------------------------------------------------


def test_convert(net: Network, tmp_path: Path) -> None:
    source, written = tmp_path / "ndppd.conf", tmp_path / "ndxdp.toml"
    source.write_text("proxy eth0 {\n  ttl 10\n  rule 2001:db8:0:0:c::/80 { static }\n}\n")
    text = ndxdp("convert", str(source))
    data = ndxdp("convert", str(source), "--json")
    assert data.err == text.err
    found = data.json()
    assert found["configuration"] == text.out
    assert (found["origin"], found["output"]) == (str(source), None)
    assert [f"ndxdp: {each}" for each in found["warnings"]] == text.err.splitlines()
    assert found.keys() == json_of("convert").keys()

    found = ndxdp("convert", str(source), "--json", "-o", str(written)).json()
    assert (found["output"], written.read_text()) == (str(written), found["configuration"])
    refused = ndxdp("convert", str(source), "--json", "-o", str(written))
    assert (refused.code, refused.out) == (1, "")
    found = ndxdp("convert", "--ndpresponder", "-i eth0 -n 2001:db8:0:0:c::/80", "--json").json()
    assert found["origin"] == "ndpresponder's arguments"
    assert "2001:db8:0:0:c::/80" in found["configuration"]


# ---- top -----------------------------------------------------------------------------------------


def test_top(attached: Network) -> None:
    assert ndxdp("top", "--seconds", "0.1", "--json").json()["interfaces"] == [
        {
            "interface": UPLINK,
            "sources": [],
            "sources_error_bound": 0,
            "targets": [],
            "targets_error_bound": 0,
        }
    ]
    with attached.solicited_continuously():
        found = ndxdp("top", UPLINK, "--seconds", "1", "--json").json()
    documented = json_of("top")
    (interface,), (shown,) = found["interfaces"], documented["interfaces"]
    assert found.keys() == documented.keys()
    assert interface.keys() == shown.keys()
    for kind in ("sources", "targets"):
        assert interface[kind][0].keys() == shown[kind][0].keys()
    (source,) = [each for each in interface["sources"] if each["reasons"].get("answered")]
    assert source["mac"] == ROUTER_MAC
    (target,) = [each for each in interface["targets"] if each["target"] == TARGET]
    assert target["solicitations"] == target["reasons"]["answered"] >= 1
    assert found["seen"] >= target["solicitations"]
    assert found["seconds"] >= 1
