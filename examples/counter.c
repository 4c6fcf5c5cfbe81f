// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Counts packets and bytes by IP protocol number, one counter per CPU, so nothing is locked.
 * What is not IP, or too short to say, counts under 0.
 */
#include "packet.h"

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

static __always_inline __u32 protocol_of(struct ethhdr *eth, void *end)
{
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct iphdr *ip = (void *)(eth + 1);

	if (!FITS(eth, end))
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return FITS(ip, end) ? ip->protocol : 0;
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return FITS(ip6, end) ? ip6->nexthdr : 0;
	return 0;
}

SEC("xdp")
int counter(struct xdp_md *ctx)
{
	void *data = DATA(ctx), *end = DATA_END(ctx);
	__u32 protocol = protocol_of(data, end);
	struct counter *c = bpf_map_lookup_elem(&counters, &protocol);

	if (c) {
		c->packets++;
		c->bytes += end - data;
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
