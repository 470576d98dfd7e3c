"""The life of ndxdp on one interface: attach, renew, suspend, detach."""
