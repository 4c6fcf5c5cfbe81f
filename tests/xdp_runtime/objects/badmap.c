// A map attribute nobody knows.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__uint(colour, 3);
} odd SEC(".maps");

SEC("xdp")
int xdp_badmap(struct xdp_md *ctx)
{
	__u32 key = 0;
	return bpf_map_lookup_elem(&odd, &key) ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
