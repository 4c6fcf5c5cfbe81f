// SPDX-License-Identifier: Apache-2.0
// bpf_timer_*: the packet is a script of operations on timers, and gets their results.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct value {
	__u64 fired;
	struct bpf_timer timer;
	__u64 argument;		/* what the callback does, see below */
	__s64 inner;		/* what its helper answered */
	__u32 key;
};

#define MAP(name, kind)				\
struct {					\
	__uint(type, BPF_MAP_TYPE_##kind);	\
	__uint(max_entries, 8);			\
	__type(key, __u32);			\
	__type(value, struct value);		\
} name SEC(".maps")

MAP(hash, HASH);
MAP(lru, LRU_HASH);
MAP(array, ARRAY);

enum { NOTHING, REARM, CANCEL_OWN, DELETE_OWN, START_OTHER, INIT_OWN, SET_OTHER };

struct step {
	__u8 operation, key, map, spare;
	__u32 flags;
	__u64 nsecs;
	__s64 result;
};

struct script {
	__u8 head[16];
	struct step steps[12];
};

static int other(void *map, __u32 *key, struct value *value)
{
	value->fired += 1000;
	return 0;
}

static int fire(void *map, __u32 *key, struct value *value)
{
	value->fired++;
	value->key = *key;
	switch (value->argument) {
	case REARM:
		if (value->fired < 4)
			value->inner = bpf_timer_start(&value->timer, 1000000, 0);
		break;
	case CANCEL_OWN:
		value->inner = bpf_timer_cancel(&value->timer);
		break;
	case DELETE_OWN:
		value->inner = bpf_map_delete_elem(map, key);
		break;
	case START_OTHER: {
		struct value *next;
		__u32 number = *key + 1;

		next = bpf_map_lookup_elem(&array, &number);
		if (next)
			value->inner = bpf_timer_start(&next->timer, 0, 0);
		break;
	}
	case INIT_OWN:
		value->inner = bpf_timer_init(&value->timer, map, 1);
		break;
	case SET_OTHER:
		bpf_timer_set_callback(&value->timer, other);
		value->inner = bpf_timer_start(&value->timer, 0, 0);
		break;
	}
	return 0;
}

#define OPERATE(map, v)								\
	switch (s->operation) {							\
	case 0:									\
		s->result = bpf_timer_init(&v->timer, &map, s->flags);		\
		break;								\
	case 1:									\
		s->result = bpf_timer_set_callback(&v->timer, fire);		\
		break;								\
	case 2:									\
		s->result = bpf_timer_start(&v->timer, s->nsecs, s->flags);	\
		break;								\
	case 3:									\
		s->result = bpf_timer_cancel(&v->timer);			\
		break;								\
	case 4:									\
		s->result = bpf_map_delete_elem(&map, &key);			\
		break;								\
	case 5: {								\
		struct value fresh = {};					\
										\
		fresh.argument = s->nsecs;					\
		s->result = bpf_map_update_elem(&map, &key, &fresh, s->flags);	\
		break;								\
	}									\
	case 7: /* a timer of what is not there any more */			\
		bpf_map_delete_elem(&map, &key);				\
		s->result = bpf_timer_start(&v->timer, s->nsecs, s->flags);	\
		break;								\
	case 8:									\
		s->result = bpf_timer_start(&v->timer,				\
					    bpf_ktime_get_ns() + s->nsecs, 1);	\
		break;								\
	case 9:									\
		s->result = bpf_timer_set_callback(&v->timer, other);		\
		break;								\
	case 10:								\
		s->result = v->fired;						\
		break;								\
	}

static __always_inline void step(struct step *s)
{
	__u32 key = s->key;
	struct value *v;

	s->result = -1000;
	if (s->map == 0) {
		v = bpf_map_lookup_elem(&hash, &key);
		if (v) {
			OPERATE(hash, v)
		} else if (s->operation == 5) {
			struct value fresh = { .argument = s->nsecs };

			s->result = bpf_map_update_elem(&hash, &key, &fresh, s->flags);
		}
	} else if (s->map == 1) {
		v = bpf_map_lookup_elem(&lru, &key);
		if (v) {
			OPERATE(lru, v)
		} else if (s->operation == 5) {
			struct value fresh = { .argument = s->nsecs };

			s->result = bpf_map_update_elem(&lru, &key, &fresh, s->flags);
		}
	} else {
		v = bpf_map_lookup_elem(&array, &key);
		if (v) {
			OPERATE(array, v)
		}
	}
}

SEC("xdp") int run_script(struct xdp_md *ctx)
{
	struct script *p = (void *)(long)ctx->data;
	int i;

	if ((void *)(p + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	for (i = 0; i < 12; i++)
		step(&p->steps[i]);
	return XDP_TX;
}

/* many timers: each run starts one, the callbacks log in which order they came */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct value);
} many SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, __u32);
} order SEC(".maps");

__u32 logged;

static int log_key(void *map, __u32 *key, struct value *value)
{
	__u32 at = __sync_fetch_and_add(&logged, 1);

	bpf_map_update_elem(&order, &at, key, 0);
	if (value->argument == DELETE_OWN)
		bpf_map_delete_elem(map, key);
	return 0;
}

struct one {
	__u8 head[16];
	__u32 key, argument;
	__u64 nsecs;
};

SEC("xdp") int start_one(struct xdp_md *ctx)
{
	struct one *o = (void *)(long)ctx->data;
	struct value *v, fresh = {};
	__u32 key;

	if ((void *)(o + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	key = o->key;
	fresh.argument = o->argument;
	v = bpf_map_lookup_elem(&many, &key);
	if (!v) {
		bpf_map_update_elem(&many, &key, &fresh, 0);
		v = bpf_map_lookup_elem(&many, &key);
		if (!v || bpf_timer_init(&v->timer, &many, 1))
			return XDP_DROP;
	}
	bpf_timer_set_callback(&v->timer, log_key);
	return bpf_timer_start(&v->timer, o->nsecs, 0) ? XDP_DROP : XDP_PASS;
}
