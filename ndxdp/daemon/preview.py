"""Previews of the start of `ndxdp run` on an interface."""

from __future__ import annotations

from dataclasses import replace

from ndxdp.daemon.admission import Admission
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.daemon.wanted_rules import BY_KEYS
from ndxdp.netlink import links
from ndxdp.rules.rule import DOCKER_ORIGIN
from ndxdp.session.attach_preview import attaching
from ndxdp.session.preview import Preview
from ndxdp.store.directories import Trees


def starting(trees: Trees, spec: InterfaceSpec) -> Preview:
    """Return what the start on an interface would change.

    Rules for containers, and of etcd, are left out: they follow from the answers there.

    Raises:
        NdxdpError: The daemon could not answer there.
    """
    spec.check()
    link = links.find_link(spec.interface)
    has_rules = bool(spec.rules or spec.selectors or spec.segments)
    is_quiet = link is not None and not links.has_mac(link)
    if is_quiet and spec.addresses.deprecate and not has_rules:
        return Preview(spec.interface, notes=(f"only its addresses are kept: {links.NO_MAC}",))
    admission = Admission()
    here = admission.on_link(spec, link)
    rules = admission.admitted(spec, link, here, refuse=not spec.patient)
    request = spec.request(rules, down=spec.patient, switch=False)
    found = attaching(trees, request, shared=spec.patient)
    notes = [*found.notes]
    desired = found.desired
    if not spec.selectors:
        desired = desired.where(lambda rule: rule.origin != DOCKER_ORIGIN)
    else:
        selected = ", ".join(map(str, spec.selectors))
        notes.append(f"the rules of containers ({selected}) follow from the engine")
    if not spec.segments:
        desired = desired.where(lambda rule: rule.origin not in BY_KEYS)
    else:
        notes.append(f"the rules of etcd ({', '.join(spec.segments)}) follow from its keys")
    if spec.addresses.deprecate:
        patterns = ", ".join(map(str, spec.addresses.deprecate))
        notes.append(f"addresses would be deprecated: {patterns}")
    return replace(found, desired=desired, notes=tuple(notes))
