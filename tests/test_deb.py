"""The Debian package: its content, and the verdicts of lintian, man and the shells.

`make test-deb` installs, upgrades and purges it on the releases that it supports.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from ndxdp import __version__
from ndxdp.cli.main import cli
from ndxdp.kernel import abi

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGING = REPOSITORY / "packaging"

_SPEC = importlib.util.spec_from_file_location("deb", PACKAGING / "deb.py")
assert _SPEC
assert _SPEC.loader
deb = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(deb)


def run(*command: str | Path, timeout: float = 120) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        pytest.fail(f"{command} gave {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("deb")
    built = run(sys.executable, PACKAGING / "deb.py", "--directory", directory)
    return Path(built.strip())


@pytest.fixture(scope="module")
def tree(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the package."""
    directory = tmp_path_factory.mktemp("tree")
    run("dpkg-deb", "-x", package, directory)
    return directory


def field(package: Path, name: str) -> str:
    return run("dpkg-deb", "-f", package, name).strip()


def manual(tree: Path, page: str) -> str:
    """Format a man page as one line: words are kept whole, and lines are not filled."""
    path = tree / "usr/share/man" / f"man{page[-1]}" / f"{page}.gz"
    command = ("man", "--no-hyphenation", "--no-justification", "-Tutf8", "-l", str(path))
    text = run("env", "LC_ALL=C.UTF-8", "MANWIDTH=1000", "MAN_KEEP_FORMATTING=", *command)
    return " ".join(re.sub(r".\x08|\x1b\[[0-9;]*m", "", text).split())


# ---- control -------------------------------------------------------------------------------------


def test_it_needs_what_every_release_has(package: Path) -> None:
    assert package.name == f"ndxdp_{__version__}_all.deb", "debian/changelog is of this version"
    assert field(package, "Architecture") == "all"
    needed = {name.strip() for name in field(package, "Depends").split(",")}
    assert needed == {"libbpf1", "python3 (>= 3.11)", "python3:any"}
    assert field(package, "Recommends") == "python3-rich", (
        "python3-bpfcc has 270 MB, and few use it"
    )
    assert "python3-bpfcc" in field(package, "Suggests")


def test_lintian_finds_nothing(package: Path) -> None:
    every = "error,warning,info,pedantic"
    # Newer versions of lintian do not have this tag any more, and no override of it either.
    no_tag = "package-supports-alternative-init-but-no-init.d-script"
    words = ("--display-info", "--pedantic", "--suppress-tags", no_tag, "--fail-on", every)
    assert run("lintian", *words, "--allow-root", package) == ""


def test_pyproject_alone_names_the_maintainer(package: Path, tmp_path: Path) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (maintainer,) = project["maintainers"]
    assert field(package, "Maintainer") == f"{maintainer['name']} <{maintainer['email']}>"
    assert field(package, "Homepage") == project["urls"]["Homepage"]
    shutil.copytree(PACKAGING / "debian", tmp_path / "debian")
    changed = (REPOSITORY / "pyproject.toml").read_text().replace(maintainer["email"], "a@b.org")
    (tmp_path / "pyproject.toml").write_text(changed)
    deb.set_maintainer(tmp_path)
    for name in ("control", "changelog"):
        text = (tmp_path / "debian" / name).read_text()
        assert f"{maintainer['name']} <a@b.org>" in text
        assert "@MAINTAINER@" not in text


@pytest.mark.parametrize("text", ["[project]\n", "[project]\nmaintainers = []\n"])
def test_a_missing_maintainer_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(SystemExit, match="names no maintainer or homepage\n  hint: maintainers ="):
        deb.set_maintainer(tmp_path)


def test_preinst_knows_the_layout_of_the_maps(package: Path) -> None:
    former = " ".join(map(str, abi.FORMER_VERSIONS))
    known = f"for version in {abi.VERSION} {former}; do"
    assert known in run("dpkg-deb", "-I", package, "preinst")
    taken_over = f"for version in {former}; do"
    assert taken_over in run("dpkg-deb", "-I", package, "postinst")


def test_the_needed_modules_are_those_of_pyproject() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=]", each)[0] for each in project["dependencies"]}
    lines = (PACKAGING / "requirements.txt").read_text()
    packed = set(re.findall(r"^([\w-]+)==", lines, re.MULTILINE))
    assert packed | {"rich"} == wanted, "rich is the distribution's: ndxdp works without it"


# ---- contents ------------------------------------------------------------------------------------


def test_nothing_is_for_one_python_or_machine_only(tree: Path) -> None:
    elf = {
        str(path.relative_to(tree))
        for path in tree.rglob("*")
        if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"
    }
    assert elf == {"usr/lib/ndxdp/ndxdp/bpf/ndp_responder.o"}, "BPF's, which is one for all"
    names = [path.name for path in tree.rglob("*")]
    assert not [name for name in names if "cpython" in name or name.endswith((".so", ".pyc"))]
    assert not (tree / "usr/lib/python3").exists(), "private: no other program sees it"


def test_program_unit_and_dashboards_are_the_repositorys(tree: Path) -> None:
    installed = tree / "usr/lib/ndxdp/ndxdp"
    for path in REPOSITORY.glob("ndxdp/**/*.py"):
        packed = installed / path.relative_to(REPOSITORY / "ndxdp")
        assert packed.read_bytes() == path.read_bytes()
    for source, target in (
        ("dashboards/ndxdp.json", "share/ndxdp/dashboards/ndxdp.json"),
        ("dashboards/ndxdp-interface.json", "share/ndxdp/dashboards/ndxdp-interface.json"),
        ("dashboards/alerts.yaml", "share/ndxdp/dashboards/alerts.yaml"),
        ("dashboards/rules.yaml", "share/ndxdp/dashboards/rules.yaml"),
        *(
            (f"dashboards/provisioning/{name}", f"share/ndxdp/dashboards/provisioning/{name}")
            for name in ("dashboards.yaml", "datasources.yaml")
        ),
        ("docs/configuration.md", "share/doc/ndxdp/docs/configuration.md"),
    ):
        assert (tree / "usr" / target).read_bytes() == (REPOSITORY / source).read_bytes()
    unit = (tree / "usr/lib/systemd/system/ndxdp.service").read_text()
    manuals = re.findall(r"^Documentation=man:ndxdp\(8\) man:ndxdp.toml\(5\) http", unit, re.M)
    assert len(manuals) == 1
    shipped = (REPOSITORY / "ndxdp/data/ndxdp.service").read_text()
    assert unit.replace("man:ndxdp(8) man:ndxdp.toml(5) ", "") == shipped
    # The configuration is no conffile, and the unit is not enabled.
    found = {str(each.relative_to(tree)) for each in (tree / "etc").rglob("*") if each.is_file()}
    assert found == {"etc/iproute2/rt_protos.d/ndxdp.conf"}
    assert not [path for path in tree.rglob("*") if path.stat().st_mode & stat.S_IWOTH]


def test_install_md_lists_what_is_there(tree: Path) -> None:
    page = (REPOSITORY / "docs/install.md").read_text().partition("| path | content |")[2]
    paths = re.findall(r"^\| `(/[\w./-]+)` \|", page.partition("\n\n")[0], re.MULTILINE)
    assert len(paths) > 5
    for path in paths:
        # The configuration is no part of the archive: postinst copies the example.
        if path != "/etc/ndxdp/ndxdp.toml":
            assert (tree / path.lstrip("/")).exists(), path


def test_the_object_contains_no_build_path(tree: Path) -> None:
    found = (tree / "usr/lib/ndxdp/ndxdp/bpf/ndp_responder.o").read_bytes()
    assert b"/ndxdp/bpf/ndp_responder.c" in found
    assert b"/tree" not in found
    assert str(REPOSITORY).encode() not in found


def test_the_object_is_the_same_for_arm64(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compile the program with the kernel's headers for arm64."""
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    clang = runpy.run_path(str(REPOSITORY / "setup.py"))["CLANG"]
    out = tmp_path / "ndp_responder.o"
    source = ("-I/usr/aarch64-linux-gnu/include", "-c", REPOSITORY / "bpf" / "ndp_responder.c")
    run(*clang, *source, "-o", out)
    run("llvm-strip", "-g", out)
    assert out.read_bytes() == (tree / "usr/lib/ndxdp/ndxdp/bpf/ndp_responder.o").read_bytes()


def test_the_command_runs_with_the_modules_inside(tree: Path) -> None:
    """Run with the system's Python, which has neither click nor pyroute2."""
    launcher = tree / "usr/bin/ndxdp"
    text = launcher.read_text()
    assert text.startswith("#!/usr/bin/python3 -I\n")
    assert launcher.stat().st_mode & 0o777 == 0o755
    moved = text.replace('"/usr/lib/ndxdp"', repr(str(tree / "usr/lib/ndxdp")))
    assert moved != text
    python = ("/usr/bin/python3", "-I", "-B", "-c", moved)
    assert __version__ in run(*python, "--version")
    assert "eth0" in run(*python, "convert", "--ndpresponder", "-i eth0 -n 2001:db8::/64")
    imported = (
        "import click, h11, prometheus_client, pyroute2, ndxdp.sources.http,"
        " ndxdp.observe.metrics, ndxdp.netlink.links"
    )
    lines = moved.replace(
        "main()", f"{imported}\nprint(click.__file__, h11.__file__, pyroute2.__file__)"
    )
    for path in run("/usr/bin/python3", "-I", "-B", "-c", lines).split():
        assert path.startswith(str(tree))


# ---- man pages and completion --------------------------------------------------------------------


def test_the_manual_has_every_command_and_option(tree: Path) -> None:
    page = manual(tree, "ndxdp.8")
    general, _, rest = page.partition(" COMMANDS ndxdp ")
    # A command's part extends from its usage to the next one.
    parts = re.split(r"\b(ndxdp(?: (?!ndxdp\b)[a-z-]+)+) \[OPTIONS\]", f"ndxdp {rest}")
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    missing = []

    def visit(command: click.Command, path: str) -> None:
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                visit(inner, f"{path} {name}")
            part = general
        else:
            part = general + sections.pop(path, "")
        for parameter in command.params:
            shown = isinstance(parameter, click.Option) and not parameter.hidden
            for name in parameter.opts if shown else ():
                if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", part):
                    missing.append(f"{path} {name}")

    assert len(sections) > 15
    visit(cli, "ndxdp")
    assert not missing
    assert not sections, "commands that there are not"


def test_the_manual_has_every_key(tree: Path) -> None:
    page = manual(tree, "ndxdp.toml.5")
    markdown = (REPOSITORY / "docs/configuration.md").read_text()
    tables = re.findall(r"^## (\[.*\])$", markdown, re.MULTILINE)
    keys = re.findall(r"^\| `(\w+)` \| (\w[\w ]*) \|", markdown, re.MULTILINE)
    assert len(tables) > 7
    assert len(keys) > 30
    missing = [table for table in tables if table not in page]
    missing += [key for key, kind in keys if f"{key} ({kind}" not in page]
    assert not missing
    assert "`" not in page
    assert "](" not in page, "no Markdown is left"


@pytest.mark.parametrize("page", ["ndxdp.8", "ndxdp.toml.5"])
def test_groff_finds_nothing(tree: Path, page: str) -> None:
    path = tree / "usr/share/man" / f"man{page[-1]}" / f"{page}.gz"
    command = ("man", "--warnings", "-E", "UTF-8", "-Tutf8", "-Z", "-l", str(path))
    done = subprocess.run(("env", "LC_ALL=C.UTF-8", *command), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


COMPLETIONS = {
    "bash": "bash-completion/completions/ndxdp",
    "zsh": "zsh/vendor-completions/_ndxdp",
    "fish": "fish/vendor_completions.d/ndxdp.fish",
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_shells_accept_the_completion(tree: Path, shell: str) -> None:
    script = tree / "usr/share" / COMPLETIONS[shell]
    run(shell, "-n", script)
    assert "_NDXDP_COMPLETE" in script.read_text()


def test_bash_completes(tree: Path) -> None:
    """Complete commands in bash; `make test-deb` tests the same with the installed command."""
    script = (
        f"PATH={REPOSITORY}/.venv/bin:$PATH; source {tree}/usr/share/{COMPLETIONS['bash']};"
        " COMP_WORDS=(ndxdp pref); COMP_CWORD=1; _ndxdp_completion ndxdp; echo ${COMPREPLY[@]}"
    )
    assert run("bash", "-c", script) == "prefix\n"
