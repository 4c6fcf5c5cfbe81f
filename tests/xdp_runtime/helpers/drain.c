// SPDX-License-Identifier: Apache-2.0
// bpf_user_ringbuf_drain; the packet says when to stop, and gets what the samples were.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 8192);
} other SEC(".maps");

struct command {
	__u64 flags;
	__u32 stop_after;	/* samples; 0: never */
	__u32 nested;		/* drain within the callback: 1 the same ring, 2 the other one */
	__s64 result, inner;
	__u64 samples, sum;
	__s64 last_read, last_written;
	__u32 first_words, inner_samples;
} __attribute__((packed));

struct sample {
	__u64 number;
	__u32 weight;
};

static long count(struct bpf_dynptr *d, struct command *c)
{
	c->inner_samples++;
	return 0;
}

static long visit(struct bpf_dynptr *d, struct command *c)
{
	struct sample s = {};
	__u32 *word = bpf_dynptr_data(d, 0, 4);
	__u64 mark = 0x1122334455667788;

	if (word)
		c->first_words += *word;
	c->last_read = bpf_dynptr_read(&s, sizeof(s), d, 0, 0);
	c->sum = c->sum * 31 + s.number + s.weight;
	c->last_written = bpf_dynptr_write(d, 4, &mark, sizeof(mark), 0);
	if (c->nested == 1)
		c->inner = bpf_user_ringbuf_drain(&ring, count, c, 0);
	else if (c->nested == 2)
		c->inner = bpf_user_ringbuf_drain(&other, count, c, 0);
	return ++c->samples == c->stop_after;
}

SEC("xdp") int drain(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data, mine = {};

	if ((void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	mine.flags = c->flags;
	mine.stop_after = c->stop_after;
	mine.nested = c->nested;
	mine.result = bpf_user_ringbuf_drain(&ring, visit, &mine, mine.flags);
	__builtin_memcpy(c, &mine, sizeof(mine));
	return XDP_TX;
}
