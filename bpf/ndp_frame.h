/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The frame: headers as they lie in memory, and what can be asked of an address.
 *
 * Every header is made of the widest words that its place in an Ethernet frame aligns: bytes
 * would cost the program one load each.
 */
#ifndef NDP_FRAME_H
#define NDP_FRAME_H

#define ETHERTYPE_IPV6	 0x86dd
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
#else
#define net16(x) ((__be16)(x))
#define net32(x) ((__be32)(x))
#endif

struct mac {
	__u16 w[3];
};

struct address {
	__be32 w[4];
};

struct ethernet {
	struct mac dst;
	struct mac src;
	__be16 type;
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
	__u8 type;
	__u8 len; /* units of 8 bytes */
	struct mac mac;
};

/* The answer. The pad aligns what follows Ethernet; it is not sent. */
struct advertisement {
	__u16 pad;
	struct ethernet eth;
	struct ipv6 ip6;
	struct neighbor na;
	struct lladdr_option tllao;
};

#define HEADERS_LEN (sizeof(struct ethernet) + sizeof(struct ipv6) + sizeof(struct icmpv6))
#define NS_LEN	    (sizeof(struct ethernet) + sizeof(struct ipv6) + sizeof(struct neighbor))
#define NA_LEN	    (sizeof(struct advertisement) - sizeof(__u16))
#define UNITS_MAX   ((NDP_FRAME_MAX - NS_LEN) / 8)

_Static_assert(NS_LEN == 78, "a solicitation without options");
_Static_assert(NA_LEN == 86, "the advertisement");

static __always_inline int same_mac(const struct mac *a, const struct mac *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2];
}

/* A MAC as one number, and back: what the limiter's key is made of, and easier to keep than
 * three words.
 */
static __always_inline __u64 mac_number(const struct mac *m)
{
	return m->w[0] | (__u64)m->w[1] << 16 | (__u64)m->w[2] << 32;
}

static __always_inline struct mac number_mac(__u64 number)
{
	return (struct mac){{number, number >> 16, number >> 32}};
}

static __always_inline int same_address(const struct address *a, const struct address *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] &&
	       a->w[3] == b->w[3];
}

static __always_inline int is_unspecified(const struct address *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

static __always_inline int is_loopback(const struct address *a)
{
	return !(a->w[0] | a->w[1] | a->w[2]) && a->w[3] == net32(1);
}

static __always_inline int is_multicast(const struct address *a)
{
	return (a->w[0] & net32(0xff000000)) == net32(0xff000000);
}

/* ff02::1:ffXX:XXXX of the target's last 24 bits (RFC 4291 2.7.1). */
static __always_inline int is_solicited_node_group(const struct address *a,
						   const struct address *target)
{
	return a->w[0] == net32(0xff020000) && !a->w[1] && a->w[2] == net32(1) &&
	       a->w[3] == (net32(0xff000000) | (target->w[3] & net32(0x00ffffff)));
}

/* The one's-complement sum of words, not yet folded: 64 bits hold four milliard of them. */
static __always_inline __u64 sum_address(const struct address *a)
{
	return (__u64)a->w[0] + a->w[1] + a->w[2] + a->w[3];
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

#endif
