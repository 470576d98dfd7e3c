"""What of ndxdp answers on the interface, and what `auto` could take there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ndxdp.doctor import namespace
from ndxdp.doctor.finding import Finding, cannot_look, failure, note, unseen, warning
from ndxdp.errors import Damaged, ModeUnavailable, NdxdpError
from ndxdp.hooks import hook_order
from ndxdp.hooks.hook_order import Program
from ndxdp.kernel import bpf_hooks, bpf_programs, libbpf
from ndxdp.kernel.abi import Mode
from ndxdp.ndp.profile import Answer
from ndxdp.ndp.reason import Reason
from ndxdp.netlink.fib import Fib
from ndxdp.netlink.links import Link
from ndxdp.netlink.netns import netns
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Table
from ndxdp.session import modes
from ndxdp.store.directories import Trees
from ndxdp.store.instance import KernelInstance, open_instance, other_version
from ndxdp.store.maps import Maps


@dataclass(frozen=True, slots=True)
class Answering:
    """What there is of an interface: pins, or files of the userspace mode.

    steps: better modes that could not be had, in words. overdue: the daemon's heartbeat.
    program: its id, None in userspace. before: programs of others that see frames first, None where
    the kernel does not show them. can_come_first: a renewal attaches before them. is_held: by a
    process. gateway_limited: solicitations of gateways that were over their share.
    old_locals: there are `local` rules, and the program's copy of the local routes is out of date.
    """

    mode: Mode
    attached: bool
    paused: bool
    overdue: bool
    steps: tuple[str, ...]
    rules: Rules
    program: int | None
    before: tuple[Program, ...] | None
    can_come_first: bool
    is_held: bool
    gateway_limited: int = 0
    old_locals: bool = False

    @property
    def table(self) -> Table:
        return Table.of(self.rules)


_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
_CONFIGURATION = Path("/etc/ndxdp/ndxdp.toml")


class _OtherVersion(NdxdpError):
    """Another version of ndxdp attached to the interface."""


@dataclass(frozen=True, slots=True)
class Facts:
    """answering: None where there is nothing, or where it could not be read: then trouble says why.

    no_native: why `auto` does not even try, None if it does. foreign: XDP programs of others.
    elsewhere: the pins are those of an interface of this name in another network namespace, of
    which this is a path ('' if none leads there); None if they are not. no_libbpf: why libbpf
    cannot be used, None if it can. held: a living process has what is damaged.
    """

    interface: str
    answering: Answering | None
    trouble: NdxdpError | None
    no_bpf: NdxdpError | None
    no_native: str | None
    foreign: tuple[Program, ...]
    elsewhere: str | None = None
    no_libbpf: NdxdpError | None = None
    held: bool = False


def gather(trees: Trees, link: Link) -> Facts:
    answering, trouble, elsewhere = None, None, None
    try:
        if any(tree.path(link.name).is_dir() for tree in trees):
            elsewhere = _elsewhere(trees, link.name)
            if elsewhere is None:
                answering = _answering(trees, link.name)
        else:
            _refuse_other_versions(trees, link.name)
    except NdxdpError as error:
        trouble = error
    except PermissionError:  # systemd mounts the BPF file system for root only
        trouble = NdxdpError(f"{trees.pins.bpffs} may not be entered", "run this as root")
    except OSError as error:  # it is being detached, or its files are damaged
        trouble = NdxdpError(f"what ndxdp has of {link.name} cannot be read ({error.strerror})")
    no_libbpf = _refusal(libbpf.library)
    return Facts(
        link.name,
        answering,
        trouble,
        no_libbpf or _refusal(trees.pins.check),
        _no_native(link),
        _foreign(link, answering),
        elsewhere,
        no_libbpf,
        isinstance(trouble, Damaged) and trees.of(link.name).is_locked(link.name),
    )


def _elsewhere(trees: Trees, interface: str) -> str | None:
    """Return a path of the network namespace that the pins belong to; None if it is this one."""
    with open_instance(trees.of(interface), interface) as instance:
        inode = instance.maps.settings().netns
    # 0: nothing was attached yet.
    return None if inode in (0, netns()) else namespace.path_of(inode)


def _refuse_other_versions(trees: Trees, interface: str) -> None:
    """Raise _OtherVersion if an ndxdp of another ABI version has something of the interface."""
    for tree in trees:
        for version in tree.other_versions(interface)[:1]:
            error = other_version(tree, interface, version)
            cure = f"rm -r {tree.root / version / tree.path(interface).name}"
            raise _OtherVersion(error.message, cure)


def _answering(trees: Trees, interface: str) -> Answering:
    tree = trees.of(interface)
    with open_instance(tree, interface) as instance:
        settings = instance.maps.settings()
        before = instance.programs_before()
        return Answering(
            settings.mode,
            instance.is_attached(settings),
            settings.paused,
            settings.daemon_dead,
            tuple(modes.format_refusals(modes.decode(settings.steps))),
            instance.maps.rules(),
            bpf_programs.info_of(instance.prog_fd).id
            if isinstance(instance, KernelInstance)
            else None,
            None if before is None else tuple(before),
            bool(before) and instance.can_come_first(),
            tree.is_locked(interface),
            instance.maps.reasons()[Reason.GATEWAY_LIMITED],
            _has_old_locals(instance.maps),
        )


def _has_old_locals(maps: Maps) -> bool:
    """Find out whether `local` rules are judged by other routes than the kernel has now."""
    if not maps.in_kernel or all(
        rule.answer is not Answer.LOCAL for rule in maps.rules().distinct_rules
    ):
        return False
    with Fib() as fib:
        return maps.locals() != fib.local_prefixes()


def _refusal(check: Callable[[], object]) -> NdxdpError | None:
    """Return the error that a check raises, None if it raises none."""
    try:
        check()
    except NdxdpError as error:
        return error
    return None


def _no_native(link: Link) -> str | None:
    try:
        modes.check(link, Mode.NATIVE, named=False)
    except ModeUnavailable as error:
        return error.message
    return None


def _foreign(link: Link, answering: Answering | None) -> tuple[Program, ...]:
    ours = answering.program if answering else None
    try:
        ids = [number for number in bpf_hooks.xdp_program_ids(link.ifindex) if number != ours]
    except (OSError, NdxdpError):  # it went, or there is no libbpf
        return ()
    return tuple(hook_order.named("xdp", number) for number in ids)


def judge(facts: Facts) -> list[Finding]:
    name = facts.interface
    foreign = [
        note(f"XDP on {name} is taken by {_called(program)}: `auto` takes tc beside it")
        for program in facts.foreign
    ]
    if isinstance(facts.trouble, Damaged):
        broken = failure(
            facts.trouble.message,
            f"what answers on {name} can be neither read nor changed: remove it, then attach again",
            _start_again() if facts.held else f"ndxdp detach {name}",
        )
        return [broken, *foreign]
    if isinstance(facts.trouble, _OtherVersion):
        other = warning(
            facts.trouble.message,
            f"it may answer on {name}, but this ndxdp can neither look at it nor change it: detach"
            " it with the version that attached it, or remove its pins",
            facts.trouble.hint,
        )
        return [other, *foreign]
    if facts.trouble is not None:
        if facts.no_libbpf is not None:
            blind = warning(
                f"what ndxdp has attached to {name} cannot be looked at: {facts.trouble.message}",
                "it goes on answering in the kernel, but no command can look at it or change it",
                _command(facts.trouble),
            )
            return [blind, *foreign]
        return [cannot_look(f"what answers on {name}", facts.trouble), *foreign]
    if facts.elsewhere is not None:
        there = namespace.enter(facts.elsewhere, "ndxdp", "doctor", name)
        other = note(
            f"ndxdp does not answer on this {name}, but on one of another network namespace",
            "both share this BPF file system: to attach here, use another one (--bpffs)",
            there if facts.elsewhere else "",
        )
        return [other, *foreign]
    if facts.answering is None:
        return [*_before(facts), *foreign]
    if facts.answering.attached:
        return _answers(name, facts.answering)
    return [*_answers(name, facts.answering), *foreign]


def _command(error: NdxdpError) -> str:
    """Return the command that an error's hint names."""
    for words in ("mount it: ", "on Debian and Ubuntu: "):
        if error.hint.startswith(words):
            return error.hint.removeprefix(words).partition(" (")[0]
    return error.hint


def _called(program: Program) -> str:
    """Return for example `'pass' (id 17)`; a libxdp dispatcher is called one."""
    return str(program).removeprefix("XDP program ")


def _before(facts: Facts) -> list[Finding]:
    """Nothing is attached: what could be."""
    name = facts.interface
    if facts.no_bpf is not None:
        return [
            warning(
                f"ndxdp could answer on {name} from userspace only",
                f"{facts.no_bpf.message}; a process would have to stay",
                _command(facts.no_bpf),
            )
        ]
    if facts.no_native is not None:
        return [note(f"ndxdp does not answer on {name}; `auto` takes tc: {facts.no_native}")]
    return [note(f"ndxdp does not answer on {name}; `auto` tries native first, then tc")]


def _start_again() -> str:
    """Return the command that starts the daemon; '' where nothing says with which words."""
    if _SYSTEMD.is_dir():
        return "systemctl restart ndxdp"
    return f"ndxdp run -c {_CONFIGURATION}" if _CONFIGURATION.exists() else ""


def _answers(name: str, answering: Answering) -> list[Finding]:
    if not answering.attached:
        return [
            failure(
                f"ndxdp has rules for {name}, but answers nothing there",
                *(
                    ("its process has ended: start that again as it was started", _start_again())
                    if answering.mode is Mode.USERSPACE
                    else ("its program was taken off", f"ndxdp attach {name}")
                ),
            )
        ]
    found = [note(f"ndxdp answers on {name} in {answering.mode.label} mode")]
    found += [note(f"no better mode: {step}") for step in answering.steps]
    found += _company(name, answering)
    if answering.paused:
        found.append(
            warning(
                f"answering on {name} is paused",
                "solicitations are counted, and not answered",
                f"ndxdp resume {name}",
            )
        )
    if answering.old_locals:
        found.append(
            warning(
                f"the program on {name} judges `local` rules by local routes of an earlier moment",
                "no daemon keeps its copy of the kernel's routes in step",
                f"ndxdp attach {name}",
            )
        )
    if answering.gateway_limited:
        found.append(
            note(
                f"{answering.gateway_limited} solicitations of gateways on {name} were over their"
                " share: is --gateway-rate too low, or does somebody forge a gateway's MAC?"
            )
        )
    if answering.overdue:
        found.append(
            warning(
                f"the daemon's heartbeat for {name} is overdue",
                "it has ended or hangs: containers are no longer answered for",
                _start_again(),
            )
        )
    return found


def _company(name: str, answering: Answering) -> list[Finding]:
    """Judge the programs of others that see frames before ndxdp."""
    if answering.before is None:
        return [unseen(f"which programs see the frames of {name} before ndxdp: only root is told")]
    found = []
    for program in answering.before:
        if not program.is_rival:
            found.append(
                note(f"{program} sees each frame of {name} first: ndxdp answers what it lets pass")
            )
            continue
        cure = f"tc filter show dev {name} ingress"
        why = "no place before it is free: give it a lower one (a greater `pref`)"
        if answering.can_come_first:
            cure = _start_again() if answering.is_held else f"ndxdp attach {name}"
            why = "where it returns TC_ACT_OK, no program after it sees the frame"
        found.append(
            warning(f"{program} may take solicitations on {name} before ndxdp sees them", why, cure)
        )
    return found
