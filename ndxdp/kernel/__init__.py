"""Calls of the kernel: bpf(2) through libbpf, the loaders of the program, inotify and statfs."""
