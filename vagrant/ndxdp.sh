#!/bin/bash
# ndxdp.sh PACKAGE: install ndxdp on the host as users do: a package, a file, a service.
set -euo pipefail
. /ndxdp/vagrant/links.sh

install_packages "${1:?the path of ndxdp.deb}"
install -m 644 /ndxdp/vagrant/ndxdp.toml /etc/ndxdp/ndxdp.toml
ndxdp check
systemctl enable --now ndxdp
ndxdp status
