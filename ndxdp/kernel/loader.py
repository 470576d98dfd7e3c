"""Loading of the program with open maps, from the prebuilt object or compiled by bcc."""

from __future__ import annotations

import errno
import logging
from enum import Enum
from pathlib import Path

from ndxdp.errors import ModeUnavailable, NdxdpError, from_os, is_exhausted
from ndxdp.kernel import bpf_programs
from ndxdp.kernel.abi import Mode
from ndxdp.kernel.libbpf import BpfError

log = logging.getLogger(__name__)

_CAP_PERFMON = 38  # linux/capability.h

OBJECT = Path(__file__).parents[1] / "bpf" / "ndp_responder.o"


class Loader(Enum):
    """The origin of the program: the prebuilt object, or bcc, which compiles the source."""

    PREBUILT = "prebuilt"
    BCC = "bcc"


def load(loader: Loader, mode: Mode, map_fds: dict[str, int], image: bytes | None = None) -> int:
    """Load the entry point for a mode, and return its descriptor, which the caller closes.

    The verifier's log is logged at debug level.

    Args:
        loader: Where the program comes from.
        mode: The mode.
        map_fds: The descriptors of the open maps, by name.
        image: An object to load instead of the one of ndxdp.

    Raises:
        NdxdpError: The kernel refuses the program.
    """
    try:
        if loader is Loader.BCC:
            return _load_bcc(mode, map_fds)
        return bpf_programs.load_object(
            _shipped_object() if image is None else image, mode.program, map_fds
        )
    except BpfError as error:
        raise _refusal(error, mode) from error


def _shipped_object() -> bytes:
    try:
        return OBJECT.read_bytes()
    except FileNotFoundError:
        raise NdxdpError(
            "this installation has no compiled program", "run `make build`, or use --loader bcc"
        ) from None


def _load_bcc(mode: Mode, map_fds: dict[str, int]) -> int:
    from ndxdp.kernel import bcc_loader  # imports subprocess and zipfile, 1 MB

    code = bcc_loader.compile_program(mode.program, map_fds)
    if mode is Mode.TC:
        return bpf_programs.load_instructions(
            bpf_programs.BPF_PROG_TYPE_SCHED_CLS, mode.program, code
        )
    return bpf_programs.load_instructions(
        bpf_programs.BPF_PROG_TYPE_XDP, mode.program, code, bpf_programs.BPF_F_XDP_HAS_FRAGS
    )


def _refusal(error: BpfError, mode: Mode) -> NdxdpError:
    log.debug("%s", error.log.strip())
    if is_exhausted(error):
        return from_os(error)
    if error.errno == errno.EPERM:
        return ModeUnavailable(
            "the kernel does not let this process load a BPF program",
            "run this as root, or with CAP_BPF and CAP_NET_ADMIN",
        )
    if error.errno == errno.EACCES and not _has_capability(_CAP_PERFMON):
        return ModeUnavailable(
            "the kernel's verifier refused the program to a process without CAP_PERFMON",
            "before Linux 6.18 the program needs it in addition to CAP_BPF and CAP_NET_ADMIN",
        )
    if error.operation == "bpf_object__open_mem":
        return NdxdpError("the program's object file is not an ELF object", "reinstall ndxdp")
    if error.operation.startswith("find "):
        return NdxdpError(
            f"the object and this ndxdp have different versions ({error.operation} failed)",
            "reinstall ndxdp",
        )
    if error.errno == errno.EINVAL and mode is not Mode.TC and not bpf_programs.xdp_has_frags():
        return ModeUnavailable(
            "the kernel has no XDP for frames in several pieces, which came with Linux 5.18",
            "--mode tc does not need it",
        )
    return ModeUnavailable(
        f"the kernel's verifier refused the program ({error.strerror})",
        "--debug shows its log; please report it with `uname -r`",
    )


def _has_capability(number: int) -> bool:
    status = Path("/proc/thread-self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> number & 1)
