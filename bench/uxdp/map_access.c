// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One array entry is read and counted up, and the packet goes back. */
#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

SEC("xdp")
int map_access(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	__u32 key;
	__u64 *count;

	if (!FITS(eth, DATA_END(ctx)))
		return XDP_DROP;
	key = eth->h_source[5];
	count = bpf_map_lookup_elem(&counts, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	swap_macs(eth);
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
