// SPDX-License-Identifier: Apache-2.0
// Passes packets of any length on, and counts them: [0] all, [1] those of 3521 bytes and more.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
} counts SEC(".maps");

static __always_inline void count(__u32 key)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("xdp.frags")
int jumbo(struct xdp_md *ctx)
{
	count(0);
	if (bpf_xdp_get_buff_len(ctx) > 3520)
		count(1);
	return XDP_PASS;
}

SEC("xdp")
int small(struct xdp_md *ctx)
{
	return XDP_PASS;
}
