"""The metrics and a page for people, by HTTP, from a thread of its own.

Each request reads pins and files; it takes no lock that answering waits for. There is neither TLS
nor authentication: who wants them puts a reverse proxy in front.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, cast

from ndxdp import threads
from ndxdp.config.model import Metrics
from ndxdp.errors import NdxdpError
from ndxdp.observe import status
from ndxdp.observe import status_page as page
from ndxdp.observe.connections import Connections, Phase
from ndxdp.observe.metrics import Exposition
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.runtime.publications import Publication
from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)

_CONNECTIONS = 16
"""Connections at a time: for one more the slowest is closed. Prometheus needs one."""

_PATIENCE = 10  # seconds for all of a request to come, and for an answer to be taken

_REST_WITHIN = 1.0  # seconds for what a client sends beyond its request
_REST_MAX = 65536  # bytes of it

_SAMPLE = 1.0  # seconds between the two looks that the page's rates are made of


class Exporter:
    """Listens where listen() says, and nowhere before. state: of the daemon that this is."""

    def __init__(self, trees: Trees, state: DaemonStatus | None = None) -> None:
        self._trees, self._state = trees, state
        self._exposition = Exposition(trees, state)
        self._serving: _Serving | None = None

    def listen(self, where: Metrics | None) -> None:
        """Listen there alone; None for nowhere.

        Raises:
            NdxdpError: It cannot be had; the exporter listens where it did before.
        """
        before = self._serving
        if where == (before.where if before else None):
            return
        if before and where and where.port == before.where.port:
            self._replace(before, where)
        else:
            self._serving = _Serving(where, self) if where else None
            if before:
                before.close()
        log.info("metrics: %s", self if where else "no longer served")

    def _replace(self, before: _Serving, where: Metrics) -> None:
        """Listen elsewhere on the same port, which the kernel refuses as long as we do on [::]."""
        before.close()
        self._serving = None
        try:
            self._serving = _Serving(where, self)
        except NdxdpError:
            with contextlib.suppress(NdxdpError):  # somebody else has taken it meanwhile
                self._serving = _Serving(before.where, self)
            raise

    def close(self) -> None:
        self.listen(None)

    def __str__(self) -> str:
        """Where to point Prometheus, and whether that is IPv4's too."""
        return str(self._serving) if self._serving else "nowhere"

    def metrics(self, accept: str) -> tuple[bytes, str]:
        return self._exposition.negotiated(accept)

    def page(self) -> str:
        """Takes a second: it shows what happens in it."""
        before = status.look(self._trees)
        time.sleep(_SAMPLE)
        return page.html(before, status.look(self._trees), self._state, str(self))


class _Serving:
    """One listening socket and its thread, until close()."""

    def __init__(self, where: Metrics, exporter: Exporter) -> None:
        self.where = where
        self._server = _Server(where, exporter)
        self._beacon = Publication(str(self))
        self._closing = False
        self._thread = threads.start("exporter", self._serve)

    def close(self) -> None:
        self._closing = True
        self._server.socket.shutdown(socket.SHUT_RDWR)  # which wakes the thread
        self._thread.join()
        self._server.server_close()
        self._beacon.close()

    def __str__(self) -> str:
        both = self.where.host == "::" and not self.where.ipv6only
        return f"http://{self.where}/metrics" + (", by IPv4 too" if both else "")

    def _serve(self) -> None:
        # Not serve_forever(), which wakes up twice a second.
        while not self._closing:
            self._server.handle_request()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # with five, as is the default, others wait for seconds

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
        TCPServer.server_bind(self)  # HTTPServer's asks the DNS for a name

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.1)  # it would be asked again at once
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
    """A request did not come in time. No TimeoutError, which http.server does not answer."""


class _RequestReader(io.RawIOBase):
    """Reads what a client sends until a deadline, which more bytes do not put off."""

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
        """Read the request; that which is none gets an answer, too."""
        good = super().parse_request()
        self.request_version = "HTTP/1.0"  # to 0.9, there would be no status line
        if not good and not self.requestline.split():  # an empty line: http.server passes over it
            self.send_error(400)
        return good

    def finish(self) -> None:
        super().finish()
        # A connection that is closed with unread bytes is reset, and its answer may be lost.
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_WR)
            rest = io.BufferedReader(_RequestReader(self.request, _REST_WITHIN))
            rest.read(_REST_MAX)

    def do_GET(self) -> None:
        exporter, path = self.server.exporter, self.path.partition("?")[0]
        self.server.connections.enter(self.request, Phase.WORK)
        try:
            if path == "/metrics":
                body, kind = exporter.metrics(self.headers.get("Accept", ""))
            elif path == "/":
                body, kind = exporter.page().encode(), "text/html; charset=utf-8"
            else:
                self._send(404, b"there are / and /metrics\n", "text/plain; charset=utf-8")
                return
        except Exception as error:  # whoever asks is to hear of it
            log.warning("%s was asked for and could not be told: %s", path, error)
            log.debug("its cause", exc_info=True)
            self._send(500, f"{error}\n".encode(errors="replace"), "text/plain; charset=utf-8")
            return
        self._send(200, body, kind)

    do_HEAD = do_GET

    def _send(self, code: int, body: bytes, kind: str) -> None:
        self.server.connections.enter(self.request, Phase.ANSWER)
        self.request.settimeout(_PATIENCE)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s: %s", self.address_string(), format % args)


def _refusal(where: Metrics, error: OSError) -> NdxdpError:
    place = str(where)
    if isinstance(error, socket.gaierror):
        return NdxdpError(
            f"{place}: that host has no address ({error.strerror})", "give an address: [::1]:9877"
        )
    if error.errno == errno.EADDRINUSE:
        return NdxdpError(
            f"another process listens on {place} already",
            f"see who: ss -Hltnp 'sport = :{where.port}'; or choose another port",
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL):
        return NdxdpError(
            f"{place} is no address of this host", "see: ip -br address; [::] is all of them"
        )
    return NdxdpError(
        f"cannot listen on {place} ({os.strerror(error.errno or 0)})",
        "ports below 1024 are root's: choose another one",
    )
