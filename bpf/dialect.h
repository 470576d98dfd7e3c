/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One source, two compilers: clang with libbpf's conventions (the prebuilt object), and bcc.
 *
 * bcc rewrites `map.lookup()` in the source and creates maps by itself. This program lets it do
 * neither: the maps exist before it is compiled, their descriptors come in as macros, and a map
 * is referred to by the same pseudo instruction that bcc's rewriter would have emitted.
 */
#ifndef NDP_DIALECT_H
#define NDP_DIALECT_H

#ifdef NDXDP_BCC

#include <uapi/linux/bpf.h>

#define SEC(name)
#define MAP(name) ((void *)bpf_pseudo_fd(1, NDXDP_FD_##name))
#define DEFINE_MAP(name, map_type, map_key, map_value, entries, flags)
#define DEFINE_RING(name, bytes)

#else

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define MAP(name) ((void *)&name)
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

#endif

/* The same calls for both: helpers by number, so that neither side's header wraps them. */
static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const map_update)(void *map, const void *key, const void *value,
				__u64 flags) = (void *)BPF_FUNC_map_update_elem;
static void *(*const ringbuf_reserve)(void *ring, __u64 size,
				      __u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*const ringbuf_submit)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_submit;
static long (*const ringbuf_output)(void *ring, const void *data, __u64 size,
				    __u64 flags) = (void *)BPF_FUNC_ringbuf_output;
static long (*const xdp_load_bytes)(struct xdp_md *ctx, __u32 offset, void *to,
				    __u32 len) = (void *)BPF_FUNC_xdp_load_bytes;
static long (*const skb_load_bytes)(const void *skb, __u32 offset, void *to,
				    __u32 len) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int size,
				__u32 flags) = (void *)BPF_FUNC_fib_lookup;
static __u64 (*const ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static __u64 (*const jiffies64)(void) = (void *)BPF_FUNC_jiffies64;
static long (*const xdp_adjust_head)(struct xdp_md *ctx,
				     int delta) = (void *)BPF_FUNC_xdp_adjust_head;
static long (*const xdp_adjust_tail)(struct xdp_md *ctx,
				     int delta) = (void *)BPF_FUNC_xdp_adjust_tail;
/* Of the whole frame, pieces outside the linear part included; kernel 5.18. It is also the only
 * way to learn it without CAP_PERFMON: `data_end - data` tells a kernel address apart.
 */
static __u64 (*const xdp_get_buff_len)(struct xdp_md *ctx) = (void *)BPF_FUNC_xdp_get_buff_len;
static long (*const skb_pull_data)(struct __sk_buff *skb,
				   __u32 len) = (void *)BPF_FUNC_skb_pull_data;
static long (*const skb_change_tail)(struct __sk_buff *skb, __u32 len,
				     __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*const skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from,
				     __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*const skb_change_type)(struct __sk_buff *skb,
				     __u32 type) = (void *)BPF_FUNC_skb_change_type;
static long (*const skb_vlan_pop)(struct __sk_buff *skb) = (void *)BPF_FUNC_skb_vlan_pop;
static long (*const redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;

#endif
