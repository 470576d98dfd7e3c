"""`ndxdp init` on real networks: it proposes what then answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import fake_engine
from tests.fixtures.auto import needs
from tests.fixtures.doctor import advertise, conf, default_route
from tests.fixtures.documented import json_of
from tests.fixtures.engine import Engine
from tests.fixtures.fake_engine import Fake
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST_MAC,
    NDXDP,
    REPOSITORY,
    TARGET,
    UPLINK,
    Done,
    Network,
    call,
    eventually,
    ndxdp,
    python,
    sh,
)
from tests.fixtures.proposing import GUEST, GUEST_LINK, OTHER, Place, bridge, ip
from tests.fixtures.tap import tap, tun
from tests.test_doctor_blind import DENIED

ON_LINK = "2001:db8::/64"
ROUTED = "2001:db8:7::/64"


def guest(name: str, address: str) -> None:
    """Connect a guest with one address to a bridge."""
    sh("ip", "netns", "add", GUEST)
    sh(*f"ip link add to-guest type veth peer name {GUEST_LINK} netns {GUEST}".split())
    sh(*f"ip link set to-guest master {name} up".split())
    batch = f"link set {GUEST_LINK} up\naddress add {address}/80 dev {GUEST_LINK} nodad"
    sh("ip", "-n", GUEST, "-6", "-batch", "-", stdin=batch)
    eventually(lambda: " UP " in sh("ip", "-br", "link", "show", "dev", "to-guest"))


def printed(*words: str) -> dict[str, Any]:
    """Return the configuration that init prints, of the only interface."""
    result = ndxdp("init", "-o", "-", *words)
    assert result.code == 0, result
    (interface,) = tomllib.loads(result.out)["interface"]
    found: dict[str, Any] = interface
    return found


def shares(*words: str) -> list[dict[str, Any]]:
    """Return the shares that init prints."""
    result = ndxdp("init", "-o", "-", *words)
    assert result.code == 0, result
    found: list[dict[str, Any]] = tomllib.loads(result.out)["share"]
    return found


def seen(*words: str) -> str:
    """Return what init prints about the host."""
    return ndxdp("init", "-o", "-", *words).err


def refused(*words: str) -> Done:
    """Return the result of a command that fails, and has printed no configuration."""
    result = ndxdp("init", "-o", "-", *words)
    assert (result.code, result.out) == (1, ""), result
    return result


# ---- documentation -------------------------------------------------------------------------------


@pytest.fixture
def documented(end_host: Network, fake: Fake) -> tuple[str, str]:
    """Build the host of docs/setup.md; return the options that name its engine."""
    ip(
        f"address flush dev {UPLINK} scope global",
        f"route delete default dev {UPLINK}",
        "link add eth0 type veth peer far0",
        "link set eth0 up",
        "link set far0 up",
        "address add 2001:db8:0:1::2/64 dev eth0 nodad valid_lft 86400 preferred_lft 86400",
        "route add default via fe80::1 dev eth0",
    )
    bridge("virbr0", "2001:db8:0:1:d::/80")
    bridge("br0", "2001:db8:7::/64")
    six = fake_engine.network("ipv6exposed", "2001:db8:0:1:c::/80")
    fake.networks = [six | {"Driver": "bridge", "EnableIPv6": True}]
    web = fake_engine.container(1, "ipv6exposed") | {"Names": ["/web"]}
    web["NetworkSettings"]["Networks"]["ipv6exposed"]["GlobalIPv6Address"] = "2001:db8:0:1:c::10"
    fake.containers = [web]
    return "--docker-socket", str(fake.path)


def test_the_page_shows_it(documented: tuple[str, str], place: Place, fake: Fake) -> None:
    page = (REPOSITORY / "docs" / "setup.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found, config, sysctls, following = (block for kind, block in blocks if kind != "sh")
    result = ndxdp("init", "-o", "-", *documented)
    assert result.out.replace(f'[docker]\nsocket = "{fake.path}"\n\n', "") == config
    assert result.err == f"{found}\n---- /etc/sysctl.d/60-ndxdp.conf\n{sysctls}"
    data = ndxdp("init", "--json", *documented).json()
    assert (data["configuration"], data["sysctl_file"]) == (result.out, sysctls)
    texts = ("configuration", "sysctl_file")
    shown = json_of("init")
    assert all(data[key].startswith(shown[key].rstrip("…")) for key in texts)
    assert data == shown | {key: data[key] for key in texts}
    result = place.init("--yes", *documented)
    commands = result.out[result.out.index("next:\n") :]
    commands = commands.replace(f"ndxdp run -c {place.config}", "systemctl enable --now ndxdp")
    assert commands.replace(str(place.sysctl), "/etc/sysctl.d/60-ndxdp.conf") == following


# ---- networks ------------------------------------------------------------------------------------


def test_a_docker_network(end_host: Network, docker_engine: Engine, place: Place) -> None:
    """Go all the way: what init writes answers for a container, and its commands work."""
    docker_engine.make_network("six", BEHIND)
    docker_engine.make_network("four")
    docker_engine.run("web", "six", address=TARGET)
    sock = str(docker_engine.socket)
    try:
        result = place.init("--yes", "--docker-socket", sock)
        assert (result.code, result.err) == (0, ""), result
        written = tomllib.loads(place.config.read_text())
        assert written["docker"] == {"socket": sock}
        assert written["interface"] == [{"name": UPLINK, "docker": [{"network": "six"}]}]
        assert "no IPv6 subnet, and no rule: four" in result.out
        assert f"{place.config}: good\n{UPLINK}  auto mode; rules: 0; Docker: six\n" in result.out
        _, _, following = result.out.partition("\nnext:\n")
        apply, run, explain, doctor = (line.strip() for line in following.splitlines())
        assert run == f"ndxdp run -c {place.config}"
        sh(*apply.split())
        assert Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text() == "1\n"
        running = end_host.run("-c", str(place.config))
        assert eventually(end_host.answers)
        words = explain.partition("#")[0].split()[1:]
        assert words == ["explain", UPLINK, TARGET]
        assert "reason   answered" in ndxdp(*words).out
        assert doctor == f"ndxdp doctor {UPLINK}"
        assert running.end().code == 0
    finally:
        docker_engine.clear()


def test_docker_has_the_whole_prefix(end_host: Network, docker_engine: Engine) -> None:
    docker_engine.make_network("six", ON_LINK)
    try:
        words = ("--docker-socket", str(docker_engine.socket))
        assert printed(*words)["docker"] == [{"network": "six"}]
        assert f"{ON_LINK} is on {UPLINK} and on the network six" in seen(*words)
    finally:
        docker_engine.clear()


def test_docker_without_ipv6(end_host: Network, docker_engine: Engine) -> None:
    docker_engine.make_network("four")
    try:
        result = refused("--docker-socket", str(docker_engine.socket))
        assert "there is no IPv6 network behind this host" in result.err
        assert "the container network has no IPv6 subnet, and no rule: four" in result.err
    finally:
        docker_engine.clear()


def test_libvirt(end_host: Network, place: Place) -> None:
    """Answer for a living guest of virbr0, and for no other address of its subnet."""
    bridge("virbr0", OTHER)
    guest("virbr0", "2001:db8::d:0:0:7")
    assert call("ping", "-c1", "-W2", "2001:db8::d:0:0:7").code == 0
    result = place.init("--yes")
    assert result.code == 0, result
    (interface,) = tomllib.loads(place.config.read_text())["interface"]
    assert interface["prefix"] == [{"prefix": OTHER, "answer": "neighbour", "dev": ["virbr0"]}]
    assert (
        f"ndxdp explain {UPLINK} 2001:db8::d:0:0:7    # must be answered: a guest on virbr0"
        in result.out
    )
    sh("sysctl", "-p", str(place.sysctl))
    running = end_host.run("-c", str(place.config))
    assert end_host.ask("2001:db8::d:0:0:7") == (HOST_MAC, "2001:db8::d:0:0:7")
    assert end_host.silent("2001:db8::d:0:0:8")
    assert running.end().code == 0


def test_a_tap_bridge_and_a_tunnel(end_host: Network) -> None:
    with tap("tap7"), tun("tun7"):
        bridge("br-vm", OTHER)
        ip(
            "link set tap7 master br-vm up",
            "link set tun7 up",
            f"route add {BEHIND} dev tun7",
        )
        assert printed()["prefix"] == [
            {"prefix": BEHIND, "answer": "routed", "dev": ["tun7"]},
            {"prefix": OTHER, "answer": "neighbour", "dev": ["br-vm"]},
        ]


def test_a_routed_prefix(end_host: Network, place: Place) -> None:
    bridge("br-vm", ROUTED)
    result = place.init("--yes")
    assert result.code == 1
    assert f"no rule for {ROUTED} (the bridge br-vm): in no on-link prefix" in result.out
    assert result.err.startswith("ndxdp: nothing to answer: no network behind this host has a part")
    assert "  hint: a routed prefix needs no responder" in result.err
    assert place.files() == []


def test_nothing_behind(end_host: Network) -> None:
    assert "a part of the on-link prefix: 2001:db8:0:0:1::/80" in refused().err


def test_one_prefix_on_both_sides(end_host: Network) -> None:
    bridge("br-vm", ON_LINK)
    assert shares() == [{"upstream": UPLINK, "downstream": ["br-vm"]}]
    assert f"{ON_LINK} is on {UPLINK} and on br-vm: the kernel has two routes" in seen()
    assert ndxdp("init", "--json").json()["shares"] == shares()


def test_hosts_without_a_prefix_of_their_own(end_host: Network, place: Place) -> None:
    """A router advertises the prefix, and a guest is on a bridge without an address."""
    sh("ip", "-6", "route", "delete", "default")
    advertise()
    eventually(lambda: "proto ra" in default_route())
    ip("link add br-vm type bridge", "link set br-vm up")
    sh("ip", "netns", "add", GUEST)
    sh(*f"ip link add to-guest type veth peer name {GUEST_LINK} netns {GUEST}".split())
    ip("link set to-guest master br-vm up")
    sh(*f"ip -n {GUEST} link set {GUEST_LINK} up".split())
    eventually(lambda: " UP " in sh("ip", "-br", "link", "show", "dev", "to-guest"))
    assert shares() == [{"upstream": UPLINK, "downstream": ["br-vm"]}]
    result = place.init("--yes")
    assert result.code == 0, result
    assert "interface" not in tomllib.loads(place.config.read_text())
    assert "  ndxdp hosts    # the hosts that the share has learned" in result.out
    assert f"ndxdp doctor {UPLINK}" in result.out
    sh("sysctl", "-p", str(place.sysctl))
    assert sh("sysctl", "-n", f"net.ipv6.conf.{UPLINK}.accept_ra").strip() == "2"
    assert sh("sysctl", "-n", "net.ipv6.conf.br-vm.forwarding").strip() == "1"
    assert "proto ra" in default_route()


def test_a_delegated_prefix_needs_no_share(end_host: Network, place: Place) -> None:
    """A client of DHCPv6 has a prefix for this host, of which no part is in use yet."""
    bridge("br-vm", "fd00:7::/64")
    guest("br-vm", "fd00:7::7")
    ip("route add unreachable 2001:db8:100::/56")
    try:
        result = place.init("--yes")
        assert result.code == 1
        assert f"no share of {UPLINK}: 2001:db8:100::/56 is routed to this host" in result.out
    finally:
        ip("route delete unreachable 2001:db8:100::/56")
    assert shares() == [{"upstream": UPLINK, "downstream": ["br-vm"]}]


def test_a_single_address_on_the_uplink(end_host: Network) -> None:
    ip(
        f"address flush dev {UPLINK} scope global",
        f"address add 2001:db8:9::2/128 dev {UPLINK} nodad",
        f"route replace default via fe80::1 dev {UPLINK}",
    )
    bridge("br-vm", "2001:db8:9::/64")
    (rule,) = printed()["prefix"]
    assert rule == {"prefix": "2001:db8:9::/64", "answer": "neighbour", "dev": ["br-vm"]}


def test_a_local_route(end_host: Network, place: Place) -> None:
    ip(f"route add local {BEHIND} dev lo")
    try:
        assert place.init("--yes").code == 0
    finally:
        ip(f"route delete local {BEHIND} dev lo")
    (interface,) = tomllib.loads(place.config.read_text())["interface"]
    assert interface["prefix"] == [{"prefix": BEHIND, "answer": "local"}]
    assert not place.sysctl.exists()  # nothing is forwarded


# ---- uplinks -------------------------------------------------------------------------------------


def second_uplink() -> None:
    ip(
        "link add up1 type veth peer name far1",
        "link set up1 up",
        "link set far1 up",
        "address add 2001:db8:9::2/64 dev up1 nodad",
        "route add default via fe80::1 dev up1 metric 2000",
    )


def test_several_default_routes(end_host: Network) -> None:
    second_uplink()
    bridge("virbr0", OTHER)
    bridge("virbr1", "2001:db8:9:0:d::/80")
    result = ndxdp("init", "-o", "-")
    found = {each["name"]: each["prefix"] for each in tomllib.loads(result.out)["interface"]}
    assert {name: [rule["dev"] for rule in rules] for name, rules in found.items()} == {
        UPLINK: [["virbr0"]],
        "up1": [["virbr1"]],
    }
    assert printed("up1")["name"] == "up1"
    assert "the on-link prefix of" not in seen("up1")


def test_one_route_over_two_uplinks(end_host: Network) -> None:
    second_uplink()
    ip(
        "route delete default dev up1",
        f"route delete default dev {UPLINK}",
        f"route add default nexthop via fe80::1 dev {UPLINK} nexthop via fe80::1 dev up1",
    )
    bridge("virbr0", OTHER)
    assert printed()["name"] == UPLINK
    assert f"{UPLINK} and up1 are uplinks" in seen()


def test_no_default_route(end_host: Network) -> None:
    ip(f"route delete default dev {UPLINK}")
    result = refused()
    assert "there is no IPv6 default route, so the uplink is not known" in result.err
    bridge("virbr0", OTHER)
    assert printed(UPLINK)["name"] == UPLINK


def test_no_ipv6(end_host: Network) -> None:
    conf("disable_ipv6", 1, "all")
    try:
        assert "IPv6 is disabled on this host" in refused().err
        result = refused(UPLINK)
        assert f"IPv6 is disabled on {UPLINK}: its sysctl disable_ipv6 is 1" in result.err
        assert f"ndxdp cannot answer on {UPLINK}" in result.err
    finally:
        conf("disable_ipv6", 0, "all")


MAIN = "import sys; from ndxdp.cli.main import main; sys.argv[1:] = ['init', '-o', '-']; main()"


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ("AF_INET6", "ndxdp: this kernel has no IPv6\n  hint: to see why: ndxdp doctor\n"),
        ("AF_NETLINK", "ndxdp: Address family not supported by protocol"),
    ],
)
def test_without_a_family_of_sockets(end_host: Network, family: str, sentence: str) -> None:
    code = DENIED.format(family=family)
    if family == "AF_INET6":
        code += (
            "from pathlib import Path\nimport ndxdp.netlink.sysctl as s\ns._ROOT = Path('/no')\n"
        )
    result = python(code + MAIN)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(sentence)
    assert "Traceback" not in result.err


def test_no_sysctls(end_host: Network) -> None:
    hide = 'mount -t tmpfs tmpfs /proc/sys/net && exec "$@"'
    result = call("unshare", "--mount", "sh", "-c", hide, "sh", *NDXDP, "init", "-o", "-")
    assert (result.code, result.out) == (1, "")
    assert result.err == "ndxdp: cannot read /proc/sys/net/ipv6\n  hint: is /proc mounted?\n"


def test_no_such_interface(end_host: Network) -> None:
    assert "there is no interface 'nope'" in refused("nope").err


def test_a_bridge_as_uplink(end_host: Network) -> None:
    """Choose the bridge that has the default route, as Proxmox VE makes it."""
    ip(
        "link add vmbr0 type bridge",
        f"route delete default dev {UPLINK}",
        f"address flush dev {UPLINK} scope global",
        f"link set {UPLINK} master vmbr0",
        "link set vmbr0 up",
        "address add 2001:db8::2/64 dev vmbr0 nodad",
        f"route add default via {GATEWAY} dev vmbr0",
    )
    bridge("vmbr1", OTHER)
    found = printed()
    assert found["name"] == "vmbr0"
    assert [rule["dev"] for rule in found["prefix"]] == [["vmbr1"]]
    assert "guests on ports of vmbr0 are on the link themselves" in seen()
    # A port of the bridge has the bridge's prefixes.
    assert printed(UPLINK) == {**found, "name": UPLINK}


@pytest.mark.parametrize("kind", ["vlan", "veth"])
def test_a_vlan_as_uplink(end_host: Network, place: Place, kind: str) -> None:
    """Write sysctls for a name with a dot. Some kernels have no VLANs, but such names."""
    name = f"{UPLINK}.100"
    words = [name, "type", "veth", "peer", "far100"]
    if kind == "vlan":
        needs("link", UPLINK, "type", "vlan", "id", "100")
        words = ["link", UPLINK, "name", name, "type", "vlan", "id", "100"]
    ip(
        f"link add {' '.join(words)}",
        f"link set {UPLINK}.100 up",
        f"route delete default dev {UPLINK}",
        f"address flush dev {UPLINK} scope global",
        f"address add 2001:db8:9::2/64 dev {UPLINK}.100 nodad valid_lft 3600 preferred_lft 3600",
        f"route add default via fe80::1 dev {UPLINK}.100",
    )
    bridge("virbr0", "2001:db8:9:0:d::/80")
    sh("sysctl", "-qw", f"net/ipv6/conf/{UPLINK}.100/accept_ra=1")
    assert place.init("--yes").code == 0
    (interface,) = tomllib.loads(place.config.read_text())["interface"]
    assert interface["name"] == f"{UPLINK}.100"
    sh("sysctl", "-p", str(place.sysctl))
    for key, value in ((f"{UPLINK}.100/accept_ra", "2\n"), ("all/forwarding", "1\n")):
        assert Path(f"/proc/sys/net/ipv6/conf/{key}").read_text() == value


def test_an_uplink_without_a_mac(end_host: Network) -> None:
    bridge("virbr0", OTHER)
    with tun("tun7"):
        ip("link set tun7 up")
        result = refused("tun7")
    assert "note: tun7 has no MAC address, so no router solicits there" in result.err
    assert "ndxdp cannot answer on tun7" in result.err


def test_a_route_by_advertisement_survives(end_host: Network, place: Place) -> None:
    """Keep the default route that turning forwarding on would remove."""
    ip(f"route delete default dev {UPLINK}")
    advertise()
    eventually(lambda: "proto ra" in default_route())
    bridge("virbr0", OTHER)
    assert place.init("--yes").code == 0
    sh("sysctl", "-p", str(place.sysctl))
    assert "proto ra" in default_route()
    assert Path(f"/proc/sys/net/ipv6/conf/{UPLINK}/forwarding").read_text() == "1\n"


def test_a_later_file_of_sysctls(end_host: Network) -> None:
    bridge("virbr0", OTHER)
    folder = Path("/etc/sysctl.d")
    sh("mount", "-t", "tmpfs", "tmpfs", str(folder))
    try:
        (folder / "99-x.conf").write_text("net.ipv6.conf.all.forwarding=0\n")
        setting = "net.ipv6.conf.all.forwarding to 0 later"
        assert f"note: at each boot, {folder}/99-x.conf sets {setting}" in seen()
    finally:
        sh("umount", str(folder))


def test_other_responders(end_host: Network, tmp_path: Path) -> None:
    bridge("virbr0", OTHER)
    ip(f"neighbour add proxy 2001:db8::77 dev {UPLINK}")
    (tmp_path / "ndppd.conf").write_text(f"proxy {UPLINK} {{ rule {BEHIND} {{ static }} }}\n")
    ndppd = subprocess.Popen(["ndppd", "-c", str(tmp_path / "ndppd.conf")])
    try:
        eventually(lambda: f"ndppd (pid {ndppd.pid}) answers solicitations, too" in seen())
        assert f"the kernel's proxy_ndp has 1 entry on {UPLINK}" in seen()
        assert [rule["prefix"] for rule in printed()["prefix"]] == ["2001:db8::77", OTHER]
    finally:
        ndppd.terminate()
        ndppd.wait()
        ip(f"neighbour delete proxy 2001:db8::77 dev {UPLINK}")


# ---- rights and engines --------------------------------------------------------------------------


def as_nobody(*words: str) -> Done:
    """Run ndxdp without rights, from a copy that every user may read."""
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *NDXDP, *words]
    return call(*command, env={"PYTHONDONTWRITEBYTECODE": "1"})


def test_without_rights(end_host: Network, place: Place, fake: Fake) -> None:
    bridge("virbr0", OTHER)
    place.folder.chmod(0o755)
    for folder in place.folder.parents:
        if folder.is_relative_to("/var/tmp") and folder != Path("/var/tmp"):
            folder.chmod(0o755)
    os.chmod(fake.path, 0o700)
    words = ("--docker-socket", str(fake.path))
    result = as_nobody("init", "-o", "-", *words)
    assert result.code == 0, result
    assert tomllib.loads(result.out)["interface"][0]["prefix"][0]["prefix"] == OTHER
    assert f"({fake.path}: permission denied)" in result.err
    before = place.files()
    result = as_nobody(*place.words, *words, "--yes")
    assert result.code == 1
    assert "ndxdp: cannot write" in result.err
    assert "  hint: run this as root" in result.err
    assert place.files() == before


def test_no_engine(end_host: Network, tmp_path: Path) -> None:
    """Give Docker's bridge the rule of any other bridge where the socket is missing."""
    bridge("br-0123456789ab", OTHER)
    words = ("--docker-socket", str(tmp_path / "none"))
    assert printed(*words)["prefix"][0]["dev"] == ["br-0123456789ab"]
    assert f"(there is no {tmp_path}/none)" in seen(*words)
    assert "cannot ask the container engine" not in seen()


def test_an_engine_that_answers_nonsense(end_host: Network, fake: Fake) -> None:
    bridge("docker0", OTHER)
    fake.containers = [{"Names": [7]}]
    words = ("--docker-socket", str(fake.path))
    assert printed(*words)["prefix"][0]["dev"] == ["docker0"]
    assert f"({fake.path}: the engine does not answer)" in seen(*words)


# ---- writing -------------------------------------------------------------------------------------


@pytest.fixture
def ready(end_host: Network) -> Network:
    """Return a host with something to answer for."""
    bridge("virbr0", OTHER)
    return end_host


# ---- JSON ----------------------------------------------------------------------------------------


def test_json(ready: Network, place: Place) -> None:
    found = place.init("--json").json()
    assert [each["interface"] for each in found["uplinks"]] == [UPLINK]
    assert found["uplinks"][0]["on_link"] == [ON_LINK]
    relations = [{"interface": UPLINK, "relation": "inside"}]
    assert found["routes"] == [
        {"prefix": OTHER, "dev": "virbr0", "kind": "bridge", "relations": relations}
    ]
    assert found["sysctls"] == [{"key": "net.ipv6.conf.all.forwarding", "value": 1, "present": 0}]
    assert found["configuration"] == ndxdp("init", "-o", "-").out
    assert "net.ipv6.conf.all.forwarding = 1\n" in found["sysctl_file"]
    assert place.files() == []


def test_json_of_nothing(end_host: Network) -> None:
    result = ndxdp("init", "--json")
    assert (result.code, result.err) == (1, "")
    found = json.loads(result.out)
    assert (found["configuration"], found["sysctls"], found["routes"]) == ("", [], [])
