// Global variables, strings, function calls within .text and across sections, callbacks.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct config {
	__u32 limit;
	__u16 ports[3];
	char name[8];
	_Bool strict;
	__s64 bias;
	unsigned int low : 3, high : 5;
};

const volatile struct config settings = {
	.limit = 7, .ports = {80, 443, 8080}, .name = "edge", .strict = 1, .bias = -5,
	.low = 5, .high = 17,
};
volatile __u64 seen = 0x1122334455667788;
volatile __u64 dropped;
static volatile __u32 recent[4];
const volatile __u32 table[4] SEC(".rodata.tables") = {1, 2, 4, 8};
__u64 own SEC(".data.own") = 9;
static volatile const __u32 hidden SEC(".rodata.hidden") = 3;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __noinline __u64 square(__u64 x)
{
	return x * x + recent[x & 3];
}

static __noinline __u64 weigh(__u64 x)
{
	return square(x) + square(x + 1) + table[x & 3];
}

__noinline int classify(__u32 len)
{
	if (len > settings.limit)
		dropped++;
	return weigh(len) & 1;
}

struct bpf_map;

static long visit(struct bpf_map *map, __u32 *key, __u64 *value, void *ctx)
{
	*value += square(*key) + hidden;
	return 0;
}

SEC("xdp")
int xdp_globals(struct xdp_md *ctx)
{
	seen++;
	own++;
	bpf_for_each_map_elem(&counters, visit, 0, 0);
	bpf_printk("length %d", ctx->data_end - ctx->data);
	if (classify(ctx->data_end - ctx->data))
		return XDP_DROP;
	return weigh(recent[1]) ? XDP_PASS : XDP_TX;
}

SEC("xdp/other")
int xdp_other(struct xdp_md *ctx)
{
	return classify(ctx->rx_queue_index) ? XDP_PASS : XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
