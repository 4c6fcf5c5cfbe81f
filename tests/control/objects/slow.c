// Takes an hour over a packet of the experimental EtherType 0x88b5, as no verifier forbids.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

static long inner(__u32 index, __u64 *x)
{
	*x = *x * 6364136223846793005ULL + index;
	return 0;
}

static long outer(__u32 index, __u64 *x)
{
	bpf_loop(1 << 23, inner, x, 0);
	return 0;
}

SEC("xdp")
int slow(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u64 x = bpf_get_prandom_u32();

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end || eth->h_proto != bpf_htons(0x88b5))
		return XDP_PASS;
	bpf_loop(1 << 23, outer, &x, 0);
	return x ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
