// An extern function (kfunc): it exists only in a kernel.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_xdp_get_xfrm_state(const struct xdp_md *ctx, __u32 *options, int *size) __ksym;

SEC("xdp")
int xdp_kfunc(struct xdp_md *ctx)
{
	__u32 hash = 0;
	int type = 0;

	return bpf_xdp_get_xfrm_state(ctx, &hash, &type) ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
