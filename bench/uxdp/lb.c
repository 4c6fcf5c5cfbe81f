// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A small balancer: the client's hash chooses a backend, whose address and MAC are written in. */
#include "packet.h"

#define BACKENDS 64

struct backend {
	__be32 addr;
	__u8 mac[ETH_ALEN];
	__u16 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __be32);
	__type(value, __u32); /* how many backends it has */
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BACKENDS);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

static __always_inline __u32 mix(__u32 x)
{
	x ^= x >> 16;
	x *= 0x7feb352d;
	x ^= x >> 15;
	x *= 0x846ca68b;
	return x ^ x >> 16;
}

/* RFC 1624, equation 3. */
static __always_inline void replace(__u16 *check, __be32 old, __be32 new)
{
	__u32 sum = (__u16)~*check;

	sum += (__u16)~(old & 0xffff) + (__u16)~(old >> 16);
	sum += (new & 0xffff) + (new >> 16);
	*check = ~fold(sum);
}

SEC("xdp")
int lb(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	void *end = DATA_END(ctx);
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	struct backend *to;
	__u32 *count, index;

	if (!FITS(tcp, end) || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return XDP_PASS;
	if (ip->protocol != IPPROTO_TCP || ip->frag_off & IPV4_FRAGMENT)
		return XDP_PASS;
	count = bpf_map_lookup_elem(&services, &ip->daddr);
	if (!count || !*count)
		return XDP_PASS;
	index = mix(ip->saddr ^ tcp->source) % *count;
	to = bpf_map_lookup_elem(&backends, &index);
	if (!to)
		return XDP_DROP;
	replace(&tcp->check, ip->daddr, to->addr);
	replace(&ip->check, ip->daddr, to->addr);
	ip->daddr = to->addr;
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, to->mac, ETH_ALEN);
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
