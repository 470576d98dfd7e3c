"""The exporter: `ndxdp exporter`, and that of the daemon."""

from __future__ import annotations

import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from ndxdp.config.model import Metrics
from ndxdp.errors import NdxdpError
from ndxdp.observe import exporter as exporting
from ndxdp.observe.exporter import Exporter
from ndxdp.store.directories import Trees
from tests.fixtures import network
from tests.fixtures.network import (
    BEHIND,
    NDXDP,
    REPOSITORY,
    UPLINK,
    Network,
    Running,
    done,
    eventually,
    ndxdp,
    sh,
)
from tests.fixtures.prometheus import get, parsed, promtool

PORT = 9877
URL = f"http://[::1]:{PORT}"

# ---- the exporter --------------------------------------------------------------------------------


@contextmanager
def exporter(*args: str, command: tuple[str, ...] = ()) -> Iterator[str]:
    """Run `ndxdp exporter`; yield its `ready` line."""
    process = subprocess.Popen(
        [*command, *NDXDP, "exporter", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        assert ready, process.stderr.read()
        yield ready
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


def test_exporter_shows_interfaces_without_a_daemon(attached: Network) -> None:
    with exporter() as ready:
        assert ready == f"ready: {URL}/metrics\n"
        assert attached.answers()
        samples = parsed(get(f"{URL}/metrics"))
        assert samples["ndxdp_solicitations_total"][UPLINK, "answered"] == 1
        assert samples["ndxdp_attached"] == {(UPLINK,): 1}
        assert "process_resident_memory_bytes" in samples
        assert "ndxdp_config_reload_success" not in samples
        detach_by_hand()
        eventually(lambda: "ndxdp_attached" not in parsed(get(f"{URL}/metrics")))
        with pytest.raises(HTTPError, match="404"):
            get(f"{URL}/nothing")


def detach_by_hand() -> None:
    done("detach", UPLINK)


def test_a_detached_interface_is_reported(attached: Network) -> None:
    sh("ip", "link", "delete", UPLINK)
    assert parsed(done("metrics"))["ndxdp_attached"] == {(UPLINK,): 0}


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_read_permission_is_all_that_it_needs(net: Network, mode: str) -> None:
    """Serve the metrics with no right but that of a group to read the pins."""
    done("-q", "attach", UPLINK, "--mode", mode, "-n", BEHIND)
    group = 4711
    (path,) = network.PINS.glob(f"v*/{UPLINK}")
    for each in (path, *path.iterdir()):
        shutil.chown(each, group=group)
    nobody = ("setpriv", "--reuid=65534", "--inh-caps=-all", "--bounding-set=-all")
    member = (*nobody, f"--regid={group}", "--clear-groups")
    with exporter(command=member):
        samples = parsed(get(f"{URL}/metrics"))
        assert samples["ndxdp_readable"] == {(UPLINK,): 1}
        assert samples["ndxdp_attached"] == {(UPLINK,): 1}
        sh("ip", "link", "delete", UPLINK)
        assert parsed(get(f"{URL}/metrics"))["ndxdp_attached"] == {(UPLINK,): 0}
    stranger = (*nobody, "--regid=65534", "--clear-groups")
    samples = parsed(network.call(*stranger, *NDXDP, "metrics").out)
    assert samples["ndxdp_readable"] == {(UPLINK,): 0}
    assert "ndxdp_attached" not in samples
    shutil.rmtree(path)
    network.remove_instance()


@pytest.mark.parametrize(
    ("options", "by_ipv4"),
    [(("--listen", "[::]:9877"), True), (("--listen", "[::]:9877", "--ipv6only"), False)],
)
def test_ipv4_or_not(net: Network, options: tuple[str, ...], by_ipv4: bool) -> None:
    with exporter(*options) as ready:
        assert ("IPv4" in ready) == by_ipv4
        listed = f"http://[::]:{PORT}/metrics" + (", by IPv4 too" if by_ipv4 else "")
        assert ndxdp("status", "--json").json()["exporters"] == [listed]
        assert f"metrics at {listed}\n" in ndxdp("status").out
        assert "ndxdp_build_info" in get(f"{URL}/metrics")
        if by_ipv4:
            assert "ndxdp_build_info" in get(f"http://127.0.0.1:{PORT}/metrics")
        else:
            with pytest.raises(OSError, match="refused"):
                get(f"http://127.0.0.1:{PORT}/metrics")
    assert ndxdp("status", "--json").json()["exporters"] == []


@pytest.mark.parametrize(
    ("where", "code", "outcome"),
    [
        (f"[::1]:{PORT}", 1, "another process listens"),
        ("[2001:db8::99]:1", 1, "this host has no such address"),
        ("no-such-host.invalid:1", 1, "the host has no address"),
        ("9877", 2, "is not an address and a port"),
    ],
)
def test_where_it_cannot_listen(net: Network, where: str, code: int, outcome: str) -> None:
    with closing(Exporter(Trees())) as taken:
        taken.listen(Metrics())
        result = ndxdp("exporter", "--listen", where)
    assert result.code == code
    assert outcome in result.err
    assert len(result.err.splitlines()) == 2, "a sentence and a hint"


def test_it_listens_at_the_configured_address(net: Network) -> None:
    """Move to another address, or stop; keep the old address if the new one is unavailable."""
    with closing(Exporter(Trees())) as serving, closing(Exporter(Trees())) as other:
        serving.listen(Metrics(port=PORT))
        other.listen(Metrics(port=PORT + 1))
        with pytest.raises(NdxdpError):
            serving.listen(Metrics(port=PORT + 1))
        assert "ndxdp_build_info" in get(f"{URL}/metrics")
        serving.listen(Metrics(port=PORT + 2))
        assert "ndxdp_build_info" in get(f"http://[::1]:{PORT + 2}/metrics")
        with pytest.raises(OSError, match="refused"):
            get(f"{URL}/metrics")
        serving.listen(None)
        with pytest.raises(OSError, match="refused"):
            get(f"http://[::1]:{PORT + 2}/metrics")
    eventually(lambda: threading.active_count() == 1)  # a connection's thread ends by itself


@contextmanager
def metrics_served() -> Iterator[Exporter]:
    with closing(Exporter(Trees())) as serving:
        serving.listen(Metrics())
        yield serving


def response_to(request: bytes, *, cut: bool = False) -> bytes:
    """Return the complete response to some bytes. cut: close the sending direction after them."""
    with socket.create_connection(("::1", PORT), timeout=30) as connection:
        with suppress(OSError):  # it may have closed before the whole request was sent
            connection.sendall(request)
            if cut:
                connection.shutdown(socket.SHUT_WR)
        found = b""
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                found += piece
        return found


def test_silent_connections_block_no_one(net: Network) -> None:
    with metrics_served(), ExitStack() as held:
        for _ in range(40):
            held.callback(socket.create_connection(("::1", PORT)).close)
        assert "ndxdp_build_info" in get(f"{URL}/metrics")
        assert threading.active_count() < 40


def test_slow_clients_block_no_one(net: Network) -> None:
    """Serve others while more clients are slow than there may be connections."""
    request = b"GET /metrics HTTP/1.1\r\nHost: " + b"x" * 1000
    ended = threading.Event()

    def drip() -> None:
        sent = 0
        while not ended.is_set():
            with suppress(OSError), socket.create_connection(("::1", PORT), timeout=5) as slow:
                while not ended.wait(0.2):
                    slow.sendall(request[sent : sent + 1])
                    sent = (sent + 1) % len(request)

    with metrics_served():
        slow = [threading.Thread(target=drip) for _ in range(20)]
        for each in slow:
            each.start()
        try:
            time.sleep(1)
            for _ in range(35):
                assert "ndxdp_build_info" in get(f"{URL}/metrics")
        finally:
            ended.set()
            for each in slow:
                each.join()


def test_all_of_a_request_has_one_deadline(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer 408 to a slow request; further bytes do not extend its deadline."""
    monkeypatch.setattr(exporting, "_PATIENCE", 1)
    with metrics_served(), socket.create_connection(("::1", PORT), timeout=30) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        began = time.monotonic()
        while not select.select([slow], [], [], 0.2)[0]:
            slow.sendall(b"a")
            assert time.monotonic() - began < 20
        assert slow.recv(100).startswith(b"HTTP/1.0 408 ")


ACCEPTS = [
    "text/plain;version=a",
    "text/plain; version=",
    "text/plain; version=1.0.0; escaping=nonsense",
    "text/plain; version=.; q=a",
    "application/openmetrics-text; version=a",
    "application/openmetrics-text; version=1.0.0a",
    "application/openmetrics-text; version=-1",
    "application/openmetrics-text; version=99999999999999999999.0",
    "application/openmetrics-text;;;;version==1",
    "application/openmetrics-text; escaping=",
    ",,,;;;===",
    "*/*",
    "\xff\xfe",
    "text/html" * 5000,
]


@pytest.mark.parametrize("accept", ACCEPTS, ids=lambda text: text[:50])
def test_any_accept_header_gets_metrics(net: Network, accept: str) -> None:
    head = f"GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n"
    with metrics_served():
        answer = response_to(head.encode("latin-1"))
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert b"ndxdp_build_info" in answer


REQUESTS = [
    b"\r\n",
    b"  \r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /metrics\r\n\r\n",
    b"HEAD /metrics HTTP/0.9\r\n\r\n",
    b"GET /metrics HTTP/2.0\r\n\r\n",
    b"GET /metrics HTTP/a\r\n\r\n",
    b"GET /metrics FTP/1.0\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
    b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    b"GET /metrics HTTP/1.1\r\n: b\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nAccept: a\r\n b\r\n\tc\r\n\r\n",
    b"GET /\x00\x1b[31m HTTP/1.1\r\n\r\n",
    b"G\xff\x00T / HTTP/1.1\r\n\r\n",
    b"GET http://[::1/metrics HTTP/1.1\r\n\r\n",
    b"GET /metrics?%00=%ff HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    bytes(1000) + b"\r\n",
]


@pytest.mark.parametrize("request_bytes", REQUESTS, ids=lambda data: repr(data[:40]))
def test_any_request_gets_an_answer(
    net: Network, caplog: pytest.LogCaptureFixture, request_bytes: bytes
) -> None:
    with metrics_served():
        answer = response_to(request_bytes, cut=True)
    assert answer.startswith(b"HTTP/1.0 "), answer
    assert "Traceback" not in caplog.text


def test_damaged_requests_get_an_answer(net: Network, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(14)
    good = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain;version=0.0.4\r\n\r\n"
    with metrics_served():
        for _ in range(300):
            data = bytearray(good)
            for _ in range(rng.randrange(1, 5)):
                at = rng.randrange(len(data))
                damage = bytes(rng.choices([*b"\r\n :;,=/\0\t", rng.randrange(256)], k=2))
                data[at : at + rng.randrange(3)] = damage[: rng.randrange(3)]
            answer = response_to(bytes(data), cut=True)
            assert answer.startswith(b"HTTP/1.0 "), (data, answer)
        assert "ndxdp_build_info" in get(f"{URL}/metrics")
    assert "Traceback" not in caplog.text


def test_a_failing_page_is_an_error_of_the_server(
    net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("something that nobody foresaw")

    with metrics_served() as serving:
        monkeypatch.setattr(serving, "metrics", fail)
        assert response_to(b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 500 ")


def test_openmetrics_on_request(net: Network) -> None:
    with closing(Exporter(Trees())) as serving:
        serving.listen(Metrics())
        text = get(f"{URL}/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")


def test_promtool_finds_nothing_wrong(attached: Network) -> None:
    with exporter():
        served = get(f"{URL}/metrics")
    for text in (served, done("metrics")):
        checked = promtool("check", "metrics", stdin=text)
        assert (checked.code, checked.out + checked.err) == (0, "")


def test_the_textfile_has_nothing_of_the_process(attached: Network) -> None:
    """Omit `process_*` from the textfile: node_exporter has its own, and refuses duplicates."""
    assert all(name.startswith("ndxdp_") for name in parsed(done("metrics")))


def test_without_metrics_the_client_is_not_imported(net: Network) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ndxdp"]
    running = net.run("-i", UPLINK, "-n", BEHIND, command=command)
    imported = running.end().err
    assert "ndxdp.daemon.uplink" in imported
    assert "prometheus_client" not in imported
    assert "http.server" not in imported


# ---- the daemon ----------------------------------------------------------------------------------


CONFIG = """
[metrics]
listen = "[::1]:{port}"
[[interface]]
name = "{uplink}"
[[interface.prefix]]
prefix = "{prefix}"
"""


def test_reload_moves_the_exporter(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "ndxdp.toml"

    def write(port: int, prefix: str = BEHIND) -> None:
        path.write_text(CONFIG.format(port=port, uplink=UPLINK, prefix=prefix))

    def reloads_well(port: int) -> bool:
        samples = parsed(get(f"http://[::1]:{port}/metrics"))
        return samples["ndxdp_config_reload_success"] == {(): 1}

    write(PORT)
    running = net.run("-c", str(path))
    assert reloads_well(PORT)
    with closing(Exporter(Trees())) as other:
        other.listen(Metrics(port=PORT + 1))
        write(PORT + 1)
        assert ndxdp("reload", "-c", str(path)).code == 0
        assert reloads_well(PORT)
        write(PORT, prefix="nonsense")
        assert ndxdp("reload", "-c", str(path)).code == 1
        assert not reloads_well(PORT)
    write(PORT + 1)
    assert ndxdp("reload", "-c", str(path)).code == 0

    def has_moved() -> bool:
        try:
            return reloads_well(PORT + 1)
        except OSError:
            return False

    eventually(has_moved, within=10)
    ended = running.end()
    assert ended.code == 0
    assert f"cannot listen on [::1]:{PORT + 1}: another process listens there" in ended.err
    done("detach", UPLINK)


def test_an_interface_that_is_waited_for_is_not_attached(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "ndxdp.toml"
    path.write_text(CONFIG.format(port=PORT, uplink="later0", prefix=BEHIND))
    running = Running(("-c", str(path)), wait=False)

    def attached() -> dict[Any, Any]:
        try:
            return dict(parsed(get(f"{URL}/metrics")).get("ndxdp_attached", {}))
        except OSError:
            return {}

    assert eventually(attached) == {("later0",): 0}
    assert running.end().code == 0
