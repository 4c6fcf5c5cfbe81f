// A single CO-RE relocation.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct net_device {
	int ifindex;
} __attribute__((preserve_access_index));

SEC("xdp")
int xdp_core(struct xdp_md *ctx)
{
	struct net_device *dev = (void *)(long)ctx->data;

	return dev->ifindex;
}

char LICENSE[] SEC("license") = "GPL";
