/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The frame: headers as they lie in memory, and what can be asked of an address.
 *
 * Every header is made of the widest words that its place in a frame aligns: bytes would cost the
 * program one load each. Where alignment matters the kernel has a frame begin two bytes behind a
 * multiple of eight, and the verifier counts on it (NET_IP_ALIGN). Together with these two, PAD,
 * each header is as long as some words of eight bytes, and is made of them here.
 */
#ifndef NDP_FRAME_H
#define NDP_FRAME_H

#define PAD		 2 /* bytes before a frame, no part of it */
#define ETHERTYPE_IPV6	 0x86dd
#define ETHERTYPE_8021Q	 0x8100
#define ETHERTYPE_8021AD 0x88a8
#define VLAN_ID		 0x0fff /* of a tag's second word; 0: just a priority (802.1Q 9.6) */
#define PROTOCOL_ICMPV6	 58
#define TYPE_NS		 135
#define TYPE_NA		 136
#define OPTION_SLLAO	 1
#define OPTION_TLLAO	 2
#define FLAG_ROUTER	 0x80000000
#define FLAG_SOLICITED	 0x40000000
#define FLAG_OVERRIDE	 0x20000000
#define LOOPBACK_IFINDEX 1
#define FAMILY_INET6	 10 /* AF_INET6 */

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define net16(x) ((__be16)__builtin_bswap16(x))
#define net32(x) ((__be32)__builtin_bswap32(x))
#define net64(x) ((__be64)__builtin_bswap64(x))
#else
#define net16(x) ((__be16)(x))
#define net32(x) ((__be32)(x))
#define net64(x) ((__be64)(x))
#endif

struct address {
	union {
		__be32 w[4];
		__be64 d[2];
	};
};

/* Eight bytes, of which the first six are a MAC. With zero behind it, the word is what the program
 * knows the MAC by: a number is easier to keep and to compare.
 */
struct head_mac {
	union {
		__u64 word;
		struct {
			__be32 mac_first;
			__be16 mac_rest;
			__be16 after;
		};
	};
};

/* Eight bytes, of which the last six are a MAC. */
struct tail_mac {
	union {
		__u64 word;
		__u32 halves[2];
		struct {
			__be16 before;
			__be16 mac_first;
			__be32 mac_rest;
		};
	};
};

struct ethernet {
	struct tail_mac dst; /* behind PAD */
	struct head_mac src; /* before the type */
};

/* What a frame begins with, to be moved. */
struct eth_macs {
	__be16 words[6];
};

/* Behind the MACs where a frame is tagged, and the EtherType behind it. */
struct vlan_tag {
	__be16 type;
	__be16 control; /* priority and VLAN */
};

struct ipv6 {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 next_header;
	__u8 hop_limit;
	struct address src;
	struct address dst;
};

struct icmpv6 {
	__u8 type;
	__u8 code;
	__be16 checksum;
};

/* Neighbor Solicitation and Neighbor Advertisement up to their options (4.3, 4.4). */
struct neighbor {
	struct icmpv6 icmp;
	__be32 flags;
	struct address target;
};

struct lladdr_option {
	union {
		struct tail_mac mac;
		struct {
			__u8 type;
			__u8 len; /* units of 8 bytes */
		};
	};
};

/* The answer, and the pad before it. */
struct advertisement {
	struct ethernet eth;
	struct ipv6 ip6;
	struct neighbor na;
	struct lladdr_option tllao;
};

#define HEADERS_LEN                                                                            \
	(sizeof(struct ethernet) + sizeof(struct ipv6) + sizeof(struct icmpv6) - PAD)
#define NS_LEN	  (sizeof(struct ethernet) + sizeof(struct ipv6) + sizeof(struct neighbor) - PAD)
#define NA_LEN	  (sizeof(struct advertisement) - PAD)
#define UNITS_MAX ((NDP_FRAME_MAX - NS_LEN) / 8)

_Static_assert(NS_LEN == 78, "a solicitation without options");
_Static_assert(NA_LEN == 86, "the advertisement");

/* The MAC as a number, of either; and back. */
static __always_inline __u64 head_mac(const struct head_mac *m)
{
	struct head_mac mac = *m;

	mac.after = 0;
	return mac.word;
}

static __always_inline __u64 tail_mac(const struct tail_mac *m)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return m->word >> 16;
#else
	return m->word << 16;
#endif
}

static __always_inline struct head_mac mac_head(__u64 mac, __be16 after)
{
	struct head_mac m = {.word = mac};

	m.after = after;
	return m;
}

static __always_inline struct tail_mac mac_tail(__be16 before, __u64 mac)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return (struct tail_mac){.word = mac << 16 | before};
#else
	return (struct tail_mac){.word = mac >> 16 | (__u64)before << 48};
#endif
}

static __always_inline int same_address(const struct address *a, const struct address *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

static __always_inline int is_unspecified(const struct address *a)
{
	return !(a->d[0] | a->d[1]);
}

static __always_inline int is_loopback(const struct address *a)
{
	return !a->d[0] && a->d[1] == net64(1);
}

/* ::ffff:0:0/96 (RFC 4291 2.5.5.2) */
static __always_inline int is_v4_mapped(const struct address *a)
{
	return !a->d[0] && a->w[2] == net32(0xffff);
}

/* fe80::/10 */
static __always_inline int is_link_local(const struct address *a)
{
	return (a->w[0] & net32(0xffc00000)) == net32(0xfe800000);
}

static __always_inline int is_multicast(const struct address *a)
{
	return (a->w[0] & net32(0xff000000)) == net32(0xff000000);
}

/* What differs from the target's ff02::1:ffXX:XXXX (RFC 4291 2.7.1), its last 24 bits; 0: nothing. */
static __always_inline __u64 not_solicited_node_group(const struct address *a,
						      const struct address *target)
{
	__be64 last = net64(0x00000001ff000000) | (target->d[1] & net64(0x00ffffff));

	return (a->d[0] ^ net64(0xff02000000000000)) | (a->d[1] ^ last);
}

/* The one's-complement sum of words, not yet folded: 64 bits hold four milliard of them. */
static __always_inline __u64 sum_address(const struct address *a)
{
	return (__u64)a->w[0] + a->w[1] + a->w[2] + a->w[3];
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32 & 0xffff) + (sum >> 48);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

#endif
