// Maps of maps, filled from the start: counts in arrays that an array picks, flows in hashes that a
// hash picks.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct counts {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} even SEC(".maps"), odd SEC(".maps");

struct flows {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} short_ones SEC(".maps"), long_ones SEC(".maps"), spare SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct counts);
} by_parity SEC(".maps") = {.values = {[0] = &even, [1] = &odd}};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct flows);
} by_length SEC(".maps") = {.values = {[0] = &short_ones, [1] = &long_ones}};

SEC("xdp")
int count(struct xdp_md *ctx)
{
	__u32 length = ctx->data_end - ctx->data, parity = length & 1, is_long = length > 100;
	__u32 place = length & 3;
	void *counts = bpf_map_lookup_elem(&by_parity, &parity);
	void *flows = bpf_map_lookup_elem(&by_length, &is_long);
	__u64 *number, one = 1;

	if (!counts || !flows)
		return XDP_ABORTED;
	number = bpf_map_lookup_elem(counts, &place);
	if (number)
		*number += length;
	number = bpf_map_lookup_elem(flows, &length);
	if (number)
		++*number;
	else if (bpf_map_update_elem(flows, &length, &one, BPF_NOEXIST))
		return XDP_DROP;
	return number ? XDP_PASS : XDP_TX;
}

char LICENSE[] SEC("license") = "GPL";
