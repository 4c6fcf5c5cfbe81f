// No XDP program.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("kprobe/schedule")
int on_schedule(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
