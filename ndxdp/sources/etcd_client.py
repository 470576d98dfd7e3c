"""Single requests to etcd, at whichever member answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import TypeVar

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.printable import printable
from ndxdp.sources.etcd_session import Compacted, Denied, LeaseLost, Session, session_at
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from ndxdp.sources.etcd_store import Store
from ndxdp.sources.http import NoAnswer, Refused, Unknown
from ndxdp.sources.tls import plain_reason

_T = TypeVar("_T")

_REFUSALS = (LeaseLost, Denied, Compacted, Refused)  # the answers of any member would be the same


class EtcdClient:
    """A client of all members. It stays with the member that has answered last.

    Several requests at the same time have a connection each. Call close() at the end; run() does.

    Attributes:
        endpoint: The member that has answered last; "" before.
    """

    def __init__(self, settings: Etcd, timeout: float = 5.0) -> None:
        """Send nothing yet.

        Args:
            settings: The table [etcd].
            timeout: Seconds for a member to begin or continue an answer.
        """
        self.endpoint = ""
        self._settings, self._timeout = settings, timeout
        self._members = list(settings.endpoints)
        random.shuffle(self._members)
        self._session: Session | None = None  # with the first member, while no request uses it
        self._token = ""

    async def call(
        self,
        request: Callable[[Store], Coroutine[None, None, _T]],
        *,
        patience: float | None = None,
    ) -> _T:
        """Send a request to the members in turn until one answers; return the answer.

        Example: `await client.call(lambda etcd: etcd.get(key))`.

        Args:
            request: Sends the request, which another member may carry out once more.
            patience: Seconds after which the next member is asked, too, while the former ones may
                still answer; None to wait until they have failed. The first answer counts. Members
                that have failed are asked again while others may still answer.

        Raises:
            NoAnswer: etcd has certainly not carried out the request; LeaseLost and Denied are two
                reasons.
            Unknown: etcd may have carried it out.
        """
        waiting = list(self._members)
        running: dict[asyncio.Task[_T], Endpoint] = {}
        reasons: dict[Endpoint, NoAnswer] = {}
        try:
            while waiting or running:
                if waiting:
                    endpoint = waiting.pop(0)
                    running[asyncio.ensure_future(self._ask(endpoint, request))] = endpoint
                limit = patience if waiting or reasons else None
                done, _ = await asyncio.wait(
                    running, timeout=limit, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    endpoint = running.pop(task)
                    try:
                        return task.result()
                    except _REFUSALS:
                        raise
                    except NoAnswer as reason:
                        reasons[endpoint] = reason
                if not done and not waiting:  # those that have failed may have recovered meanwhile
                    waiting = [each for each in self._members if each not in running.values()]
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        self._members.append(self._members.pop(0))
        raise _failure(reasons)

    def close(self) -> None:
        """Close the connection; a later request opens another one."""
        if self._session is not None:
            self._session.close()
            self._session = None

    async def _ask(
        self, endpoint: Endpoint, request: Callable[[Store], Coroutine[None, None, _T]]
    ) -> _T:
        """Send a request to one member."""
        session = self._session
        if session is not None and endpoint == self._members[0]:
            self._session = None
        else:
            session = session_at(endpoint, self._settings, self._token, self._timeout)
        try:
            answer = await request(Store(session))
        except _REFUSALS:
            self._prefer(endpoint, session)
            raise
        except BaseException:
            session.close()
            raise
        self._prefer(endpoint, session)
        return answer

    def _prefer(self, endpoint: Endpoint, session: Session) -> None:
        """Have the next request go to a member."""
        self.close()
        self._session, self._token, self.endpoint = session, session.token, str(endpoint)
        self._members.remove(endpoint)
        self._members.insert(0, endpoint)


def run(settings: Etcd, work: Callable[[EtcdClient], Coroutine[None, None, _T]]) -> _T:
    """Run a command's requests in an event loop of their own; return their result.

    Args:
        settings: The table [etcd].
        work: Sends the requests.

    Raises:
        NdxdpError: A request fails.
    """

    async def working() -> _T:
        client = EtcdClient(settings)
        try:
            return await work(client)
        finally:
            client.close()

    try:
        return asyncio.run(working())
    except NoAnswer as reason:
        raise error_of(reason, settings) from None


def error_of(reason: NoAnswer, settings: Etcd) -> NdxdpError:
    """Return the error for a request that failed: a sentence and a hint."""
    text = printable(plain_reason(reason))
    if isinstance(reason.__cause__, UsageError):
        return reason.__cause__
    if isinstance(reason, Denied):
        return denial(reason, settings, "send this request")
    if isinstance(reason, Unknown):
        return NdxdpError(
            f"etcd has not confirmed the request, and may carry it out: {text}",
            "see what it did: ndxdp fleet list",
        )
    if isinstance(reason, (LeaseLost, Compacted, Refused)):
        return NdxdpError(f"etcd refuses the request: {text}", "try again")
    if "certificate" in text:
        return NdxdpError(
            f"cannot reach etcd: {text}", "compare ca, certificate and key in [etcd]: ndxdp doctor"
        )
    return NdxdpError(f"cannot reach etcd: {text}", "ndxdp doctor examines each member")


def denial(reason: Denied, settings: Etcd, wish: str) -> NdxdpError:
    """Return the error for a denied request: a sentence and a hint.

    Args:
        reason: The answer of etcd.
        settings: The table [etcd].
        wish: A verb and its object, such as `write /ndxdp/v1/shared/vlan7/web`.
    """
    text = printable(plain_reason(reason))
    user = settings.user
    if user and "authentication failed" in text:
        return NdxdpError(
            f"etcd does not accept the user {user} or the password",
            f"see the first line of {settings.password_file}",
        )
    if user:
        return NdxdpError(
            f"etcd does not let the user {user} {wish}: {text}",
            f"etcdctl role grant-permission ROLE --prefix=true readwrite {settings.root}",
        )
    return NdxdpError(
        f"etcd does not let a client without a user {wish}: {text}",
        "name a user who may: user and password_file in [etcd], or --user and --password-file",
    )


def _failure(reasons: dict[Endpoint, NoAnswer]) -> NoAnswer:
    """Return the exception for a request that every member failed to answer."""
    by_text: dict[str, list[str]] = {}
    for endpoint, reason in reasons.items():
        by_text.setdefault(plain_reason(reason), []).append(str(endpoint))
    text = "; ".join(f"{', '.join(where)}: {why}" for why, where in by_text.items())
    unknown = any(isinstance(reason, Unknown) for reason in reasons.values())
    failure = Unknown(text) if unknown else NoAnswer(text)
    failure.__cause__ = next(
        (each.__cause__ for each in reasons.values() if each.__cause__ is not None), None
    )
    return failure
