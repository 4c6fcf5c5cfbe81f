// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Puts IPv4 TCP and UDP into an IPv4 tunnel (protocol 4) and sends it to the next hop. */
#include "packet.h"

struct tunnel {
	__be32 src;
	__be32 dst; /* 0: no tunnel */
	__u8 next_hop[ETH_ALEN];
	__u8 zero[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tunnel);
} tunnel SEC(".maps");

static __always_inline void fill_outer(struct iphdr *ip, const struct tunnel *to, __u8 tos,
				       __u16 tot_len)
{
	__u16 *word = (void *)ip;
	__u32 sum = 0;

	ip->version = 4;
	ip->ihl = 5;
	ip->tos = tos;
	ip->tot_len = bpf_htons(tot_len);
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000); /* don't fragment, so no id is needed (RFC 6864) */
	ip->ttl = 64;
	ip->protocol = IPPROTO_IPIP;
	ip->check = 0;
	ip->saddr = to->src;
	ip->daddr = to->dst;
#pragma unroll
	for (int i = 0; i < (int)sizeof(*ip) / 2; i++)
		sum += word[i];
	ip->check = ~fold(sum);
}

SEC("xdp")
int ipip(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	void *end = DATA_END(ctx);
	struct iphdr *ip = (void *)(eth + 1);
	__u8 own_mac[ETH_ALEN];
	struct tunnel *to;
	__u32 tot_len, key = 0;
	__u8 tos;

	if (!FITS(eth, end) || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (!FITS(ip, end) || ip->version != 4 || ip->ihl < 5)
		return XDP_PASS;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	to = bpf_map_lookup_elem(&tunnel, &key);
	if (!to || !to->dst)
		return XDP_PASS;
	tot_len = bpf_ntohs(ip->tot_len) + sizeof(*ip);
	if (tot_len > 0xffff)
		return XDP_DROP;
	tos = ip->tos;
	__builtin_memcpy(own_mac, eth->h_dest, ETH_ALEN);

	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip)))
		return XDP_DROP;
	eth = DATA(ctx); /* every packet pointer from before is stale */
	end = DATA_END(ctx);
	ip = (void *)(eth + 1);
	if (!FITS(ip, end))
		return XDP_DROP;
	__builtin_memcpy(eth->h_dest, to->next_hop, ETH_ALEN);
	__builtin_memcpy(eth->h_source, own_mac, ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_IP);
	fill_outer(ip, to, tos, tot_len);
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
