"""The keys in etcd as an operator reads and changes them: `ndxdp fleet`."""
