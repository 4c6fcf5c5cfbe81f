// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A map whose size is left to whoever loads the object; key 3 has to be there to pass. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

SEC("xdp")
int sized(struct xdp_md *ctx)
{
	__u32 key = 3;
	__u64 *count = bpf_map_lookup_elem(&counts, &key);

	if (!count)
		return XDP_DROP;
	++*count;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
