"""Misuse of every command: one sentence, a hint, an exit code, and an unchanged kernel."""

from __future__ import annotations

import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.programs import build_xdp_pass
from ndxdp.config import reader
from ndxdp.errors import UsageError
from ndxdp.kernel.abi import MAX_RULE_CLASSES
from ndxdp.rules.difference import Difference
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import OWNED_LABELS, Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_instance
from tests.fixtures import network
from tests.fixtures.network import (
    BEHIND,
    BPFFS,
    GATEWAY,
    HOST,
    NDXDP,
    PINS,
    REPOSITORY,
    TARGET,
    UPLINK,
    Done,
    Network,
    call,
    done,
    ndxdp,
    remove_instance,
    rules,
    sh,
    snapshot,
)

CANNOT, USAGE = 1, 2
OTHER = "2001:db8::d:0:0:1"


def refused(result: Done, code: int, *expected: str) -> None:
    """Check for one sentence that names the fault, one hint, and no other output."""
    assert (result.code, result.out) == (code, ""), result
    assert "Traceback" not in result.err, result.err
    lines = result.err.splitlines()
    assert len(lines) == 2, result.err
    sentence, hint = lines[0].removeprefix("ndxdp: "), lines[1].removeprefix("  hint: ")
    assert sentence != lines[0]
    assert hint != lines[1]
    assert len(hint) > 5
    for words in expected:
        assert words in sentence, result.err


def unchanged(run: Callable[[], Done], code: int, *expected: str) -> None:
    """Check that `run` is refused and changes nothing."""
    before = snapshot()
    refused(run(), code, *expected)
    assert snapshot() == before


def all_unchanged(
    run: Callable[..., Done], commands: Iterable[tuple[str, ...]], code: int, *expected: str
) -> None:
    """Check the same for several commands at once, which do not disturb each other.

    `run` comes after the others, because `status` shows a running daemon.
    """
    before = snapshot()
    commands = list(commands)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for result in pool.map(lambda words: run(*words), (c for c in commands if c[0] != "run")):
            refused(result, code, *expected)
    for words in commands:
        if words[0] == "run":
            refused(run(*words), code, *expected)
    assert snapshot() == before


# ---- words, with an interface attached ----------------------------------------------------------


class Bad(NamedTuple):
    """A command line, its exit code, and the words that its message must contain."""

    words: tuple[str, ...]
    code: int
    expected: tuple[str, ...]
    stdin: str | bytes = ""

    def __str__(self) -> str:
        return ascii(" ".join(self.words))[1:-1][:40]


def bad(line: str, code: int, *expected: str, stdin: str | bytes = "") -> Bad:
    """Split a line at blanks; `''` stands for an empty word."""
    return Bad(tuple("" if word == "''" else word for word in line.split()), code, expected, stdin)


PREFIXES = [
    ("2001:db8::1/64", "2001:db8::1/64"),
    ("192.0.2.0/24", "192.0.2.0"),
    ("2001:db8::/129", "2001:db8::/129"),
    ("2001:db8::/", "2001:db8::/"),
    ("''", "''"),
    ("nonsense", "nonsense"),
    ("fe80::1%up0", "fe80::1%up0"),
    ("2001:db8::１", "2001:db8::１"),
    ("2001:db8::\udcff", "is not an IPv6 address"),
    ("x" * 5000, "xxx"),
]

WORDS = [
    *(bad(f"prefix add {prefix}", USAGE, expected) for prefix, expected in PREFIXES),
    bad("prefix del 2001:db8::1/64", USAGE, "2001:db8::1/64"),
    bad(f"attach {UPLINK} --mode tc -n 192.0.2.1", USAGE, "192.0.2.1"),
    bad(f"attach {UPLINK} --mode tc --except 2001:db8::1/64", USAGE, "2001:db8::1/64"),
    bad(f"run -i {UPLINK} --mode tc -n nonsense", USAGE, "nonsense"),
    bad("explain nonsense", USAGE, "nonsense"),
    bad("explain 192.0.2.1", USAGE, "192.0.2.1"),
    bad("explain 2001:db8::/64", USAGE, "2001:db8::/64"),
    bad("explain 2001:db8::1 --from nonsense", USAGE, "nonsense"),
    bad("explain 2001:db8::1 --mac nonsense", USAGE, "nonsense"),
    bad("explain 2001:db8::1 --mac 01:00:5e:00:00:01", USAGE, "01:00:5e:00:00:01"),
    bad("explain 2001:db8::1 --mac 02:00:00:00:00:0１", USAGE, "0１"),
    bad("prefix add 2001:db8::1 --lladdr 02:00", USAGE, "02:00"),
    bad("prefix add 2001:db8::1 --lladdr ff:ff:ff:ff:ff:ff", USAGE, "ff:ff"),
    bad("prefix add 2001:db8::1 --na-source nonsense", USAGE, "nonsense"),
    bad("prefix add 2001:db8::1 --answer perhaps", USAGE, "perhaps"),
    bad("prefix add 2001:db8::1 --dad perhaps", USAGE, "perhaps"),
    # duplicates
    bad("prefix add 2001:db8::1 2001:db8::1", USAGE, "2001:db8::1", "twice"),
    bad("prefix add 2001:db8::1 2001:0db8:0::1/128", USAGE, "2001:db8::1", "twice"),
    bad(f"attach {UPLINK} --mode tc -n 2001:db8::1 -n 2001:db8::1", USAGE, "2001:db8::1"),
    bad(f"attach {UPLINK} --mode tc -n 2001:db8::1 --except 2001:db8::1", USAGE, "2001:db8::1"),
    bad(f"run -i {UPLINK} --mode tc -n 2001:db8::1 --except 2001:db8::1", USAGE, "2001:db8::1"),
    # lists
    bad("prefix add --file -", USAGE, "stdin:2", "nonsense", stdin="2001:db8::1\nnonsense\n"),
    bad("prefix add --file -", USAGE, "stdin:3", "twice", stdin="2001:db8::1\n\n2001:db8::1"),
    bad("prefix add --file -", USAGE, "stdin:1", "2001:db8::1/64", stdin="2001:db8::1/64"),
    bad("prefix add --file -", USAGE, "stdin:1", stdin="2001:db8::1 2001:db8::2\n"),
    bad("prefix add --file -", USAGE, "stdin:1", stdin="2001:db8::1\0\n"),
    bad("prefix add --file -", USAGE, "stdin", stdin=b"\xff\xfe\x00\x01"),
    bad("prefix add --file -", USAGE, "no prefix", stdin="# nothing\n"),
    bad("prefix add --file - 2001:db8::1", USAGE, "2001:db8::1", "twice", stdin="2001:db8::1"),
    bad("prefix add --file /nonexistent", USAGE, "/nonexistent"),
    bad("prefix add --file /tmp", USAGE, "/tmp", "directory"),
    bad(f"prefix add --file {sys.executable}", USAGE, "python", "not a text"),
    bad(f"attach {UPLINK} --mode tc --file /nonexistent", USAGE, "/nonexistent"),
    # numbers
    *(bad(f"attach {UPLINK} --rate {rate}", USAGE, "--rate") for rate in ("-1", "nonsense", "inf")),
    *(
        bad(f"attach {UPLINK} --mode tc --{option} {number}", USAGE, number)
        for option, number in (
            ("burst", "0"),
            ("max-addresses", "0"),
            ("max-addresses", "16777217"),
        )
    ),
    # unknown words, or too many
    bad("nonsense", USAGE, "nonsense"),
    bad("--nonsense", USAGE, "--nonsense"),
    bad("status --nonsense", USAGE, "--nonsense"),
    bad("prefix nonsense", USAGE, "nonsense"),
    bad(f"attach {UPLINK} --mode nonsense", USAGE, "nonsense"),
    bad(f"attach {UPLINK} --loader nonsense", USAGE, "nonsense"),
    bad("attach", USAGE, "IFACE"),
    bad("detach", USAGE, "IFACE"),
    bad(f"detach --all {UPLINK}", USAGE, "--all"),
    bad(f"attach {UPLINK} second", USAGE, "second"),
    bad("run", USAGE, "an interface, or a configuration file"),
    bad("explain", USAGE, "TARGET"),
    bad("prefix add", USAGE, "no prefix"),
    bad("prefix del", USAGE, "no prefix"),
    bad(f"prefix del --all {BEHIND}", USAGE, "--all"),
    # rules that exist, or do not, or have another origin
    bad(f"prefix add --override {OTHER} {BEHIND}", CANNOT, BEHIND, "manual"),
    bad(f"prefix add --answer never {BEHIND}", CANNOT, BEHIND, "always"),
    bad(f"prefix add --origin wg0 --override {BEHIND}", CANNOT, BEHIND, "manual"),
    bad(f"prefix replace --origin wg0 --override {OTHER} {BEHIND}", CANNOT, BEHIND, "manual"),
    bad(f"attach {UPLINK} --mode tc -n {OTHER} --except {BEHIND}", CANNOT, BEHIND, "manual"),
    bad(f"prefix del {OTHER}", CANNOT, OTHER),
    bad(f"prefix del {BEHIND} {OTHER}", CANNOT, OTHER),
    bad(f"prefix del {HOST}", CANNOT, HOST, "host"),
    bad(f"prefix del {GATEWAY}", CANNOT, GATEWAY, "host"),
    bad(f"prefix del --origin run {BEHIND}", CANNOT, BEHIND, "manual"),
    bad(f"prefix del --source run {BEHIND}", CANNOT, BEHIND, "manual"),
    bad("prefix del --all --origin host", USAGE, "host"),
    *(
        bad(f"prefix {command} --origin {name} {OTHER}", USAGE, name)
        for command in ("add", "replace")
        for name in ("config", "docker", "host", "run")
    ),
    *(
        bad(f"prefix {words} --origin {name}", USAGE, "no origin")
        for words in (f"add {OTHER}", f"replace {OTHER}", "del --all", "list")
        for name in ("sixteen-letters-", "a/b", "gr\u00fcn", "bad\udcff", "''", "-a")
    ),
    # interfaces
    *(
        bad(f"{command} nosuch", CANNOT, "nosuch")
        for command in (
            "attach",
            "detach",
            "status",
            "run -i",
            "prefix list -i",
            "prefix add 2001:db8::1 -i",
            "prefix del 2001:db8::1 -i",
            "explain 2001:db8::1 -i",
        )
    ),
    *(
        bad(f"{command} {name}", USAGE, "" if name == "''" else name)
        for command in ("attach", "run -i")
        for name in ("x" * 128, "tap*", "eth%d", "gr\u00e0", "''")
    ),
    *(
        bad(f"{command} sixteen-letters-", CANNOT, "sixteen-letters-")
        for command in ("attach", "run -i")
    ),
    bad("attach lo", CANNOT, "lo", "MAC"),
    # attached interfaces
    bad(f"attach {UPLINK} --mode native", CANNOT, UPLINK, "tc"),
    bad(f"attach {UPLINK} --mode generic", CANNOT, UPLINK, "tc"),
    bad(f"run -i {UPLINK}", CANNOT, UPLINK, "already"),
    bad(f"run -i {UPLINK} --mode tc", CANNOT, UPLINK, "already"),
    bad(f"run -i {UPLINK} --mode generic --keep", CANNOT, UPLINK, "tc"),
    bad(f"attach {UPLINK} --max-addresses 2", CANNOT, "addresses", "limit of 2"),
    # the BPF file system
    bad("--bpffs /tmp status", CANNOT, "/tmp"),
    bad("--bpffs /nonexistent status", CANNOT, "/nonexistent"),
    bad(f"--bpffs /nonexistent attach {UPLINK} --mode tc", CANNOT, "/nonexistent"),
    bad("--bpffs /tmp prefix list", CANNOT, "/tmp"),
    bad(f"--bpffs /tmp detach {UPLINK}", CANNOT, "/tmp"),
    bad(f"--bpffs /tmp run -i {UPLINK} --mode tc", CANNOT, "/tmp"),
    bad(f"--bpffs {sys.executable} status", CANNOT, sys.executable),
    bad("--bpffs '' status", CANNOT, "BPF file system"),
    # invalid names of interfaces, numbers and addresses
    *(
        bad(f"{command} {name}", USAGE, "" if name == "''" else name)
        for command, names in (
            ("attach", ("with/slash", "/sys/fs/bpf", "..")),
            ("detach", ("''", "with/slash", "/sys/fs/bpf", "..", "x" * 128, "eth[01]")),
            ("status", ("''", "/sys/fs/bpf")),
            ("prefix list -i", ("''", "/sys/fs/bpf")),
        )
        for name in names
    ),
    bad("attach bad\udcff", USAGE, "bad"),
    bad("detach bad\udcff", USAGE, "bad"),
    bad(f"attach {UPLINK} --rate nan", USAGE, "rate"),
    bad(f"attach {UPLINK} --rate 1e-300", USAGE, "rate"),
    bad(f"attach {UPLINK} --rate 1e-9 --burst 1000000", USAGE, "rate"),
    bad(f"prefix add {OTHER} --na-source ff02::1", USAGE, "ff02::1"),
    bad("prefix add 2001:db8::d:0:0:2 --na-source ::", USAGE, "::"),
    # targets that no router solicits
    bad(f"attach {UPLINK} -n ff02::1", USAGE, "ff02::1"),
    bad("prefix add ff00::/8", USAGE, "ff00::/8"),
    bad("prefix add ::", USAGE, "::"),
    bad("prefix add ::1", USAGE, "::1"),
]


class TestWords:
    """The table. Its commands run at once, because none of them may affect another."""

    @pytest.fixture(scope="class")
    @classmethod
    def results(cls) -> Iterator[dict[Bad, Done]]:
        with network.network(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:

            def run(case: Bad) -> Done:
                return ndxdp(*case.words, stdin=case.stdin)

            done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
            before = snapshot()
            ended: dict[Bad, Done] = {}
            # separately: `status` also shows a daemon that is about to end
            for runs in (False, True):
                cases = [case for case in WORDS if ("run" in case.words) is runs]
                ended |= dict(zip(cases, pool.map(run, cases), strict=True))
            if snapshot() != before:  # ambiguous commands
                for case in WORDS:
                    unchanged(partial(run, case), case.code, *case.expected)
            yield ended
            remove_instance()

    @pytest.mark.parametrize("case", WORDS, ids=str)
    def test_refused(self, results: dict[Bad, Done], case: Bad) -> None:
        refused(results[case], case.code, *case.expected)


def test_a_list_is_named_with_its_line(attached: Network, tmp_path: Path) -> None:
    listing = tmp_path / "guests.txt"
    listing.write_text(f"{OTHER}\n# a comment\n{OTHER}\n")
    unchanged(lambda: ndxdp("prefix", "add", "--file", str(listing)), USAGE, "guests.txt:3", OTHER)
    listing.write_text(f"{OTHER}\n\n2001:db8::1/64  # host bits\n")
    unchanged(lambda: ndxdp("prefix", "del", "--file", str(listing)), USAGE, "guests.txt:3")
    words = ("attach", UPLINK, "--mode", "tc", "--file", str(listing))
    unchanged(lambda: ndxdp(*words), USAGE, "guests.txt:3")


def test_a_list_whose_name_is_not_utf8(attached: Network, tmp_path: Path) -> None:
    listing = tmp_path / "guests-\udcff"
    listing.write_text(OTHER)
    done("prefix", "add", "--file", str(listing))
    assert OTHER in rules()


def test_detach_leaves_other_directories_alone(attached: Network, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    unchanged(lambda: ndxdp("detach", str(tmp_path)), USAGE, str(tmp_path))
    assert precious.exists()


def test_several_attached_and_none_named(attached: Network) -> None:
    sh("ip", "link", "add", "second", "up", "type", "bridge")
    try:
        done("attach", "second", "--mode", "tc")
        commands = [("prefix", "list"), ("prefix", "add", OTHER), ("explain", OTHER)]
        all_unchanged(ndxdp, commands, USAGE, UPLINK, "second")
        remove_instance("second")
    finally:
        sh("ip", "link", "delete", "second")


def test_a_reader_that_has_closed_its_end(attached: Network) -> None:
    for words in (("status", "--json"), ("prefix", "list")):
        with open("/dev/full", "w") as full:
            ended = subprocess.run(
                [*NDXDP, *words],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                cwd=REPOSITORY,
                check=False,
            )
        refused(Done(ended.returncode, "", ended.stderr), CANNOT, "No space left")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_standard_files(attached: Network, closed: str) -> None:
    """Succeed as with /dev/null in place of each closed file."""
    for words in ("status", "prefix list", f"attach {UPLINK} --dry-run", "top --seconds 0.1"):
        ended = call("sh", "-c", f'exec "$@" {closed}', "sh", *NDXDP, *words.split())
        assert (ended.code, ended.err) == (0, ""), (words, ended)


def test_not_a_number() -> None:
    refused(ndxdp("status", "--watch", "nan"), USAGE, "--watch: 'nan' is not a number")


def test_an_interrupt_during_the_imports(tmp_path: Path) -> None:
    """End without a traceback on Ctrl-C before the command has begun."""
    (tmp_path / "click.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)\n")
    ended = call(*NDXDP, "status", env={"PYTHONPATH": str(tmp_path)})
    assert ended == (-signal.SIGINT, "", "")


def test_an_interrupt_at_the_exit() -> None:
    """End without a traceback on Ctrl-C after the command is complete."""
    code = (
        "import atexit, os, signal, sys; sys.argv[1:] = ['--version']\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "from ndxdp.__main__ import main; main()"
    )
    ended = call(sys.executable, "-c", code)
    assert (ended.code, ended.err) == (-signal.SIGINT, "")


# ---- interfaces and hooks -----------------------------------------------------------------------

EVERY_COMMAND = [
    ("attach", UPLINK, "--mode", "tc", "-n", OTHER),
    ("run", "-i", UPLINK, "--mode", "tc", "-n", OTHER),
    ("detach", UPLINK),
    ("status",),
    ("status", UPLINK),
    ("explain", TARGET, "-i", UPLINK),
    ("prefix", "add", OTHER, "-i", UPLINK),
    ("prefix", "del", BEHIND, "-i", UPLINK),
    ("prefix", "list", "-i", UPLINK),
]


def test_nothing_is_attached(net: Network) -> None:
    commands = [("prefix", "list"), ("prefix", "add", OTHER), ("explain", TARGET)]
    all_unchanged(ndxdp, commands, CANNOT, "no interface")
    all_unchanged(ndxdp, EVERY_COMMAND[2:3] + EVERY_COMMAND[4:], CANNOT, UPLINK, "not attached")


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_an_interface_that_is_down(net: Network, mode: str) -> None:
    sh("ip", "link", "set", UPLINK, "down")
    unchanged(lambda: ndxdp("attach", UPLINK, "--mode", mode), CANNOT, UPLINK, "down")


def test_an_interface_without_a_mac(net: Network) -> None:
    sh("ip", "tuntap", "add", "mode", "tun", "name", "tun0")
    try:
        sh("ip", "link", "set", "tun0", "up")
        unchanged(lambda: ndxdp("attach", "tun0", "--mode", "tc"), CANNOT, "tun0", "MAC")
        unchanged(lambda: ndxdp("run", "-i", "tun0", "--mode", "generic"), CANNOT, "tun0", "MAC")
    finally:
        sh("ip", "link", "delete", "tun0")


def test_a_driver_without_xdp(net: Network) -> None:
    sh("ip", "link", "add", "second", "up", "type", "bridge")
    try:
        native = ("--mode", "native")
        unchanged(lambda: ndxdp("attach", "second", *native), CANNOT, "second", "driver")
        unchanged(lambda: ndxdp("run", "-i", "second", *native), CANNOT, "second", "driver")
    finally:
        sh("ip", "link", "delete", "second")


@pytest.mark.parametrize("theirs", ["xdpgeneric", "xdpdrv"])
def test_anothers_xdp_program_survives(net: Network, theirs: str) -> None:
    program = ("obj", str(build_xdp_pass()), "sec", "xdp")
    sh("ip", "link", "set", "dev", UPLINK, theirs, *program)
    (number,) = network.xdp_ids()
    for words in (
        ("attach", UPLINK, "-q", "--mode", "native", "-n", BEHIND),
        ("attach", UPLINK, "--mode", "generic", "-n", BEHIND),
        ("run", "-q", "-i", UPLINK, "--mode", "native"),
    ):
        unchanged(partial(ndxdp, *words), CANNOT, UPLINK, "'pass'", f"id {number}")

    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    assert network.xdp_ids() == [number]
    assert net.answers()
    done("detach", UPLINK)
    assert network.xdp_ids() == [number]
    sh("ip", "link", "set", "dev", UPLINK, theirs, "off")


# ---- limits -------------------------------------------------------------------------------------


def test_the_table_of_addresses_is_full(net: Network) -> None:
    """Refuse more addresses than the table has room for; the host's three holes count as well."""
    fit = [word for number in range(7) for word in ("-n", f"2001:db8::c:0:0:{number:x}")]
    words = ("attach", UPLINK, "--mode", "tc", "--max-addresses", "10", *fit)
    unchanged(lambda: ndxdp(*words, "-n", OTHER), CANNOT, "addresses", "11", "10")
    done(*words)
    unchanged(lambda: ndxdp("prefix", "add", OTHER), CANNOT, "addresses", "limit of 10")
    many = "\n".join(f"2001:db8::d:0:0:{number:x}" for number in range(100))
    unchanged(
        lambda: ndxdp("prefix", "add", BEHIND, "--file", "-", stdin=many), CANNOT, "limit of 10"
    )
    unchanged(lambda: ndxdp("attach", UPLINK, "--mode", "tc", "-n", OTHER), CANNOT, "limit of 10")
    done("prefix", "del", "2001:db8::c:0:0:1")
    done("prefix", "add", OTHER)
    assert net.answers(OTHER)
    remove_instance()


def test_too_many_rule_classes(attached: Network) -> None:
    one, other = "2001:db8::d:0:0:1", "2001:db8::d:0:0:2"
    with open_instance(Trees().pins, UPLINK) as instance:
        maps, actual = instance.maps, instance.maps.rules()
        room = MAX_RULE_CLASSES - len(maps.rule_classes()) - 1
        many = {Prefix((n << 80).to_bytes(16, "big"), 48): Rule(label=str(n)) for n in range(room)}
        maps.apply(Difference(Rules(wider=many), Rules()), actual)
    limit = str(MAX_RULE_CLASSES)
    unchanged(lambda: ndxdp("prefix", "add", one, other), CANNOT, "rule classes", limit)
    words = ("-n", one, "-n", other)
    unchanged(
        lambda: ndxdp("attach", UPLINK, "--mode", "tc", *words), CANNOT, "rule classes", limit
    )
    done("prefix", "add", "--file", "-", stdin=f"{one}\n{other}\n")  # as the hint suggests
    done("prefix", "del", "--file", "-", stdin=f"{one}\n{other}\n")
    done("prefix", "add", one)
    assert attached.answers(one)
    unchanged(lambda: ndxdp("prefix", "add", other), CANNOT, "rule classes", limit)
    done("prefix", "del", one)
    done("prefix", "add", other)  # the slot of a removed rule is free
    assert attached.answers(other)


# ---- rights -------------------------------------------------------------------------------------

NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=-all", "--bounding-set=-all"),
)


def as_nobody(*words: str) -> Done:
    """Run a command without rights; omit the warning that `run` begins with."""
    result = call(*NOBODY, *NDXDP, *words)
    return result._replace(err=re.sub(r"^ndxdp: cannot write a report to .*\n", "", result.err))


def refused_for_rights(*words: str) -> Done:
    result = as_nobody(*words)
    assert "root" in result.err
    return result


def test_without_rights(net: Network) -> None:
    all_unchanged(refused_for_rights, EVERY_COMMAND[:2], CANNOT)
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    all_unchanged(refused_for_rights, EVERY_COMMAND, CANNOT)
    remove_instance()


def test_with_too_few_capabilities(net: Network) -> None:
    """Refuse to attach with CAP_NET_ADMIN alone or CAP_BPF alone."""
    for keep in ("net_admin", "bpf"):
        caps = f"-all,+{keep},+dac_override"
        rights = ("setpriv", f"--inh-caps={caps}", f"--bounding-set={caps}")
        before = snapshot()
        result = call(*rights, *NDXDP, *EVERY_COMMAND[0])
        refused(result, CANNOT)
        assert "CAP_BPF and CAP_NET_ADMIN" in result.err
        assert snapshot() == before


# ---- the BPF file system and what is pinned there -----------------------------------------------


def hidden(*preparation: str) -> Callable[..., Done]:
    """Return a function that runs ndxdp after a shell command in a private mount namespace."""

    def run(*words: str) -> Done:
        script = f'{" ".join(preparation)} && exec "$@"'
        return call("unshare", "--mount", "sh", "-c", script, "sh", *NDXDP, *words)

    return run


def test_no_bpf_file_system(net: Network) -> None:
    run = hidden("umount", str(BPFFS))
    all_unchanged(run, EVERY_COMMAND, CANNOT, "no BPF file system", str(BPFFS))


def test_pins_of_another_version(net: Network) -> None:
    Path(PINS, "v999", UPLINK).mkdir(parents=True)
    all_unchanged(ndxdp, EVERY_COMMAND[:3] + EVERY_COMMAND[4:], CANNOT, UPLINK, "v999")
    assert done("status") == "ndxdp is attached to no interface\n"
    shutil.rmtree(PINS)


def test_a_foreign_map_is_among_the_pins(attached: Network) -> None:
    (path,) = PINS.glob(f"v*/{UPLINK}/settings")
    path.unlink()
    kind = ("type", "array", "key", "4", "value", "8", "entries", "1", "name", "foreign")
    sh("bpftool", "map", "create", str(path), *kind)
    all_unchanged(ndxdp, EVERY_COMMAND, CANNOT, str(path))
    assert attached.answers()


@pytest.mark.parametrize("missing", ["program", "groups"])
def test_incomplete_pins(attached: Network, missing: str) -> None:
    """Report incomplete pins with a cure; attach and detach repair them."""
    (path,) = PINS.glob(f"v*/{UPLINK}/{missing}")
    path.unlink()
    unchanged(lambda: ndxdp("status"), CANNOT, UPLINK, "incomplete")
    unchanged(lambda: ndxdp("prefix", "add", OTHER), CANNOT, UPLINK, "incomplete")
    done("attach", UPLINK, "--mode", "tc", "-n", TARGET)
    assert attached.answers()
    path.unlink()
    done("detach", UPLINK)
    assert not PINS.exists()
    assert network.tc_ids() == []


def there(net: Network) -> Callable[..., Done]:
    return lambda *words: net.at_router(*NDXDP, *words)


def test_pins_of_another_network_namespace(attached: Network) -> None:
    """Refuse to change pins of an interface with the same name in another network namespace."""
    names = ("link", "add", UPLINK, "up", "type", "veth", "peer", "name", "far")
    assert attached.at_router("ip", *names).code == 0
    commands = [
        ("attach", UPLINK, "--mode", "tc", "-n", OTHER),
        ("attach", UPLINK, "--mode", "generic"),
        ("run", "-i", UPLINK, "--mode", "tc"),
        ("run", "-i", UPLINK, "--mode", "tc", "--keep"),
    ]
    all_unchanged(there(attached), commands, CANNOT, "network namespace")
    assert attached.answers()


def test_pins_of_a_deleted_network_namespace(net: Network) -> None:
    """Replace pins whose network namespace no longer exists."""
    names = ("link", "add", UPLINK, "up", "type", "veth", "peer", "name", "far")
    assert net.at_router("ip", *names).code == 0
    assert there(net)("attach", UPLINK, "--mode", "tc", "-n", BEHIND).code == 0
    assert net.at_router("ip", "link", "delete", UPLINK).code == 0
    done("attach", UPLINK, "--mode", "tc", "-n", TARGET)
    assert net.answers()
    renewal = ndxdp("attach", UPLINK)
    remove_instance()
    assert renewal == (0, "", "")


def test_detach_from_another_network_namespace(attached: Network) -> None:
    unchanged(lambda: there(attached)("detach", UPLINK), CANNOT, "network namespace")
    assert attached.answers()


# ---- programs and loaders -----------------------------------------------------------------------

_WITH_OBJECT = """
import pathlib, sys
from ndxdp.kernel import loader
loader.OBJECT = pathlib.Path(sys.argv.pop(1))
from ndxdp.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def unverifiable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the program with a read behind the frame's end."""
    directory = tmp_path_factory.mktemp("unverifiable")
    for header in (REPOSITORY / "bpf").glob("*.h"):
        shutil.copy(header, directory)
    source = (REPOSITORY / "bpf" / "ndp_responder.c").read_text()
    check = r"if \((?:unlikely\()?!is_solicitation\(data, end\)"
    source, count = re.subn(check, r"if (*((volatile char *)data + 4000))\n\g<0>", source)
    assert count == 2
    (directory / "bad.c").write_text(source)
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    options = ("-target", "bpf", "-mcpu=v2", "-O2", "-g", include)
    sh("clang", *options, "-c", str(directory / "bad.c"), "-o", str(directory / "bad.o"))
    return directory / "bad.o"


def with_object(path: Path, *words: str) -> Done:
    return call(sys.executable, "-c", _WITH_OBJECT, str(path), *words)


@pytest.mark.parametrize("mode", ["tc", "generic"])
def test_the_verifier_refuses(net: Network, unverifiable: Path, mode: str) -> None:
    words = ("attach", UPLINK, "--mode", mode, "-n", BEHIND)
    unchanged(lambda: with_object(unverifiable, *words), CANNOT, "verifier")
    loud = with_object(unverifiable, "--debug", *words)
    assert loud.code == CANNOT
    assert "invalid access to packet" in loud.err

    done(*words)
    again = ("attach", UPLINK, "--mode", mode, "-n", OTHER, "--max-addresses", "100")
    for renewal in (words, again):
        unchanged(partial(with_object, unverifiable, *renewal), CANNOT, "verifier")
    assert net.answers()
    remove_instance()


def test_an_invalid_object_file(attached: Network, tmp_path: Path) -> None:
    words = ("attach", UPLINK, "--mode", "tc", "-n", OTHER)
    for name, content in (
        ("empty.o", b""),
        ("text.o", b"this is no ELF"),
        ("python.o", Path(sys.executable).read_bytes()),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        refused(with_object(path, *words), CANNOT, "object")
    unchanged(lambda: with_object(build_xdp_pass(), *words), CANNOT, "ndp_tc")
    unchanged(lambda: with_object(tmp_path / "missing", *words), CANNOT, "compiled program")
    assert attached.answers()


_WITHOUT_LIBBPF = """
import ctypes, sys
real = ctypes.CDLL
class CDLL(real):
    def __init__(self, name, *args, **kwargs):
        if name and "libbpf" in name:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        super().__init__(name, *args, **kwargs)
ctypes.CDLL = CDLL
from ndxdp.cli.main import main
main()
"""


def test_no_libbpf(attached: Network) -> None:
    def run(*words: str) -> Done:
        result = call(sys.executable, "-c", _WITHOUT_LIBBPF, *words)
        assert "apt install libbpf1" in result.err
        return result

    all_unchanged(run, EVERY_COMMAND, CANNOT, "libbpf.so.1")


_WITH_PYTHON = """
import sys
from ndxdp.kernel import bcc_loader
bcc_loader.PYTHON = sys.argv.pop(1)
from ndxdp.cli.main import main
main()
"""


def test_bcc_cannot_be_had(attached: Network) -> None:
    words = ("attach", UPLINK, "--mode", "tc", "--loader", "bcc", "-n", OTHER)
    for python, expected in (
        (sys.executable, "bcc is not installed"),
        ("/nonexistent/python3", "bcc needs /nonexistent/python3, which is missing"),
        ("/bin/false", "bcc could not compile"),
        ("/bin/true", "bcc could not compile"),
    ):
        refused(call(sys.executable, "-c", _WITH_PYTHON, python, *words), CANNOT, expected)
    run = hidden("mount -t tmpfs none /usr/src && mount -t tmpfs none /lib/modules")
    unchanged(lambda: run(*words), CANNOT, "kernel-header")
    assert attached.answers()


# ---- `check` predicts `run` ----------------------------------------------------------------------

NAME = f'[[interface]]\nname = "{UPLINK}"\n'
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "interface": {
        "mode": ('"auto"', '"tc"', '"generic"', '"userspace"', '"xdp"'),
        "max_addresses": ("1", "3", "5", "200000"),
        "on_stop": ('"keep"', '"detach"'),
        "join": ('"auto"', '"never"', '"always"', '"maybe"'),
        "heartbeat_timeout": ("0", "0.5", "1", "86400"),
        "paused": ("true", "false"),
    },
    "interface.announce": {
        "solicit_gateway": ("true", "false"),
        "interval": ("0", "1", "86400"),
        "rate": ("1", "1e6"),
    },
    "interface.gateway": {
        "keep": ("true",),
        "source": (f'"{HOST}"', '"ff02::1"'),
        "interval": ("1",),
    },
    "interface.addresses": {
        "deprecate": (f'["{HOST}"]', f'["{HOST}", "2001:db8::/64"]', '["::2/-64"]', "[]"),
        "preferred": (f'"{HOST}"', '["2001:db8::9"]'),
    },
    "interface.limit": {
        "rate": ("0", "1e-3", "1e9"),
        "burst": ("1", "1000000"),
        "interface_rate": ("0", "1e-3", "1e9"),
        "gateway_rate": ("0", "1e-3", "1e9"),
    },
    "interface.resolve": {
        "deadline": ("0.01", "60"),
        "rate": ("1", "1e6"),
        "burst": ("1", "1000000"),
        "pending": ("1", "65536"),
    },
    "metrics": {
        "listen": ('"[::1]:9877"', '"localhost:9878"', '"[::]:0"'),
        "ipv6only": ("true",),
        "all_classes": ("true",),
    },
    "docker": {"socket": ('"/nowhere/docker.sock"', '"docker.sock"')},
}
PREFIX_TABLES = (
    f'prefix = "{BEHIND}"\n',
    'prefix = "2001:db8::c:0:0:1"\nsource = "link-local"\nlladdr = "02:00:00:00:00:77"\n',
    'prefix = "2001:db8:0:0:d::/80"\nanswer = "neighbour"\nvia = ["docker*", "br-*"]\n',
    'prefix = "2001:db8:0:0:d::/80"\nanswer = "routed"\nrouter = false\n',
    'prefix = "2001:db8:0:0:e::/80"\nanswer = "never"\n',
    'prefix = "2001:db8:0:0:f::/80"\nanswer = "local"\ndad = "ignore"\n',
    f'prefix = "{HOST}"\n',
    'prefix = "2000::/3"\nforce = true\n',
)


def some_configuration(choose: random.Random) -> str:
    """Make a configuration of valid and invalid parts, some at the limits of validity."""
    text = NAME
    for table, keys in TABLES.items():
        if table != "interface" and choose.random() < 0.6:
            continue
        text += f"[{table}]\n" if table != "interface" else ""
        for key, values in keys.items():
            if choose.random() < 0.4:
                text += f"{key} = {choose.choice(values)}\n"
    for prefix in choose.sample(PREFIX_TABLES, choose.randrange(4)):
        text += f"[[interface.prefix]]\n{prefix}"
    for number in range(choose.randrange(2)):
        text += f'[[interface.docker]]\nnetwork = "net{number}"\n'
    return text


def test_run_accepts_what_check_accepts(net: Network, tmp_path: Path) -> None:
    choose = random.Random(8)
    file = tmp_path / "ndxdp.toml"
    tried = refused_ones = 0
    while tried < 8:
        file.write_text(some_configuration(choose))
        try:
            reader.load(file)  # begins like `check`; most are refused here
        except UsageError:
            refused_ones += 1
            continue
        checked = ndxdp("check", "-c", str(file))
        if checked.out.splitlines()[0] != f"{file}: good":
            refused_ones += 1
            continue
        tried += 1
        run = net.run("-c", str(file))
        assert run.ready.startswith(f"ready: {UPLINK} "), file.read_text()
        ended = run.end()
        assert ended.code == 0, (file.read_text(), ended)
        assert "more than the limit" not in ended.err
        ndxdp("-q", "detach", UPLINK)
    assert refused_ones > tried


def test_as_many_prefixes_as_check_accepts(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"

    def write(first: int, count: int) -> None:
        prefixes = (f"2001:{n >> 16:x}:{n & 0xFFFF:x}::/64" for n in range(first, first + count))
        tables = (f'prefix = "{prefix}"\n' for prefix in prefixes)
        file.write_text(NAME + "".join(f"[[interface.prefix]]\n{each}" for each in tables))

    most = MAX_RULE_CLASSES - len(OWNED_LABELS)
    write(1, most + 1)
    refusal = ndxdp("check", "-c", str(file))
    refused(refusal, USAGE, f"{most + 1} rule classes are more than the limit of {most}")
    write(1, most)
    assert ndxdp("check", "-c", str(file)).out.startswith(f"{file}: good\n")
    run = net.run("-c", str(file))
    assert sum(rule["source"] == "config" for rule in rules().values()) == most
    # As many others: the table has no room for both.
    write(1 << 20, most)
    run.process.send_signal(signal.SIGHUP)
    network.eventually(lambda: "2001:10::/64" in rules(), within=60)
    assert sum(rule["source"] == "config" for rule in rules().values()) == most
    assert run.end().code == 0
    done("detach", UPLINK)


def test_configurations_that_this_host_cannot_run(net: Network, tmp_path: Path) -> None:
    """Warn, without an error, if `run` cannot serve an interface: a service has others."""
    file = tmp_path / "ndxdp.toml"
    other = "an-alternative-name-of-the-uplink"
    sh("ip", "link", "property", "add", "dev", UPLINK, "altname", other)
    rule = f'[[interface.prefix]]\nprefix = "{OTHER}"\n'
    for text, expected in (
        (f'{NAME}[[interface]]\nname = "{other}"\n', f"{UPLINK} and {other} are one interface"),
        (f"{NAME}max_addresses = 1\n{rule}", "addresses are more than the limit of 1"),
        (f'[[interface]]\nname = "lo"\n{rule}', "lo has no MAC address"),
    ):
        file.write_text(text)
        checked = ndxdp("check", "-c", str(file))
        assert checked.code == 0
        assert checked.out.startswith(f"{file}: good, but `run` cannot do all of it here\n")
        assert expected in checked.err
    file.write_text(f'[[interface]]\nname = "{other}"\n{rule}')
    assert ndxdp("check", "-c", str(file)).out.startswith(f"{file}: good\n")
    run = net.run("-c", str(file))
    assert OTHER in done("prefix", "list", "-i", other)
    assert run.end().code == 0
    done("detach", other)
    sh("ip", "link", "property", "del", "dev", UPLINK, "altname", other)


# ---- a disk that is full -------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of one page, which a file fills."""
    directory = tmp_path / "full"
    directory.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=4k", "none", str(directory))
    (directory / "fill").write_bytes(bytes(4096))
    yield directory
    sh("umount", str(directory))


NO_ROOM = "No space left on device"


@pytest.mark.parametrize(
    "words",
    [("status",), ("status", "--json"), ("metrics",), ("prefix", "list"), ("--help",), ("doctor",)],
    ids=" ".join,
)
def test_no_room_for_the_output(attached: Network, words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as stream:
        ended = subprocess.run([*NDXDP, *words], stdout=stream, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "ndxdp: cannot write the output: No space left on device",
        "  hint: free some space: df -h",
    ]


def test_no_room_for_the_converted_file(net: Network, full: Path) -> None:
    """Keep the existing file, even with --force, if the file system is full."""
    line = ("convert", "--ndpresponder", "-i eth0 -N web", "-o")
    for name, more in (("fresh", ()), ("fill", ("--force",))):
        failed = ndxdp(*line, str(full / name), *more)
        assert failed.code == CANNOT
        assert (
            f"cannot write {full / name}: {NO_ROOM}\n  hint: free some space: df -h {full}"
            in failed.err
        )
    assert [(each.name, each.stat().st_size) for each in full.iterdir()] == [("fill", 4096)]


def test_no_room_for_the_files_of_userspace_mode(net: Network, full: Path, tmp_path: Path) -> None:
    """Change no rule if the file system is full; the log has room for a few in its last page."""
    words = ("--run-directory", str(full / "run"))
    failed = ndxdp(*words, "run", "-i", UPLINK, "--mode", "userspace", "-n", OTHER)
    assert failed.code == CANNOT
    assert NO_ROOM in failed.err
    assert f"hint: free some space: df -h {full}" in failed.err
    assert "Traceback" not in failed.err
    sh("mount", "-o", "remount,size=2m", str(full))
    command = [*NDXDP, *words]
    run = net.run("-i", UPLINK, "--mode", "userspace", "-n", OTHER, command=command)
    call("dd", "if=/dev/zero", f"of={full / 'fill'}", "bs=4k")
    before = done(*words, "prefix", "list", "-i", UPLINK)
    many = tmp_path / "many"
    many.write_text("".join(f"2001:db8:5::{n:x}\n" for n in range(1, 1000)))
    failed = ndxdp(*words, "prefix", "add", "-i", UPLINK, "--file", str(many))
    assert failed.code == CANNOT
    assert f"{NO_ROOM}; no rule was changed" in failed.err
    assert done(*words, "prefix", "list", "-i", UPLINK) == before
    assert net.answers(OTHER)
    assert run.end().code == 0
