// Says something of each packet.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int xdp_printk(struct xdp_md *ctx)
{
	bpf_printk("a packet of %d bytes", ctx->data_end - ctx->data);
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
