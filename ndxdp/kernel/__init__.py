"""The kernel's side: bpf(2) through libbpf, the program's loaders, its maps and pins."""
