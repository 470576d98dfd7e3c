# Sourced by the scripts beside it: what they need of apt and of network interfaces.

export DEBIAN_FRONTEND=noninteractive

# install_packages PACKAGE...: the lists are fetched anew only if those at hand lead nowhere.
install_packages() {
	local wait="-o DPkg::Lock::Timeout=600" # a new machine may be upgrading itself
	apt-get $wait install -qy --no-install-recommends "$@" ||
		{ apt-get -q update && apt-get $wait install -qy --no-install-recommends "$@"; }
}

# call_link MAC NAME: the network card with this MAC is called NAME, now and after each boot.
call_link() {
	mkdir -p /etc/systemd/network
	cat >"/etc/systemd/network/10-$2.link" <<-END
		[Match]
		MACAddress=$1
		Type=ether

		[Link]
		Name=$2
	END
	[ ! -e "/sys/class/net/$2" ] || return 0
	local card
	card=$(grep -il "$1" /sys/class/net/*/address | head -n 1)
	[ -n "$card" ] || { echo "no network card has the MAC $1" >&2; return 1; }
	card=$(basename "$(dirname "$card")")
	ip link set dev "$card" down
	ip link set dev "$card" name "$2"
}

# start_networkd: other network cards are left to whoever manages them.
start_networkd() {
	systemctl enable -q systemd-networkd
	systemctl restart systemd-networkd
}
