// SPDX-License-Identifier: Apache-2.0
// A pointer to an object of the kernel in a map's value.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct task_struct;

struct value {
	__u64 number;
	struct task_struct __kptr *task;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct value);
	__uint(max_entries, 1);
} tasks SEC(".maps");

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	__u32 key = 0;
	struct value *v = bpf_map_lookup_elem(&tasks, &key);

	return v ? XDP_PASS : XDP_DROP;
}
