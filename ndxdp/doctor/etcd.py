"""Members of etcd that the daemon of an interface uses: reachable, with a quorum, in time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from ndxdp.config import reader
from ndxdp.doctor.finding import Finding, failure, note, unseen, warning
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.observe import status
from ndxdp.sources.certificate import expiry_of
from ndxdp.sources.etcd_api import EtcdApi
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from ndxdp.sources.http import NoAnswer, Request, send
from ndxdp.sources.tls import TcpServer, context_of, plain_reason
from ndxdp.store.directories import Trees

_SOON = 14 * 86400.0
"""Seconds before its end at which a certificate is reported."""

_WITHIN = 3.0  # seconds for a member to answer

NO_QUORUM = "it runs, and reaches no majority of the members"
"""Why a member does not answer that has lost the others."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The members of etcd, and the certificates.

    Attributes:
        settings: The table [etcd]; None if the file cannot be read.
        broken: Why the file, or a file that it names, cannot be read; "" if all can.
        members: By member, why it does not answer; "" if it does.
        round_trips: By member that answers, the seconds from a request to its answer.
        expiries: By file or member, when its certificate expires, in seconds since 1970.
        now: The present time.
        cluster: By member that answers, the number of members that it knows.
    """

    settings: Etcd | None
    broken: str
    members: dict[str, str]
    round_trips: dict[str, float]
    expiries: dict[str, float]
    now: float
    cluster: dict[str, int] = field(default_factory=dict)


def gather(trees: Trees, interface: str) -> Facts | None:
    """Ask every member; return None if the interface has no rules in etcd."""
    for daemon in status.reports(trees, interface):
        if daemon.etcd is None or daemon.config is None:
            continue
        try:
            settings = reader.load(daemon.config).etcd
        except (NdxdpError, OSError) as error:
            reason = error.message if isinstance(error, NdxdpError) else str(error)
            return Facts(None, reason, {}, {}, {}, time.time())
        if settings is not None:
            return examine(settings)
    return None


def examine(settings: Etcd) -> Facts:
    """Ask every member that [etcd] names."""
    expiries: dict[str, float] = {}
    broken = ""
    try:
        context_of(settings)
        for path in filter(None, (settings.certificate, settings.ca)):
            expiries[path] = expiry_of(path)
    except UsageError as error:
        broken = error.message
    facts = Facts(settings, broken, {}, {}, expiries, time.time())
    if not broken:
        asyncio.run(_ask_all(settings, facts))
    return facts


async def _ask_all(settings: Etcd, facts: Facts) -> None:
    answers = (_ask(settings, endpoint, facts) for endpoint in settings.endpoints)
    reasons = await asyncio.gather(*answers)
    facts.members.update(zip(map(str, settings.endpoints), reasons, strict=True))


async def _ask(settings: Etcd, endpoint: Endpoint, facts: Facts) -> str:
    """Return why a member does not answer; "" if it does. Note what else shows."""
    server = TcpServer(endpoint, context_of(settings) if endpoint.tls else None)
    api = EtcdApi(server, settings)
    try:
        async with asyncio.timeout(_WITHIN):
            await api.count()  # the first request connects and authenticates, too
            began = time.monotonic()
            await api.count()
            facts.round_trips[str(endpoint)] = time.monotonic() - began
            with contextlib.suppress(NoAnswer):  # the user may not read it
                answer = await api.session.call("/v3/cluster/member/list", {})
                facts.cluster[str(endpoint)] = len(answer.get("members") or ())
    except TimeoutError:
        return NO_QUORUM if await _runs(server) else f"no answer within {_WITHIN:g} s"
    except NoAnswer as reason:
        return plain_reason(reason)
    finally:
        api.close()
        if server.expires is not None:
            facts.expiries[str(endpoint)] = server.expires
    return ""


async def _runs(server: TcpServer) -> bool:
    """Return True if a member tells its own status, for which it needs no other member."""
    request = Request("/v3/maintenance/status", b"{}")
    try:
        async with (
            asyncio.timeout(_WITHIN),
            send(server, request, timeout=_WITHIN, silence=_WITHIN) as response,
        ):
            return bool(await response.read())
    except (NoAnswer, TimeoutError):
        return False


def judge(facts: Facts) -> list[Finding]:
    """Return findings about members that do not answer, and about certificates that expire."""
    if facts.settings is None:
        return [unseen(f"cannot check etcd: {facts.broken}")]
    found: list[Finding] = []
    if facts.broken:
        found.append(
            failure(
                f"the daemon cannot connect to etcd: {facts.broken}",
                "rules of etcd stay as they are",
                "",
            )
        )
    silent = {name: why for name, why in facts.members.items() if why}
    for name, why in silent.items():
        level = failure if len(silent) == len(facts.members) else warning
        found.append(
            level(
                f"{name} does not answer: {why}",
                "without a member that answers, rules of etcd stay as they are"
                if len(silent) == len(facts.members)
                else "another member answers; if that one fails, too, rules of etcd stay as they"
                " are",
                "",
            )
        )
    for name, expires in facts.expiries.items():
        left = expires - facts.now
        if left < 0:
            found.append(
                failure(f"the certificate of {name} has expired", "etcd is out of reach", "")
            )
        elif left < _SOON:
            found.append(
                warning(
                    f"the certificate of {name} expires in {left / 86400:.0f} days",
                    "etcd is out of reach then; the daemon reads a new file when it connects again",
                    "",
                )
            )
    if facts.members and not found:
        found.append(note("every member of etcd answers"))
    return found
