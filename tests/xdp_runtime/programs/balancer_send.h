/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Into tunnels and out of them, and the answer to what is too big for one. */
#pragma once

#include "balancer_pick.h"

#define GUE_PORT 6080
#define MAX_FRAME 1514
#define TUNNEL_MTU 1480
#define TOO_BIG_LEN 98   /* what is sent back of a packet, with Ethernet */
#define TOO_BIG_LEN_V6 262
#define FRAGMENTATION_NEEDED 4
#define DROP_IF(condition) do { if (condition) return not_sent(); } while (0)

/* What a UDP or TCP checksum covers besides header and payload. */
struct pseudo_v4 {
	__be32 src;
	__be32 dst;
	__u8 zero;
	__u8 protocol;
	__be16 len;
};

struct pseudo_v6 {
	__be32 src[4];
	__be32 dst[4];
	__be32 len;
	__u8 zero[3];
	__u8 protocol;
};

static __always_inline int not_sent(void)
{
	count(NOT_SENT);
	return XDP_DROP;
}

static __always_inline void fill_v4(struct iphdr *ip, __be32 src, __be32 dst, __u8 protocol,
				    __u8 tos, __u16 len)
{
	__u16 *word = (void *)ip;
	__u32 sum = 0;

	ip->version = 4;
	ip->ihl = 5;
	ip->tos = tos;
	ip->tot_len = bpf_htons(len);
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = 64;
	ip->protocol = protocol;
	ip->check = 0;
	ip->saddr = src;
	ip->daddr = dst;
#pragma unroll
	for (int i = 0; i < (int)sizeof(*ip) / 2; i++)
		sum += word[i];
	ip->check = ~fold(sum);
}

static __always_inline void fill_v6(struct ipv6hdr *ip, const __be32 *src, const __be32 *dst,
				    __u8 protocol, __u8 tos, __u16 len)
{
	ip->version = 6;
	ip->priority = tos >> 4;
	ip->flow_lbl[0] = tos << 4;
	ip->flow_lbl[1] = 0;
	ip->flow_lbl[2] = 0;
	ip->payload_len = bpf_htons(len);
	ip->nexthdr = protocol;
	ip->hop_limit = 64;
	copy_address(ip->saddr.s6_addr32, src);
	copy_address(ip->daddr.s6_addr32, dst);
}

/* A new Ethernet header, to the next hop.  `old` may be where the new one is: it is read first. */
static __always_inline int fill_ethernet(struct ethhdr *eth, const struct ethhdr *old,
					 const int v6)
{
	__u32 key = 0;
	struct mac *mac = bpf_map_lookup_elem(&next_hop, &key);
	__u8 own[ETH_ALEN];

	if (!mac)
		return -1;
	__builtin_memcpy(own, old->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_source, own, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac->addr, ETH_ALEN);
	eth->h_proto = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	return 0;
}

/* IP in IP.  The source address is not ours alone: it differs from flow to flow, so that routers
 * and network cards on the way spread them.
 */
static __always_inline int send_ipip_v4(struct xdp_md *ctx, const struct packet *packet,
					const struct real *real)
{
	__u32 spread = packet->flow->src[0] ^ (__u32)packet->flow->sport << 16;
	void *data, *end;
	struct iphdr *ip;

	DROP_IF(bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip)));
	data = DATA(ctx);
	end = DATA_END(ctx);
	DROP_IF(data + sizeof(struct ethhdr) + 2 * sizeof(*ip) > end);
	ip = data + sizeof(struct ethhdr);
	DROP_IF(fill_ethernet(data, data + sizeof(*ip), 0));
	fill_v4(ip, bpf_htonl(0xac100000) | (spread & bpf_htonl(0xffff)), real->addr[0],
		IPPROTO_IPIP, packet->tos, packet->bytes + sizeof(*ip));
	return XDP_TX;
}

static __always_inline int send_ipip_v6(struct xdp_md *ctx, const struct packet *packet,
					const struct real *real, const int v6)
{
	__be32 src[4] = {bpf_htonl(0x01000000)};
	void *data, *end;
	struct ipv6hdr *ip;

	src[3] = packet->flow->src[v6 ? 3 : 0] ^ packet->flow->sport;
	DROP_IF(bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip)));
	data = DATA(ctx);
	end = DATA_END(ctx);
	DROP_IF(data + sizeof(struct ethhdr) + 2 * sizeof(*ip) > end);
	ip = data + sizeof(struct ethhdr);
	DROP_IF(fill_ethernet(data, data + sizeof(*ip), 1));
	fill_v6(ip, src, real->addr, v6 ? IPPROTO_IPV6 : IPPROTO_IPIP, packet->tos,
		packet->bytes);
	return XDP_TX;
}

#ifdef WITH_GUE
/* The sum of everything from the inner IP header on, without reading it: a segment and its pseudo
 * header sum to nothing, because that is what its checksum is for.
 */
static __always_inline __s64 inner_sum_v4(const struct packet *packet, struct iphdr *ip)
{
	struct pseudo_v4 pseudo = {
		.src = ip->saddr,
		.dst = ip->daddr,
		.protocol = ip->protocol,
		.len = bpf_htons(packet->bytes - sizeof(*ip)),
	};
	__s64 sum = bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0);

	if (packet->protocol == IPPROTO_ICMP)
		return sum;
	return bpf_csum_diff((__be32 *)&pseudo, sizeof(pseudo), NULL, 0, sum);
}

static __always_inline __s64 inner_sum_v6(const struct packet *packet, struct ipv6hdr *ip)
{
	struct pseudo_v6 pseudo = {
		.len = bpf_htonl(packet->bytes - sizeof(*ip)),
		.protocol = packet->protocol,
	};
	__s64 sum = bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0);

	copy_address(pseudo.src, ip->saddr.s6_addr32);
	copy_address(pseudo.dst, ip->daddr.s6_addr32);
	return bpf_csum_diff((__be32 *)&pseudo, sizeof(pseudo), NULL, 0, sum);
}

static __always_inline void fill_udp(struct udphdr *udp, const struct packet *packet,
				     const int v6)
{
	__u32 spread = packet->flow->src[v6 ? 3 : 0];

	udp->source = packet->flow->sport ^ spread ^ spread >> 16;
	udp->dest = bpf_htons(GUE_PORT);
	udp->len = bpf_htons(packet->bytes + sizeof(*udp));
	udp->check = 0;
}

static __always_inline __sum16 finish_sum(__s64 sum)
{
	__u16 check = ~fold(sum);

	return check ? check : 0xffff; /* 0 would mean that there is none */
}

static __always_inline int send_gue_v4(struct xdp_md *ctx, const struct packet *packet,
				       const struct real *real)
{
	struct pseudo_v4 pseudo = {.protocol = IPPROTO_UDP};
	__u32 key = 0;
	struct real *own = bpf_map_lookup_elem(&own_addresses, &key);
	void *data, *end;
	struct iphdr *ip;
	struct udphdr *udp;
	__s64 sum;

	DROP_IF(!own);
	DROP_IF(bpf_xdp_adjust_head(ctx, -(int)(sizeof(*ip) + sizeof(*udp))));
	data = DATA(ctx);
	end = DATA_END(ctx);
	DROP_IF(data + sizeof(struct ethhdr) + 2 * sizeof(*ip) + sizeof(*udp) > end);
	ip = data + sizeof(struct ethhdr);
	udp = (void *)(ip + 1);
	DROP_IF(fill_ethernet(data, data + sizeof(*ip) + sizeof(*udp), 0));
	fill_v4(ip, own->addr[0], real->addr[0], IPPROTO_UDP, packet->tos,
		packet->bytes + sizeof(*ip) + sizeof(*udp));
	fill_udp(udp, packet, 0);
	pseudo.src = own->addr[0];
	pseudo.dst = real->addr[0];
	pseudo.len = udp->len;
	sum = inner_sum_v4(packet, (void *)(udp + 1));
	sum = bpf_csum_diff(NULL, 0, (__be32 *)udp, sizeof(*udp), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), sum);
	udp->check = finish_sum(sum);
	return XDP_TX;
}

static __always_inline int send_gue_v6(struct xdp_md *ctx, const struct packet *packet,
				       const struct real *real, const int v6)
{
	struct pseudo_v6 pseudo = {.protocol = IPPROTO_UDP};
	__u32 key = 1;
	struct real *own = bpf_map_lookup_elem(&own_addresses, &key);
	void *data, *end;
	struct ipv6hdr *ip;
	struct udphdr *udp;
	__s64 sum;

	DROP_IF(!own);
	DROP_IF(bpf_xdp_adjust_head(ctx, -(int)(sizeof(*ip) + sizeof(*udp))));
	data = DATA(ctx);
	end = DATA_END(ctx);
	DROP_IF(data + sizeof(struct ethhdr) + 2 * sizeof(*ip) + sizeof(*udp) > end);
	ip = data + sizeof(struct ethhdr);
	udp = (void *)(ip + 1);
	DROP_IF(fill_ethernet(data, data + sizeof(*ip) + sizeof(*udp), 1));
	fill_v6(ip, own->addr, real->addr, IPPROTO_UDP, packet->tos,
		packet->bytes + sizeof(*udp));
	fill_udp(udp, packet, v6);
	copy_address(pseudo.src, own->addr);
	copy_address(pseudo.dst, real->addr);
	pseudo.len = bpf_htonl(packet->bytes + sizeof(*udp));
	sum = v6 ? inner_sum_v6(packet, (void *)(udp + 1)) :
		   inner_sum_v4(packet, (void *)(udp + 1));
	sum = bpf_csum_diff(NULL, 0, (__be32 *)udp, sizeof(*udp), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), sum);
	udp->check = finish_sum(sum);
	return XDP_TX;
}
#endif

#ifdef WITH_GRE
struct gre {
	__be16 flags;
	__be16 protocol;
	__be32 key;
};

/* GRE with a key (RFC 2890) that is the VIP's protocol and port. */
static __always_inline void fill_gre(struct gre *gre, const struct packet *packet, const int v6)
{
	gre->flags = bpf_htons(0x2000);
	gre->protocol = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	gre->key = bpf_htonl(packet->flow->protocol << 16 | bpf_ntohs(packet->flow->dport));
}

static __always_inline int send_gre_v4(struct xdp_md *ctx, const struct packet *packet,
				       const struct real *real)
{
	__u32 key = 0;
	struct real *own = bpf_map_lookup_elem(&own_addresses, &key);
	void *data, *end;
	struct iphdr *ip;
	struct gre *gre;

	DROP_IF(!own);
	DROP_IF(bpf_xdp_adjust_head(ctx, -(int)(sizeof(*ip) + sizeof(*gre))));
	data = DATA(ctx);
	end = DATA_END(ctx);
	DROP_IF(data + sizeof(struct ethhdr) + 2 * sizeof(*ip) + sizeof(*gre) > end);
	ip = data + sizeof(struct ethhdr);
	gre = (void *)(ip + 1);
	DROP_IF(fill_ethernet(data, data + sizeof(*ip) + sizeof(*gre), 0));
	fill_v4(ip, own->addr[0], real->addr[0], IPPROTO_GRE, packet->tos,
		packet->bytes + sizeof(*ip) + sizeof(*gre));
	fill_gre(gre, packet, 0);
	return XDP_TX;
}

static __always_inline int send_gre_v6(struct xdp_md *ctx, const struct packet *packet,
				       const struct real *real, const int v6)
{
	__u32 key = 1;
	struct real *own = bpf_map_lookup_elem(&own_addresses, &key);
	void *data, *end;
	struct ipv6hdr *ip;
	struct gre *gre;

	DROP_IF(!own);
	DROP_IF(bpf_xdp_adjust_head(ctx, -(int)(sizeof(*ip) + sizeof(*gre))));
	data = DATA(ctx);
	end = DATA_END(ctx);
	DROP_IF(data + sizeof(struct ethhdr) + 2 * sizeof(*ip) + sizeof(*gre) > end);
	ip = data + sizeof(struct ethhdr);
	gre = (void *)(ip + 1);
	DROP_IF(fill_ethernet(data, data + sizeof(*ip) + sizeof(*gre), 1));
	fill_v6(ip, own->addr, real->addr, IPPROTO_GRE, packet->tos,
		packet->bytes + sizeof(*gre));
	fill_gre(gre, packet, v6);
	return XDP_TX;
}
#endif

static __always_inline int send(struct xdp_md *ctx, const struct packet *packet,
				const struct real *real, const int v6)
{
	DROP_IF(v6 && !(real->flags & REAL_V6)); /* nobody there would understand it */
#ifdef WITH_GUE
	if (real->flags & REAL_GUE) {
		if (v6 || real->flags & REAL_V6)
			return send_gue_v6(ctx, packet, real, v6);
		return send_gue_v4(ctx, packet, real);
	}
#endif
#ifdef WITH_GRE
	if (real->flags & REAL_GRE) {
		if (v6 || real->flags & REAL_V6)
			return send_gre_v6(ctx, packet, real, v6);
		return send_gre_v4(ctx, packet, real);
	}
#endif
	if (v6 || real->flags & REAL_V6)
		return send_ipip_v6(ctx, packet, real, v6);
	return send_ipip_v4(ctx, packet, real);
}

/* Fragmentation needed (RFC 792), with the packet's first 84 bytes. */
static __always_inline int send_too_big_v4(struct xdp_md *ctx)
{
	const int grown = sizeof(struct iphdr) + sizeof(struct icmp);
	void *data = DATA(ctx), *end = DATA_END(ctx);
	struct ethhdr *eth, *old;
	struct iphdr *ip, *inner;
	struct icmp *icmp;
	__u32 key = 0;
	struct real *own = bpf_map_lookup_elem(&own_addresses, &key);

	count(TOO_BIG);
	DROP_IF(!own);
	DROP_IF(bpf_xdp_adjust_tail(ctx, TOO_BIG_LEN - (int)(end - data)));
	DROP_IF(bpf_xdp_adjust_head(ctx, -grown));
	data = DATA(ctx);
	end = DATA_END(ctx);
	DROP_IF(data + grown + TOO_BIG_LEN > end);
	eth = data;
	old = data + grown;
	ip = (void *)(eth + 1);
	icmp = (void *)(ip + 1);
	inner = (void *)(icmp + 1);
	__builtin_memcpy(eth, old, sizeof(*eth));
	swap_macs(eth);
	icmp->type = UNREACHABLE;
	icmp->code = FRAGMENTATION_NEEDED;
	icmp->checksum = 0;
	icmp->unused = 0;
	icmp->mtu = bpf_htons(TUNNEL_MTU);
	icmp->checksum = ~fold(bpf_csum_diff(NULL, 0, (__be32 *)icmp,
					     TOO_BIG_LEN - sizeof(*eth) + sizeof(*icmp), 0));
	fill_v4(ip, own->addr[0], inner->saddr, IPPROTO_ICMP, 0,
		TOO_BIG_LEN - sizeof(*eth) + grown);
	return XDP_TX;
}

/* Packet too big (RFC 4443). */
static __always_inline int send_too_big_v6(struct xdp_md *ctx)
{
	const int grown = sizeof(struct ipv6hdr) + sizeof(struct icmp);
	const int len = TOO_BIG_LEN_V6 - sizeof(struct ethhdr) + sizeof(struct icmp);
	struct pseudo_v6 pseudo = {.protocol = IPPROTO_ICMPV6, .len = bpf_htonl(len)};
	void *data = DATA(ctx), *end = DATA_END(ctx);
	struct ethhdr *eth, *old;
	struct ipv6hdr *ip, *inner;
	struct icmp *icmp;
	__u32 key = 1;
	struct real *own = bpf_map_lookup_elem(&own_addresses, &key);
	__s64 sum;

	count(TOO_BIG);
	DROP_IF(!own);
	DROP_IF(bpf_xdp_adjust_tail(ctx, TOO_BIG_LEN_V6 - (int)(end - data)));
	DROP_IF(bpf_xdp_adjust_head(ctx, -grown));
	data = DATA(ctx);
	end = DATA_END(ctx);
	DROP_IF(data + grown + TOO_BIG_LEN_V6 > end);
	eth = data;
	old = data + grown;
	ip = (void *)(eth + 1);
	icmp = (void *)(ip + 1);
	inner = (void *)(icmp + 1);
	__builtin_memcpy(eth, old, sizeof(*eth));
	swap_macs(eth);
	fill_v6(ip, own->addr, inner->saddr.s6_addr32, IPPROTO_ICMPV6, 0, len);
	icmp->type = TOO_BIG_V6;
	icmp->code = 0;
	icmp->checksum = 0;
	icmp->unused = 0;
	icmp->mtu = bpf_htons(TUNNEL_MTU);
	copy_address(pseudo.src, own->addr);
	copy_address(pseudo.dst, ip->daddr.s6_addr32);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)icmp, len, sum);
	icmp->checksum = ~fold(sum);
	return XDP_TX;
}

/* One hop less; true if that was the last one. */
static __always_inline int has_died(void *ip, void *end, const int v6)
{
	struct ipv6hdr *six = ip;
	struct iphdr *four = ip;

	if (v6) {
		if (!FITS(six, end) || six->hop_limit <= 1)
			return 1;
		six->hop_limit--;
		return 0;
	}
	if (!FITS(four, end) || four->ttl <= 1)
		return 1;
	four->check = mend(four->check, bpf_htons(four->ttl << 8),
			   bpf_htons((four->ttl - 1) << 8));
	four->ttl--;
	return 0;
}

/* Take off `len` bytes behind the Ethernet header, and begin again with what is inside. */
static __always_inline int leave(struct xdp_md *ctx, const int len, const int inner_v6,
				 __u32 flags, __u32 counter)
{
	void *data = DATA(ctx), *end = DATA_END(ctx);
	struct ethhdr *eth = data, *new = data + len;

	if (data + len + sizeof(*eth) > end)
		return malformed();
	if (!(flags & TUNNEL_KEEP_TTL) && has_died(new + 1, end, inner_v6))
		return not_sent();
	__builtin_memmove(new->h_source, eth->h_source, ETH_ALEN);
	__builtin_memmove(new->h_dest, eth->h_dest, ETH_ALEN);
	new->h_proto = inner_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	DROP_IF(bpf_xdp_adjust_head(ctx, len));
	count(counter);
	bpf_tail_call(ctx, &programs, 0);
	return XDP_PASS; /* too deep, or nobody filled the array */
}

static __always_inline int leave_ipip(struct xdp_md *ctx, const struct packet *packet,
				      const int v6)
{
	const int len = v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	__u32 *flags = bpf_map_lookup_elem(&tunnel_ends, packet->flow->dst);

	if (!flags)
		return XDP_PASS;
	if (packet->protocol == IPPROTO_IPV6)
		return leave(ctx, len, 1, *flags, TUNNELS_LEFT);
	if (v6)
		return XDP_PASS; /* IPv4 in IPv6 is for servers */
	return leave(ctx, len, 0, *flags, TUNNELS_LEFT);
}

#ifdef WITH_GUE
static __always_inline int leave_gue(struct xdp_md *ctx, const struct packet *packet,
				     const int v6)
{
	const int len = (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) +
			sizeof(struct udphdr);
	void *data = DATA(ctx), *end = DATA_END(ctx);
	__u32 *flags = bpf_map_lookup_elem(&tunnel_ends, packet->flow->dst);
	__u8 *inner = data + sizeof(struct ethhdr) + len;

	if (!flags || *flags & TUNNEL_NO_GUE)
		return CONTINUE;
	if ((void *)(inner + 1) > end)
		return malformed();
	if (*inner >> 4 == 6)
		return leave(ctx, len, 1, *flags, GUE_LEFT);
	if (*inner >> 4 == 4)
		return leave(ctx, len, 0, *flags, GUE_LEFT);
	return malformed();
}
#endif
