// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Hashes the first bytes of each packet (FNV-1a), sums the hashes, and sends the packet back. */
#include "packet.h"

#define HASHED 54

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sum SEC(".maps");

SEC("xdp")
int hash_sum(struct xdp_md *ctx)
{
	__u8 *byte = DATA(ctx);
	void *end = DATA_END(ctx);
	__u32 key = 0, hash = 2166136261u;
	__u64 *total;

	if ((void *)byte + HASHED > end)
		return XDP_DROP;
#pragma unroll
	for (int i = 0; i < HASHED; i++)
		hash = (hash ^ byte[i]) * 16777619u;
	total = bpf_map_lookup_elem(&sum, &key);
	if (total)
		*total += hash;
	swap_macs((void *)byte);
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
