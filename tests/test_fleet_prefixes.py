"""Shared addresses whose prefixes change, or are those of several names."""

from __future__ import annotations

from tests.fixtures.segment_host import (
    ME,
    THEIRS,
    TURN,
    Host,
    wanting,
)

# ---- prefixes ------------------------------------------------------------------------------------


def test_a_new_prefix_is_acquired_anew() -> None:
    host = Host()
    host.put("a", 1, created=5)
    host.hold("a", 1)
    assert host.answers() == "1"
    host.put("a", 2, created=5)
    assert host.answers() == ""
    assert host.gives_up() == ["a"]
    host.free("a")
    host.segment.released("a")
    ((acquisition,), _, _) = host.decide()
    assert acquisition.holder.prefix == "2001:db8::2"


def test_a_prefix_waits_for_the_holder_of_its_former_name() -> None:
    host = wanting()
    host.hold("a", 1, "h2", THEIRS)
    host.segment.view.delete_shared("a", host.tick())
    host.put("b", 1)
    assert host.takes() == []
    assert host.takes(100) == []
    host.free("a")
    assert host.takes() == ["b"]


def test_a_prefix_waits_for_holders_that_are_not_known_yet() -> None:
    host = wanting()
    host.segment.view.delete_shared("a", host.tick())
    host.put("b", 1)
    assert host.takes() == []
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["b"]


def test_a_prefix_does_not_wait_if_the_stream_of_holders_has_passed() -> None:
    host = Host()
    host.put("a", 1)
    host.put("c", 3, hosts=["h9"])
    host.segment.view.delete_shared("a", host.tick())
    host.put("b", 1)
    host.hold("c", 3, "h9", THEIRS)
    assert host.takes() == ["b"]


def test_a_prefix_comes_back_to_its_name_at_once() -> None:
    host = wanting()
    host.segment.view.put_shared("a", "bad", 12, host.tick())
    assert host.takes() == []
    host.put("a", 1)
    assert host.takes() == ["a"]


def test_a_prefix_does_not_wait_after_all_keys_were_read() -> None:
    host = wanting()
    host.segment.view.begin()
    host.put("b", 1)
    host.join(ME)
    host.segment.view.end(host.tick())
    assert host.takes() == ["b"]


def test_a_younger_key_that_goes_changes_nothing() -> None:
    host = Host()
    host.put("b", 1, created=5)
    host.put("a", 1, created=7)
    host.segment.view.delete_shared("a", host.tick())
    assert host.takes() == ["b"]


def test_an_older_key_waits_for_hosts_that_do_not_know_it() -> None:
    """Other hosts may still acquire the younger key, which has not changed."""
    host = Host()
    host.put("b", 1, created=5)
    host.put("a", 1, created=3)
    host.put("c", 3)
    host.hold("c", 3, "h9", THEIRS)
    assert host.takes() == []
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["a"]


def test_the_older_of_two_keys_with_one_prefix_is_in_force() -> None:
    host = Host()
    host.put("b", 1, created=5)
    host.put("a", 1, created=7)
    assert host.takes() == ["b"]
    host.hold("b", 1)
    assert {each.name: each.problem for each in host.segment.addresses()} == {
        "b": "",
        "a": "b has 2001:db8::1 already",
    }
    assert host.segment.view.refused == {"a": "b has 2001:db8::1 already"}
    host.segment.view.delete_shared("b", host.tick())
    assert host.gives_up() == ["b"]
    host.free("b")
    assert host.takes() == ["a"]
    assert host.segment.view.refused == {}
