// SPDX-License-Identifier: Apache-2.0
// Dynptrs over a map's value and over a ring's record; the packet says what to do with them.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

#define ROOM 48

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u8[64]);
	__uint(max_entries, 1);
} memory SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

struct command {
	__u8 flags, size, length, out_length;
	__u8 submit, fourth, spare[2];
	__u64 offset;		/* of reading and writing */
	__u64 reserved;		/* bytes of the record */
	__s64 made, written, read, moved;
	__u8 data[ROOM];
	__u8 out[ROOM];
	__u32 word;
} __attribute__((packed));

static __always_inline void use(struct command *c, struct bpf_dynptr *d, __u8 *buffer)
{
	__u32 length = c->length, out = c->out_length;

	if (length > ROOM)
		length = ROOM;
	if (out > ROOM)
		out = ROOM;
	__builtin_memcpy(buffer, c->data, ROOM);
	c->written = bpf_dynptr_write(d, c->offset, buffer, length, c->flags >> 1 & 1);
	c->read = bpf_dynptr_read(buffer, out, d, c->offset + c->fourth, c->flags >> 2 & 1);
	__builtin_memcpy(c->out, buffer, ROOM);
	__u32 *word = bpf_dynptr_data(d, c->fourth, 4);

	c->moved = 0;
	if (word) {
		c->word = *word;
		*word += 1;
		c->moved = 1;
	}
}

SEC("xdp")
int local(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data;
	struct bpf_dynptr d;
	__u8 buffer[ROOM];
	__u32 zero = 0;

	if ((void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__u8 *value = bpf_map_lookup_elem(&memory, &zero);

	if (!value)
		return XDP_ABORTED;
	__u32 size = c->size;

	if (size > 64)
		size = 64;
	c->made = bpf_dynptr_from_mem(value, size, c->flags & 1, &d);
	use(c, &d, buffer);
	return XDP_PASS;
}

SEC("xdp")
int record(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data;
	struct bpf_dynptr d;
	__u8 buffer[ROOM];

	if ((void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	c->made = bpf_ringbuf_reserve_dynptr(&ring, c->reserved, c->flags & 1, &d);
	use(c, &d, buffer);
	if (c->submit)
		bpf_ringbuf_submit_dynptr(&d, 0);
	else
		bpf_ringbuf_discard_dynptr(&d, 0);
	return XDP_PASS;
}
