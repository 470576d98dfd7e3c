"""Examples of each command, for `--help` and the manual page."""

from __future__ import annotations

import click

EXAMPLES = {
    "ndxdp": (
        ("Find out whether IPv6 works here, and what is missing", "ndxdp doctor"),
        (
            "Answer for the addresses behind this host; the router is on eth0",
            "ndxdp attach eth0 -n 2001:db8:0:1:c::/80",
        ),
        ("See the interfaces, their problems, and what is answered", "ndxdp status"),
        ("For permanent use: propose /etc/ndxdp/ndxdp.toml, and start the service", "ndxdp init"),
        ("", "systemctl enable --now ndxdp"),
    ),
    "attach": (
        (
            "Answer for a prefix behind this host, except for one address",
            "ndxdp attach eth0 -n 2001:db8:0:1:c::/80 --except 2001:db8:0:1:c::dead",
        ),
        (
            "Answer only for addresses to which the kernel has a route by a bridge",
            "ndxdp attach eth0 -n 2001:db8:0:1::/64 --answer routed --dev 'br-*'",
        ),
        (
            "See what the rules of a list would change, and change nothing",
            "ndxdp attach eth0 --file guests.txt --dry-run",
        ),
        ("Answer for each prefix of a list", "ndxdp attach eth0 --file guests.txt"),
    ),
    "detach": (
        ("Stop answering on one interface", "ndxdp detach eth0"),
        ("See what would be removed and restored", "ndxdp detach eth0 --dry-run"),
        ("Stop answering everywhere, such as before ndxdp is removed", "ndxdp detach --all"),
    ),
    "run": (
        ("Answer for a prefix until Ctrl-C", "ndxdp run eth0 -n 2001:db8:0:1:c::/80"),
        ("Answer for the containers on a Docker network", "ndxdp run eth0 -N ipv6exposed"),
        (
            "Do what a configuration file says, as the service does",
            "ndxdp run -c /etc/ndxdp/ndxdp.toml",
        ),
    ),
    "share": (
        ("Share the prefix on eth0 with the hosts behind lan0", "ndxdp share eth0 lan0"),
        (
            "Share a prefix with containers and VPN clients; radvd runs already",
            "ndxdp share eth0 'br-*' wg0 -p 2001:db8:0:1::/64 --no-relay",
        ),
        ("See what would be attached, and change nothing", "ndxdp share eth0 lan0 --dry-run"),
    ),
    "pause": (
        ("Become the standby of two hosts", "ndxdp pause eth0"),
        (
            "Leave one address to another host, and answer for the others",
            "ndxdp pause eth0 -n 2001:db8:0:1::20",
        ),
        ("See what would change", "ndxdp pause eth0 -n 2001:db8:0:1::20 --dry-run"),
    ),
    "resume": (
        ("Become the active one of two hosts", "ndxdp resume eth0"),
        ("Take the address over", "ndxdp resume eth0 -n 2001:db8:0:1::20"),
    ),
    "init": (
        ("Propose a configuration for this host, ask, and write it", "ndxdp init"),
        ("Only print it", "ndxdp init -o -"),
        ("Write it without a question, to answer on one interface", "ndxdp init eth0 --yes"),
    ),
    "check": (
        ("Check the file of the service before a reload", "ndxdp check"),
        ("Check another file", "ndxdp check ndxdp.toml"),
    ),
    "reload": (
        ("Apply changes of the service's file", "ndxdp reload"),
        ("Apply changes of another daemon's file", "ndxdp reload -c ndxdp.toml"),
    ),
    "install-service": (
        ("See the unit without writing it", "ndxdp install-service --print"),
        (
            "Write the unit, and an example of the file if there is none",
            "ndxdp install-service -c /etc/ndxdp/ndxdp.toml",
        ),
    ),
    "convert": (
        (
            "Convert the configuration of ndppd",
            "ndxdp convert /etc/ndppd.conf -o /etc/ndxdp/ndxdp.toml",
        ),
        (
            "Convert a command line of ndpresponder",
            "ndxdp convert --ndpresponder '-i eth0 -n 2001:db8:0:1:c::/80'",
        ),
        (
            "Convert OpenWrt's relays, with the names of its devices",
            "ndxdp convert /etc/config/dhcp /etc/config/network",
        ),
        (
            "Convert a command line of ndp-proxy-go",
            "ndxdp convert --ndp-proxy-go '--no-ra eth0 eth1'",
        ),
    ),
    "prefix": (
        (
            "Add a rule, show all rules, and delete the rule again",
            "ndxdp prefix add eth0 2001:db8:0:1:c::10",
        ),
        ("", "ndxdp prefix list eth0"),
        ("", "ndxdp prefix del eth0 2001:db8:0:1:c::10"),
    ),
    "prefix add": (
        ("Answer for one more address", "ndxdp prefix add eth0 2001:db8:0:1:c::10"),
        (
            "Make a hole in a wider prefix",
            "ndxdp prefix add eth0 2001:db8:0:1:c::dead --answer never",
        ),
        (
            "Mark the rules of a tunnel, to find them again",
            "ndxdp prefix add eth0 --origin wg0 2001:db8:0:1:d::/80",
        ),
    ),
    "prefix replace": (
        (
            "Answer for a prefix only where the kernel has a route",
            "ndxdp prefix replace eth0 2001:db8:0:1:c::/80 --answer routed",
        ),
    ),
    "prefix del": (
        ("Stop answering for one address", "ndxdp prefix del eth0 2001:db8:0:1:c::10"),
        (
            "Delete all rules of a tunnel, if there are any",
            "ndxdp prefix del eth0 --origin wg0 --all --missing-ok",
        ),
    ),
    "prefix list": (
        ("Show all rules", "ndxdp prefix list eth0"),
        ("Show the rules of one origin", "ndxdp prefix list eth0 --origin docker"),
    ),
    "status": (
        ("Show all interfaces and all problems", "ndxdp status"),
        ("Show everything about one interface, every 2 seconds", "ndxdp status eth0 --watch"),
        ("Give a program all data", "ndxdp status --json"),
    ),
    "hosts": (
        ("List the hosts that were learned", "ndxdp hosts"),
        ("List those on one interface", "ndxdp hosts lan0"),
        ("Forget a host that has gone", "ndxdp hosts forget 2001:db8:0:1::10"),
    ),
    "hosts list": (("Give a program all data", "ndxdp hosts list --json"),),
    "hosts forget": (
        ("Forget one host", "ndxdp hosts forget 2001:db8:0:1::10"),
        (
            "See which hosts of an interface would be forgotten",
            "ndxdp hosts forget lan0 --all --dry-run",
        ),
    ),
    "fleet": (
        ("See who answers for which shared address", "ndxdp fleet status"),
        (
            "Share an address between two hosts, and prefer the first one",
            "ndxdp fleet put shared/vlan7/web 2001:db8:0:1::20 --host h1 --host h2",
        ),
        ("Take this host out of service, and back into it", "ndxdp fleet drain"),
        ("", "ndxdp fleet undrain"),
    ),
    "fleet status": (
        ("Show all segments", "ndxdp fleet status"),
        ("List all addresses of one segment", "ndxdp fleet status vlan7 --addresses"),
        (
            "Ask from a machine without a configuration file",
            "ndxdp fleet status --endpoint https://192.0.2.11:2379 --ca ca.pem",
        ),
    ),
    "fleet list": (
        ("List all keys and values", "ndxdp fleet list"),
        ("List those of one host", "ndxdp fleet list --host h1"),
        (
            "Save the shared addresses of a segment",
            "ndxdp fleet list shared --segment vlan7 --json",
        ),
    ),
    "fleet put": (
        (
            "Have exactly one of all hosts answer for an address",
            "ndxdp fleet put shared/vlan7/web 2001:db8:0:1::20",
        ),
        (
            "Prefer the first of two hosts, and give it the address back after a failure",
            "ndxdp fleet put shared/vlan7/web 2001:db8:0:1::20 --host h1 --host h2 --failback",
        ),
        (
            "Have one host answer for what it routes",
            "ndxdp fleet put hosts/h1/vlan7/guests 2001:db8:0:1:d::/80 --answer routed",
        ),
    ),
    "fleet apply": (
        ("See what the keys of a file would change", "ndxdp fleet apply keys.json --dry-run"),
        ("Write them", "ndxdp fleet apply keys.json"),
    ),
    "fleet delete": (
        ("Delete a shared address", "ndxdp fleet delete shared/vlan7/web"),
        (
            "Delete a rule of a host, if there is one",
            "ndxdp fleet delete hosts/h1/vlan7/guests --missing-ok",
        ),
    ),
    "fleet move": (("Have h2 answer for an address now", "ndxdp fleet move vlan7/web h2"),),
    "fleet drain": (
        ("Take this host out of service", "ndxdp fleet drain"),
        ("Take another host out of service", "ndxdp fleet drain h2 --timeout 60"),
    ),
    "fleet undrain": (("Let this host take addresses again", "ndxdp fleet undrain"),),
    "explain": (
        ("Ask why an address is not answered for", "ndxdp explain eth0 2001:db8:0:1:c::10"),
        ("Let a script test whether there is an answer", "ndxdp explain 2001:db8::7 --exit-code"),
        ("Ask as a host that wants the address for itself", "ndxdp explain 2001:db8::7 --dad"),
    ),
    "trace": (
        ("Watch all solicitations until Ctrl-C", "ndxdp trace"),
        ("Watch those without a rule, for 30 seconds", "ndxdp trace --reason no_rule --seconds 30"),
        (
            "Record the packets of one prefix for Wireshark",
            "ndxdp trace eth0 --target 2001:db8:0:1:c::/80 --pcap ns.pcap",
        ),
    ),
    "top": (("Find out who solicits most, in a minute", "ndxdp top eth0 --seconds 60"),),
    "doctor": (
        ("Examine all interfaces; this takes a second", "ndxdp doctor"),
        ("Examine one, and solicit its router as well", "ndxdp doctor eth0 --probe"),
    ),
    "exporter": (
        ("Serve metrics to Prometheus on this host", "ndxdp exporter"),
        ("Serve metrics to other hosts", "ndxdp exporter --listen '[::]:9877'"),
    ),
    "metrics": (("Print the metrics for the node_exporter", "ndxdp metrics"),),
    "help": (("Describe a command", "ndxdp help prefix add"),),
}
"""A comment and a command line for each example, by the command without `ndxdp`."""


def of(command: str) -> tuple[tuple[str, str], ...]:
    """Return the examples of a command, such as `prefix add`."""
    return EXAMPLES.get(command, ())


def lines_of(command: str) -> list[str]:
    """Return the examples of a command as lines for a shell; `ndxdp` is the group of all."""
    return [
        line
        for comment, example in of(command)
        for line in (*([f"# {comment}"] if comment else []), example)
    ]


def add_to(command: click.Command, name: str) -> None:
    """Give a command, and each command in a group, an epilog with its examples."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            full = inner.name or "" if name == "ndxdp" else f"{name} {inner.name}"
            add_to(inner, full)
    lines = lines_of(name)
    if lines:
        command.epilog = "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
