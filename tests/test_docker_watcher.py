"""Watching containers: JSON in pieces, and events of a scripted engine."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ndxdp.rules.prefix import parse_prefix
from ndxdp.sources import docker, engine_api
from ndxdp.sources.docker import Docker
from ndxdp.sources.json_pieces import Objects
from tests.fixtures.fake_engine import Fake, container, network
from tests.fixtures.hostile import BROKEN
from tests.fixtures.network import eventually
from tests.fixtures.watching import endpoint, watching

REPOSITORY = Path(__file__).resolve().parent.parent

# ---- JSON in pieces ------------------------------------------------------------------------------

SAID = [
    {"n": i, "text": "ü]}" * i, "deep": {"list": [1, {}, []], "\x01": [True, None, -1.5e-7]}}
    for i in range(30)
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100000])
@pytest.mark.parametrize("array", [True, False], ids=["array", "stream"])
def test_objects_in_pieces(size: int, array: bool) -> None:
    texts = [json.dumps(one, ensure_ascii=False) for one in SAID]
    text = f" [{' ,'.join(texts)}]\n" if array else "\n".join(texts) + "\n"
    raw, objects = text.encode(), Objects(array=array)
    found: list[dict[str, Any]] = []
    for at in range(0, len(raw), size):
        found += objects.feed(raw[at : at + size])
    found += objects.end()
    assert found == SAID


@pytest.mark.parametrize("text", ["[]", " null\n", "[ ]"])
def test_no_objects(text: str) -> None:
    objects = Objects(array=True)
    assert [*objects.feed(text.encode()), *objects.end()] == []


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[", b"[{}", b"nul", b"{}", b"[1]", b"[{}]x", b"[{}]]", b"[\xff]", b"[{]"),
        *(b"[" * 10000, b'[{"a":' + b"[" * 100000),
    ],
    ids=lambda text: text[:6].decode(errors="replace"),
)
def test_json_that_is_no_array_of_objects(text: bytes) -> None:
    objects = Objects(array=True)
    with pytest.raises(ValueError, match=r"answer|JSON|utf-8"):
        _ = [*objects.feed(text), *objects.end()]


# ---- a watcher, and a scripted engine ------------------------------------------------------------


@pytest.fixture
def states(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the levels of the logged lines: one for each change of state."""
    caplog.set_level(logging.INFO, docker.__name__)
    return lambda: [record.levelname for record in caplog.records if record.name == docker.__name__]


def test_lists_once_and_then_after_events(fake: Fake) -> None:
    fake.networks = [network("six", kind="a"), network("seven", "2001:db8:7::/64")]
    fake.containers = [container(2, tier="web"), container(3, "seven")]
    with watching(fake.path) as watcher:
        eventually(lambda: watcher.sets)
        one, other = sorted(watcher.sets[0])
        assert one == endpoint(
            "2001:db8::2",
            "web2",
            labels={"tier": "web"},
            network_labels={"kind": "a"},
            subnets=("2001:db8::/64",),
        )
        assert (other.container, other.network) == ("web3", "seven")
        assert watcher.docker.connected
        fake.containers.append(container(4))
        fake.send_event()
        eventually(lambda: len(watcher.sets) == 2)
        fake.containers = []
        fake.send_event({"Type": "network", "Action": "disconnect"})
        watcher.becomes({})
        fake.send_event()
        time.sleep(0.2)
        assert len(watcher.sets) == 3  # only changes are yielded
    assert not watcher.docker.connected
    # The version is the newest that both support.
    assert {path for path in fake.requests if path != "/version"} == {
        "/v1.44/containers/json",
        "/v1.44/networks",
        "/v1.44/events",
    }
    assert fake.requests.index("/v1.44/events") < fake.requests.index("/v1.44/containers/json")


def test_only_the_labels_that_matter(fake: Fake) -> None:
    fake.networks = [network("six", kind="a", note="b")]
    fake.containers = [container(2, kind="c", other="d")]
    with watching(fake.path, frozenset(["kind"])) as watcher:
        (one,) = eventually(lambda: watcher.sets)[0]
        assert (one.container_labels, one.network_labels) == ((("kind", "c"),), (("kind", "a"),))


def test_a_burst_of_events_is_listed_three_times(fake: Fake) -> None:
    with watching(fake.path) as watcher:
        eventually(lambda: watcher.sets)
        time.sleep(2.5)
        before = fake.lists()
        fake.send_event(*[{"Type": "container", "Action": "start"}] * 50)
        eventually(lambda: fake.lists() == before + 1)
        # An engine may send an event before its list contains the change.
        fake.containers.append(container(2))
        watcher.becomes({"2001:db8::2": "six"})
        eventually(lambda: fake.lists() == before + 3)
        time.sleep(1)
        assert fake.lists() == before + 3
        fake.send_event({"Type": "container", "Action": "exec_start"})
        fake.send_event({"Type": "container", "Action": {"no": "text"}})
        time.sleep(0.2)
        assert fake.lists() == before + 3


def test_pieces_that_end_anywhere(fake: Fake) -> None:
    fake.containers = [container(number, text="ü" * number) for number in range(2, 12)]
    fake.slices = 3
    with watching(fake.path) as watcher:
        eventually(lambda: watcher.sets)
        assert len(watcher.sets[0]) == 10
        fake.containers.pop()
        eventually(lambda: fake.streams)
        for byte in b"14\r\n" + b'{"Action": "start"}\n' + b"\r\n":
            fake.streams[0].sendall(bytes([byte]))
        eventually(lambda: len(watcher.sets) == 2)


def test_a_huge_list(fake: Fake) -> None:
    fake.containers = [container(number) for number in range(2, 5002)]
    with watching(fake.path) as watcher:
        eventually(lambda: watcher.sets)
        assert len(watcher.sets[0]) == 5000


@pytest.mark.parametrize(
    ("limit", "value", "expected"),
    [
        ("_ADDRESSES_MAX", 10, "the list exceeds 10 addresses or networks"),
        ("_LIST_MAX", 1 << 20, "the list exceeds 1 MB"),
    ],
)
def test_a_list_that_is_too_long_changes_nothing(
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: str,
    value: int,
    expected: str,
) -> None:
    """Log a too long list once, and retry rarely: each attempt may cost seconds of work."""
    monkeypatch.setattr(engine_api, limit, value)
    caplog.set_level(logging.WARNING, docker.__name__)
    fake.containers = [container(2)]
    with watching(fake.path) as watcher:
        watcher.becomes({"2001:db8::2": "six"})
        fake.containers = [container(number, text="x" * 1000) for number in range(2, 2002)]
        fake.send_event()
        eventually(lambda: not watcher.docker.connected)
        before = len(fake.requests)
        time.sleep(1)
        assert len(fake.requests) - before < 20
        assert watcher.addresses() == {"2001:db8::2": "six"}
        fake.containers = [container(3)]
        watcher.becomes({"2001:db8::3": "six"}, within=30)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert expected in warnings[0]


def test_a_slow_failure_is_no_good_connection(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "_STABLE", 0.05)

    def fail(connection: socket.socket) -> None:
        time.sleep(0.1)
        connection.sendall(b"nonsense\r\n")

    fake.replies["json"] = fail
    with watching(fake.path):
        time.sleep(2)
        assert fake.requests.count("/version") <= 6  # 0.1, 0.2, 0.4, 0.8 s between them


def test_null_for_empty_objects(fake: Fake) -> None:
    bare: dict[str, Any] = {"Id": "1", "Names": ["/bare"], "Labels": None, "NetworkSettings": None}
    off = {"GlobalIPv6Address": "", "NetworkID": "id-six"}
    unusable = {"GlobalIPv6Address": "fe80::1", "NetworkID": "id-six"}
    networks = {"six": off, "seven": unusable, "eight": None}
    fake.containers = [
        bare,
        {"Id": "2", "Names": ["/off"], "NetworkSettings": {"Networks": networks}},
    ]
    fake.networks = [{"Name": "host", "Id": "h", "IPAM": {"Config": None}, "Labels": None}]
    with watching(fake.path) as watcher:
        watcher.becomes({})


def test_a_network_that_is_listed_late(fake: Fake) -> None:
    """Read the networks again if a container is on one that was created between two requests."""
    fake.containers = [container(2, "new")]
    lists = [[network()], [network(), network("new", hidden="")]]
    fake.replies["networks"] = lambda s: fake.send(s, json.dumps(lists.pop(0)).encode())
    with watching(fake.path) as watcher:
        (one,) = eventually(lambda: watcher.sets)[0]
        assert one.network_labels == (("hidden", ""),)


def test_podman_calls_networks_by_name(fake: Fake) -> None:
    fake.containers = [container(2)]
    fake.containers[0]["NetworkSettings"]["Networks"]["six"]["NetworkID"] = "six"
    with watching(fake.path) as watcher:
        (one,) = eventually(lambda: watcher.sets)[0]
        assert one.subnets == (parse_prefix("2001:db8::/64"),)


def test_an_engine_that_begins_the_stream_with_the_first_event(fake: Fake) -> None:
    begin, end = threading.Event(), threading.Event()

    def silent(connection: socket.socket) -> None:
        begin.wait(20)
        connection.sendall(b'HTTP/1.1 200 OK\r\n\r\n{"Action": "start"}')
        end.wait(20)

    fake.replies["events"] = silent
    with watching(fake.path) as watcher:
        eventually(lambda: watcher.sets)
        fake.containers = [container(2)]
        begin.set()
        watcher.becomes({"2001:db8::2": "six"})
        end.set()


@pytest.mark.parametrize("what", BROKEN)
def test_nonsense_changes_nothing(fake: Fake, what: str, states: Callable[[], list[str]]) -> None:
    fake.containers = [container(2)]
    with watching(fake.path) as watcher:
        eventually(lambda: watcher.sets)
        for name in ("json", "networks", "version", "events"):
            fake.replies[name] = lambda connection: connection.sendall(BROKEN[what])
            fake.cut()
            eventually(lambda: not watcher.docker.connected)
            time.sleep(0.05)
            del fake.replies[name]
            fake.open()  # a new socket file: the retry is immediate
            eventually(lambda: watcher.docker.connected)
        assert len(watcher.sets) == 1
        fake.containers = []
        fake.send_event()
        watcher.becomes({})
    assert states() == ["INFO"] + ["WARNING", "INFO"] * 4


def test_a_stream_that_ends_before_a_change(fake: Fake) -> None:
    fake.containers = [container(2)]
    with watching(fake.path) as watcher:
        eventually(lambda: watcher.sets)
        fake.containers = [container(3)]
        fake.cut()
        watcher.becomes({"2001:db8::3": "six"})


def test_an_invalid_event(fake: Fake) -> None:
    """End the stream at an invalid event, and read the list again."""
    fake.containers = [container(2)]
    with watching(fake.path) as watcher:
        eventually(lambda: watcher.sets)
        time.sleep(2.5)
        eventually(lambda: fake.streams)
        fake.streams[0].sendall(b'9\r\n{"a": no}\r\n')
        fake.containers = []
        fake.send_event()
        watcher.becomes({})


def test_silence_is_an_end(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_api, "_TIMEOUT", 0.3)
    fake.containers = [container(2)]
    with watching(fake.path) as watcher:
        eventually(lambda: watcher.sets)
        fake.replies["json"] = lambda connection: time.sleep(3)
        fake.send_event()
        eventually(lambda: not watcher.docker.connected)
        del fake.replies["json"]
        eventually(lambda: watcher.docker.connected)
        assert len(watcher.sets) == 1


def test_a_slow_list_is_waited_for(fake: Fake) -> None:
    def slow(connection: socket.socket) -> None:
        time.sleep(1)
        fake.send(connection, json.dumps(fake.containers).encode())

    fake.replies["json"] = slow
    fake.containers = [container(2)]
    with watching(fake.path) as watcher:
        watcher.becomes({"2001:db8::2": "six"}, within=20)


def test_retries_become_rare_and_start_early_again(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, states: Callable[[], list[str]]
) -> None:
    pauses: list[float] = []
    wait = Docker._wait_for_change

    async def noted(self: Docker, delay: float, tried: object) -> bool:
        pauses.append(delay)
        return await wait(self, min(delay, 0.01), tried)

    monkeypatch.setattr(Docker, "_wait_for_change", noted)
    monkeypatch.setattr(docker, "_STABLE", 0.5)
    fake.replies["version"] = lambda connection: connection.sendall(BROKEN["error"])
    with watching(fake.path) as watcher:
        eventually(lambda: len(pauses) >= 12)
        assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
        assert pauses[11] == 30
        del fake.replies["version"]
        eventually(lambda: watcher.docker.connected)
        time.sleep(0.6)
        pauses.clear()
        fake.cut()
        eventually(lambda: pauses)
        assert pauses[0] == 0.1
    assert states()[:2] == ["WARNING", "INFO"]


def test_a_socket_that_appears_late(
    tmp_path: Path, states: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connect when the socket appears, long before the next attempt would be due."""
    monkeypatch.setattr(docker, "_DELAY_MIN", 60.0)
    monkeypatch.setattr(docker, "_DELAY_MAX", 60.0)
    path = tmp_path / "late" / "engine.sock"
    with watching(path) as watcher:
        eventually(lambda: states() == ["WARNING"])
        path.parent.mkdir()
        fake = Fake(path)
        eventually(lambda: watcher.sets, within=20)
        # The engine ends, and its socket is removed; no further event comes.
        fake.close()
        path.unlink()
        eventually(lambda: not watcher.docker.connected)
        assert len(watcher.sets) == 1
        assert states() == ["WARNING", "INFO", "WARNING"]


def test_a_socket_that_may_not_be_opened(
    fake: Fake, privacy: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Report a socket that an unprivileged process may not open."""
    fake.path.chmod(0o600)
    for parent in [fake.path.parent, *fake.path.parent.parents][:3]:
        parent.chmod(0o755)
    script = f"""if True:
        import asyncio, logging, os, sys
        sys.path.insert(0, {str(REPOSITORY)!r})
        from ndxdp.sources.docker import Docker
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
        async def main():
            async for found in Docker({str(fake.path)!r}).watch():
                return
        os.setgid(65534); os.setuid(65534)
        asyncio.run(main())
    """
    command = [sys.executable, "-uc", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        assert "permission denied" in process.stdout.readline()
        fake.path.chmod(0o666)
        out, _ = process.communicate(timeout=5)
        assert "connected" in out
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("path", ["/dev/null", "/", "a" * 200, "zero\0byte", ""])
def test_a_path_that_is_no_socket(path: str) -> None:
    with watching(Path("/unused")) as watcher:
        watcher.docker.socket_path = path
        time.sleep(0.4)
        assert watcher.is_running


def test_memory_of_a_process_that_only_watches(fake: Fake) -> None:
    """Stay small with 10 000 containers as Compose labels them; the daemon has 40 MB in all."""
    labels = {f"com.docker.compose.{key}": "0123456789abcdef" * 4 for key in "abcdef"}
    fake.containers = [container(number, **labels) for number in range(2, 10002)]
    script = f"""if True:
        import asyncio, sys
        sys.path.insert(0, {str(REPOSITORY)!r})
        from ndxdp.sources.docker import Docker
        async def main():
            async for found in Docker({str(fake.path)!r}, frozenset(["ndxdp"])).watch():
                assert len(found) == 10000
                await asyncio.sleep(3)  # the looks that follow the first
                return
        asyncio.run(main())
        print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
    """
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert (
        int(done.stdout.split()[1]) < 32_000
    )  # kB; 27 MB were measured, 22 of them Python and asyncio
