"""The lab of vagrant/, as far as it works without its machines, which `make lab-vm` has."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import private, testbed
from lab.agent import Agent, AgentError
from lab.capture import packet_socket
from lab.commands import LabError
from ndxdp import __version__
from ndxdp.ndp.frame import TYPE_NA, icmpv6_frame
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac
from tests.fixtures.network import REPOSITORY, call, ndxdp, sh
from tests.fixtures.prometheus import promtool

VAGRANT = REPOSITORY / "vagrant"
SCRIPTS = sorted(VAGRANT.glob("*.sh"))

# ---- the files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_bash(script: Path) -> None:
    assert sh("bash", "-n", str(script)) == ""


def test_each_machine_has_the_cards_that_its_script_names() -> None:
    vagrant = (VAGRANT / "Vagrantfile").read_text()
    driver = Path(testbed.__file__).read_text()
    for name in ("router", "host", "monitor"):
        script = (VAGRANT / f"{name}.sh").read_text()
        macs = set(re.findall(r"^call_link (\S+)", script, re.MULTILINE))
        (cards,) = re.findall(rf'^  "{name}" => {{(.*)}},$', vagrant, re.MULTILINE)
        assert {mac.replace(":", "").upper() for mac in macs} == set(
            re.findall(r'"([0-9A-F]{12})"', cards)
        )
        assert all(mac in driver for mac in macs)
    assert testbed.ROUTER_MAC in (VAGRANT / "router.sh").read_text()


def test_the_router_receives_frames_to_its_bridge_in_virtualbox() -> None:
    """The cards of router.sh are ports of a bridge with another MAC, so they are promiscuous."""
    vagrant = (VAGRANT / "Vagrantfile").read_text()
    (block,) = re.findall(r"if name == \"router\"\n(.*?)\n      end\n", vagrant, re.DOTALL)
    assert "cables.size.times" in block
    assert '"--nicpromisc#{index + 2}", "allow-all"' in block
    assert 'default_nic_type = "virtio"' in vagrant


def test_the_package_is_chosen_by_its_version(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="There is no "):
        testbed.built_package(tmp_path)
    built = tmp_path / f"ndxdp_{__version__}_all.deb"
    for path in (built, tmp_path / "ndxdp_9~test_all.deb"):  # the newest one is a test's
        path.touch()
    assert testbed.built_package(tmp_path) == built
    assert 'build/ndxdp_#{version}_all.deb"' in (VAGRANT / "Vagrantfile").read_text()


def test_the_configuration_is_good() -> None:
    done = ndxdp("check", "-c", str(VAGRANT / "ndxdp.toml"))
    assert (done.code, done.err) == (0, "")
    assert "uplink  auto mode; rules: 1; Docker: exposed" in done.out


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    for source, target in re.findall(
        r"^install -m 644 /ndxdp/(\S+) /etc/prometheus/(\S+)$",
        (VAGRANT / "monitor.sh").read_text(),
        re.MULTILINE,
    ):
        shutil.copy(REPOSITORY / source, tmp_path / target)
    done = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert done.code == 0, done
    assert "2 rule files found" in done.out


# ---- the filter ----------------------------------------------------------------------------------

HOST_MAC, OTHER_MAC = parse_mac("02:00:00:5e:10:02"), parse_mac("02:00:00:5e:10:99")
HOST, LINK_LOCAL = "2001:db8:0:1::2", "fe80::ff:fe5e:1002"
CONTAINER, WEB = testbed.CONTAINER, testbed.WEB
ROUTER = parse_address("fe80::1")


def advertisement(
    target: str, source: str, lladdr: bytes = HOST_MAC, mac: bytes = HOST_MAC
) -> bytes:
    """Return an advertisement of `target`, with its source, its content and its sender's MAC."""
    router_mac = parse_mac(testbed.ROUTER_MAC)
    body = bytes.fromhex("60000000") + parse_address(target) + bytes((2, 1)) + lladdr  # S, O
    return icmpv6_frame(mac, router_mac, parse_address(source), ROUTER, TYPE_NA, body)


def solicitation(source: str) -> bytes:
    return solicit(HOST_MAC, ROUTER, source=parse_address(source), sllao=HOST_MAC)


FRAMES = [
    ("an answer from the target", True, advertisement(CONTAINER, CONTAINER)),
    ("Docker's", True, advertisement(WEB, WEB)),
    ("the host's own", True, advertisement(HOST, HOST)),
    ("of its link-local address", True, advertisement(LINK_LOCAL, LINK_LOCAL)),
    ("an answer from the host's address", False, advertisement(CONTAINER, HOST)),
    ("from its link-local address", False, advertisement(CONTAINER, LINK_LOCAL)),
    ("from another prefix", False, advertisement(CONTAINER, WEB)),
    ("for somebody else", False, advertisement("2001:db8:0:1::3", CONTAINER)),
    ("as somebody else", False, advertisement("2001:db8:0:1::3", "2001:db8:0:1::3")),
    ("about another MAC", False, advertisement(CONTAINER, CONTAINER, OTHER_MAC)),
    ("from another MAC", False, advertisement(CONTAINER, CONTAINER, mac=OTHER_MAC)),
    ("a solicitation of the host", True, solicitation(HOST)),
    ("of a container", True, solicitation(CONTAINER)),
    ("of somebody else", False, solicitation("2001:db8:0:1::3")),
]
# this frame passes, and so shows that all earlier ones have arrived
LAST = solicit(HOST_MAC, ROUTER)


@pytest.fixture(scope="module")
def bridge() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield a socket at the host's end, and one at the router behind the filter."""
    assert private.inside(), "these tests need namespaces of their own: run `make test`"
    try:
        sh("ip", "netns", "add", "filter")
        inside = ("nsenter", "--net=/run/netns/filter")
        links = f"""
            link add br0 address {testbed.ROUTER_MAC} type bridge mcast_snooping 0
            link add to-host type veth peer name host
            link set to-host master br0 up
            link set host up
            link set br0 up
        """
        sh(*inside, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        sh(*inside, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        sh(*inside, "ip", "-batch", "-", stdin=links)
        sh(*inside, "nft", "-f", str(VAGRANT / "antispoof.nft"))
        with packet_socket("filter", "host") as host, packet_socket("filter", "br0") as router:
            yield host, router
    finally:
        call("ip", "netns", "delete", "filter")


@pytest.mark.parametrize(
    ("passes", "frame"), [row[1:] for row in FRAMES], ids=[r[0] for r in FRAMES]
)
def test_the_filter(
    bridge: tuple[socket.socket, socket.socket], passes: bool, frame: bytes
) -> None:
    host, router = bridge
    host.send(frame)
    host.send(LAST)
    router.settimeout(10)
    came = []
    while LAST not in came:
        came.append(router.recv(2048))
    assert (frame in came) == passes


# ---- the guest agent -----------------------------------------------------------------------------


class Scripted:
    """An agent that answers each request with the next of `answers`: an object, or raw lines."""

    def __init__(self, path: Path, *answers: Any) -> None:
        self.requests: list[dict[str, Any]] = []
        self._answers = list(answers)
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(path))
        self._door.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        link, _ = self._door.accept()
        with link, link.makefile("rb") as lines:
            for answer in self._answers:
                self.requests.append(json.loads(lines.readline()))
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n"
                link.sendall(raw)

    def close(self) -> None:
        self._thread.join(10)
        self._door.close()


def test_the_agent_returns_output_and_code(tmp_path: Path) -> None:
    out = base64.b64encode("grüße\n".encode()).decode()
    ended = {"exited": True, "exitcode": 3, "out-data": out}
    scripted = Scripted(
        tmp_path / "agent", {"return": {"pid": 7}}, {"return": {"exited": False}}, {"return": ended}
    )
    agent = Agent(tmp_path / "agent")
    assert agent.run("true", 10) == (3, "grüße\n", "")
    agent.close()
    scripted.close()
    assert scripted.requests[0]["arguments"]["arg"] == ["-c", "true"]
    assert scripted.requests[2] == {"execute": "guest-exec-status", "arguments": {"pid": 7}}


def test_the_agent_discards_answers_from_before_a_reboot(tmp_path: Path) -> None:
    stale = b'{"return": {"exited": false}}\n{"return": 99}\n'
    scripted = Scripted(tmp_path / "agent", stale + b'\xff{"return": 1}\n', {"return": {"pid": 7}})
    agent = Agent(tmp_path / "agent")
    agent.synchronize(10)
    assert agent.start("true") == 7
    agent.close()
    scripted.close()


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        ({"error": {"class": "GenericError", "desc": "Guest agent command failed"}}, "failed"),
        (b"gibberish\n", "not an answer"),
        (b"", "the machine is gone"),
    ],
    ids=["error", "gibberish", "gone"],
)
def test_the_agents_failures(tmp_path: Path, answer: Any, output: str) -> None:
    scripted = Scripted(tmp_path / "agent", answer)
    agent = Agent(tmp_path / "agent")
    with pytest.raises(AgentError, match=output):
        agent.start("true")
    agent.close()
    scripted.close()


def test_a_machine_that_does_not_exist(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "agent")
    with pytest.raises(AgentError, match="No such file"):
        agent.start("true")


# ---- the driver ----------------------------------------------------------------------------------


def test_a_condition_that_stays_false() -> None:
    began = time.monotonic()
    with pytest.raises(LabError, match=r"Not so within 0 s: never\."):
        testbed.eventually("never", lambda: time.monotonic() < began, 0)


def test_a_check_that_does_not_exist() -> None:
    done = call("python3", "-m", "lab.life", "nonsense")
    assert done.code == 2
    assert "no such check: nonsense; there are mode, " in done.err


def test_a_package_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="There is no package"):
        testbed.pack(tmp_path / "ndxdp.deb", tmp_path / "build")
