// Safe, and for the kernel alone: a socket, and a map's flag that nothing knows.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__uint(map_flags, 1 << 30);
	__type(key, __u32);
	__type(value, __u64);
} odd SEC(".maps");

SEC("xdp")
int socket(struct xdp_md *ctx)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *found = bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv4), -1, 0);

	if (!found)
		return XDP_PASS;
	bpf_sk_release(found);
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
