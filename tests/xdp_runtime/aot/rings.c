// SPDX-License-Identifier: Apache-2.0
// Records to user space by a ring buffer and a perf event array, and from it by a user ring buffer.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} samples SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 4096);
} commands SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
} sums SEC(".maps");

struct event {
	__u32 length;
	__u8 first[12];
};

static long add(struct bpf_dynptr *d, void *context)
{
	__u64 *sum = context;
	__u32 number = 0;

	bpf_dynptr_read(&number, sizeof(number), d, 0, 0);
	*sum += number;
	return 0;
}

SEC("xdp")
int rings(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 sum = 0, head = 0x1122334455667788;
	__u32 length = end - data, zero = 0;
	struct event *e;

	if (data + 14 > end)
		return XDP_ABORTED;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (e) {
		e->length = length;
		__builtin_memcpy(e->first, data, sizeof(e->first));
		if (data[13] & 1)
			bpf_ringbuf_discard(e, 0);
		else
			bpf_ringbuf_submit(e, 0);
	}
	if (data[13] & 2)
		bpf_perf_event_output(ctx, &samples, BPF_F_CURRENT_CPU | (__u64)length << 32, &head,
				      sizeof(head));
	if (data[13] & 4) {
		bpf_user_ringbuf_drain(&commands, add, &sum, 0);
		bpf_map_update_elem(&sums, &zero, &sum, 0);
	}
	return XDP_PASS;
}
