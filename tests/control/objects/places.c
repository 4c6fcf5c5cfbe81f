// SPDX-License-Identifier: Apache-2.0
// Counts in the map that is in a map, then goes on in the program that is in a program array.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct counter {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} one SEC(".maps"), two SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} narrow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(key_size, 4);
	__uint(max_entries, 2);
	__array(values, struct counter);
} counters SEC(".maps") = { .values = { [0] = &one } };

int passes(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, 4);
	__uint(max_entries, 2);
	__array(values, int(void *));
} places SEC(".maps") = { .values = { [0] = (void *)&passes } };

SEC("xdp")
int passes(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int drops(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("xdp")
int start(struct xdp_md *ctx)
{
	__u32 zero = 0;
	void *counter = bpf_map_lookup_elem(&counters, &zero);
	__u64 *value = counter ? bpf_map_lookup_elem(counter, &zero) : 0;

	if (value)
		__sync_fetch_and_add(value, 1);
	bpf_tail_call(ctx, &places, 0);
	return XDP_ABORTED;
}
