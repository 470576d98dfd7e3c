"""What `ndxdp status`, the page and the metrics show of rules, namespaces and the daemon."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.network import (
    BEHIND,
    NDXDP,
    ROUTER,
    TARGET,
    UPLINK,
    Network,
    done,
    eventually,
    rules,
    sh,
    status,
    take_off,
)
from tests.prometheus import get
from tests.test_commands import attach_without_links

OTHER, OTHER_TARGET = "2001:db8:0:0:d::/80", "2001:db8::d:0:0:1"
GONE = "the interface has gone"
ELSEWHERE = "in another network namespace"


def group_counts() -> dict[str, tuple[int, int]]:
    """Solicitations of each group that --json shows, and its rules."""
    return {each["label"]: (each["solicited"], each["rules"]) for each in status()["groups"]}


# ---- rules of before ----------------------------------------------------------------------------


def test_rules_that_are_gone_are_not_shown(net: Network, tmp_path: Path) -> None:
    """Their counters go on when they come back."""
    file = tmp_path / "ndxdp.toml"
    url = "http://[::1]:9890/"

    def write(*prefixes: str) -> None:
        tables = "".join(f'[[interface.prefix]]\nprefix = "{prefix}"\n' for prefix in prefixes)
        file.write_text(
            f'[metrics]\nlisten = "[::1]:9890"\n[[interface]]\nname = "{UPLINK}"\n{tables}'
        )

    def shown() -> dict[str, list[str]]:
        """Return the prefixes that each place names."""
        by_place = {
            "status": (done("status"), "{} (config)"),
            "page": (get(url), "{} (config)"),
            "metrics": (get(f"{url}metrics"), 'label="{}"'),
        }
        return {
            place: [prefix for prefix in (BEHIND, OTHER) if words.format(prefix) in text]
            for place, (text, words) in by_place.items()
        }

    write(BEHIND, OTHER)
    daemon = net.run("-c", str(file))
    for target in (TARGET, OTHER_TARGET):
        assert net.answers(target)
    assert shown() == {
        "status": [BEHIND, OTHER],
        "page": [BEHIND, OTHER],
        "metrics": [BEHIND, OTHER],
    }
    write(OTHER)
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: BEHIND not in rules())
    assert shown() == {"status": [OTHER], "page": [OTHER], "metrics": [OTHER]}
    assert group_counts()[BEHIND] == (1, 0)
    last = status()["last_answer"]
    write(BEHIND)
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: BEHIND in rules() and OTHER not in rules())
    assert shown() == {"status": [BEHIND], "page": [BEHIND], "metrics": [BEHIND]}
    assert group_counts()[BEHIND] == (1, 1)
    assert status()["last_answer"] >= last
    daemon.end()
    take_off()


# ---- another network namespace ------------------------------------------------------------------


def elsewhere(net: Network) -> tuple[dict[str, Any], str]:
    """Return what `status` of the router's namespace says of the uplink: as data, and as text."""
    (data,) = json.loads(net.at_router(*NDXDP, "status", "--json").out)["interfaces"]
    return data, net.at_router(*NDXDP, "status").out


def metric(text: str, name: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return float(line.split()[-1])


@pytest.mark.parametrize("mode", ["tc", "generic"])
@pytest.mark.parametrize("way", ["attach", "without links", "run"])
def test_an_interface_of_another_namespace(net: Network, mode: str, way: str) -> None:
    """It is not "gone" while it answers."""
    if way == "attach":
        done("attach", UPLINK, "--mode", mode, "-n", BEHIND)
    elif way == "without links":
        attach_without_links(mode, BEHIND)
    else:
        running = net.run("-i", UPLINK, "--mode", mode, "-n", BEHIND)
    here = status()
    assert (here["attached"], here["in_other_namespace"]) == (True, False)
    assert net.answers()
    there, text = elsewhere(net)
    assert (there["attached"], there["in_other_namespace"]) == (True, True)
    assert there["reasons"]["answered"] == 1
    assert ELSEWHERE in text
    assert GONE not in text
    scraped = net.at_router(*NDXDP, "metrics").out
    assert metric(scraped, "ndxdp_attached") == 1
    if way == "run":
        running.end()
        return
    sh("ip", "link", "delete", UPLINK)
    if way == "attach":
        there, text = elsewhere(net)
        assert (there["attached"], there["in_other_namespace"]) == (False, False)
        assert GONE in text
    take_off()


def test_userspace_of_another_namespace(net: Network) -> None:
    running = net.run("-i", UPLINK, "--mode", "userspace", "-n", BEHIND)
    there, text = elsewhere(net)
    assert (there["attached"], there["in_other_namespace"]) == (True, True)
    assert ELSEWHERE in text
    running.end(signal.SIGKILL)
    there, text = elsewhere(net)
    assert (there["attached"], there["in_other_namespace"]) == (False, False)
    assert GONE in text
    done("detach", UPLINK)


def test_an_interface_of_the_same_name_here(net: Network) -> None:
    """The other namespace has one of that name as well, of which the pins are not."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    assert net.at_router("ip", "link", "add", UPLINK, "type", "veth", "peer", "far1").code == 0
    there, _ = elsewhere(net)
    assert there["in_other_namespace"]
    (warning,) = there["warnings"]
    assert warning.startswith(f"{UPLINK} of this network namespace is not answered on")
    assert "ndxdp_link_transmit_drops_total" not in net.at_router(*NDXDP, "metrics").out
    assert net.at_router("ip", "link", "delete", UPLINK).code == 0
    take_off()


@pytest.mark.parametrize("mode", ["tc", "generic"])
def test_an_interface_that_was_moved(net: Network, mode: str) -> None:
    """Its program goes with it into the other namespace."""
    sh("ip", "link", "add", "up1", "up", "type", "veth", "peer", "far1")
    try:
        done("attach", "up1", "--mode", mode, "-n", BEHIND)
        sh("ip", "link", "set", "up1", "netns", ROUTER)
        moved = status("up1")
        assert (moved["attached"], moved["in_other_namespace"]) == (True, True)
        assert f"up1  {mode}, prebuilt program" in done("status", "up1")
        assert ELSEWHERE in done("status", "up1")
    finally:
        sh("ip", "link", "delete", "far1")
        take_off("up1")
