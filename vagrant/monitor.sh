#!/bin/bash
# The monitor: Prometheus scrapes the host. Grafana shows the dashboards, if apt knows its package.
set -euo pipefail
. /ndxdp/vagrant/links.sh

call_link 02:00:00:5e:10:04 uplink
cat >/etc/systemd/network/20-uplink.network <<'END'
[Match]
Name=uplink

[Network]
IPv6AcceptRA=no
Address=2001:db8:0:1::3/64
END
start_networkd

install_packages prometheus
install -m 644 /ndxdp/vagrant/prometheus.yml /etc/prometheus/prometheus.yml
install -m 644 /ndxdp/dashboards/alerts.yaml /etc/prometheus/ndxdp-alerts.yaml
install -m 644 /ndxdp/dashboards/rules.yaml /etc/prometheus/ndxdp-rules.yaml
promtool check config /etc/prometheus/prometheus.yml
systemctl enable -q prometheus
systemctl restart prometheus

# Debian has no Grafana: add its repository to /etc/apt/sources.list.d, and run this again.
if apt-cache show grafana >/dev/null 2>&1; then
	install_packages grafana
	install -d /usr/share/ndxdp/dashboards
	install -m 644 /ndxdp/dashboards/*.json /usr/share/ndxdp/dashboards
	for kind in datasources dashboards; do
		install -m 644 /ndxdp/dashboards/provisioning/$kind.yaml \
			/etc/grafana/provisioning/$kind/ndxdp.yaml
	done
	systemctl enable grafana-server
	systemctl restart grafana-server
	echo "Grafana is at port 3000, with the dashboards of ndxdp"
else
	echo "apt knows no package grafana: the dashboards were not installed, Prometheus is at port 9090"
fi
