"""What one host decides about the shared addresses of a segment."""

from __future__ import annotations

import json

from ndxdp.config.shared_value import SharedValueReader
from ndxdp.fleet.decision import Decision
from ndxdp.fleet.records import Holder, Member
from ndxdp.fleet.segment import Segment
from ndxdp.fleet.takeover_rate import TakeoverRate
from ndxdp.fleet.view import Holding

ME, LEASE, TURN = "h1", 5.0, 6.0
OURS, THEIRS = 7001, 7002


class Host:
    """The host h1, with its keys written by short texts."""

    def __init__(self, *members: str, joined: bool = True, lease: int | None = OURS) -> None:
        self.now, self.revision = 100.0, 10
        self.segment = Segment("vlan7", ME, LEASE, TakeoverRate())
        self.read = SharedValueReader("vlan7").read
        if lease is not None:
            self.segment.set_lease(lease)
        self.segment.set_joined(joined)
        self.segment.view.begin()
        self.segment.view.end(self.tick())
        self.join(*((ME, *members) if joined else members))

    def tick(self) -> int:
        self.revision += 1
        return self.revision

    def put(self, name: str, number: int, *, created: int = 0, **more: object) -> None:
        value = json.dumps({"prefix": f"2001:db8::{number:x}", **more}).encode()
        revision = self.tick()
        self.segment.view.put_shared(name, self.read(value), created or revision, revision)

    def join(self, *hosts: str) -> None:
        for host in hosts:
            self.segment.view.put_member(Member(host, "1", 0.0, ""))

    def leave(self, *hosts: str) -> None:
        for host in hosts:
            self.segment.view.delete_member(host)

    def hold(self, name: str, number: int, host: str = ME, lease: int = OURS) -> None:
        holding = Holding(Holder(host, 1.0, f"2001:db8::{number:x}"), lease)
        self.segment.view.put_holder(name, holding, self.tick())

    def free(self, *names: str) -> None:
        for name in names:
            self.segment.view.delete_holder(name, self.tick())

    def move(self, name: str, host: str) -> None:
        self.segment.view.put_move(name, host, self.tick())

    def decide(self, after: float = 0.0) -> Decision:
        self.now += after
        return self.segment.decide(self.now)

    def takes(self, after: float = 0.0) -> list[str]:
        decision = self.decide(after)
        assert not decision.release
        return [each.name for each in decision.acquire]

    def gives_up(self, after: float = 0.0) -> list[str]:
        decision = self.decide(after)
        assert not decision.acquire
        return decision.release

    def answers(self) -> str:
        """Return the last digits of the addresses that this host answers for."""
        rules, _ = self.segment.rules()
        assert all(rule.leased or rule.answer.name == "NEVER" for rule in rules.values())
        return " ".join(sorted(f"{p.address[-1]:x}" for p, rule in rules.items() if rule.leased))


def test_the_only_member_takes_everything_at_once() -> None:
    host = Host()
    host.put("a", 1)
    host.put("b", 2)
    acquire, release, again = host.decide()
    assert [each.name for each in acquire] == ["a", "b"]
    assert not release
    assert again == host.now + TURN
    assert host.answers() == ""
    assert len(host.segment.rules()[0]) == 2
    host.segment.acquired(acquire[0], 5.0, OURS, host.tick())
    assert host.answers() == "1"
    host.hold("b", 2)
    assert host.answers() == "1 2"
    assert host.takes() == []
