"""TCP connections, with TLS or without. OpenSSL is loaded only for TLS: it takes 4 MB."""

from __future__ import annotations

import asyncio
import importlib
import re
import socket
import sys
from typing import TYPE_CHECKING, Any

from ndxdp import threads
from ndxdp.errors import UsageError
from ndxdp.sources.certificate import unreadable
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from ndxdp.sources.http import PIECE, NoAnswer, Streams

if TYPE_CHECKING:
    import ssl

_ALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Seconds of silence, seconds between probes, and probes until the kernel ends a connection."""

_UNSENT = 20_000
"""Milliseconds after which the kernel ends a connection whose data are not acknowledged."""


class TcpServer:
    """A server behind a TCP port.

    Attributes:
        host: The value of the header `Host`.
        expires: The time when the server's certificate expires, seconds since 1970; None before a
            connection, and without TLS.
    """

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext | None) -> None:
        """Connect to nothing yet.

        Args:
            endpoint: The address.
            context: The settings of TLS; None for no TLS.
        """
        self.host = endpoint.authority
        self.expires: float | None = None
        self._endpoint, self._context = endpoint, context

    async def connect(self) -> Streams:
        """Open a connection to the first address that accepts one.

        Raises:
            OSError: No address does, or TLS fails.
        """
        failed: OSError = OSError("the name has no address")
        for family, address in await self._addresses():
            try:
                return await self._connect(family, address)
            except OSError as error:
                failed = error
        raise failed

    async def _addresses(self) -> list[tuple[socket.AddressFamily, Any]]:
        """Return the addresses of the host. A slow name server blocks neither loop nor executor."""
        host, port = self._endpoint.host, self._endpoint.port

        def look_up(flags: int = 0) -> list[tuple[socket.AddressFamily, Any]]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
            return [(family, address) for family, _, _, _, address in found]

        try:
            return look_up(socket.AI_NUMERICHOST)
        except socket.gaierror:
            return await threads.result_of("etcd name", look_up)

    async def _connect(self, family: socket.AddressFamily, address: Any) -> Streams:
        link = socket.socket(family, socket.SOCK_STREAM)
        try:
            link.setblocking(False)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # asyncio sets this only if the protocol is named. Without it, the body of a request
            # waits for the peer's acknowledgement of the head, which Linux delays by 40 ms.
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option, value in (*_ALIVE, (socket.TCP_USER_TIMEOUT, _UNSENT)):
                link.setsockopt(socket.IPPROTO_TCP, option, value)
            await asyncio.get_running_loop().sock_connect(link, address)
            name = self._endpoint.host if self._context else None
            reader, writer = await asyncio.open_connection(
                sock=link, ssl=self._context, server_hostname=name, limit=PIECE
            )
        except BaseException:
            link.close()
            raise
        if self._context is not None:
            self.expires = _expiry(writer.get_extra_info("peercert"))
        return reader, writer


def _expiry(certificate: dict[str, Any] | None) -> float | None:
    import ssl

    text = (certificate or {}).get("notAfter")
    return float(ssl.cert_time_to_seconds(text)) if text else None


def context_of(settings: Etcd) -> ssl.SSLContext | None:
    """Return the settings of TLS from the files that [etcd] names; None without TLS.

    Raises:
        UsageError: A file cannot be read, or has not what it should have.
    """
    if not settings.uses_tls:
        return None
    import ssl

    load_for_asyncio()
    if settings.ca:
        _check_readable(settings.ca)
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
    except (OSError, ValueError):
        raise UsageError(
            f"{settings.ca} has no certificate in PEM",
            f"openssl x509 -in {settings.ca} -noout -subject shows what it has",
        ) from None
    if settings.certificate:
        _load_pair(context, settings.certificate, settings.key)
    return context


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Have a client use a certificate and its private key; raise UsageError if it cannot."""
    for path in filter(None, (certificate, key)):
        _check_readable(path)
    where = key or certificate

    def no_passphrase() -> str:
        raise UsageError(
            f"the key in {where} is encrypted", f"openssl pkey -in {where} -out {where}.plain"
        )

    try:
        # Without a function OpenSSL would ask for the passphrase on the terminal.
        context.load_cert_chain(certificate, key or None, no_passphrase)
    except OSError as error:  # ssl.SSLError is one
        if "MISMATCH" in str(error):
            raise UsageError(
                f"the key in {where} does not belong to the certificate in {certificate}",
                "the public keys must be the same:"
                f" openssl pkey -in {where} -pubout; openssl x509 -in {certificate} -noout -pubkey",
            ) from None
        raise UsageError(
            f"{certificate} and {where} have no certificate and private key in PEM",
            f"openssl x509 -in {certificate} -noout -subject; openssl pkey -in {where} -noout",
        ) from None


def _check_readable(path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def load_for_asyncio() -> None:
    """Give asyncio the module ssl, without which the daemon has imported it (memory.py)."""
    ssl = importlib.import_module("ssl")
    for name, module in list(sys.modules.items()):
        if name.startswith("asyncio.") and getattr(module, "ssl", ssl) is None:
            if name == "asyncio.sslproto":  # it makes constants of ssl
                importlib.reload(module)
            else:
                module.ssl = ssl  # type: ignore[attr-defined]


def plain_reason(reason: NoAnswer) -> str:
    """Return the text of a failure without the marks of OpenSSL's source code."""
    return re.sub(r"^\[[a-z0-9_: ]+\] | \(_ssl\.c:\d+\)$", "", str(reason))
