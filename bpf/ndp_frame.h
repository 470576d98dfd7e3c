/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The headers of a frame, and operations on addresses, MACs and checksums.
 *
 * Every header consists of the widest words that its place in a frame aligns, because single bytes
 * would cost one load each. Where alignment matters, the kernel starts a frame two bytes
 * behind a multiple of eight, and the verifier assumes so (NET_IP_ALIGN). With these two bytes,
 * PAD, each header has a multiple of eight bytes.
 *
 * Contract of the whole program: a struct ethernet begins PAD bytes before the frame, each next
 * header begins where the previous one ends, and no field of a header is read before the end of
 * the header was compared with the end of the frame.
 */
#ifndef NDP_FRAME_H
#define NDP_FRAME_H

/* Bytes between an aligned address and the first byte of a frame; not part of the frame. */
#define PAD 2

/* EtherTypes (IEEE 802). */
#define ETHERTYPE_IPV6	 0x86dd
#define ETHERTYPE_8021Q	 0x8100 /* a VLAN tag follows */
#define ETHERTYPE_8021AD 0x88a8 /* a service VLAN tag follows */

/* Bits of the VLAN in a tag's second word; 0 means that the tag has only a priority (802.1Q 9.6). */
#define VLAN_ID 0x0fff

/* Next header of IPv6 (RFC 4443 1). */
#define PROTOCOL_ICMPV6 58

/* ICMPv6 types (RFC 4861 4.3, 4.4). */
#define TYPE_NS 135
#define TYPE_NA 136

/* Options: source and target link-layer address (RFC 4861 4.6.1). */
#define OPTION_SLLAO 1
#define OPTION_TLLAO 2

/* Flags of an advertisement (RFC 4861 4.4), in host byte order. */
#define FLAG_ROUTER    0x80000000
#define FLAG_SOLICITED 0x40000000
#define FLAG_OVERRIDE  0x20000000

/* Hop limit of every Neighbor Discovery packet; no router has forwarded it (RFC 4861 7.1.1). */
#define HOP_LIMIT 255

/* Destination MAC of an IPv6 multicast packet: 33:33 and the last four bytes of its address
 * (RFC 2464 7).
 */
#define MULTICAST_MAC 0x3333

/* The bit that tells a group's MAC from a single node's, in the MAC's first two bytes. */
#define GROUP_MAC_BIT 0x0100

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#ifndef unlikely
#define unlikely(condition) __builtin_expect(!!(condition), 0)
#define likely(condition)   __builtin_expect(!!(condition), 1)
#endif

/* An IPv6 address, network byte order. */
struct address {
	union {
		__be32 w[4];
		__be64 d[2];
	};
};

/* Eight bytes, of which the leading six are a MAC. With zeros in `after`, `word` is the number
 * by which the program knows the MAC: a number is cheap to keep and to compare.
 */
struct mac_leading {
	union {
		__u64 word;
		struct {
			__be32 mac_first;
			__be16 mac_rest;
			__be16 after;
		};
	};
};

/* Eight bytes, of which the trailing six are a MAC. */
struct mac_trailing {
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
	struct mac_trailing dst; /* `before` is PAD */
	struct mac_leading src;	 /* `after` is the EtherType */
};

/* The two MACs of a frame, without PAD, to be moved. */
struct eth_macs {
	__be16 words[6];
};

/* A VLAN tag, which a tagged frame has between the MACs and the EtherType. */
struct vlan_tag {
	union {
		__u32 word; /* 0: there is no tag */
		struct {
			__be16 type;	/* ETHERTYPE_8021Q or ETHERTYPE_8021AD */
			__be16 control; /* priority, and VLAN_ID */
		};
	};
};

struct ipv6 {
	__be32 version_class_flow;
	__be16 payload_len; /* bytes behind this header */
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

/* Neighbor Solicitation or Neighbor Advertisement up to the options (RFC 4861 4.3, 4.4). */
struct neighbor {
	struct icmpv6 icmp;
	__be32 flags; /* reserved in a solicitation */
	struct address target;
};

/* A link-layer address option of Ethernet: SLLAO or TLLAO. */
struct lladdr_option {
	union {
		struct mac_trailing mac;
		struct {
			__u8 type;
			__u8 len; /* units of 8 bytes */
		};
	};
};

/* The frame of the answer, with PAD before it. */
struct advertisement {
	struct ethernet eth;
	struct ipv6 ip6;
	struct neighbor na;
	struct lladdr_option tllao;
};

/* Bytes of a frame up to the end of its ICMPv6 header. */
#define HEADERS_LEN                                                                            \
	(sizeof(struct ethernet) + sizeof(struct ipv6) + sizeof(struct icmpv6) - PAD)

/* Bytes of a solicitation's frame without options. */
#define NS_LEN (sizeof(struct ethernet) + sizeof(struct ipv6) + sizeof(struct neighbor) - PAD)

/* Bytes of an advertisement's frame. */
#define NA_LEN (sizeof(struct advertisement) - PAD)

/* The most units of 8 bytes that the options of a solicitation can have. */
#define UNITS_MAX ((NDP_FRAME_MAX - NS_LEN) / 8)

_Static_assert(NS_LEN == 78, "the frame of a solicitation without options has 78 bytes");
_Static_assert(NA_LEN == 86, "the frame of an advertisement has 86 bytes");

/* Return 1 if x is 0, else 0, without a branch; x is less than 2^63. The barrier hides from the
 * compiler that the result is a truth value: the compiler would make a branch.
 */
static __always_inline __u64 is_zero(__u64 x)
{
	barrier_var(x);
	return (x - 1) >> 63;
}

/* Return the MAC as a number, which is the `word` of a mac_leading with zeros behind it. */
static __always_inline __u64 mac_load_leading(const struct mac_leading *from)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return from->word << 16 >> 16;
#else
	return from->word >> 16 << 16;
#endif
}

/* Return the MAC as the same number. */
static __always_inline __u64 mac_load_trailing(const struct mac_trailing *from)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return from->word >> 16;
#else
	return from->word << 16;
#endif
}

/* Store the MAC, and `after` behind it, by one write. */
static __always_inline void mac_store_leading(struct mac_leading *to, __u64 mac, __be16 after)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	to->word = mac | (__u64)after << 48;
#else
	to->word = mac | after;
#endif
}

/* Store the MAC, and `before` before it, by one write. */
static __always_inline void mac_store_trailing(struct mac_trailing *to, __be16 before,
					       __u64 mac)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	to->word = mac << 16 | before;
#else
	to->word = mac >> 16 | (__u64)before << 48;
#endif
}

/* Return the type of the option whose first unit is `word`, and anything above the type's 8 bits. */
static __always_inline __u64 option_type(__u64 word)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return word;
#else
	return word >> 56;
#endif
}

static __always_inline int is_same_mac(const struct mac_trailing *a,
				       const struct mac_trailing *b)
{
	return a->mac_first == b->mac_first && a->mac_rest == b->mac_rest;
}

static __always_inline int is_same_address(const struct address *a, const struct address *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

static __always_inline int is_unspecified(const struct address *a)
{
	return !(a->d[0] | a->d[1]);
}

static __always_inline int is_loopback(const struct address *a)
{
	return !a->d[0] && a->d[1] == bpf_cpu_to_be64(1);
}

/* ::ffff:0:0/96 (RFC 4291 2.5.5.2) */
static __always_inline int is_v4_mapped(const struct address *a)
{
	return !a->d[0] && a->w[2] == bpf_htonl(0xffff);
}

/* fe80::/10 (RFC 4291 2.5.6) */
static __always_inline int is_link_local(const struct address *a)
{
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* ff00::/8 (RFC 4291 2.7) */
static __always_inline int is_multicast(const struct address *a)
{
	return (a->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* Return 0 if the address is the target's solicited-node group, ff02::1:ff and the target's last
 * 24 bits (RFC 4291 2.7.1), else another number: a bool would cost a branch.
 */
static __always_inline __u64 differs_from_group(const struct address *a,
						const struct address *target)
{
	__be64 last = bpf_cpu_to_be64(0x00000001ff000000) |
		      (target->d[1] & bpf_cpu_to_be64(0x00ffffff));

	return (a->d[0] ^ bpf_cpu_to_be64(0xff02000000000000)) | (a->d[1] ^ last);
}

/* Return the one's-complement sum of the address's words for fold(). */
static __always_inline __u64 sum_address(const struct address *a)
{
	return (__u64)a->w[0] + a->w[1] + a->w[2] + a->w[3];
}

/* Return the one's-complement sum of the word's halves for fold(). */
static __always_inline __u64 sum_word(__u64 word)
{
	return (word & 0xffffffff) + (word >> 32);
}

/* Fold a one's-complement sum of less than 2^48 to 16 bits (RFC 1071). Bits 32 to 47 of the product
 * are the sum of the two halves of `sum`, and of the carry of the same addition in bits 16 to 31.
 */
static __always_inline __u16 fold(__u64 sum)
{
	return sum_word(sum) * 0x100010001 >> 32;
}

#endif
