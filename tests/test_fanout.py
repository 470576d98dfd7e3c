"""The queues of the packet socket: the MACs in each, the cost of a flood, and no lost frame.

A frame may still be on its way to its queue when send() returns, so the tests wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from ndxdp.ndp.frame import eth_source_of
from ndxdp.ndp.message import solicit
from ndxdp.sockets import fanout, packet
from ndxdp.sockets.packet import BATCH, QUEUED_MAX, PacketSocket
from tests.fixtures.network import eventually, sh
from tests.fixtures.pair import RECEIVER, Pair, pair
from tests.packets import HOST

SALT = bytes(range(0x31, 0x3D))
SEED = 4861
FLOODER = bytes.fromhex("020000000001")
FLOOD = 4000  # solicitations: more than a queue holds, fewer than all do
_SOL_PACKET, _PACKET_FANOUT = 263, 18


def queue_of(mac: bytes, salt: bytes = SALT) -> int:
    """Compute the queue of a MAC as the program should."""
    parts = (salt[:4], salt[4:8], salt[8:])
    first, second, third = (int.from_bytes(part, sys.byteorder) | 1 for part in parts)
    high, low = int.from_bytes(mac[:4], "big"), int.from_bytes(mac[4:], "big")
    mixed = (high * first + low * second) & 0xFFFFFFFF
    return ((mixed ^ mixed >> 15) * third & 0xFFFFFFFF) >> 28


def solicitation(mac: bytes, nth: int = 0) -> bytes:
    """Return a solicitation from a MAC, each for another target."""
    target = bytes.fromhex("20010db8000000000000000c") + nth.to_bytes(4, "big")
    return solicit(mac, target, source=bytes.fromhex("fe80" + 14 * "01"), sllao=mac)


def neighbours(count: int) -> list[bytes]:
    rng = random.Random(SEED)
    return [b"\x02" + rng.randbytes(5) for _ in range(count)]


@pytest.fixture(scope="module")
def ends(privacy: None) -> Iterator[Pair]:
    with pair(HOST.mac) as ends:
        yield ends


@pytest.fixture(autouse=True)
def salt(monkeypatch: pytest.MonkeyPatch) -> None:
    by_source_mac = fanout.by_source_mac
    monkeypatch.setattr(fanout, "by_source_mac", lambda _: by_source_mac(SALT))


@contextlib.contextmanager
def opened() -> Iterator[PacketSocket]:
    packets = PacketSocket(socket.if_nametoindex(RECEIVER))
    try:
        packets.spread()
        yield packets
    finally:
        packets.close()


def taken(packets: PacketSocket, count: int) -> list[bytes]:
    """Receive and return this many frames."""
    found: list[bytes] = []

    def take() -> bool:
        while frames := packets.receive():
            found.extend(frames)
        return len(found) >= count

    eventually(take)
    return found


def bring_up(ends: Pair, packets: PacketSocket) -> None:
    """Set the link up, and wait until it carries frames."""
    sh("ip", "link", "set", RECEIVER, "up")

    def carries() -> list[bytes]:
        ends.send(solicitation(FLOODER))
        return packets.receive()

    eventually(carries)
    last = solicitation(FLOODER, 1)
    ends.send(last)
    eventually(lambda: last in packets.receive())


def macs(frames: list[bytes]) -> Counter[bytes]:
    return Counter(eth_source_of(frame) for frame in frames)


def test_a_mac_has_one_queue(ends: Pair) -> None:
    """Receive each MAC from the queue of its hash; each queue has some MACs."""
    sources = neighbours(256)
    with opened() as packets:
        for nth in range(2):
            for mac in sources:
                ends.send(solicitation(mac, nth))
        for number, queue in enumerate(packets._sockets.values()):
            wanted = [mac for mac in sources if queue_of(mac) == number] * 2
            found = []
            queue.settimeout(5)
            for _ in wanted:
                found.append(eth_source_of(queue.recv(2000)))
            assert found == wanted
            assert wanted
        assert packets.receive() == []


def test_neighbours_of_one_vendor_do_not_meet_more_often() -> None:
    """Distribute MACs evenly, even if they differ in one bit, in their ends, or in the vendor."""
    bits = [bytes.fromhex("020000000000"), *((2 << 40 | 1 << n).to_bytes(6) for n in range(40))]
    ends = [bytes.fromhex("020000") + n.to_bytes(3) for n in range(256)]
    vendors = [n.to_bytes(3) + bytes(3) for n in range(0, 1 << 24, 1 << 16)]
    rng = random.Random(SEED)
    for sources in (bits, ends, vendors):
        pairs = [rng.sample(sources, 2) for _ in range(200)]
        met = total = 0
        for _ in range(100):
            salt = rng.randbytes(12)
            met += sum(queue_of(one, salt) == queue_of(other, salt) for one, other in pairs)
            total += len(pairs)
        assert met / total < 1.5 / fanout.SOCKETS


def test_a_flood_fills_its_own_queue(ends: Pair) -> None:
    """Lose no frame of other queues during a flood that is not read; count the flood's loss."""
    others = [mac for mac in neighbours(32) if queue_of(mac) != queue_of(FLOODER)]
    with opened() as packets:
        for nth in range(FLOOD):
            ends.send(solicitation(FLOODER, nth))
        for nth in range(5):
            for mac in others:
                ends.send(solicitation(mac, nth))
        found, lost = list[bytes](), 0

        def settled() -> bool:
            nonlocal lost
            while frames := packets.receive():
                found.extend(frames)
            lost += packets.overflows()
            return len(found) + lost >= FLOOD + 5 * len(others)

        eventually(settled)
    by_mac = macs(found)
    assert by_mac.pop(FLOODER) == FLOOD - lost
    assert by_mac == dict.fromkeys(others, 5)
    assert 0 < lost < FLOOD
    assert len(set(found)) == len(found) < QUEUED_MAX


def test_full_queues_take_turns(ends: Pair) -> None:
    """Receive a single solicitation in the first round, in spite of floods in other queues."""
    floods = [FLOODER, next(mac for mac in neighbours(32) if queue_of(mac) != queue_of(FLOODER))]
    other = next(mac for mac in neighbours(64) if queue_of(mac) not in map(queue_of, floods))
    with opened() as packets:
        for nth in range(200):
            for mac in floods:
                ends.send(solicitation(mac, nth))
        ends.send(solicitation(other))
        eventually(lambda: len(packets._readable()) == 3)
        first = [packets.receive() for _ in range(3)]
        assert [len(frames) for frames in first] == [BATCH] * 3
        assert macs([frame for frames in first for frame in frames])[other] == 1
        assert min(macs(first[0] + first[1] + first[2])[mac] for mac in floods) >= BATCH // 2
        taken(packets, 2 * 200 + 1 - 3 * BATCH)


@pytest.mark.parametrize("flag", [fanout._IGNORE_OUTGOING, 0], ids=["ignored", "filtered"])
def test_own_solicitations_are_not_received(
    ends: Pair, flag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ignore outgoing frames by the socket's flag, or by the filter on older kernels."""
    monkeypatch.setattr(fanout, "_IGNORE_OUTGOING", flag)
    with opened() as packets, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as own:
        own.bind((RECEIVER, 0))
        for mac in neighbours(32):
            own.send(solicitation(mac))
        ends.send(solicitation(FLOODER))
        assert taken(packets, 1) == [solicitation(FLOODER)]
        assert packets.overflows() == 0
    while not ends.is_silent():
        ends.outcome()


def test_nothing_is_lost_or_doubled_while_it_opens(ends: Pair) -> None:
    """Receive each solicitation exactly once from the first on, while the queues open."""
    sources = neighbours(16)
    sent, ending = 0, threading.Event()

    def ask() -> None:
        nonlocal sent
        while not ending.is_set() and sent < 1 << 20:
            ends.send(solicitation(sources[sent % 16], sent))
            sent += 1
            time.sleep(5e-5)  # the single first queue is short

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with opened() as packets:
            found = taken(packets, 2000)
            ending.set()
            asking.join()
            found += taken(packets, 0)
            assert packets.overflows() == 0
    finally:
        ending.set()
        asking.join()
    numbers = sorted(int.from_bytes(frame[74:78], "big") for frame in found)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_groups_do_not_clash(ends: Pair) -> None:
    """Open two sets on an interface that has foreign groups with any likely number."""
    with contextlib.ExitStack() as held:
        for number in range(8):
            other = held.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            other.bind((RECEIVER, 3))
            with contextlib.suppress(OSError):
                other.setsockopt(_SOL_PACKET, _PACKET_FANOUT, number)
        both = [held.enter_context(opened()) for _ in range(2)]
        sources = neighbours(64)
        for mac in sources:
            ends.send(solicitation(mac))
        for packets in both:
            assert macs(taken(packets, len(sources))) == dict.fromkeys(sources, 1)


def test_down_and_up(ends: Pair) -> None:
    """Report one error when the link goes down; receive each frame once when it is up again."""
    sources = neighbours(64)
    with opened() as packets:
        sh("ip", "link", "set", RECEIVER, "down")
        with pytest.raises(OSError, match="is down"):
            eventually(packets.receive)
        assert packets.receive() == []
        bring_up(ends, packets)
        for mac in sources:
            ends.send(solicitation(mac))
        assert macs(taken(packets, len(sources))) == dict.fromkeys(sources, 1)


def refuse(number: int) -> Callable[[socket.socket], fanout.FanoutSet]:
    def group(first: socket.socket) -> fanout.FanoutSet:
        raise OSError(number, os.strerror(number))

    return group


def test_without_fanout_groups(
    ends: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Use a single queue, without a warning, if the kernel refuses fan-out groups."""
    monkeypatch.setattr(fanout, "_CBPF", 99)
    sources = neighbours(32)
    with caplog.at_level(logging.DEBUG), opened() as packets:
        assert [record.levelname for record in caplog.records] == ["DEBUG"]
        for mac in sources:
            ends.send(solicitation(mac))
        assert [eth_source_of(frame) for frame in taken(packets, len(sources))] == sources
        assert packets.send([bytes(86)]) == {}
    ends.reply()


def test_fanout_without_room_for_all_queues(ends: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Share the queues that could be opened, for example if file descriptors run out."""
    opens, count = PacketSocket._open, 0

    def some(self: PacketSocket, code: bytes) -> socket.socket:
        nonlocal count
        count += 1
        if count > 5:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opens(self, code)

    monkeypatch.setattr(PacketSocket, "_open", some)
    sources = neighbours(64)
    with opened() as packets:
        assert len(packets._sockets) == 5
        for mac in sources:
            ends.send(solicitation(mac))
        assert macs(taken(packets, len(sources))) == dict.fromkeys(sources, 1)


def test_spread_again(ends: Pair) -> None:
    """Spread later if the kernel refused, as before Linux 6.13 while the interface is down."""
    sources = neighbours(64)
    with contextlib.closing(PacketSocket(socket.if_nametoindex(RECEIVER))) as packets:
        with pytest.MonkeyPatch.context() as old:
            old.setattr(packet, "FanoutSet", refuse(errno.EINVAL))
            packets.spread()
        for nth, count in enumerate((1, fanout.SOCKETS, fanout.SOCKETS)):
            assert len(packets._sockets) == count
            for mac in sources:
                ends.send(solicitation(mac, nth))
            assert macs(taken(packets, len(sources))) == dict.fromkeys(sources, 1)
            packets.spread()


def test_nothing_stays_open(ends: Pair) -> None:
    before = sorted(os.listdir("/proc/self/fd")), threading.active_count()
    with opened():
        pass
    assert (sorted(os.listdir("/proc/self/fd")), threading.active_count()) == before
