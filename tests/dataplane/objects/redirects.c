/* Redirects beyond one interface: to all entries, with programs of entries, to other workers, to
 * rings.  The first byte of the packet says what its program does where several could. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} hashed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct bpf_cpumap_val);
} cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

static __always_inline int first(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	return data + 16 > (__u8 *)(long)ctx->data_end ? -1 : data[0];
}

static __always_inline void note(__u32 index, __u64 value)
{
	__u64 *cell = bpf_map_lookup_elem(&seen, &index);

	if (cell)
		*cell = value;
}

SEC("xdp")
int one(struct xdp_md *ctx)
{
	return bpf_redirect_map(&ports, first(ctx) & 7, 0);
}

SEC("xdp")
int many(struct xdp_md *ctx)
{
	return bpf_redirect_map(&ports, 0, BPF_F_BROADCAST);
}

SEC("xdp")
int others(struct xdp_md *ctx)
{
	return bpf_redirect_map(&ports, 0, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS);
}

SEC("xdp")
int many_hashed(struct xdp_md *ctx)
{
	return bpf_redirect_map(&hashed, 0, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS);
}

SEC("xdp")
int one_hashed(struct xdp_md *ctx)
{
	return bpf_redirect_map(&hashed, first(ctx) & 7, 0);
}

/* Says by the second byte where the packet goes, and with the third, what; and grows it. */
SEC("xdp/devmap")
int stamp(struct xdp_md *ctx)
{
	__u8 *data;

	note(0, ctx->egress_ifindex);
	note(1, ctx->ingress_ifindex);
	note(2, ctx->rx_queue_index);
	if (bpf_xdp_adjust_head(ctx, -4))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	if (data + 20 > (__u8 *)(long)ctx->data_end)
		return XDP_DROP;
	data[0] = 's';
	data[1] = ctx->egress_ifindex;
	data[2] = ctx->ingress_ifindex;
	data[3] = ctx->data_end - ctx->data;
	return XDP_PASS;
}

/* The verdict is in the second byte. */
SEC("xdp/devmap")
int judge(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	return data + 16 > (__u8 *)(long)ctx->data_end ? XDP_DROP : data[1];
}

SEC("xdp")
int to_worker(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	return data + 16 > (__u8 *)(long)ctx->data_end ? XDP_DROP
						       : bpf_redirect_map(&cpus, data[0], 0);
}

/* The verdict is in the second byte, the interface of a redirect in the third; 100 is by map. */
SEC("xdp/cpumap")
int there(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	if (data + 16 > (__u8 *)(long)ctx->data_end)
		return XDP_DROP;
	note(3, bpf_get_smp_processor_id() + 1);
	note(4, ctx->ingress_ifindex);
	note(5, ctx->rx_queue_index);
	data[3] = bpf_get_smp_processor_id();
	if (data[1] == 100)
		return bpf_redirect_map(&ports, 4, 0);
	return data[1] == XDP_REDIRECT ? bpf_redirect(data[2], 0) : data[1];
}

SEC("xdp")
int to_ring(struct xdp_md *ctx)
{
	__u32 queue = ctx->rx_queue_index;
	__u32 *socket = bpf_map_lookup_elem(&xsks, &queue);

	if (socket)
		note(6, *socket + 1);
	return bpf_redirect_map(&xsks, queue, XDP_DROP);
}

/* Each reason to be aborted, by the first byte. */
SEC("xdp")
int aborts(struct xdp_md *ctx)
{
	switch (first(ctx)) {
	case 1:
		return bpf_redirect(1, 1);
	case 2:
		return bpf_redirect_map(&ports, 0, 1 << 5);
	case 3:
		return 77;
	case 4:
		return XDP_PASS;
	default:
		return XDP_ABORTED;
	}
}

/* Two calls by the first two bytes, then the verdict is REDIRECT whatever the second has said. */
static __always_inline void call(__u32 what)
{
	switch (what) {
	case 0:
		bpf_redirect_map(&ports, 4, 0);
		break;
	case 1:
		bpf_redirect_map(&ports, 0, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS);
		break;
	case 2:
		bpf_redirect_map(&hashed, 4, 1 << 6);
		break;
	case 3:
		bpf_redirect(1, 1);
		break;
	case 4:
		bpf_redirect_map(&cpus, 0, 4);
		break;
	case 5:
		bpf_redirect_map(&xsks, 0, 8);
		break;
	}
}

SEC("xdp")
int twice(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	if (data + 16 > (__u8 *)(long)ctx->data_end)
		return XDP_DROP;
	call(data[0]);
	call(data[1]);
	return XDP_REDIRECT;
}

char _license[] SEC("license") = "GPL";
