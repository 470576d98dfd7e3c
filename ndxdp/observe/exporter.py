"""HTTP exporter of metrics and of the status page, in a thread of its own.

Each request reads pins and files, and takes no lock that answering waits for. The thread that
accepts connections also samples the answers for the curves of the page. The exporter has neither
TLS nor authentication: a reverse proxy can add them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, cast

from ndxdp import threads
from ndxdp.config.model import Metrics
from ndxdp.errors import NdxdpError
from ndxdp.observe import page_style, readiness, status_page
from ndxdp.observe.connections import Connections, Phase
from ndxdp.observe.history import History
from ndxdp.observe.metrics import Exposition
from ndxdp.observe.page_choice import Choice
from ndxdp.observe.status import Snapshot, take_snapshot
from ndxdp.printable import printable
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.runtime.publications import publish_exporter
from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)

_CONNECTIONS = 16
"""Connections at a time; the slowest is closed for one more. Prometheus needs one."""

_PATIENCE = 10  # seconds to receive a whole request, and to send an answer

_REST_WITHIN = 1.0  # seconds to read bytes that a client sends after its request
_REST_MAX = 65536  # of these bytes

_POLICY = (
    f"default-src 'none'; style-src 'sha256-{page_style.DIGEST}'; base-uri 'none';"
    " form-action 'none'"
)
"""The browser loads and runs nothing, and applies no style but that of the page."""

_SAMPLE, _SAMPLE_MAX = 1.0, 60.0
"""Seconds between the two snapshots from which the page computes rates, at least and at most."""


class Exporter:
    """Exporter that listens at the address given to listen(), and nowhere before."""

    def __init__(self, trees: Trees, state: DaemonStatus | None = None) -> None:
        """Create an exporter. state: the status of the daemon, if this process is one."""
        self._trees, self._state = trees, state
        self._exposition = Exposition(trees, state)
        self._history = History(trees)
        self._shown: Snapshot | None = None  # the counters of the last page
        self._serving: _Serving | None = None

    def listen(self, where: Metrics | None) -> None:
        """Listen at this address only; None to stop listening.

        Raises:
            NdxdpError: The address is not available; the exporter keeps the previous one.
        """
        self._exposition.all_classes = where is not None and where.all_classes
        before = self._serving
        if where == (before.where if before else None):
            return
        if before and where and where.port == before.where.port:
            self._replace(before, where)
        else:
            self._serving = _Serving(where, self) if where else None
            if before:
                before.close()
        log.info("metrics: %s", self if where else "not served any more")

    def _replace(self, before: _Serving, where: Metrics) -> None:
        """Listen at another address of the same port.

        The kernel refuses a second socket on a port while the first one listens on [::].
        """
        before.close()
        self._serving = None
        try:
            self._serving = _Serving(where, self)
        except NdxdpError:
            with contextlib.suppress(NdxdpError):  # another process has taken the port
                self._serving = _Serving(before.where, self)
            raise

    def close(self) -> None:
        """Stop listening."""
        self.listen(None)

    def __str__(self) -> str:
        """Return the URL for Prometheus, and whether IPv4 reaches it, too."""
        return str(self._serving) if self._serving else "nowhere"

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that a client prefers.

        Args:
            accept: The Accept header of the request.

        Returns:
            The body, and its content type.
        """
        return self._exposition.negotiated(accept)

    def problem(self) -> str:
        """Return why nothing can be read; "" if something can."""
        error = readiness.problem(self._trees)
        return printable(error.message) if error else ""

    def page(self, query: str = "") -> str:
        """Return the status page.

        The rates are those since the page was last shown. If that was too long ago, this takes a
        second, in which they are measured.

        Args:
            query: The query of the page's address.
        """
        before = self._earlier()
        after = take_snapshot(self._trees)
        self._shown = after.counters()
        return status_page.html(
            before,
            after,
            self._state,
            str(self),
            host=socket.gethostname(),
            curves=self._history.curves(),
            choice=Choice.parse(query),
        )

    def _earlier(self) -> Snapshot:
        """Return the counters of the last page, or those of a second ago."""
        shown = self._shown
        if shown and _SAMPLE <= time.monotonic() - shown.time <= _SAMPLE_MAX:
            return shown
        now = take_snapshot(self._trees).counters()
        time.sleep(_SAMPLE)
        return now

    def due_in(self) -> float:
        """Return the seconds until tick() has work to do."""
        return self._history.due_in()

    def tick(self) -> None:
        """Do what is due apart from requests: take samples, free memory."""
        self._history.sample()
        shown = self._shown
        if shown and time.monotonic() - shown.time > _SAMPLE_MAX:
            self._shown = None


class _Serving:
    """Listening socket with its thread, until close()."""

    def __init__(self, where: Metrics, exporter: Exporter) -> None:
        self.where = where
        self._server = _Server(where, exporter)
        self._publication = publish_exporter(str(self))
        self._closing = False
        self._thread = threads.start("exporter", self._serve)

    def close(self) -> None:
        self._closing = True
        self._server.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._server.server_close()
        self._publication.close()

    def __str__(self) -> str:
        both = self.where.host == "::" and not self.where.ipv6only
        return f"http://{self.where}/metrics" + (", by IPv4 too" if both else "")

    def _serve(self) -> None:
        # serve_forever() would wake up twice a second.
        exporter = self._server.exporter
        while not self._closing:
            self._server.timeout = exporter.due_in()
            self._server.handle_request()
            exporter.tick()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # with the default of five, clients wait for seconds

    def __init__(self, where: Metrics, exporter: Exporter) -> None:
        self.exporter = exporter
        self._ipv6only = where.ipv6only
        self.connections = Connections(_CONNECTIONS)
        try:
            found = socket.getaddrinfo(
                where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            self.address_family, address = found[0][0], found[0][4]
            super().__init__(cast(tuple[str, int], address), _Handler, bind_and_activate=False)
            self.server_bind()
            self.server_activate()
        except OSError as error:
            if hasattr(self, "socket"):
                self.server_close()
            raise _refusal(where, error) from error

    def server_bind(self) -> None:
        if self.address_family is socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, self._ipv6only)
        TCPServer.server_bind(self)  # that of HTTPServer queries the DNS for the host's name

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.1)  # the server would call this again at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.connections.admit(request):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self.connections.remove(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.remove(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a request was not answered", exc_info=True)


class _TooSlow(OSError):
    """Error of a request that did not arrive in time.

    It is no TimeoutError, because http.server sends no answer after a TimeoutError.
    """


class _RequestReader(io.RawIOBase):
    """Reader of a client's bytes until a deadline, which new bytes do not extend."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._deadline = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise _TooSlow
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        except TimeoutError:
            raise _TooSlow from None


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "ndxdp", ""
    default_request_version = "HTTP/1.0"

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_RequestReader(self.request, _PATIENCE))

    def handle(self) -> None:
        self.requestline, self.request_version, self.command = "", "HTTP/1.0", ""
        try:
            super().handle()
        except _TooSlow:
            self.request.settimeout(_PATIENCE)
            self.send_error(408)

    def parse_request(self) -> bool:
        """Parse the request; malformed ones are answered, too."""
        good = super().parse_request()
        self.request_version = "HTTP/1.0"  # with 0.9, the answer would have no status line
        if not good and not self.requestline.split():  # http.server ignores an empty line
            self.send_error(400)
        return good

    def finish(self) -> None:
        super().finish()
        # The kernel resets a connection that is closed with unread bytes; its answer may be lost.
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_WR)
            rest = io.BufferedReader(_RequestReader(self.request, _REST_WITHIN))
            rest.read(_REST_MAX)

    def do_GET(self) -> None:
        exporter, (path, _, query) = self.server.exporter, self.path.partition("?")
        self.server.connections.enter(self.request, Phase.WORK)
        try:
            if path == "/metrics":
                body, kind = exporter.metrics(self.headers.get("Accept", ""))
            elif path == "/":
                body, kind = exporter.page(query).encode(), "text/html; charset=utf-8"
            else:
                self._send_text(*_ANSWERS.get(path, _not_found)(exporter))
                return
        except Exception as error:  # the client gets the error as an answer
            log.warning("cannot serve %s: %s", path, error)
            log.debug("cause of the failed request", exc_info=True)
            self._send_text(500, str(error))
            return
        self._send(200, body, kind)

    do_HEAD = do_GET

    def _send_text(self, code: int, text: str) -> None:
        self._send(code, f"{text}\n".encode(errors="replace"), "text/plain; charset=utf-8")

    def _send(self, code: int, body: bytes, kind: str) -> None:
        self.server.connections.enter(self.request, Phase.ANSWER)
        self.request.settimeout(_PATIENCE)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _POLICY)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s: %s", self.address_string(), format % args)


def _not_found(exporter: Exporter) -> tuple[int, str]:
    return 404, "not found; try / or /metrics"


def _healthy(exporter: Exporter) -> tuple[int, str]:
    return 200, "ndxdp is healthy."


def _ready(exporter: Exporter) -> tuple[int, str]:
    """Return 503 with the reason if nothing can be read."""
    problem = exporter.problem()
    return (503, f"not ready: {problem}") if problem else (200, "ndxdp is ready.")


_ANSWERS: dict[str, Callable[[Exporter], tuple[int, str]]] = {
    "/-/healthy": _healthy,
    "/-/ready": _ready,
}
"""The paths by which Prometheus and its exporters report health and readiness."""


def _refusal(where: Metrics, error: OSError) -> NdxdpError:
    place = str(where)
    if isinstance(error, socket.gaierror):
        return NdxdpError(
            f"cannot listen on {place}: the host has no address ({error.strerror})",
            "give an address: [::1]:9877",
        )
    if error.errno == errno.EADDRINUSE:
        return NdxdpError(
            f"cannot listen on {place}: another process listens there",
            f"find it: ss -Hltnp 'sport = :{where.port}'; or choose another port",
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL):
        return NdxdpError(
            f"cannot listen on {place}: this host has no such address",
            "list its addresses: ip -br address; [::] listens on all of them",
        )
    return NdxdpError(
        f"cannot listen on {place}: {os.strerror(error.errno or 0)}",
        "ports below 1024 need root: choose another port",
    )
