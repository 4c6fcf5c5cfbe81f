// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Cuts an IPv4 packet that is too long, and sends it back as the ICMP error that says so. */
#include "echo.h"

#define LONGEST 600
#define QUOTED 28 /* of the packet: its header and 8 bytes */
#define FRAG_NEEDED 4
#define UNREACHABLE 3

struct error {
	struct icmp icmp;
	__be16 unused;
	__be16 mtu;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} errors SEC(".maps");

static __always_inline __u16 check_of(__u16 *word, int bytes)
{
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < bytes / 2; i++)
		sum += word[i];
	return ~fold(sum);
}

SEC("xdp")
int adjust_tail(struct xdp_md *ctx)
{
	const int added = sizeof(struct iphdr) + sizeof(struct error);
	struct ethhdr *eth = DATA(ctx), old;
	void *end = DATA_END(ctx);
	struct iphdr *ip = (void *)(eth + 1), *quoted;
	struct error *error;
	__u32 key = 0;
	__u64 *count;

	if (!FITS(ip, end) || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return XDP_PASS;
	if (end - (void *)eth <= LONGEST)
		return XDP_PASS;
	if (bpf_xdp_adjust_tail(ctx, (int)(sizeof(*eth) + QUOTED) - (int)(end - (void *)eth)))
		return XDP_DROP;
	eth = DATA(ctx);
	if (!FITS(eth, DATA_END(ctx)))
		return XDP_DROP;
	old = *eth;
	if (bpf_xdp_adjust_head(ctx, -added))
		return XDP_DROP;
	eth = DATA(ctx);
	end = DATA_END(ctx);
	ip = (void *)(eth + 1);
	error = (void *)(ip + 1);
	quoted = (void *)(error + 1);
	if ((void *)quoted + QUOTED > end)
		return XDP_DROP;
	*eth = old;
	swap_macs(eth);
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(added + QUOTED);
	ip->id = 0;
	ip->frag_off = 0;
	ip->ttl = 64;
	ip->protocol = IPPROTO_ICMP;
	ip->check = 0;
	ip->saddr = quoted->daddr;
	ip->daddr = quoted->saddr;
	ip->check = check_of((void *)ip, sizeof(*ip));
	error->icmp.type = UNREACHABLE;
	error->icmp.code = FRAG_NEEDED;
	error->icmp.checksum = 0;
	error->unused = 0;
	error->mtu = bpf_htons(LONGEST - sizeof(*eth));
	error->icmp.checksum = check_of((void *)error, sizeof(*error) + QUOTED);
	count = bpf_map_lookup_elem(&errors, &key);
	if (count)
		*count += 1;
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
