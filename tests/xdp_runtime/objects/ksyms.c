// Kernel functions that are there here, that are not, and whose absence a program asks about.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern void bpf_rcu_read_lock(void) __ksym __weak;
extern void bpf_rcu_read_unlock(void) __ksym __weak;
extern int bpf_not_anywhere(int) __ksym __weak;
extern int bpf_has_to_be_there(int) __ksym;

SEC("?xdp")
int strong(struct xdp_md *ctx)
{
	return bpf_has_to_be_there(1);
}

SEC("?xdp")
int unasked(struct xdp_md *ctx)
{
	return bpf_not_anywhere(1);
}

SEC("xdp/devmap")
int egress(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("xdp")
int asked(struct xdp_md *ctx)
{
	if (bpf_not_anywhere)
		return bpf_not_anywhere(1);
	if (!bpf_rcu_read_lock)
		return XDP_ABORTED;
	bpf_rcu_read_lock();
	bpf_rcu_read_unlock();
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
