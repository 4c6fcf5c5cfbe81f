// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Drops flows that are listed, counts both sorts. */
#include "packet.h"

struct flow {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u32 protocol;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow);
	__type(value, __u64);
} denied SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

SEC("xdp")
int firewall(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	void *end = DATA_END(ctx);
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *ports = (void *)(ip + 1); /* TCP's are in the same place */
	struct flow flow = {};
	__u64 *hits, *count;
	__u32 key;

	if (!FITS(ports, end) || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return XDP_PASS;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	flow.saddr = ip->saddr;
	flow.daddr = ip->daddr;
	flow.sport = ports->source;
	flow.dport = ports->dest;
	flow.protocol = ip->protocol;
	hits = bpf_map_lookup_elem(&denied, &flow);
	if (hits)
		__sync_fetch_and_add(hits, 1);
	key = hits != NULL;
	count = bpf_map_lookup_elem(&verdicts, &key);
	if (count)
		*count += 1;
	return hits ? XDP_DROP : XDP_TX;
}

char _license[] SEC("license") = "GPL";
