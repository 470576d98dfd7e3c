"""What of ndxdp answers on the interface, and what `auto` could take there."""

from __future__ import annotations

from dataclasses import dataclass

from ndxdp import ladder
from ndxdp.doctor.finding import Finding, failure, note, unseen, warning
from ndxdp.errors import Damaged, ModeUnavailable, NdxdpError
from ndxdp.instance import Pinned, open_instance
from ndxdp.kernel import bpf_hooks, bpf_programs, hook_order
from ndxdp.kernel.abi import Mode
from ndxdp.kernel.hook_order import Program
from ndxdp.kernel.pins import Trees
from ndxdp.policy import Table
from ndxdp.rules import Rules
from ndxdp.wire.netlink import Link


@dataclass(frozen=True, slots=True)
class Answering:
    """What there is of an interface: pins, or files of the userspace mode.

    steps: better modes that could not be had, in words. overdue: the daemon's heartbeat.
    program: its id, None in userspace. before: programs of others that see frames first, None where
    the kernel does not show them. can_come_first: a renewal attaches before them. is_held: by a
    process.
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

    @property
    def table(self) -> Table:
        return Table.of(self.rules)


@dataclass(frozen=True, slots=True)
class Facts:
    """answering: None where there is nothing, or where it could not be read: then trouble says why.

    no_native: why `auto` does not even try, None if it does. foreign: XDP programs of others.
    """

    interface: str
    answering: Answering | None
    trouble: NdxdpError | None
    no_bpf: NdxdpError | None
    no_native: str | None
    foreign: tuple[Program, ...]


def gather(trees: Trees, link: Link) -> Facts:
    answering, trouble = None, None
    try:
        if any(tree.path(link.name).is_dir() for tree in trees):
            answering = _answering(trees, link.name)
    except NdxdpError as error:
        trouble = error
    except PermissionError:  # systemd mounts the BPF file system for root only
        trouble = NdxdpError(f"{trees.pins.bpffs} may not be entered")
    return Facts(
        link.name,
        answering,
        trouble,
        _refusal(trees),
        _no_native(link),
        _foreign(link, answering),
    )


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
            tuple(ladder.told(ladder.unpack(settings.steps))),
            instance.maps.rules(),
            bpf_programs.info_of(instance.prog_fd).id if isinstance(instance, Pinned) else None,
            None if before is None else tuple(before),
            bool(before) and instance.can_come_first(),
            tree.is_held(interface),
        )


def _refusal(trees: Trees) -> NdxdpError | None:
    try:
        trees.pins.check()
    except NdxdpError as error:
        return error
    return None


def _no_native(link: Link) -> str | None:
    try:
        ladder.check(link, Mode.NATIVE, named=False)
    except ModeUnavailable as error:
        return error.message
    return None


def _foreign(link: Link, answering: Answering | None) -> tuple[Program, ...]:
    ours = answering.program if answering else None
    try:
        ids = [number for number in bpf_hooks.xdp_program_ids(link.ifindex) if number != ours]
    except OSError:  # it went
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
            f"whatever answers on {name} cannot be looked at or changed: begin anew",
            facts.trouble.hint,
        )
        return [broken, *foreign]
    if facts.trouble is not None:
        return [unseen(facts.trouble.message), *foreign]
    if facts.answering is None:
        return [*_before(facts), *foreign]
    if facts.answering.attached:
        return _answers(name, facts.answering)
    return [*_answers(name, facts.answering), *foreign]


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
                facts.no_bpf.hint.removeprefix("mount it: ").partition(" (")[0],
            )
        ]
    if facts.no_native is not None:
        return [note(f"ndxdp does not answer on {name}; `auto` takes tc: {facts.no_native}")]
    return [note(f"ndxdp does not answer on {name}; `auto` tries native first, then tc")]


def _answers(name: str, answering: Answering) -> list[Finding]:
    if not answering.attached:
        return [
            failure(
                f"ndxdp has rules for {name}, but answers nothing there",
                "its program was taken off, or its process has ended",
                f"ndxdp attach {name}"
                if answering.mode is not Mode.USERSPACE
                else "systemctl restart ndxdp",
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
    if answering.overdue:
        found.append(
            warning(
                f"the daemon's heartbeat for {name} is overdue",
                "it has ended or hangs: containers are no longer answered for",
                "systemctl restart ndxdp",
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
            cure = "systemctl restart ndxdp" if answering.is_held else f"ndxdp attach {name}"
            why = "where it returns TC_ACT_OK, no program after it sees the frame"
        found.append(
            warning(f"{program} may take solicitations on {name} before ndxdp sees them", why, cure)
        )
    return found
