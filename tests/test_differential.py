"""Random frames: the kernel's program and ndp.py must say the same of every one of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from ndxdp import ndp
from ndxdp.detaching import detach_interface
from ndxdp.instance import Pinned, open_pinned
from ndxdp.kernel import abi, bpf_maps, bpf_programs
from ndxdp.kernel.abi import Mode
from ndxdp.kernel.pins import Trees
from ndxdp.ndp import Reason
from ndxdp.plan import Options
from ndxdp.policy import Table
from ndxdp.responder import attach_interface
from ndxdp.rules import Rules, difference
from tests.packets import BY_TABLES, CASES, HOST, RULES, show
from tests.pair import RECEIVER, pair

FRAMES = 100_000
SEED = 4861

_SEEDS = [case.frame for case in CASES if len(case.frame) >= ndp.HEADERS_LEN]
_FIX_CHECKSUM = 0.7  # of the frames: most mutations would end at the checksum
_INTERESTING = (0, 1, 2, 8, 23, 24, 25, 32, 58, 64, 127, 128, 134, 135, 136, 254, 255)


def mutated(rng: random.Random) -> bytes:
    """A frame of the table with some of it changed: bits, bytes, length, options, addresses."""
    frame = bytearray(rng.choice(_SEEDS))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        kind = rng.randrange(7)
        at = rng.randrange(len(frame))
        if kind == 0:
            frame[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            frame[at] = rng.choice(_INTERESTING)
        elif kind == 2:
            del frame[max(at, 15) :]
        elif kind == 3:
            frame += rng.randbytes(rng.choice((1, 7, 8, 9, 40)))
        elif kind == 4 and len(frame) >= 20:
            size = len(frame) - 54 + rng.choice((-9, -8, -1, 0, 0, 0, 1, 8))
            frame[18:20] = (size & 0xFFFF).to_bytes(2, "big")
        elif kind == 5 and len(frame) >= 80:
            option = rng.choice((1, 2, 14, 253)), rng.choice((0, 1, 1, 1, 2, 5))
            frame[78:78] = bytes(option) + rng.randbytes(max(option[1] * 8 - 2, 0))
            frame[18:20] = (len(frame) - 54).to_bytes(2, "big")
        elif kind == 6 and len(frame) >= 78:
            frame[62:78] = rng.choice(list(RULES)).address
            frame[51:54] = frame[75:78] if rng.random() < 0.8 else frame[51:54]
            frame[3:6] = frame[51:54]
    if rng.random() < _FIX_CHECKSUM and len(frame) >= 58:
        end = 54 + int.from_bytes(frame[18:20], "big")
        body = bytes(frame[58:end])
        fixed = ndp.icmpv6_frame(
            b"",
            b"",
            bytes(frame[22:38]),
            bytes(frame[38:54]),
            frame[54],
            body + bytes(len(body) % 2),
        )
        frame[56:58] = fixed[44:46]
    return bytes(frame)


@pytest.fixture(scope="module")
def instances(trees: Trees) -> Iterator[dict[Mode, Pinned]]:
    """The two programs, one after the other on the same link, over the same rules."""
    opened = {}
    with pair(HOST.mac):
        for mode in (Mode.TC, Mode.NATIVE):
            attach_interface(trees, RECEIVER, Options(mode), Rules()).close()
            instance = open_pinned(trees.pins, RECEIVER)
            instance.maps.apply(difference(RULES, {}), Rules())
            opened[mode] = instance
            detach_interface(trees, RECEIVER)  # its maps and program live on in `instance`
        yield opened
    for instance in opened.values():
        instance.close()


@pytest.mark.parametrize("mode", [Mode.NATIVE, Mode.TC], ids=lambda mode: mode.label)
def test_programs_agree(instances: dict[Mode, Pinned], mode: Mode) -> None:
    instance, rng, table = instances[mode], random.Random(SEED), Table.of(RULES)
    maps = instance.maps
    host = ndp.Host(HOST.mac, maps.settings().link_local)
    nothing = bytes(abi.EXPLAINED.size)
    seen: Counter[Reason] = Counter()
    for number in range(FRAMES):
        frame = mutated(rng)
        if mode is Mode.TC and len(frame) < 54:
            continue  # the kernel does not test-run those
        bpf_maps.update(maps.fds["explained"], bytes(4), nothing)

        run = bpf_programs.run_once(instance.prog_fd, frame)

        fields = abi.EXPLAINED.unpack(
            bpf_maps.lookup(maps.fds["explained"], bytes(4), abi.EXPLAINED.size) or b""
        )
        wanted = ndp.decide(frame, host, table.match)
        if mode is Mode.TC and ndp.untagged(frame) is not frame:
            wanted = ndp.Verdict(Reason.NOT_NS)  # a test run takes no tag off the frame
        assert Reason(fields["reason"]) is wanted.reason, f"frame {number}: {show(frame)}"
        assert run.data == (wanted.reply or frame), (
            f"frame {number}: {show(frame)}\n  became {show(run.data)}"
        )
        seen[wanted.reason] += 1
    reachable = {*Reason} - {Reason.PAUSED, Reason.EXPIRED, *BY_TABLES}
    reachable -= {Reason.RATE_LIMITED, Reason.GATEWAY_LIMITED}
    reachable -= {Reason.RESIZE_FAILED, Reason.SEND_FAILED}
    if mode is Mode.TC:
        reachable -= {Reason.OTHER_VLAN}
    assert set(seen) == reachable, seen
    assert seen[Reason.ANSWERED] + seen[Reason.ANSWERED_DAD] > FRAMES // 10, seen
