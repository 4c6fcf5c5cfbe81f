// Reads behind the packet without a check: the kernel's verifier refuses it, and so does ours.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int xdp_fault(struct xdp_md *ctx)
{
	unsigned char *data = (void *)(long)ctx->data;

	return data[1000] ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
