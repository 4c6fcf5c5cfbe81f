// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* IPIP for services: their packets are put into a tunnel, and counted by protocol. */
#include "packet.h"

struct service {
	__be32 daddr;
	__be16 dport;
	__u16 protocol;
};

struct end {
	__be32 saddr;
	__be32 daddr;
	__u8 dmac[ETH_ALEN];
	__u16 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct service);
	__type(value, struct end);
} tunnels SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u64);
} packets SEC(".maps");

SEC("xdp")
int tunnel(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx), *outer;
	void *end = DATA_END(ctx);
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *ports = (void *)(ip + 1);
	struct service service = {};
	struct end *to;
	__u16 *word, length;
	__u32 sum = 0, protocol;
	__u64 *count;

	if (!FITS(ports, end) || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return XDP_PASS;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	protocol = ip->protocol;
	service.daddr = ip->daddr;
	service.dport = ports->dest;
	service.protocol = protocol;
	to = bpf_map_lookup_elem(&tunnels, &service);
	if (!to)
		return XDP_PASS;
	length = bpf_ntohs(ip->tot_len) + sizeof(*ip);
	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip)))
		return XDP_DROP;
	outer = DATA(ctx);
	end = DATA_END(ctx);
	ip = (void *)(outer + 1);
	eth = (void *)outer + sizeof(*ip); /* the header as it was */
	if (!FITS(ip, end) || !FITS(eth, end))
		return XDP_DROP;
	__builtin_memcpy(outer->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(outer->h_dest, to->dmac, ETH_ALEN);
	outer->h_proto = bpf_htons(ETH_P_IP);
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(length);
	ip->id = 0;
	ip->frag_off = 0;
	ip->ttl = 64;
	ip->protocol = IPPROTO_IPIP;
	ip->check = 0;
	ip->saddr = to->saddr;
	ip->daddr = to->daddr;
	word = (void *)ip;
#pragma unroll
	for (int i = 0; i < (int)sizeof(*ip) / 2; i++)
		sum += word[i];
	ip->check = ~fold(sum);
	count = bpf_map_lookup_elem(&packets, &protocol);
	if (count)
		*count += 1;
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
