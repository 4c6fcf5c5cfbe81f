// A weak extern kernel variable.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern const int bpf_prog_active __ksym __weak;

SEC("xdp")
int xdp_ksym(struct xdp_md *ctx)
{
	return &bpf_prog_active ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
