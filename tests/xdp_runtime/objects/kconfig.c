// Extern kernel configuration values of each type.  PASS if they are what this kernel has.
#include <linux/bpf.h>
#include <linux/version.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

extern int CONFIG_HZ __kconfig;
extern int LINUX_KERNEL_VERSION __kconfig;
extern bool CONFIG_BPF_SYSCALL __kconfig;
extern bool LINUX_HAS_BPF_COOKIE __kconfig __weak;
extern char CONFIG_LOCALVERSION[8] __kconfig __weak;
extern unsigned short CONFIG_NOT_THERE __kconfig __weak;

SEC("xdp")
int xdp_kconfig(struct xdp_md *ctx)
{
	if (CONFIG_HZ < 24 || LINUX_KERNEL_VERSION < KERNEL_VERSION(4, 18, 0))
		return XDP_DROP;
	if (LINUX_HAS_BPF_COOKIE || !CONFIG_BPF_SYSCALL || CONFIG_LOCALVERSION[7] || CONFIG_NOT_THERE)
		return XDP_ABORTED;
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
