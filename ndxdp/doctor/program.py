"""The program or process of ndxdp on an interface, or the mode that `auto` would try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ndxdp.doctor import namespace
from ndxdp.doctor.finding import Finding, cannot_check, failure, note, unseen, warning
from ndxdp.errors import Damaged, ModeUnavailable, NdxdpError
from ndxdp.hooks import hook_order
from ndxdp.hooks.hook_order import Program
from ndxdp.kernel import bpf_programs, libbpf
from ndxdp.kernel.abi import Mode
from ndxdp.ndp.profile import Answer
from ndxdp.ndp.reason import Reason
from ndxdp.netlink import xdp
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
    """State of ndxdp on an interface, from its pins or from the files of userspace mode.

    Attributes:
        mode: The mode.
        attached: The program or process answers.
        paused: Answering is paused.
        overdue: The daemon's heartbeat is overdue.
        refusals: The better modes that are not available, each with the reason.
        rules: The rules.
        program: The id of the program; None in userspace mode.
        before: Programs of others that see frames first; None if the kernel does not show them.
        can_come_first: A renewal attaches before them.
        is_locked: A process has locked the interface's directory.
        gateway_limited: Number of solicitations of gateways that exceeded their share.
        old_locals: There are `local` rules, and the program's copy of the local routes is outdated.
        has_lapsed: There are leased rules, and this host's lease has lapsed.
    """

    mode: Mode
    attached: bool
    paused: bool
    overdue: bool
    refusals: tuple[str, ...]
    rules: Rules
    program: int | None
    before: tuple[Program, ...] | None
    can_come_first: bool
    is_locked: bool
    gateway_limited: int = 0
    old_locals: bool = False
    has_lapsed: bool = False

    @property
    def table(self) -> Table:
        """The rules, for lookups of the longest prefix."""
        return Table.of(self.rules)


_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
_CONFIGURATION = Path("/etc/ndxdp/ndxdp.toml")


class _OtherVersion(NdxdpError):
    """Error: another version of ndxdp is attached to the interface."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Programs on an interface.

    Attributes:
        interface: The interface.
        answering: The state of ndxdp; None if it is not attached, or could not be read.
        error: Why the state could not be read; None if it was.
        no_bpf: Why BPF cannot be used; None if it can.
        no_native: Why `auto` does not try native mode; None if it does.
        foreign: XDP programs of others.
        elsewhere: If the pins are of an interface of this name in another network namespace: a path
            of that namespace, or "" if it has none; else None.
        no_libbpf: Why libbpf cannot be used; None if it can.
        locked: A running process has locked the damaged directory.
    """

    interface: str
    answering: Answering | None
    error: NdxdpError | None
    no_bpf: NdxdpError | None
    no_native: str | None
    foreign: tuple[Program, ...]
    elsewhere: str | None = None
    no_libbpf: NdxdpError | None = None
    locked: bool = False


def gather(trees: Trees, link: Link) -> Facts:
    """Collect the state of ndxdp and the XDP programs of others on an interface.

    An error of reading the state becomes a fact, so that the other checks still run.
    """
    answering, failed, elsewhere = None, None, None
    try:
        if any(tree.path(link.name).is_dir() for tree in trees):
            elsewhere = _elsewhere(trees, link.name)
            if elsewhere is None:
                answering = _answering(trees, link.name)
        else:
            _refuse_other_versions(trees, link.name)
    except NdxdpError as error:
        failed = error
    except PermissionError:  # systemd mounts the BPF file system for root only
        failed = NdxdpError(
            f"cannot enter {trees.pins.bpffs}: permission denied", "run this as root"
        )
    except OSError as error:  # a command detaches ndxdp now, or its files are damaged
        failed = NdxdpError(f"cannot read the pins or files of {link.name}: {error.strerror}")
    no_libbpf = _refusal(libbpf.library)
    return Facts(
        link.name,
        answering,
        failed,
        no_libbpf or _refusal(trees.pins.check),
        _no_native(link),
        _foreign(link, answering),
        elsewhere,
        no_libbpf,
        isinstance(failed, Damaged) and trees.of(link.name).is_locked(link.name),
    )


def _elsewhere(trees: Trees, interface: str) -> str | None:
    """Return a path of the network namespace that the pins belong to; None if it is this one."""
    with open_instance(trees.of(interface), interface) as instance:
        inode = instance.maps.settings().netns
    # 0: no program was attached yet.
    return None if inode in (0, netns()) else namespace.path_of(inode)


def _refuse_other_versions(trees: Trees, interface: str) -> None:
    """Raise _OtherVersion if an ndxdp of another ABI version has pins or files of an interface."""
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
            tuple(modes.format_refusals(modes.decode(settings.refusals))),
            instance.maps.rules(),
            bpf_programs.info_of(instance.prog_fd).id
            if isinstance(instance, KernelInstance)
            else None,
            None if before is None else tuple(before),
            bool(before) and instance.can_come_first(),
            tree.is_locked(interface),
            instance.maps.reasons()[Reason.GATEWAY_LIMITED],
            _has_old_locals(instance.maps),
            _has_lapsed(instance.maps),
        )


def _has_lapsed(maps: Maps) -> bool:
    """Return True if leased rules do not answer, for which the daemon keeps the lease."""
    return maps.has_lapsed() and any(rule.leased for rule in maps.rules().distinct_rules)


def _has_old_locals(maps: Maps) -> bool:
    """Return whether the program judges `local` rules by other routes than the kernel's present."""
    if not maps.in_kernel or all(
        rule.answer is not Answer.LOCAL for rule in maps.rules().distinct_rules
    ):
        return False
    with Fib() as fib:
        return maps.locals() != fib.local_prefixes()


def _refusal(check: Callable[[], object]) -> NdxdpError | None:
    """Return the error that a check raises; None if it raises none."""
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
        ids = [number for number in xdp.program_ids(link.ifindex) if number != ours]
    except (OSError, NdxdpError):  # the interface was deleted, or libbpf is missing
        return ()
    return tuple(hook_order.named("xdp", number) for number in ids)


def judge(facts: Facts) -> list[Finding]:
    """Return findings about ndxdp's program, and about other programs on the interface."""
    name = facts.interface
    foreign = [
        note(f"{_called(program)} uses XDP on {name}: `auto` takes tc beside it")
        for program in facts.foreign
    ]
    if isinstance(facts.error, Damaged):
        broken = failure(
            facts.error.message,
            f"no command can read or change ndxdp on {name}: detach it, then attach it again",
            _restart_command() if facts.locked else f"ndxdp detach {name}",
        )
        return [broken, *foreign]
    if isinstance(facts.error, _OtherVersion):
        other = warning(
            facts.error.message,
            f"that version may answer on {name}, but this one can neither read nor change it:"
            " detach with the version that attached it, or remove its pins",
            facts.error.hint,
        )
        return [other, *foreign]
    if facts.error is not None:
        if facts.no_libbpf is not None:
            blind = warning(
                f"cannot read ndxdp's program on {name}: {facts.error.message}",
                "the program continues to answer in the kernel, but no command can read or change"
                " it",
                _command(facts.error),
            )
            return [blind, *foreign]
        return [cannot_check(f"ndxdp on {name}", facts.error), *foreign]
    if facts.elsewhere is not None:
        there = namespace.enter(facts.elsewhere, "ndxdp", "doctor", name)
        other = note(
            f"ndxdp answers on {name} of another network namespace, not on {name} of this one",
            "the two namespaces share this BPF file system: to attach here, use another one"
            " (--bpffs)",
            there if facts.elsewhere else "",
        )
        return [other, *foreign]
    if facts.answering is None:
        return [*_judge_unattached(facts), *foreign]
    if facts.answering.attached:
        return _answers(name, facts.answering)
    return [*_answers(name, facts.answering), *foreign]


def _command(error: NdxdpError) -> str:
    """Return the command in an error's hint."""
    for words in ("mount it: ", "on Debian and Ubuntu: "):
        if error.hint.startswith(words):
            return error.hint.removeprefix(words).partition(" (")[0]
    return error.hint


def _called(program: Program) -> str:
    """Return for example `program 'pass' (id 17)`, or `libxdp dispatcher …`."""
    return str(program).removeprefix("XDP ")


def _judge_unattached(facts: Facts) -> list[Finding]:
    """Return the modes that `auto` would try on an interface to which ndxdp is not attached."""
    name = facts.interface
    if facts.no_bpf is not None:
        return [
            warning(
                f"ndxdp can answer on {name} in userspace mode only",
                f"{facts.no_bpf.message}; userspace mode needs a running process",
                _command(facts.no_bpf),
            )
        ]
    if facts.no_native is not None:
        return [note(f"ndxdp does not answer on {name}; `auto` takes tc: {facts.no_native}")]
    return [note(f"ndxdp does not answer on {name}; `auto` tries native first, then tc")]


def _restart_command() -> str:
    """Return the command that starts the daemon; "" if its arguments are not known."""
    if _SYSTEMD.is_dir():
        return "systemctl restart ndxdp"
    return f"ndxdp run -c {_CONFIGURATION}" if _CONFIGURATION.exists() else ""


def _answers(name: str, answering: Answering) -> list[Finding]:
    if not answering.attached:
        return [
            failure(
                f"ndxdp has rules for {name}, but answers nothing there",
                *(
                    ("its process has ended: start it again", _restart_command())
                    if answering.mode is Mode.USERSPACE
                    else ("its program was detached", f"ndxdp attach {name}")
                ),
            )
        ]
    found = [note(f"ndxdp answers on {name} in {answering.mode.label} mode")]
    found += [note(f"no better mode: {each}") for each in answering.refusals]
    found += _programs_before(name, answering)
    if answering.paused:
        found.append(
            warning(
                f"answering on {name} is paused",
                "ndxdp counts solicitations, and does not answer them",
                f"ndxdp resume {name}",
            )
        )
    if answering.old_locals:
        found.append(
            warning(
                f"the program on {name} has an outdated copy of the local routes for `local` rules",
                "no daemon updates the copy when the kernel's routes change",
                f"ndxdp attach {name}",
            )
        )
    if answering.gateway_limited:
        found.append(
            note(
                f"{answering.gateway_limited} solicitations of gateways on {name} exceeded the"
                " limit: --gateway-rate is too low, or another host forges a gateway's MAC"
            )
        )
    if answering.overdue:
        found.append(
            warning(
                f"the daemon's heartbeat for {name} is overdue",
                "the daemon has ended or is stuck: ndxdp does not answer for containers any more",
                _restart_command(),
            )
        )
    if answering.has_lapsed:
        found.append(
            warning(
                f"the lease of the shared addresses on {name} has lapsed",
                "the daemon has ended, or is stopped or stuck: this host answers for no shared"
                " address, and others take them",
                _restart_command(),
            )
        )
    return found


def _programs_before(name: str, answering: Answering) -> list[Finding]:
    """Return a finding about each program of others that sees frames before ndxdp."""
    if answering.before is None:
        what = f"cannot check which programs see the frames of {name} before ndxdp"
        return [unseen(f"{what}: only root sees them")]
    found = []
    for program in answering.before:
        if not program.is_rival:
            found.append(
                note(
                    f"{program} sees each frame of {name} first: ndxdp answers the solicitations"
                    " that it passes"
                )
            )
            continue
        cure = f"tc filter show dev {name} ingress"
        why = "there is no free place before it: give it a lower priority (a greater `pref`)"
        if answering.can_come_first:
            cure = _restart_command() if answering.is_locked else f"ndxdp attach {name}"
            why = "if it returns TC_ACT_OK, no program after it sees the frame"
        found.append(
            warning(f"{program} may take solicitations on {name} before ndxdp sees them", why, cure)
        )
    return found
