/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From bytes to a flow.  An ICMP error counts as a packet of the flow it complains about, seen from
 * the other end: it has to reach the server that sent what it quotes.
 */
#pragma once

#include "balancer_maps.h"

#define CONTINUE -1 /* no verdict yet */

/* SYN and RST are where TCP has them. */
enum { IN_ICMP = 1, IS_SYN = 2, IS_RST = 4 };
enum {
	ECHO_REPLY = 0,
	UNREACHABLE = 3,
	ECHO = 8,
	UNREACHABLE_V6 = 1,
	TOO_BIG_V6 = 2,
	ECHO_V6 = 128,
	ECHO_REPLY_V6 = 129,
};

struct icmp {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 unused;
	__be16 mtu;
};

/* What is known of a packet.  The flow is apart: it is a key, which has to lie on the stack, while
 * the rest stays in registers, where the verifier follows it.
 */
struct packet {
	struct flow *flow;
	__u32 transport; /* where the ports are */
	__u32 bytes;     /* without Ethernet */
	__u8 state;      /* IN_ICMP and so on */
	__u8 protocol;   /* of the packet, not of what it quotes */
	__u8 tos;
};

/* A 16-bit word of what a checksum is over becomes another one (RFC 1624, equation 3). */
static __always_inline __sum16 mend(__sum16 checksum, __u16 old, __u16 new)
{
	return ~fold((__u16)~checksum + (__u16)~old + new);
}

static __always_inline void copy_address(__be32 *to, const __be32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

static __always_inline int malformed(void)
{
	count(MALFORMED);
	return XDP_DROP;
}

static __always_inline void answer(struct ethhdr *eth, struct icmp *icmp, __u8 from, __u8 to)
{
	swap_macs(eth);
	icmp->checksum = mend(icmp->checksum, from, to);
	icmp->type = to;
	count(ECHOES);
}

static __always_inline int parse_icmp_v4(struct packet *packet, void *data, void *end)
{
	struct iphdr *outer = data + sizeof(struct ethhdr);
	struct icmp *icmp = (void *)(outer + 1);
	struct iphdr *ip = (void *)(icmp + 1);
	__be32 addr;

	if (!FITS(icmp, end))
		return malformed();
	if (icmp->type == ECHO) {
		addr = outer->saddr;
		outer->saddr = outer->daddr;
		outer->daddr = addr;
		outer->check = mend(outer->check, bpf_htons(outer->ttl << 8), bpf_htons(64 << 8));
		outer->ttl = 64;
		answer(data, icmp, ECHO, ECHO_REPLY);
		return XDP_TX;
	}
	if (icmp->type != UNREACHABLE)
		return XDP_PASS;
	if (!FITS(ip, end) || ip->version != 4 || ip->ihl != 5)
		return malformed();
	count(ICMP_ERRORS);
	packet->state |= IN_ICMP;
	packet->flow->protocol = ip->protocol;
	packet->flow->src[0] = ip->daddr;
	packet->flow->dst[0] = ip->saddr;
	packet->transport += sizeof(*icmp) + sizeof(*ip);
	return CONTINUE;
}

static __always_inline int parse_icmp_v6(struct packet *packet, void *data, void *end)
{
	struct ipv6hdr *outer = data + sizeof(struct ethhdr);
	struct icmp *icmp = (void *)(outer + 1);
	struct ipv6hdr *ip = (void *)(icmp + 1);
	__be32 addr[4];

	if (!FITS(icmp, end))
		return malformed();
	if (icmp->type == ECHO_V6) {
		copy_address(addr, outer->saddr.s6_addr32);
		copy_address(outer->saddr.s6_addr32, outer->daddr.s6_addr32);
		copy_address(outer->daddr.s6_addr32, addr);
		outer->hop_limit = 64;
		answer(data, icmp, ECHO_V6, ECHO_REPLY_V6);
		return XDP_TX;
	}
	if (icmp->type != UNREACHABLE_V6 && icmp->type != TOO_BIG_V6)
		return XDP_PASS;
	if (!FITS(ip, end) || ip->version != 6)
		return malformed();
	count(ICMP_ERRORS);
	packet->state |= IN_ICMP;
	packet->flow->protocol = ip->nexthdr;
	copy_address(packet->flow->src, ip->daddr.s6_addr32);
	copy_address(packet->flow->dst, ip->saddr.s6_addr32);
	packet->transport += sizeof(*icmp) + sizeof(*ip);
	return CONTINUE;
}

static __always_inline int parse_v4(struct packet *packet, void *data, void *end)
{
	struct iphdr *ip = data + sizeof(struct ethhdr);

	if (!FITS(ip, end) || ip->version != 4 || ip->ihl != 5)
		return malformed();
	if (ip->frag_off & IPV4_FRAGMENT) {
		count(FRAGMENTS);
		return XDP_DROP;
	}
	packet->tos = ip->tos;
	packet->bytes = bpf_ntohs(ip->tot_len);
	packet->transport = sizeof(struct ethhdr) + sizeof(*ip);
	packet->protocol = ip->protocol;
	if (ip->protocol == IPPROTO_ICMP)
		return parse_icmp_v4(packet, data, end);
	packet->flow->protocol = ip->protocol;
	packet->flow->src[0] = ip->saddr;
	packet->flow->dst[0] = ip->daddr;
	return CONTINUE;
}

#ifdef WITH_EXTENSION_HEADERS
/* Hop-by-hop and destination options: what a tunnel or a router may have put before the ports. */
static __always_inline void skip_options(struct packet *packet, void *data, void *end)
{
	struct ipv6_opt_hdr *option;

#pragma unroll
	for (int i = 0; i < 3; i++) {
		if (packet->protocol != IPPROTO_HOPOPTS && packet->protocol != IPPROTO_DSTOPTS)
			return;
		option = data + packet->transport;
		if (!FITS(option, end))
			return;
		count(EXTENSION_HEADERS);
		packet->protocol = option->nexthdr;
		packet->transport += (option->hdrlen + 1) * 8;
	}
}
#endif

static __always_inline int parse_v6(struct packet *packet, void *data, void *end)
{
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);

	if (!FITS(ip, end) || ip->version != 6)
		return malformed();
	packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	packet->bytes = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	packet->transport = sizeof(struct ethhdr) + sizeof(*ip);
	packet->protocol = ip->nexthdr;
	if (ip->nexthdr == IPPROTO_ICMPV6)
		return parse_icmp_v6(packet, data, end);
#ifdef WITH_EXTENSION_HEADERS
	skip_options(packet, data, end);
#endif
	if (packet->protocol == IPPROTO_FRAGMENT) {
		count(FRAGMENTS);
		return XDP_DROP;
	}
	packet->flow->protocol = packet->protocol;
	copy_address(packet->flow->src, ip->saddr.s6_addr32);
	copy_address(packet->flow->dst, ip->daddr.s6_addr32);
	return CONTINUE;
}

/* Of a header that is quoted, only the first eight bytes need to be there. */
static __always_inline int parse_ports(struct packet *packet, void *data, void *end)
{
	struct udphdr *ports = data + packet->transport; /* TCP starts with the same two fields */
	struct tcphdr *tcp = (void *)ports;

	if (packet->flow->protocol != IPPROTO_TCP && packet->flow->protocol != IPPROTO_UDP)
		return XDP_PASS;
	if (!FITS(ports, end))
		return malformed();
	if (packet->state & IN_ICMP) {
		packet->flow->sport = ports->dest;
		packet->flow->dport = ports->source;
		return CONTINUE;
	}
	packet->flow->sport = ports->source;
	packet->flow->dport = ports->dest;
	if (packet->flow->protocol == IPPROTO_TCP) {
		if (!FITS(tcp, end))
			return malformed();
		packet->state |= ((__u8 *)tcp)[13] & (IS_SYN | IS_RST);
	}
	return CONTINUE;
}

static __always_inline int parse(struct packet *packet, struct xdp_md *ctx, const int v6)
{
	void *data = DATA(ctx), *end = DATA_END(ctx);

	return v6 ? parse_v6(packet, data, end) : parse_v4(packet, data, end);
}
