/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The differences between the two compilers of this program: clang with libbpf's headers, which
 * makes the prebuilt object, and bcc, which compiles the program on the user's host.
 *
 * The program uses libbpf's names for helpers, barriers and byte order. bcc declares the same
 * helpers in its own header; the few names that bcc lacks are defined here.
 *
 * bcc would also create maps and rewrite `map.lookup(...)` calls. The program uses neither:
 * ndxdp creates the maps before it starts bcc, passes their file descriptors as macros, and
 * MAP() makes the pseudo instruction that bcc's rewriter would have made.
 *
 * A SUBPROGRAM is a function that few frames need. It has registers and a stack of its own, so that it
 * takes none of the caller's. bcc returns the instructions of one function, so there it is inlined.
 * The verifier follows a GLOBAL_SUBPROGRAM once, and not for each call. Its arguments are numbers.
 */
#ifndef NDP_DIALECT_H
#define NDP_DIALECT_H

#ifdef NDXDP_BCC

#include <uapi/linux/bpf.h>

/* bcc declares the helpers' pointer arguments without `const`. */
#pragma clang diagnostic ignored "-Wincompatible-pointer-types-discards-qualifiers"

#define SEC(name)
#define MAP(name) ((void *)bpf_pseudo_fd(1, NDXDP_FD_##name))
#define DEFINE_MAP(name, map_type, map_key, map_value, entries, flags)
#define DEFINE_RING(name, bytes)
#define DEFINE_ARRAY_OF_ARRAYS(name, entries, inner_value, inner_flags)
#define DEFINE_ARRAY_OF_HASHES(name, inner_type, inner_key, inner_value)
#define SUBPROGRAM	  static inline __attribute__((always_inline))
#define GLOBAL_SUBPROGRAM SUBPROGRAM
#define barrier()	  asm volatile("" ::: "memory")

#define bpf_cpu_to_be64(x) bpf_htonll(x)
#define barrier_var(var)   asm volatile("" : "=r"(var) : "0"(var))

#else

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define MAP(name)	  ((void *)&name)
#define SUBPROGRAM	  static __attribute__((noinline))
#define GLOBAL_SUBPROGRAM __attribute__((noinline))
#define DEFINE_MAP(name, map_type, map_key, map_value, entries, flags)                         \
	struct {                                                                               \
		__uint(type, map_type);                                                        \
		__type(key, map_key);                                                          \
		__type(value, map_value);                                                      \
		__uint(max_entries, entries);                                                  \
		__uint(map_flags, flags);                                                      \
	} name SEC(".maps")
#define DEFINE_RING(name, bytes)                                                               \
	struct {                                                                               \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                            \
		__uint(max_entries, bytes);                                                    \
	} name SEC(".maps")
/* The arrays inside may have any number of elements (BPF_F_INNER_MAP, Linux 5.10). */
#define DEFINE_ARRAY_OF_ARRAYS(name, entries, inner_value, inner_flags)                        \
	struct {                                                                               \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                      \
		__type(key, __u32);                                                            \
		__type(value, __u32);                                                          \
		__uint(max_entries, entries);                                                  \
		__array(                                                                       \
			values, struct {                                                       \
				__uint(type, BPF_MAP_TYPE_ARRAY);                              \
				__uint(key_size, sizeof(__u32));                               \
				__uint(value_size, sizeof(inner_value));                       \
				__uint(max_entries, 1);                                        \
				__uint(map_flags, inner_flags);                                \
			});                                                                    \
	} name SEC(".maps")

/* The only element of such an array is missing until its hash is needed. The hash may have any
 * number of entries (Linux 5.10).
 */
#define DEFINE_ARRAY_OF_HASHES(name, inner_type, inner_key, inner_value)                       \
	struct {                                                                               \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                      \
		__type(key, __u32);                                                            \
		__type(value, __u32);                                                          \
		__uint(max_entries, 1);                                                        \
		__array(                                                                       \
			values, struct {                                                       \
				__uint(type, inner_type);                                      \
				__uint(key_size, sizeof(inner_key));                           \
				__uint(value_size, sizeof(inner_value));                       \
				__uint(max_entries, 1);                                        \
				__uint(map_flags, BPF_F_NO_PREALLOC);                          \
			});                                                                    \
	} name SEC(".maps")

#endif

#endif
