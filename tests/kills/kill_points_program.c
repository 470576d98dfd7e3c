/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A small program on the same maps, which the verifier reads in a millisecond. It answers a
 * solicitation with an SLLAO, whose target a prefix covers, and leaves the checksum wrong.
 */
#define ndp_xdp whole_ndp_xdp
#define ndp_tc	whole_ndp_tc
#include "../../bpf/ndp_responder.c"
#undef ndp_xdp
#undef ndp_tc

struct frame {
	__u8 eth_dst[6], eth_src[6];
	__be16 ethertype;
	__u8 ip6[6], next_header, hop_limit;
	struct address src, dst;
	__u8 type, code;
	__be16 checksum;
	__be32 flags;
	struct address target;
	__u8 option, units, lladdr[6];
} __attribute__((packed));

static __always_inline int answers(void *data, void *end)
{
	struct frame *frame = data;
	struct ndp_prefix key = {.length = 128};
	const struct ndp_settings *config;
	__u32 zero = 0;

	if ((void *)(frame + 1) > end || frame->ethertype != bpf_htons(ETHERTYPE_IPV6) ||
	    frame->next_header != PROTOCOL_ICMPV6 || frame->type != TYPE_NS)
		return 0;
	config = bpf_map_lookup_elem(MAP(settings), &zero);
	__builtin_memcpy(key.address, &frame->target, sizeof(key.address));
	if (!config || config->paused || !bpf_map_lookup_elem(MAP(prefixes), &key))
		return 0;
	__builtin_memcpy(frame->eth_dst, frame->eth_src, 6);
	__builtin_memcpy(frame->eth_src, config->mac, 6);
	__builtin_memcpy(frame->lladdr, config->mac, 6);
	frame->dst = frame->src;
	frame->src = frame->target;
	frame->type = 136;
	frame->option = 2;
	return 1;
}

SEC("xdp.frags")
int ndp_xdp(struct xdp_md *ctx)
{
	return answers((void *)(long)ctx->data, (void *)(long)ctx->data_end) ? XDP_TX
									     : XDP_PASS;
}

SEC("tc")
int ndp_tc(struct __sk_buff *skb)
{
	if (bpf_skb_pull_data(skb, skb->len))
		return TC_ACT_UNSPEC;
	if (answers((void *)(long)skb->data, (void *)(long)skb->data_end))
		return bpf_redirect(skb->ifindex, 0);
	return TC_ACT_UNSPEC;
}
