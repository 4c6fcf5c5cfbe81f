// SPDX-License-Identifier: Apache-2.0
// Loops by open-coded iterators, and the sections that the kernel has around them.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct bpf_iter_num {
	__u64 opaque;
};
extern int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end) __ksym;
extern int *bpf_iter_num_next(struct bpf_iter_num *it) __ksym;
extern void bpf_iter_num_destroy(struct bpf_iter_num *it) __ksym;
extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym;
extern void bpf_preempt_disable(void) __ksym;
extern void bpf_preempt_enable(void) __ksym;
extern void bpf_local_irq_save(unsigned long *flags) __ksym;
extern void bpf_local_irq_restore(unsigned long *flags) __ksym;

char _license[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 16);
} cells SEC(".maps");

struct command {
	__s32 start, end, stop, inner;
	__s32 made, rounds;
	__s64 sum;
};

SEC("xdp")
int loops(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data;
	struct bpf_iter_num it;
	unsigned long flags;
	__s64 sum = 0;
	int *at, rounds = 0, stop, made;

	if ((void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	stop = c->stop;
	made = bpf_iter_num_new(&it, c->start, c->end);
	while ((at = bpf_iter_num_next(&it))) {
		__u32 slot = *at & 15;
		__u64 *cell;

		sum += *at;
		rounds++;
		bpf_rcu_read_lock();
		cell = bpf_map_lookup_elem(&cells, &slot);
		if (cell)
			*cell += 1;
		bpf_rcu_read_unlock();
		if (*at == stop)
			break;
	}
	bpf_iter_num_destroy(&it);
	bpf_preempt_disable();
	bpf_local_irq_save(&flags);
	bpf_iter_num_new(&it, 0, c->inner & 63);
	while ((at = bpf_iter_num_next(&it)))
		sum ^= (__s64)*at << 32;
	bpf_iter_num_destroy(&it);
	bpf_local_irq_restore(&flags);
	bpf_preempt_enable();
	c->made = made;
	c->rounds = rounds;
	c->sum = sum;
	return XDP_PASS;
}
