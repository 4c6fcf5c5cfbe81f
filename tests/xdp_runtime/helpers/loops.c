// SPDX-License-Identifier: Apache-2.0
// bpf_loop and bpf_for_each_map_elem: counts, flags, and callbacks that are known only by path.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 5);
} cells SEC(".maps");

struct command {
	__u32 which, stop;
	__u64 count, flags;
	__s64 result;
	__u64 sum, last;
};

struct state {
	__u64 sum, last;
	__u32 stop;
};

/* all 64 bits of count and flags */
static long (*loop)(__u64 count, void *callback, void *state, __u64 flags) = (void *)181;

static long add(__u64 index, struct state *s)
{
	s->sum += index;
	s->last = index;
	return index >= s->stop;
}

static long twice(__u64 index, struct state *s)
{
	s->sum += 2 * index + 1;
	return index == s->stop;
}

static long third(__u64 index, void *nothing)
{
	return index == 3;
}

static long outer(__u64 index, struct state *s)
{
	s->last = loop((index & 7) + 1, index & 1 ? add : twice, s, 0);
	return index >= 5;
}

struct walk {
	unsigned char *at, *end;
	__u64 sum;
};

static long walk(__u64 index, struct walk *w)
{
	if (w->at + 1 > w->end)
		return 1;
	w->sum += *w->at++;
	return 0;
}

/* a callback that lies on the stack of the caller's caller */
struct inside {
	void *callback;
	__u64 pad;
	struct state state;
};

static long through(__u64 index, struct inside *in)
{
	loop(index + 1, *(void *volatile *)&in->callback, &in->state, 0);
	return index == 4;
}

static __noinline long handed_any(__u64 count, void *callback, void *what)
{
	return loop(count & 63, callback, what, 0);
}

static __noinline long handed(__u64 count, void *callback, struct state *s)
{
	return loop(count, callback, s, 0);
}

static long visit(void *map, __u32 *key, __u64 *value, struct state *s)
{
	s->sum += *key;
	return *key == s->stop;
}

static long count_up(void *map, __u32 *key, __u64 *value, struct state *s)
{
	s->last = ++*value;
	return 0;
}

SEC("xdp")
int loops(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data;
	struct state s = {};
	__u64 count, flags;
	void *chosen;
	long r = -1;

	if ((void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	s.stop = c->stop;
	count = c->count;
	flags = c->flags;
	chosen = c->stop & 1 ? add : twice;
	switch (c->which) {
	case 0: r = loop(count, add, &s, 0); asm volatile("" :: "i"(0)); break;
	case 1: r = loop(count, add, &s, flags); asm volatile("" :: "i"(1)); break;
	case 2: r = loop(count, third, NULL, 0); asm volatile("" :: "i"(2)); break;
	case 3: r = loop((__u32)count, chosen, &s, 0); asm volatile("" :: "i"(3)); break;
	case 4: r = loop(count, outer, &s, 0); asm volatile("" :: "i"(4)); break;
	case 5: r = loop(count, third, NULL, flags); asm volatile("" :: "i"(5)); break;
	case 6: r = loop(count, twice, &s, 1); asm volatile("" :: "i"(6)); break;
	case 7: r = handed(count, add, &s); break;
	case 8: r = handed(count, twice, &s) + handed(2, chosen, &s); break;
	case 10: {
		struct inside in = {};

		in.state.stop = c->stop;
		*(void *volatile *)&in.callback = c->stop & 1 ? add : twice;
		r = loop(count, through, &in, 0);
		s = in.state;
		break;
	}
	case 11: {
		struct walk w = {(void *)(long)ctx->data, (void *)(long)ctx->data_end, 0};

		r = handed_any(count, walk, &w);
		r += handed_any(c->stop, add, &s);
		s.last = w.sum;
		break;
	}
	case 9:
		chosen = c->stop & 1 ? visit : count_up;
		r = bpf_for_each_map_elem(&cells, chosen, &s, flags);
		r += bpf_get_smp_processor_id() & 0 ? 1 : loop(3, third, NULL, 0);
		break;
	}
	c->result = r;
	c->sum = s.sum;
	c->last = s.last;
	return XDP_PASS;
}
