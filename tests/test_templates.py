"""Templates of verdicts: the same verdicts as those of decision.judge(), for all frames."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ndxdp.ndp import decision, templates
from ndxdp.ndp.address import LOOPBACK, UNSPECIFIED, V4_MAPPED
from ndxdp.ndp.decision import Admit, Match, Refuse, Verdict
from ndxdp.ndp.frame import CODE_AT, SOURCE_AT, TYPE_AT, is_solicitation, message_sum, untagged
from ndxdp.ndp.limiter import Limiter, Limits, Rate
from ndxdp.ndp.message import Host, solicit
from ndxdp.ndp.profile import Answer, NaSource, Profile
from ndxdp.ndp.reason import Reason
from ndxdp.ndp.templates import TEMPLATES_MAX, Judge
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Table
from tests import packets
from tests.fuzz.frames import Frames, random_case
from tests.packets import CASES, HOST, RULES, show

PEER, PEER_MAC = parse_address(packets.ROUTER), parse_mac(packets.ROUTER_MAC)
BASE = parse_address("2001:db8:0:1::")

FIXED = parse_address(packets.FIXED_SOURCE)
PROFILES = (
    Profile(),
    Profile(NaSource.TARGET, router=False),
    Profile(NaSource.LINK_LOCAL, override=True),
    Profile(FIXED, lladdr=parse_mac(packets.FIXED_LLADDR)),
)


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The frames that a Judge has given to decision.judge()."""
    found: list[bytes] = []

    def judge(frame: bytes, *arguments: object) -> Verdict:
        found.append(frame)
        return decision.judge(frame, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(templates, "judge", judge)
    return found


class Both:
    """A Judge and decision.judge(), with limiters that count the same answers."""

    def __init__(
        self,
        host: Host,
        match: Callable[[bytes], Match | None],
        *,
        limits: Limits | None = None,
        refuse: Refuse | None = None,
        lapsed: bool = False,
    ) -> None:
        self.now, self.lapsed = 0, lapsed
        self._arguments = host, match, self._admit(limits), refuse, self._has_lapsed
        self.judge = Judge(host, match, self._admit(limits), refuse, self._has_lapsed)

    def _has_lapsed(self) -> bool:
        return self.lapsed

    def _admit(self, limits: Limits | None) -> Admit | None:
        return Limiter(limits, lambda: self.now).charge if limits else None

    def compare(self, *frames: bytes) -> list[decision.Verdict]:
        """Judge frames by both, and return the verdicts."""
        wanted = [decision.judge(frame, *self._arguments) for frame in frames]
        found = self.judge.judge(list(frames))
        for frame, verdict, right in zip(frames, found, wanted, strict=True):
            assert verdict == right, show(frame)
            assert verdict[2] is right[2]
        return wanted


def solicitation(target: bytes, mac: bytes = PEER_MAC, source: bytes = PEER) -> bytes:
    """Return what a router sends to search for an address."""
    return solicit(mac, target, source=source, sllao=mac)


def with_checksum(frame: bytes) -> bytes:
    """Return a frame of 86 bytes with the checksum that is right for its other bytes."""
    data = frame[SOURCE_AT:56] + bytes(2) + frame[58:]
    checksum = -message_sum(data, len(frame) - TYPE_AT) % 0xFFFF
    return frame[:56] + checksum.to_bytes(2, "big") + frame[58:]


def random_targets(rng: random.Random, count: int) -> Iterator[bytes]:
    return (BASE[:8] + rng.randbytes(8) for _ in range(count))


@pytest.mark.parametrize("link_local", [HOST.link_local, UNSPECIFIED], ids=["fe80", "none"])
@pytest.mark.parametrize("profile", PROFILES, ids=range(len(PROFILES)))
def test_a_scan(profile: Profile, link_local: bytes, decided: list[bytes]) -> None:
    """Decide about the first solicitation, and answer the others by its template."""
    rules = Rules.of({parse_prefix("2001:db8:0:1::/64"): Rule(profile=profile)})
    both = Both(replace(HOST, link_local=link_local), Table.of(rules).match)
    found = both.compare(*map(solicitation, random_targets(random.Random(1), 500)))
    assert {verdict.reason for verdict in found} == {Reason.ANSWERED}
    assert len({verdict.reply for verdict in found}) == 500
    assert len(decided) == 1


def test_the_source_of_a_profile_is_also_the_target() -> None:
    """Do not take a target that is the profile's source for the source of other answers."""
    rules = Rules.of({parse_prefix("2001:db8::/32"): Rule(profile=Profile(FIXED))})
    both = Both(HOST, Table.of(rules).match)
    both.compare(solicitation(FIXED), solicitation(BASE), solicitation(FIXED))


@pytest.mark.parametrize(
    ("rule", "expired", "reason"),
    [
        (None, False, Reason.NO_RULE),
        (Rule(Answer.NEVER), False, Reason.DENIED),
        (Rule(owned=True), False, Reason.DENIED),
        (Rule(dynamic=True), True, Reason.EXPIRED),
    ],
    ids=["no rule", "never", "owned", "expired"],
)
def test_a_scan_of_unanswered_addresses(
    rule: Rule | None, expired: bool, reason: Reason, decided: list[bytes]
) -> None:
    rules = Rules.of({parse_prefix("2001:db8:0:1::/64"): rule} if rule else {})
    both = Both(HOST, Table.of(rules, expired=expired).match)
    found = both.compare(*map(solicitation, random_targets(random.Random(2), 100)))
    assert {verdict.reason for verdict in found} == {reason}
    assert len(decided) == 1


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if is_solicitation(untagged(case.frame))],
    ids=lambda case: case.name,
)
def test_the_table_of_packets(case: packets.Case) -> None:
    """Give each frame its verdict when the frames before it were like it."""
    frame = untagged(case.frame)
    table = Table.of(RULES, expired=case.daemon_dead)
    limits = Limits(Rate(packets.INTERVAL, packets.CREDIT)) if case.rate_exceeded else None
    both = Both(case.host, table.match, limits=limits, lapsed=case.lapsed)
    for _ in range(4):
        both.compare(frame)
        both.compare(*map(solicitation, random_targets(random.Random(3), 3)), frame)


def test_any_byte_differs() -> None:
    """Judge frames that differ in one byte from a template's, also with the right checksum."""
    rules = Rules.of(
        {
            parse_prefix("::/0"): Rule(Answer.NEVER),
            parse_prefix("2001:db8:0:1::/64"): Rule(),
            parse_prefix("2001:db8:0:1::/65"): Rule(profile=PROFILES[3]),
        }
    )
    seen = set()
    for base in (solicitation(BASE[:8] + b"\x80" + bytes(7)), solicitation(BASE)):
        both = Both(HOST, Table.of(rules).match)
        both.compare(base)
        for at in range(len(base)):
            for bits in (1, 2, 0x20, 0x80, 0xFF, base[at], 0xFF ^ base[at]):
                changed = bytearray(base)
                changed[at] ^= bits
                for frame in (bytes(changed), with_checksum(bytes(changed))):
                    if is_solicitation(frame):
                        both.compare(frame)
                        found = both.compare(frame, base)
                        seen |= {verdict.reason for verdict in found}
    assert seen >= {
        *(Reason.ANSWERED, Reason.DENIED, Reason.BAD_CHECKSUM, Reason.BAD_LENGTH),
        *(Reason.BAD_OPTION, Reason.BAD_HOP_LIMIT, Reason.BAD_CODE, Reason.OTHER_HOST),
        *(Reason.BAD_SOURCE, Reason.BAD_TARGET),
    }, seen


@pytest.mark.parametrize(
    "target", [UNSPECIFIED, LOOPBACK, b"\xff" + BASE[1:], V4_MAPPED + BASE[:4]]
)
def test_targets_that_are_none(target: bytes) -> None:
    """Refuse a target that no solicitation may have, though its rule has a template."""
    both = Both(HOST, Table.of(Rules.of({parse_prefix("::/0"): Rule()})).match)
    assert both.compare(solicitation(BASE))[0].reason is Reason.ANSWERED
    both.compare(solicitation(target), solicitation(target))


def test_frames_that_get_no_template(decided: list[bytes]) -> None:
    """Decide about DAD, unicast and targets of the kernel's tables each time."""
    table = Table.of(
        Rules.of(
            {
                parse_prefix("2001:db8:0:1::/64"): Rule(),
                parse_prefix("2001:db8:0:2::/64"): Rule(Answer.ROUTED),
            }
        )
    )
    asked: list[bytes] = []

    def refuse(target: bytes, rule: Match, defends: bool) -> Reason | None:
        asked.append(target)
        return None if len(asked) % 2 else Reason.NO_ROUTE

    both = Both(HOST, table.match, refuse=refuse)
    frames = [
        solicit(PEER_MAC, BASE),  # 78 bytes
        solicit(PEER_MAC, BASE, source=PEER),
        solicit(PEER_MAC, BASE, source=PEER, sllao=PEER_MAC, eth_destination=HOST.mac),
        solicit(PEER_MAC, BASE, source=PEER, sllao=PEER_MAC, destination=BASE),
    ]
    for frame in frames:
        both.compare(frame, frame)
    assert len(decided) == 2 * len(frames)
    routed = solicitation(parse_address("2001:db8:0:2::1"))
    before = len(asked)
    assert len({verdict[0] for verdict in both.judge.judge([routed] * 6)}) == 2
    assert len(asked) == before + 6


def test_random_frames(decided: list[bytes]) -> None:
    """Agree on random rules and on random frames, of which many have templates."""
    rng = random.Random("templates")
    judged, reasons = 0, set()
    for _ in range(40):
        case = random_case(rng, HOST)
        table = Table.of(case.rules, expired=case.expired)
        both = Both(case.host, table.match, lapsed=case.lapsed)
        source = Frames(rng, case)
        frames = [untagged(source.frame()) for _ in range(400)]
        frames += [solicitation(source._target()) for _ in range(200)]
        frames = [frame for frame in frames if is_solicitation(frame)]
        rng.shuffle(frames)
        for start in range(0, len(frames), 8):
            both.lapsed = case.lapsed and rng.random() < 0.5  # a lease may be renewed
            reasons |= {verdict.reason for verdict in both.compare(*frames[start : start + 8])}
        judged += len(frames)
    assert len(decided) < judged * 0.8, (len(decided), judged)
    assert len(reasons) > 14, reasons


def test_limits_apply() -> None:
    """Charge each answer to the limits of the MAC that asks, of the one answered, and of all."""
    rng = random.Random(4)
    limits = Limits(Rate(100, 300), Rate(40, 400))
    both = Both(HOST, Table.of(RULES).match, limits=limits)
    seen = set()
    for target in random_targets(rng, 400):
        mac, victim = (PEER_MAC[:5] + bytes((0x70 + rng.randrange(4),)) for _ in range(2))
        frame = solicit(mac, target, source=PEER, sllao=victim)
        both.now += rng.randrange(60)
        seen |= {verdict.reason for verdict in both.compare(frame, solicitation(target, mac))}
    assert seen == {Reason.ANSWERED, Reason.RATE_LIMITED}


def test_templates_are_bounded(decided: list[bytes]) -> None:
    """Make one template for a batch at most, and forget the oldest beyond the maximum."""
    both = Both(HOST, Table.of(RULES).match)
    frames = [
        solicitation(BASE, PEER_MAC[:4] + number.to_bytes(2, "big"))
        for number in range(TEMPLATES_MAX + 50)
    ]
    both.compare(*frames)
    assert len(both.judge._templates) == 1
    for frame in frames:
        both.compare(frame)
    assert len(both.judge._templates) == TEMPLATES_MAX
    decided.clear()
    both.compare(frames[-1])
    assert not decided
    both.compare(frames[0])
    assert decided == [frames[0]]


def test_code_is_part_of_the_shape() -> None:
    both = Both(HOST, Table.of(RULES).match)
    base = solicitation(BASE)
    both.compare(base)
    changed = with_checksum(base[:CODE_AT] + b"\1" + base[CODE_AT + 1 :])
    assert both.compare(changed)[0].reason is Reason.BAD_CODE
