"""Selectors of containers, and the rules that they make of endpoints. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from ndxdp.errors import UsageError
from ndxdp.ndp.profile import DEFAULT_PROFILE, Profile
from ndxdp.rules.address_set import EMPTY, AddressSet
from ndxdp.rules.prefix import Prefix, mask
from ndxdp.rules.rule import DOCKER_ORIGIN, UNCOUNTED, Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.sources.answers import Endpoint, Labels
from ndxdp.sources.inventory import Change

ENGINE_SOCKET = "/run/docker.sock"
"""Docker's socket; Podman's is /run/podman/podman.sock."""


@dataclass(frozen=True, slots=True)
class Selector:
    """A choice of containers to answer for, by exactly one of the first four attributes.

    A label is written `key`, which matches any value, or `key=value`.

    Attributes:
        network: The name of the containers' network.
        network_label: A label of their network.
        container_label: A label of the containers.
        within: A prefix that contains the address, and one of the network's subnets as a whole.
        except_label: A label that excludes a container if the container or its network has it.
        profile: The profile of the answers.
        count: Count the rules under the selector's text. False: they share one counter with all
            rules that are not counted.

    Raises:
        UsageError: None or several of the four are given, or a name is empty.
    """

    network: str | None = None
    network_label: str | None = None
    container_label: str | None = None
    within: Prefix | None = None
    except_label: str | None = None
    profile: Profile = DEFAULT_PROFILE
    count: bool = True

    def __post_init__(self) -> None:
        one_of = (self.network, self.network_label, self.container_label, self.within)
        if sum(given is not None for given in one_of) != 1:
            raise UsageError(
                "a selector needs one of network, network label, container label and prefix",
                "write a selector for each",
            )
        words = (self.network, self.network_label, self.container_label, self.except_label)
        if any(word is not None and not word.partition("=")[0] for word in words):
            raise UsageError("the name of a network or label is empty", "leave it out")

    def __str__(self) -> str:
        """Return what the selector chooses, which is the label of its rules."""
        if self.network is not None:
            return self.network
        if self.network_label is not None:
            return f"network:{self.network_label}"
        if self.container_label is not None:
            return f"container:{self.container_label}"
        return str(self.within)

    @property
    def rule(self) -> Rule:
        """The rule of the addresses that the selector chooses."""
        label = str(self) if self.count else UNCOUNTED
        return Rule(profile=self.profile, origin=DOCKER_ORIGIN, label=label, dynamic=True)

    def matches(self, endpoint: Endpoint) -> bool:
        """Return True if this selector chooses the endpoint."""
        if self.except_label is not None and (
            _has(endpoint.container_labels, self.except_label)
            or _has(endpoint.network_labels, self.except_label)
        ):
            return False
        if self.network is not None:
            return endpoint.network == self.network
        if self.network_label is not None:
            return _has(endpoint.network_labels, self.network_label)
        if self.container_label is not None:
            return _has(endpoint.container_labels, self.container_label)
        assert self.within is not None
        address, length = self.within
        return mask(endpoint.address, length) == address and any(
            subnet.length >= length and mask(subnet.address, length) == address
            for subnet in endpoint.subnets
        )


def _has(labels: Labels, wanted: str) -> bool:
    """Return True if the labels include `key` or `key=value`."""
    key, equals, value = wanted.partition("=")
    return any(key == name and (not equals or value == found) for name, found in labels)


def label_keys(selectors: Iterable[Selector]) -> frozenset[str]:
    """Return the keys of the labels that these selectors compare."""
    return frozenset(
        label.partition("=")[0]
        for selector in selectors
        for label in (selector.network_label, selector.container_label, selector.except_label)
        if label is not None
    )


def rules_of(endpoints: Iterable[Endpoint], selectors: Sequence[Selector]) -> Rules:
    """Return a rule for the /128 of each endpoint; the first selector that matches decides.

    All rules of a selector are one Rule, whose label is the selector's text.
    """
    chosen: dict[bytes, int] = {}  # two networks may use one address
    for endpoint in endpoints:
        for number, selector in enumerate(selectors):
            if selector.matches(endpoint):
                chosen[endpoint.address] = min(number, chosen.get(endpoint.address, number))
                break
    addresses: list[list[bytes]] = [[] for _ in selectors]
    for address, number in chosen.items():
        addresses[number].append(address)
    made: dict[Rule, AddressSet] = {}
    for selector, some in zip(selectors, addresses, strict=True):
        made[selector.rule] = made.get(selector.rule, EMPTY) | AddressSet.of(some)
    return Rules(made)


def rules_after(change: Change, rules: Rules, selectors: Sequence[Selector]) -> Rules:
    """Return what rules_of() returns after a change, from its result before the change."""
    touched = AddressSet.of(change)
    kept = Rules({rule: addresses - touched for rule, addresses in rules.exact.items()})
    return kept | rules_of(chain.from_iterable(change.values()), selectors)
