// Maps as `struct bpf_map_def` in section "maps", before BTF.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct old_map_def {
	unsigned int type, key_size, value_size, max_entries, map_flags, spare;
};

struct old_map_def SEC("maps") old_hash = {
	.type = BPF_MAP_TYPE_HASH, .key_size = 4, .value_size = 8, .max_entries = 100,
	.map_flags = BPF_F_NO_PREALLOC,
};
struct old_map_def SEC("maps") old_array = {
	.type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 2,
};

SEC("xdp_old")
int old_program(struct xdp_md *ctx)
{
	__u32 key = 1;
	__u32 *value = bpf_map_lookup_elem(&old_array, &key);

	return value && bpf_map_lookup_elem(&old_hash, value) ? XDP_PASS : XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
