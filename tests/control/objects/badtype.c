// A map type that no kernel has.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, 99);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} odd SEC(".maps");

SEC("xdp")
int xdp_badtype(struct xdp_md *ctx)
{
	__u32 key = 0;
	return bpf_map_lookup_elem(&odd, &key) ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
