"""`ndxdp convert` as a command, and for ndpresponder; test_convert_ndppd.py has ndppd."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ndxdp.config import reader
from ndxdp.convert import ndppd, ndpresponder
from ndxdp.convert.container_run import after_image
from ndxdp.errors import UsageError
from tests.fixtures import network
from tests.fixtures.converted import ALWAYS, DB8, PAGE, RULE, notes_of, prefixes, rule
from tests.fixtures.network import Done, ndxdp

# ---- ndpresponder --------------------------------------------------------------------------------


DOCKER = {"docker": [{"network": "web"}], "announce": {"solicit_gateway": True, "probe": True}}
TWO = [rule("2001:db8::/120"), rule("2001:db8:1::/120")]
COMMAND_LINES: dict[str, dict[str, Any]] = {
    "-i eth0": {"interface": [{"name": "eth0"}]},
    "-i eth0 -n 2001:db8::/64": ALWAYS,
    "--ifname eth0 --subnet 2001:db8::/64": ALWAYS,
    "-ifname=eth0 -subnet=2001:db8::/64": ALWAYS,
    "-i=eth0 -n='2001:db8::9/64'": ALWAYS,
    "-n 2001:db8::/120 -i eth0 -n 2001:db8:1::/120": prefixes(*TWO),
    "-i eth0 -n 2001:db8::/120,2001:db8:1::/120": prefixes(*TWO),
    "-i eth0 -n 2001:db8::/64 -n 2001:db8::1/64": ALWAYS,
    "-i eth1 -i eth0 -n 2001:db8::/64": ALWAYS,
    "-i eth0 -N web": {"interface": [{"name": "eth0", **DOCKER}]},
    "-i eth0 --docker-network web,web -n 2001:db8::/64": prefixes(rule(DB8), **DOCKER),
    "-i eth0 -n 192.0.2.0/24 -n 2001:db8::/64 -n ff02::/16": ALWAYS,
    "-i eth0 -n 2001:db8::/64 -- -n x": ALWAYS,
    "-i eth0 -n 2001:db8::/64 then -n x": ALWAYS,
    "sudo ndpresponder -i eth0 -n 2001:db8::/64": ALWAYS,
    "NDPRESPONDER_LOG=WARN ndpresponder -i eth0 -n 2001:db8::/64": {
        "log_level": "warning",
        **ALWAYS,
    },
    "docker run -e NDPRESPONDER_LOG=debug --name ndpresponder --network host"
    " localhost/ndpresponder:main -i eth0 -N web": {
        "log_level": "debug",
        "interface": [{"name": "eth0", **DOCKER}],
    },
    "NDPRESPONDER_LOG=loud /usr/bin/ndpresponder -i eth0 -n 2001:db8::/64": ALWAYS,
    "-i eth0 -N docker -N run": {
        "interface": [
            {"name": "eth0", **DOCKER, "docker": [{"network": "docker"}, {"network": "run"}]}
        ]
    },
    "ndpresponder -i eth0 -N ndpresponder": {
        "interface": [{"name": "eth0", **DOCKER, "docker": [{"network": "ndpresponder"}]}]
    },
}
IN_A_CONTAINER = (
    # ndpresponder's README
    "docker run -d --cap-add=NET_RAW --cap-add=NET_ADMIN --network host --name ndpresponder"
    " yoursunny/ndpresponder",
    "docker run -d \\\n  --network host \\\n  --name ndpresponder \\\n  yoursunny/ndpresponder",
    "docker run --network host ghcr.io/yoursunny/ndpresponder:latest@sha256:0123abcd",
    "docker run --network=host --rm -it localhost:5000/my/ndp",
    "docker run -itv /var/run/docker.sock:/var/run/docker.sock -e NDPRESPONDER_LOG=info ndp",
    "docker run -eNDPRESPONDER_LOG=info -v/a:/a --privileged --init=true 0123456789ab",
    "docker run --label run -- ndp",
    "docker -H unix:///run/docker.sock container run --entrypoint /ndpresponder --rm=false ndp",
    "sudo podman --log-level debug run --replace --rm --tls-verify=false docker.io/a/b@sha256:ab",
    "ExecStart=/usr/bin/docker run --name ndpresponder --restart unless-stopped ndp",
    "nerdctl create ndp",
    "yoursunny/ndpresponder@sha256:0123abcd",
    "yoursunny/ndpresponder:main@sha256:0123abcd",
    "sudo /opt/renamed",
)


@pytest.mark.parametrize("before", IN_A_CONTAINER)
def test_ndpresponder_in_a_container(before: str) -> None:
    draft = ndpresponder.convert(f"{before} -i eth0 -N ipv6exposed")
    (interface,) = draft.interfaces
    assert (interface.name, interface.networks) == ("eth0", ["ipv6exposed"])
    assert draft.log_level == ("info" if "LOG=info" in before else None)


@pytest.mark.skipif(not shutil.which("docker"), reason="there is no docker here")
def test_every_switch_of_docker_is_known() -> None:
    """Know every option of `docker run`; options shown without a type take no value."""
    text = subprocess.run(["docker", "run", "--help"], capture_output=True, text=True).stdout
    shown = re.findall(r"^ +(?:(-\w), )?--([a-z-]+)(?: (\w+))?(?:  |$)", text, re.MULTILINE)
    assert len(shown) > 80
    for short, long, kind in shown:
        for option in filter(None, (short, f"--{long}")):
            words = ["docker", "run", option, *(["value"] if kind else []), "image", "-i", "eth0"]
            assert after_image(words) == len(words) - 2, option


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_ndpresponder_is_converted(line: str) -> None:
    text = ndpresponder.convert(line).text("ndpresponder")
    assert tomllib.loads(text) == COMMAND_LINES[line]
    assert reader.parse(text, "ndxdp.toml").interfaces[0].name == "eth0"


def test_ndpresponder_leaves_out() -> None:
    line = "-i eth1 -i eth0 -n 192.0.2.0/24 -n ff02::/16"
    assert notes_of(ndpresponder.convert(line)) == [
        "0: -i is given 2 times: the last one counts",
        "0: -n 192.0.2.0/24 is left out: IPv4 has no solicitations",
        "0: -n ff02::/16 is left out: ff02::/16 is multicast: no router solicits it",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "ndpresponder needs -i"),
        ("-n 2001:db8::/64", "ndpresponder needs -i"),
        ("-i ''", "ndpresponder needs -i"),
        ("-i", "the option -i of ndpresponder lacks a value"),
        ("-i eth0 -n", "the option -n of ndpresponder lacks a value"),
        ("-i eth/0", "'eth/0' is no interface name"),
        ("-i eth0 -x 5", "ndpresponder has no option -x"),
        ("ndpresponder -i eth0 -in", "ndpresponder has no option -in"),
        ("-i eth0 -h", "-h makes ndpresponder print its help"),
        ("-i eth0 -n 2001:db8::1", "ndpresponder does not accept '2001:db8::1' as a subnet"),
        ("-i eth0 -n 2001:db8::/129", "'2001:db8::/129' has no prefix length from 0 to 128"),
        ("-i eth0 -n 2001:db8::/x", "'2001:db8::/x' has no prefix length from 0 to 128"),
        ("-i eth0 -n x/64", "'x' is not an IPv6 address"),
        ("-i eth0 -N ''", "'' is not the name of a Docker network"),
        ("docker run -d ndp", "ndpresponder needs -i"),
        ("docker run -d ndp -x", "ndpresponder has no option -x"),
        ("-i 'eth0", "the command line of ndpresponder has a quote that is not closed"),
    ],
)
def test_ndpresponder_is_refused(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ndpresponder.convert(line)
    assert caught.value.message == message
    assert caught.value.hint


# ---- the command ---------------------------------------------------------------------------------


TEXT = f"proxy eth0 {{\n  ttl 30000\n  {RULE}\n}}\nproxy eth1 {{\n  ttl 5\n}}\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "ndppd.conf"
    path.write_text(TEXT)
    return path


def test_prints_a_configuration_that_check_accepts(conf: Path, tmp_path: Path) -> None:
    result = ndxdp("convert", str(conf))
    assert result.code == 0
    # Equal sentences are printed once, with both places.
    assert result.err == (
        f"ndxdp: {conf}:2, 6: ttl has no counterpart: the kernel's neighbor table is the cache,"
        " with its own times\n"
    )
    assert result.out.startswith(f"# Made from {conf} by ndxdp convert.\n")
    assert result.out.count("ttl has no counterpart") == 2
    made = tmp_path / "ndxdp.toml"
    made.write_text(result.out)
    assert network.done("check", "-c", str(made)).splitlines()[1:] == [
        "eth0  auto mode; rules: 1",
        "eth1  auto mode; rules: 0",
    ]


def test_does_not_overwrite_files(conf: Path, tmp_path: Path) -> None:
    made = tmp_path / "ndxdp.toml"
    words = ("-q", str(conf), "-o", str(made))
    assert network.done("convert", *words) == ""
    first = made.read_text()
    assert tomllib.loads(first)["interface"][0]["name"] == "eth0"
    conf.write_text("proxy eth9 {}")
    assert ndxdp("convert", *words) == Done(
        1, "", f"ndxdp: {made} exists already\n  hint: --force overwrites it\n"
    )
    assert made.read_text() == first
    network.done("convert", *words, "--force")
    assert tomllib.loads(made.read_text()) == {"interface": [{"name": "eth9"}]}


def test_a_bad_file_writes_nothing(conf: Path, tmp_path: Path) -> None:
    made = tmp_path / "ndxdp.toml"
    conf.write_text("proxy eth0 {\nrule { static }\nrule x { static }\n}")
    assert ndxdp("convert", str(conf), "-o", str(made), "--force") == Done(
        1,
        "",
        f"ndxdp: {conf}:2: this rule names no prefix\n"
        "  hint: write it as in rule 2001:db8::/64 { static }\n"
        f"  also: {conf}:3: 'x' is not a prefix: ndppd runs, but with another prefix\n",
    )
    assert not made.exists()


def test_bytes_that_are_not_text(conf: Path) -> None:
    """Accept a comment in any encoding, but not a word."""
    conf.write_bytes(b"# f\xfcr\n" + TEXT.encode())
    assert ndxdp("convert", str(conf)).code == 0
    conf.write_bytes(b"proxy 'f\xfcr'\n")
    result = ndxdp("convert", str(conf))
    assert (result.code, result.out) == (1, "")
    assert "is no interface name" in result.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["/nowhere"], 1, "cannot read /nowhere: No such file or directory"),
        (["/"], 1, "cannot read /: Is a directory"),
        ([], 2, "convert needs either files, --ndpresponder or"),
        (["x", "--ndpresponder", "-i eth0"], 2, "convert needs either files, --ndpresponder or"),
        (["--ndpresponder", "-n ::"], 2, "ndpresponder needs -i"),
        (["--ndpresponder", "-i eth0", "-o", "/nowhere/x"], 1, "cannot write /nowhere/x:"),
    ],
)
def test_refuses_words(words: list[str], code: int, message: str) -> None:
    result = ndxdp("convert", *words)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(f"ndxdp: {message}")
    assert "  hint: " in result.err


def test_converts_a_command_line() -> None:
    result = ndxdp("convert", "--ndpresponder", "-i eth0 -n 2001:db8::/64 -n 192.0.2.0/24")
    assert result.code == 0
    assert tomllib.loads(result.out) == ALWAYS
    assert "-n 192.0.2.0/24 is left out" in result.err


def test_the_page_shows_the_output() -> None:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (before,) = [text for kind, text in blocks if kind == "nginx"]
    after = next(text for kind, text in blocks if kind == "toml")
    assert ndppd.convert(before, "/etc/ndppd.conf").text("/etc/ndppd.conf") == after
