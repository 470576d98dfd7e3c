"""A process that changes an interface, and is killed before the n-th of its changing system calls.

`Worker` is a Python process that has imported every module. For each change it forks a child, which
calls the same functions as the commands do, with kill_points.c preloaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import functools
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.fixtures.network import REPOSITORY, UPLINK, sh

_SOURCE = Path(__file__).with_suffix(".c")
_PROGRAM = Path(__file__).with_name("kill_points_program.c")


@dataclass(frozen=True)
class Step:
    """A change of an interface.

    Attributes:
        verb: A name of _VERBS below.
        mode: The label of the requested mode; "" for none.
        kernel: "links" for a kernel that has BPF links for XDP and tc (Linux 6.6), "5.10" for one
            that has them only for XDP, "netlink" for one that has neither.
        rules: Prefixes that are answered.
        max_addresses: The size of the table of exact addresses; 0 leaves it unchanged.
        switch: Change the mode of an attached interface, as `run -c` does.
        interface: The interface.
        classes: How many rules with a class of their own there are in addition, the last of which
            names an output interface.
        was: For `daemon`: the mode in which it runs before; "" if it starts in the requested mode.
    """

    verb: str
    mode: str = ""
    kernel: str = "links"
    rules: tuple[str, ...] = ()
    max_addresses: int = 0
    switch: bool = False
    classes: int = 0
    was: str = ""
    interface: str = UPLINK


@dataclass(frozen=True)
class Outcome:
    """The end of a step.

    Attributes:
        killed: The child was killed before the step was complete.
        error: The message if the step failed.
    """

    killed: bool
    error: str


class Worker:
    """A process that forks a child for each step.

    Args:
        directory: The directory for compiled files.
    """

    def __init__(self, directory: Path) -> None:
        shim, program = directory / "kill_points.so", directory / "kill_points_program.o"
        sh("clang", "-O1", "-shared", "-fPIC", "-o", str(shim), str(_SOURCE))
        include = f"-I/usr/include/{platform.machine()}-linux-gnu"
        bpf = ("-O2", "-g", "-target", "bpf", "-mcpu=v2", include)
        sh("clang", *bpf, "-c", "-o", str(program), str(_PROGRAM))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills.kill_points", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"LD_PRELOAD": str(shim)},
        )

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)

    def take(self, step: Step, *, kill_at: int = 0) -> Outcome:
        """Run a step in a child, which is killed before its `kill_at`-th change; 0 for never."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([kill_at, dataclasses.asdict(step)]), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))


# ---- inside the process --------------------------------------------------------------------------


def main(lines: Iterable[str]) -> None:
    """Run the requested steps, one per line."""
    for line in lines:
        kill_at, fields = json.loads(line)
        print(json.dumps(_take(Step(**fields), kill_at)), flush=True)


def _take(step: Step, kill_at: int) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _in_child(step, kill_at, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        output = pipe.read()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and os.waitstatus_to_exitcode(status):
        output = output or f"status {status}"
    return {"killed": killed, "error": "" if killed else output}


def _in_child(step: Step, kill_at: int, writing: int) -> NoReturn:
    from ndxdp.errors import NdxdpError

    code = 1
    try:
        step_rules = tuple(step.rules)
        with _kernel(step.kernel):
            _VERBS[step.verb](dataclasses.replace(step, rules=step_rules), kill_at)
        code = 0
    except NdxdpError as error:
        os.write(writing, f"{error}".encode())
    except BaseException:
        import traceback

        os.write(writing, traceback.format_exc().encode())
    finally:
        os._exit(code)


@contextlib.contextmanager
def _kernel(kind: str) -> Iterator[None]:
    """Simulate a kernel that has no links for tc."""
    from unittest import mock

    from ndxdp.kernel import bpf_hooks
    from ndxdp.kernel.libbpf import BpfError

    if kind == "links":
        yield
        return
    link_create = bpf_hooks.link_create

    def refuse(prog_fd: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
        if kind == "netlink" or attach_type == bpf_hooks.BPF_TCX_INGRESS:
            raise BpfError(errno.EINVAL, "bpf_link_create")
        return link_create(prog_fd, ifindex, attach_type, flags)

    with (
        mock.patch.object(bpf_hooks, "link_create", refuse),
        mock.patch.object(bpf_hooks, "tcx_program_ids", return_value=None),
    ):
        yield


def _arm(step: Step, kill_at: int) -> None:
    from ndxdp.store.directories import Trees

    if kill_at:
        pinned = Trees().pins.path(step.interface).is_dir()
        ctypes.CDLL(None).kill_point_arm(ctypes.c_long(kill_at), int(pinned))


@functools.cache
def _image() -> bytes:
    return Path(sys.argv[1]).read_bytes()


def _options(step: Step) -> Any:
    from ndxdp.kernel.abi import Mode
    from ndxdp.session.request import AttachOptions

    mode = Mode[step.mode.upper()] if step.mode else None
    return AttachOptions(mode, max_addresses=step.max_addresses or None, image=_image())


def _rules(step: Step) -> Any:
    from ndxdp.ndp.profile import Answer
    from ndxdp.rules.rule import CONFIG_ORIGIN, Rule
    from ndxdp.rules.rule_lists import compile_rules

    prefixes = class_prefixes(step.classes)
    rules = compile_rules((*step.rules, *prefixes[:-1]), rule=Rule(origin=CONFIG_ORIGIN))
    by_route = Rule(Answer.ROUTED, origin=CONFIG_ORIGIN, dev=("lo",))
    return rules | compile_rules(prefixes[-1:], rule=by_route)


def class_prefixes(count: int) -> list[str]:
    """Return the prefixes of rules with a class of their own."""
    return [f"2001:db8:{number:x}::/64" for number in range(1, count + 1)]


def _attach(step: Step, kill_at: int) -> None:
    """Attach, renew, resize or change the mode, as `attach` and a daemon's start do.

    `run` and `serve` end as if killed: a link ends with the process.
    """
    from ndxdp.rules.rule import CONFIG_ORIGIN
    from ndxdp.session.request import AttachRequest
    from ndxdp.session.session import Session
    from ndxdp.store.directories import Trees

    options = _options(step)
    if step.verb == "serve":
        from ndxdp.kernel.abi import Mode

        options = dataclasses.replace(options, mode=Mode.USERSPACE)
    request = AttachRequest(
        step.interface,
        _rules(step),
        options,
        CONFIG_ORIGIN,
        keep=step.verb == "attach",
        lock=True,
        switch=step.switch,
        force=True,
    )
    _arm(step, kill_at)
    Session.attach(Trees(), request).close()


def _daemon(step: Step, kill_at: int) -> None:
    """Run a daemon in the mode `was`, reload it for another mode, and end once it has that mode."""
    from ndxdp.daemon import service
    from ndxdp.daemon.spec import DaemonSpec, InterfaceSpec
    from ndxdp.rules.rule import CONFIG_ORIGIN
    from ndxdp.store.directories import Trees
    from ndxdp.store.instance import Instance

    def spec(mode: str) -> InterfaceSpec:
        options = _options(dataclasses.replace(step, mode=mode))
        keep = mode != "userspace"
        return InterfaceSpec(
            step.interface,
            options,
            _rules(step),
            CONFIG_ORIGIN,
            keep=keep,
            detach=False,
            patient=True,
        )

    def ready(now: InterfaceSpec, _instance: Instance | None) -> None:
        if now.options.mode is spec(step.mode).options.mode:
            os._exit(0)
        _arm(step, kill_at)
        os.kill(os.getpid(), signal.SIGHUP)

    if not step.was:
        _arm(step, kill_at)
    first = spec(step.was or step.mode)
    target = spec(step.mode)
    service.run(Trees(), DaemonSpec([first]), ready=ready, reread=lambda: DaemonSpec([target]))


def _reload(step: Step, kill_at: int) -> None:
    """Apply the rules of a reloaded configuration."""
    from ndxdp.daemon import reconcile
    from ndxdp.netlink import links
    from ndxdp.netlink.uplink_addresses import uplink_addresses
    from ndxdp.rules.rule import CONFIG_ORIGIN
    from ndxdp.session.session import Session
    from ndxdp.store.directories import Trees
    from ndxdp.store.instance import open_pinned

    tree, rules = Trees().pins, _rules(step)
    with Session(tree, open_pinned(tree, step.interface)) as session:
        owned = uplink_addresses(links.answering_link(step.interface)).owned
        _arm(step, kill_at)
        reconcile.apply_rules(session, owned, {CONFIG_ORIGIN: rules})


def _suspend(step: Step, kill_at: int) -> None:
    """Suspend the instance, as a daemon does whose interface has disappeared."""
    from ndxdp.session.session import Session
    from ndxdp.store.directories import Trees
    from ndxdp.store.instance import open_pinned

    tree = Trees().pins
    with Session(tree, open_pinned(tree, step.interface)) as session:
        _arm(step, kill_at)
        session.suspend()


def _misname(step: Step, kill_at: int) -> None:
    """Rename the pins as if the interface had had another name before."""
    from ndxdp.store.directories import Trees

    Trees().pins.rename(step.interface, "former")


def _detach(step: Step, kill_at: int) -> None:
    from ndxdp.session.detach import detach_interface
    from ndxdp.store.directories import Trees

    _arm(step, kill_at)
    detach_interface(Trees(), step.interface)


_VERBS = {
    "attach": _attach,
    "serve": _attach,
    "daemon": _daemon,
    "reload": _reload,
    "run": _attach,
    "suspend": _suspend,
    "misname": _misname,
    "detach": _detach,
}


def _import_all() -> None:
    """Import the modules that the steps use, so that no child has to."""
    import logging
    import unittest.mock  # noqa: F401

    from ndxdp.kernel import libbpf

    libbpf.library()
    _image()
    logging.disable(logging.CRITICAL)


if __name__ == "__main__":
    _import_all()
    main(sys.stdin)
