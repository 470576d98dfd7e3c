#!/bin/bash
# The router: it has 2001:db8:0:1::/64 on-link, and solicits every address of it.
set -euo pipefail
link=$(basename "$(dirname "$(grep -il 02:00:00:5e:10:01 /sys/class/net/*/address | head -n 1)")")

sysctl -qw net.ipv6.conf.all.forwarding=1
ip link set dev "$link" up
ip -6 address replace fe80::1/64 dev "$link" nodad
ip -6 address replace 2001:db8:0:1::1/64 dev "$link" nodad
