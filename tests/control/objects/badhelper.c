// A helper that no kernel has.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

static long (*unheard_of)(void *) = (void *)9999;

SEC("xdp")
int xdp_badhelper(struct xdp_md *ctx)
{
	return unheard_of(ctx);
}

char LICENSE[] SEC("license") = "GPL";
