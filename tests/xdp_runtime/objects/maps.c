// BTF-defined maps of every shape: sizes and types, pinning, inner maps, initial slots.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct flow {
	__u32 src, dst;
	__u16 sport, dport;
	__u8 proto;
	__u8 mac[6];
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct flow);
	__type(value, struct counter);
	__uint(map_flags, BPF_F_NO_COMMON_LRU);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 16);
	__uint(max_entries, 5);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} first SEC(".maps"), second SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {
	.values = { [0] = &first, [3] = &second },
};

int xdp_leaf(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 8);
	__uint(key_size, 4);
	__array(values, int(void *));
} jumps SEC(".maps") = {
	.values = { [2] = (void *)&xdp_leaf },
};

SEC("xdp")
int xdp_leaf(struct xdp_md *ctx)
{
	__u32 key = XDP_DROP;
	struct counter *c = bpf_map_lookup_elem(&stats, &key);

	if (c)
		__sync_fetch_and_add(&c->packets, 1);
	return XDP_DROP;
}

SEC("xdp")
int xdp_root(struct xdp_md *ctx)
{
	struct flow f = {.src = ctx->rx_queue_index};
	struct counter *c = bpf_map_lookup_elem(&flows, &f);
	__u32 key = 0;
	void *in;

	if (!c)
		return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
	in = bpf_map_lookup_elem(&outer, &key);
	if (in)
		bpf_map_lookup_elem(in, &key);
	bpf_ringbuf_output(&events, &f, sizeof(f), 0);
	bpf_tail_call(ctx, &jumps, 2);
	return XDP_ABORTED;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
