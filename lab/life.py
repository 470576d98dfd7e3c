"""The life of ndxdp on a host, in three virtual machines: `make lab-vm`.

    python -m lab.life [--package FILE.deb] [--other FILE.deb] [CHECK...]

The scripts of vagrant/ provision the machines, which equal those that `vagrant up` makes: Debian 12
with systemd, virtio-net. QEMU's guest agent runs the commands, so that no check depends on the
network that it examines.

The program prints a line for each check that holds or fails, and exits with 1 if any fails.
build/lab/NAME.console has the last output of each console.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import testbed
from lab.agent import Done
from lab.checks import CHECKS, FIRST, check, first, holds
from lab.commands import exit_code
from lab.machine import Machine
from lab.testbed import CONTAINER, RATE, WEB, Testbed, eventually, expect

_APT = "apt-get -o DPkg::Lock::Timeout=600"  # a new machine may be upgrading itself
_CONFIG = "/etc/ndxdp/ndxdp.toml"
_GOOD = f"install -m 644 /ndxdp/vagrant/ndxdp.toml {_CONFIG}"

FIRING = 'ALERTS{alertstate="firing"}'

# Files that may differ after a purge: apt, dpkg, systemd, Docker and the kernel write them.
_GROWS = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/ndxdp", "/root"),
    *("/var/log", "/var/cache", "/var/lib/apt", "/var/lib/dpkg", "/var/lib/systemd"),
    *("/var/lib/docker", "/var/lib/containerd", "/etc/machine-id"),
)
_SNAPSHOT = f"""\
find / \\( {" -o ".join(f"-path {path}" for path in _GROWS)} \\) -prune -o \\
    ! -type d -printf '%p %M %u %s\\n' -o -printf '%p %M %u\\n' | sort
dpkg-query -W -f '${{Package}} ${{db:Status-Abbrev}}\\n'
sysctl -a 2>/dev/null | grep '^net\\.' | grep -v -e '[-_.]count\\b' -e '\\.veth'
find /sys/fs/bpf | sort
ip -d -o link show dev uplink | sed 's/qlen [0-9]*//'
ip -6 maddr show dev uplink
tc qdisc show dev uplink
tc filter show dev uplink ingress
systemctl list-unit-files --no-legend --no-pager
ls /run | grep -v '^systemd'
"""


def none_lost(load: dict[str, int]) -> str:
    """Raise LabError if a solicitation had no answer; return the number of solicitations."""
    lost = f"{load['sent']} sent, {load['unanswered']} unanswered"
    expect(load["sent"] > 5 * RATE and not load["unanswered"], f"{lost}: {load}")
    return lost


# ---- from nothing to a container that is reached -------------------------------------------------


@first
def booted(lab: Testbed) -> str:
    """three machines boot Debian 12 with systemd, no unit failed"""
    machines = (lab.router, lab.host, lab.monitor)
    with ThreadPoolExecutor() as pool:
        states = list(pool.map(Machine.wait_until_booted, machines))
    expect(states == ["running"] * 3, str(states))
    return lab.host.run("uname -r").out.strip()


@first
def provisioned(lab: Testbed) -> str:
    """router.sh, host.sh and monitor.sh provision the machines"""
    machines = (lab.router, lab.host, lab.monitor)
    with ThreadPoolExecutor() as pool:
        output = list(pool.map(lambda each: provision(each, f"{each.name}.sh"), machines))
    return output[2].out.strip().splitlines()[-1]


def provision(machine: Machine, script: str) -> Done:
    """Run a script of vagrant/ in a machine."""
    return machine.run(f"bash /ndxdp/vagrant/{script}", within=1200)


@first
def unanswered(lab: Testbed) -> None:
    """without ndxdp the router reaches the host, and neither container"""
    lab.reached("2001:db8:0:1::2")
    expect(not lab.reaches(CONTAINER), "the container was reached")
    expect(not lab.reaches(WEB), "Docker's container was reached")
    lab.before = lab.host.run(_SNAPSHOT).out


@first
def installed(lab: Testbed) -> str:
    """ndxdp.sh: apt install ./ndxdp.deb, a configuration, systemctl enable --now ndxdp"""
    provision(lab.host, f"ndxdp.sh {lab.packages.path}")
    expect(lab.service("ActiveState") == "active", lab.service("StatusText"))
    version = lab.host.run("ndxdp --version").out.strip()
    expect(lab.packages.version in version, version)
    return version


@first
def reached(lab: Testbed) -> str:
    """the container in a namespace and Docker's container are reached, past the filter"""
    dropped = lab.dropped()
    took = lab.reached(CONTAINER, WEB)
    expect(lab.dropped() == dropped, "the filter dropped advertisements")
    return took


# ---- its state -----------------------------------------------------------------------------------


@check
def mode(lab: Testbed) -> str:
    """`auto` gives native mode on virtio-net"""
    status = lab.status()
    expect(status["mode"] == "native", json.dumps(status))
    output = lab.host.run("dmesg | grep virtio_net | grep -i xdp", check=False).out.strip()
    return output or "the driver printed nothing"


@check
def security(lab: Testbed) -> str:
    """systemd-analyze security: an exposure of 3.0 at most"""
    output = lab.host.run("systemd-analyze security --no-pager ndxdp").out
    found = re.search(r"exposure level for ndxdp.service: ([\d.]+)", output)
    expect(found is not None and float(found[1]) <= 3.0, output[-200:])
    return found[1] if found else ""


@check
def filtered(lab: Testbed) -> str:
    """the filter drops answers whose source is not the target, as other responders send them"""
    dropped = lab.dropped()
    lab.host.run(f"""sed -i '/^prefix/a source = "link-local"' {_CONFIG}; systemctl reload ndxdp""")
    try:
        expect(not lab.reaches(CONTAINER), "the container was reached all the same")
        more = lab.dropped() - dropped
        expect(more > 0, "the filter did not see any")
    finally:
        lab.host.run(f"{_GOOD}; systemctl reload ndxdp")
    lab.reached(CONTAINER)
    return f"{more} dropped"


@check
def monitored(lab: Testbed) -> str:
    """Prometheus has the host's metrics, and no alert"""
    lab.known('up{job="ndxdp"} == 1')
    lab.known('ndxdp_attached{interface="uplink"} == 1')
    lab.known('sum(ndxdp_advertisements_total{interface="uplink"}) > 0')
    alerts = lab.query(FIRING)
    expect(not alerts, str(alerts))
    (answered,) = lab.query("sum(ndxdp_advertisements_total)")
    return f"{answered['value'][1]} advertisements"


@check
def doctor(lab: Testbed) -> str:
    """`ndxdp doctor` finds nothing wrong"""
    done = lab.host.run("ndxdp doctor", check=False)
    expect(done.code == 0, f"{done.out}{done.err}")
    return done.out.strip().splitlines()[-1]


# ---- events --------------------------------------------------------------------------------------


@check
def restarted(lab: Testbed) -> str:
    """systemctl restart, while the router solicits: none unanswered"""
    with lab.solicited() as load:
        lab.host.run("systemctl restart ndxdp")
    return none_lost(load)


@check
def upgraded(lab: Testbed) -> str:
    """apt install of a newer version, while the router solicits: none unanswered"""
    before = lab.service("MainPID")
    with lab.solicited() as load:
        lab.host.run(f"DEBIAN_FRONTEND=noninteractive {_APT} install -y {lab.packages.newer}")
    version = lab.host.run("ndxdp --version").out.strip()
    expect(lab.packages.newer_version in version, version)
    expect(lab.service("ActiveState") == "active", lab.service("StatusText"))
    expect(lab.service("MainPID") != before, "the old daemon still runs")
    installed = lab.host.run(f"cmp /ndxdp/vagrant/ndxdp.toml {_CONFIG}", check=False)
    expect(installed.code == 0, "the configuration was changed")
    return f"{version}: {none_lost(load)}"


@check
def relaid(lab: Testbed) -> str:
    """apt install over a version with the former layout of the maps: none unanswered"""
    install = f"DEBIAN_FRONTEND=noninteractive {_APT} install -y --allow-downgrades"
    lab.host.run(f"{install} {lab.packages.other}")
    lab.reached(CONTAINER)
    (other,) = _layouts(lab)
    with lab.solicited() as load:
        output = lab.host.run(f"{install} {lab.packages.newer}").out
    expect("another map layout" not in output, output)
    layouts = _layouts(lab)
    expect(len(layouts) == 1 and layouts != [other], f"{other}, then {layouts}")
    expect(lab.service("ActiveState") == "active", lab.service("StatusText"))
    lab.reached(CONTAINER, WEB)
    return f"{other} to {layouts[0]}: {none_lost(load)}"


def _layouts(lab: Testbed) -> list[str]:
    """Return the layouts that have pins or files of interfaces, such as `v6`."""
    output = lab.host.run("ls -d /sys/fs/bpf/ndxdp/v*/* /run/ndxdp/v*/*", check=False).out
    return sorted({line.split("/")[-2] for line in output.splitlines()})


@check
def refused(lab: Testbed) -> str:
    """systemctl reload with a bad file: refused, visible here and to Prometheus, old rules stay"""
    pid = lab.service("MainPID")
    lab.host.run(f"sed -i 's,c::/80,c::/800,' {_CONFIG}")
    try:
        done = lab.host.run("systemctl reload ndxdp", check=False)
        expect(done.code != 0, "the reload succeeded")
        output = lab.host.run("systemctl status --no-pager ndxdp", check=False).out
        found = re.search(r'Status: "(cannot reload: .*)"', output)
        expect(found is not None, output)
        lab.known("ndxdp_config_reload_success == 0")
        lab.known('ALERTS{alertname="NdxdpReloadFailed"}')
        lab.reached(CONTAINER, WEB)
    finally:
        lab.host.run(f"{_GOOD}; systemctl reload ndxdp")
    lab.known("ndxdp_config_reload_success == 1")
    expect(lab.service("MainPID") == pid, "the daemon was started anew")
    return found[1] if found else ""


@check
def networkd(lab: Testbed) -> str:
    """systemctl restart systemd-networkd, while the router solicits: none unanswered"""
    with lab.solicited() as load:
        lab.host.run("systemctl restart systemd-networkd")
    lab.reached(CONTAINER, WEB)
    return none_lost(load)


@check
def reconfigured(lab: Testbed) -> str:
    """networkctl reconfigure, which removes the addresses and adds them again: reached again"""
    lab.host.run("networkctl reconfigure uplink")
    return lab.reached(CONTAINER, WEB)


@check
def rebooted(lab: Testbed) -> str:
    """the host reboots: the containers are reached again without any help"""
    state = lab.host.reboot()
    took = lab.reached(CONTAINER, WEB)
    expect(state == "running", f"{state}: {lab.host.run('systemctl --failed --no-pager').out}")
    status = lab.status()
    expect(status["mode"] == "native", json.dumps(status))
    expect(status["reasons"]["answered"] >= 2, "somebody else answered")
    return f"{took} of systemd's end of starting"


@check
def journal(lab: Testbed) -> str:
    """the service's journal: no traceback, no warning but for the bad file"""
    output = lab.host.run("journalctl -q -o cat -p warning -u ndxdp", check=False).out
    trace = lab.host.run("journalctl -q -u ndxdp | grep -c Traceback", check=False).out.strip()
    expect(trace == "0", f"{trace} tracebacks")
    provoked = "cannot reload|  hint: |c::/800|Reload failed"  # provoked by `refused`
    other = [line for line in output.splitlines() if not re.search(provoked, line)]
    expect(not other, "\n".join(other[:10]))
    return f"{len(output.splitlines())} lines"


@check
def quiet(lab: Testbed) -> str:
    """after all this no alert fires, and no unit failed on any machine"""
    eventually(
        "no alert", lambda: not lab.query(FIRING) and bool(lab.query("up == 1")), testbed.SCRAPED
    )
    for machine in (lab.router, lab.host, lab.monitor):
        failed = machine.run("systemctl --failed --no-legend --plain --no-pager").out
        expect(not failed.strip(), f"{machine.name}: {failed}")
    (count,) = lab.query('count({__name__=~"ndxdp_.*"})')
    return f"{count['value'][1]} series"


@check
def purged(lab: Testbed) -> str:
    """apt purge: files, packages, sysctls, pins, programs, units and groups are as before"""
    purge = f"{_APT} purge -y ndxdp && {_APT} autoremove --purge -y"
    lab.host.run(f"export DEBIAN_FRONTEND=noninteractive; {purge}")
    expect(not lab.reaches(CONTAINER), "the container is still reached")
    after = lab.host.run(_SNAPSHOT).out
    changed = [
        line
        for line in difflib.unified_diff(
            lab.before.splitlines(), after.splitlines(), "before", "after", n=0, lineterm=""
        )
        if not line.startswith("@@")
    ]
    expect(not changed, "\n".join(changed[:30]))
    return f"{len(after.splitlines())} lines compared"


# ---- running them --------------------------------------------------------------------------------


def run(package: Path, other: Path | None, chosen: list[str]) -> int:
    """Run the checks, or those chosen and their requirements; return the number that fail."""
    possible = [each for each in CHECKS if other or each is not relaid]
    wanted = [*FIRST, *(each for each in possible if not chosen or each.__name__ in chosen)]
    held = 0
    with testbed.started(package, other) as lab:
        for function in wanted:
            if holds(function, lab):
                held += 1
            elif function in FIRST:
                print("What is left needs that, and was not tried.")
                break
    print(f"{held} of {len(wanted)} hold")
    return len(wanted) - held


@exit_code
def main() -> int:
    """Run the program; return the exit code."""
    names = ", ".join(each.__name__ for each in CHECKS)
    parser = argparse.ArgumentParser(
        prog="python -m lab.life",
        description="Try the package in three virtual machines.",
        epilog=f"Checks: {names}.",
    )
    parser.add_argument(
        "--package",
        type=Path,
        metavar="FILE",
        help="the package to install (default: the one that `make deb` built)",
    )
    parser.add_argument(
        "--other",
        type=Path,
        metavar="FILE",
        help="an older package whose maps have another layout, for the check `relaid`",
    )
    parser.add_argument("checks", nargs="*", help="checks to run (default: all)")
    options = parser.parse_args()
    if unknown := set(options.checks) - {each.__name__ for each in CHECKS}:
        parser.error(f"no such check: {', '.join(sorted(unknown))}; there are {names}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    package = options.package or testbed.built_package()
    return 1 if run(package, options.other, options.checks) else 0


if __name__ == "__main__":
    sys.exit(main())
