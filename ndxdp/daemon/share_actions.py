"""Does what the learner and the relay of a share want done."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping

from ndxdp.daemon.share_links import ShareLink, ShareLinks
from ndxdp.daemon.share_log import ShareLog
from ndxdp.daemon.share_routes import ShareRoutes
from ndxdp.daemon.share_sockets import LinkSockets, OnFrames
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.message import Host, advertise, solicit, unsolicited
from ndxdp.rules.address import address_text
from ndxdp.sharing.actions import Action, Advertise, Announce, Ask, Bind, Unbind, Verify
from ndxdp.sharing.hosts import LearnedHost
from ndxdp.sharing.relay import Send

log = logging.getLogger(__name__)


class ShareActions:
    """Sends frames and changes routes.

    Attributes:
        routes: The host routes.
        by_index: The present interfaces with Neighbor Discovery, by index.
    """

    def __init__(
        self,
        upstream: str,
        routes: ShareRoutes,
        hosts: Mapping[bytes, LearnedHost],
        on_frames: OnFrames,
        may_announce: Callable[[str], bool],
        counters: dict[str, int],
    ) -> None:
        """Have no interfaces yet.

        Args:
            upstream: The interface that names the share.
            routes: The host routes, which close() closes.
            hosts: A view of the learned hosts.
            on_frames: Takes the index of an interface and the frames that have come by it.
            may_announce: Returns True if addresses may be announced on an interface, by its name.
            counters: Those of the learner; `announced` is counted here.
        """
        self.routes = routes
        self.by_index: dict[int, ShareLink] = {}
        self._links = ShareLinks()
        self._hosts, self._on_frames = hosts, on_frames
        self._may_announce, self._counters = may_announce, counters
        self._sockets: dict[int, LinkSockets] = {}
        self._host_log = ShareLog(log, upstream)

    def close(self) -> None:
        """Close all sockets; the routes stay."""
        for sockets in self._sockets.values():
            sockets.close()
        self._sockets.clear()
        self.routes.close()

    def set_links(self, links: ShareLinks) -> None:
        """Take the present interfaces, and have sockets for exactly those.

        Raises:
            NdxdpError: The process lacks CAP_NET_RAW.
            OSError: A socket cannot be opened.
        """
        self._links = links
        self.by_index = {link.ifindex: link for link in links.all if link.has_discovery}
        for ifindex, sockets in list(self._sockets.items()):
            if ifindex not in self.by_index or not sockets.is_bound():
                self._sockets.pop(ifindex).close()
        for ifindex in self.by_index.keys() - self._sockets.keys():
            try:
                self._sockets[ifindex] = LinkSockets(ifindex, self._on_frames)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                del self.by_index[ifindex]  # it has just disappeared

    def send(self, sends: Iterable[Send]) -> None:
        """Send frames, as far as their interfaces are there."""
        for each in sends:
            sockets = self._sockets.get(each.ifindex)
            if sockets is not None:
                sockets.send(each.frame)

    def perform(self, actions: Iterable[Action]) -> list[bytes]:
        """Do what the learner wants done, in its order.

        Returns:
            The addresses that could not be bound, which the learner has to forget.
        """
        failed: list[bytes] = []
        for action in actions:
            match action:
                case Ask():
                    self._ask(action)
                case Advertise():
                    self._advertise(action)
                case Announce():
                    self._announce(action.address)
                case Verify():
                    self.routes.verify(action.address)
                case Bind():
                    if not self._bind(action):
                        failed.append(action.address)
                case Unbind(address, ifindex):
                    self.routes.unbind(address)
                    name = self._name_of(ifindex)
                    self._host_log.info("forgot %s on %s", address_text(address), name)
        return failed

    def missing(self) -> list[Bind]:
        """Return what routes the hosts that no program routes, as after an error of the kernel."""
        return [
            Bind(host.address, host.ifindex)
            for host in self._hosts.values()
            if not self.routes.has(host.address)
        ]

    def _advertise(self, answer: Advertise) -> None:
        link = self.by_index.get(answer.ifindex)
        if link is not None:
            frame = advertise(answer.solicitation, Host(link.mac, link.link_local))
            self.send([Send(answer.ifindex, frame)])

    def _ask(self, ask: Ask) -> None:
        link = self.by_index.get(ask.ifindex)
        if link is None:
            return
        if link == self._links.upstream and not ask.is_lookup:
            # Claims are checked upstream as DAD does (RFC 6620 section 3.2.3). Another host's share
            # on that link has the claim checked then, too, and lets a host go that has moved here;
            # a solicitation, its program would answer from the kernel's old entry.
            self.send([Send(ask.ifindex, solicit(link.mac, ask.target))])
            return
        if link.link_local == UNSPECIFIED:
            return
        frame = solicit(
            link.mac,
            ask.target,
            source=link.link_local,
            eth_destination=ask.mac,
            destination=ask.target if ask.mac else None,
            sllao=link.mac,
        )
        self.send([Send(ask.ifindex, frame)])

    def _announce(self, address: bytes) -> None:
        """Let routers upstream replace the MAC that they have for an address."""
        link = self._links.upstream
        if link is not None and self._may_announce(link.name):
            self.send([Send(link.ifindex, unsolicited(link.mac, address))])
            self._counters["announced"] += 1

    def _bind(self, bind: Bind) -> bool:
        link = self.by_index.get(bind.ifindex)
        if link is None or not self.routes.bind(bind.address, link.l3_ifindex):
            return False
        text = address_text(bind.address)
        host = self._hosts.get(bind.address)
        mac = f" ({host.mac.hex(':')})" if host and host.mac else ""
        if bind.former:
            former = self._name_of(bind.former)
            self._host_log.info("moved %s from %s to %s%s", text, former, link.name, mac)
            if host and host.mac:
                self._introduce(link, self.by_index.get(bind.former), (host.mac, bind.address))
        else:
            self._host_log.info("learned %s on %s%s", text, link.name, mac)
        return True

    def _introduce(
        self, link: ShareLink, former: ShareLink | None, node: tuple[bytes, bytes]
    ) -> None:
        """Tell a node that has moved by which MAC it reaches its router now.

        The node may not have noticed that it has moved. Its default router is this host's address
        on the former link, until that has not answered for 8 seconds (RFC 4861 section 10).

        Args:
            link: The link that the node lives on.
            former: The link that it lived on; None if that no longer exists.
            node: MAC and address of the node.
        """
        if former is None or former.link_local == UNSPECIFIED or former.mac == link.mac:
            return
        self.send([Send(link.ifindex, unsolicited(link.mac, former.link_local, node=node))])

    def _name_of(self, ifindex: int) -> str:
        link = next((each for each in self._links.all if each.ifindex == ifindex), None)
        return link.name if link else f"interface {ifindex}"
