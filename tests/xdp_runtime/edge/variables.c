// Global variables: .data, .bss, .rodata, sections of their own, tables; what the kernel was built with;
// a switch with many cases.
#include "edge.h"
#include <linux/version.h>
RESULTS(16)

struct limits {
	__u16 port;
	__u8 burst, verdict;
	__u32 rate;
};

const volatile struct limits limits[] = {
	{80, 9, XDP_TX, 1000}, {443, 3, XDP_PASS, 2000}, {53, 1, XDP_DROP, 50}, {8080, 2, XDP_TX, 7},
};
static const __u8 nibbles[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
static const char names[4][8] = {"drop", "pass", "tx", "redir"};
const volatile __u32 secret = 0xdecafbad;
const volatile bool strict = true;
const volatile char site[] = "fra1";

__u64 seen = 1000;
static volatile __u32 ring[32];
__u64 by_verdict[8];
struct {
	__u32 a, b;
	__u64 c[3];
} state SEC(".data.state") = {1, 2, {3, 4, 5}};
__u16 only_here SEC(".data.other") = 7;
__u64 big_bss[512];
const volatile __u32 table[8] SEC(".rodata.table") = {3, 1, 4, 1, 5, 9, 2, 6};

extern int CONFIG_HZ __kconfig;
extern int LINUX_KERNEL_VERSION __kconfig;
extern bool CONFIG_BPF_SYSCALL __kconfig __weak;
extern int CONFIG_NO_SUCH_THING __kconfig __weak;

SEC("xdp") int variables(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx), *end = end_of(ctx);
	__u32 verdict = XDP_DROP, i, ones = 0;

	if (data + 40 > end)
		return XDP_ABORTED;
	seen++;
	for (i = 0; i < 4; i++)
		if (limits[i].port == bpf_ntohs(*(__u16 *)(data + 36))) {
			verdict = limits[i].verdict;
			state.c[i & 1] += limits[i].rate;
		}
	for (i = 0; i < 20; i++)
		ones += nibbles[data[i] & 15] + nibbles[data[i] >> 4];
	ring[data[3] & 31] += ones;
	big_bss[(data[4] | data[5] << 8) & 511] ^= secret + ones;
	by_verdict[verdict & 7]++;
	state.a += table[data[6] & 7];
	state.b ^= ring[(data[3] + 1) & 31];
	only_here += names[data[7] & 3][data[8] & 7];
	if (strict && site[data[9] & 3] == 'f')
		state.c[2]++;
	return verdict;
}

SEC("xdp") int configured(struct xdp_md *ctx)
{
	put(0, CONFIG_HZ);
	put(1, LINUX_KERNEL_VERSION);
	put(2, CONFIG_BPF_SYSCALL);
	put(3, CONFIG_NO_SUCH_THING);
	put(4, LINUX_KERNEL_VERSION >= KERNEL_VERSION(5, 0, 0) ? 1 : 2);
	return XDP_PASS;
}

// A switch that becomes a tree of comparisons, or a table.
static __noinline __u32 classify(__u32 kind, __u32 x)
{
	switch (kind) {
	case 0: return x + 1;
	case 1: return x * 3;
	case 2: return x ^ 0x55aa;
	case 3: return x >> 3;
	case 4: return x << 2;
	case 5: return ~x;
	case 6: return -x;
	case 7: return x & 0xf0f0f0f0;
	case 8: return x | 0x0f0f;
	case 9: return x - 9;
	case 17: return x % 17u;
	case 40: return x / 40;
	case 41: return x * x;
	case 80: return 80;
	case 443: return 443 + x;
	case 65535: return 1;
	default: return 0;
	}
}

SEC("xdp") int switches(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u32 x = 0, i;

	if (data + 34 > (__u8 *)end_of(ctx))
		return XDP_ABORTED;
	for (i = 0; i < 16; i++)
		x = classify(i & 1 ? *(__u16 *)(data + i * 2) : data[i] & 63, x + data[i]);
	put(6, x);
	return classify(data[2] & 15, x) & 1 ? XDP_TX : XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
