// SPDX-License-Identifier: Apache-2.0
// Values with what only functions of the kernel can use; the test puts other names in place of the
// longest, which stand here.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct task_struct;

struct bpf_res_spin_lock {
	__u64 opaque[2];
};

struct pointing {
	__u64 number;
	struct task_struct __attribute__((btf_type_tag("kptr_untrusted"))) *task;
};

struct holding {
	__u64 number;
	struct bpf_res_spin_lock field;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct pointing);
	__uint(max_entries, 1);
} pointers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct holding);
	__uint(max_entries, 1);
} fields SEC(".maps");

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&pointers, &key) && bpf_map_lookup_elem(&fields, &key);
}
