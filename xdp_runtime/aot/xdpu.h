/* SPDX-License-Identifier: Apache-2.0 */
/* An XDP program compiled ahead of time by `xdpu aot`, with its maps, as a shared library.
 *
 * Maps are memory of the process that loads it, made anew each time.  Thread `worker` is the only
 * one to call xdpu_run with its number; maps may be used from any thread at any time.
 */
#ifndef XDPU_H
#define XDPU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { XDPU_ABORTED, XDPU_DROP, XDPU_PASS, XDPU_TX, XDPU_REDIRECT };

/* A packet, in and out.  `hard_start` and `frame_end` bound what bpf_xdp_adjust_head and _tail may
 * take.  Afterwards the edges are where the program left them, and `verdict` is what it returned,
 * all 32 bits: more than XDPU_REDIRECT means XDPU_ABORTED.
 */
struct xdpu_packet {
	uint8_t *data, *data_end;
	uint8_t *data_meta; /* metadata is what lies between it and data */
	uint8_t *hard_start, *frame_end;
	uint32_t ingress_ifindex, rx_queue_index;
	uint32_t verdict, redirect_ifindex;
};

extern const char xdpu_program[]; /* its name */
extern const unsigned xdpu_workers;

/* Run the program on each packet.  A batch is also the unit of reclamation: what a map's element
 * held before a delete can be read until the end of the batch.  64 is a good size.
 */
void xdpu_run(struct xdpu_packet *packets, size_t count, unsigned worker);

struct xdpu_map {
	const char *name;
	uint32_t type; /* enum bpf_map_type */
	uint32_t key_size, value_size, max_entries, flags;
	uint32_t values; /* values a key has: xdpu_workers for per-CPU maps, else 1 */
	const struct xdpu_map_operations *operations; /* not for callers */
};

extern const struct xdpu_map xdpu_maps[];
extern const unsigned xdpu_map_count;

const struct xdpu_map *xdpu_map_find(const char *name); /* or NULL */

/* These return 0 or a negative errno, as bpf(2) would.  Values are value_size bytes; those of a
 * per-CPU map lie behind each other, each rounded up to 8 bytes.  -EOPNOTSUPP: this type of map has
 * no such operation.  A value of a map of maps is the place in xdpu_maps of the map in it, counted
 * from 1 (a uint32_t); -EINVAL: that map does not fit.
 */
int xdpu_map_lookup(const struct xdpu_map *map, const void *key, void *values);
int xdpu_map_update(const struct xdpu_map *map, const void *key, const void *values, uint64_t flags);
int xdpu_map_delete(const struct xdpu_map *map, const void *key);
int xdpu_map_next_key(const struct xdpu_map *map, const void *key, void *next); /* key NULL: first */

/* Records that the program wrote to a ring buffer or a perf event array.  The latter has a ring for
 * each worker, the former one.  One thread at a time may read a ring, while workers go on writing.
 */
unsigned xdpu_ring_count(const struct xdpu_map *map); /* 0: the map is neither */

/* What is at `data` may be read until the function returns; not 0 ends xdpu_ring_consume. */
typedef int (*xdpu_record)(void *context, const void *data, size_t size);

/* Calls `record` for each record that was committed, the oldest first, and gives their memory back;
 * returns how many there were.
 */
int64_t xdpu_ring_consume(const struct xdpu_map *map, unsigned ring, xdpu_record record,
			  void *context);

/* An eventfd, or a negative errno.  It becomes readable when a record is committed to a ring of which
 * everything before was read, or with BPF_RB_FORCE_WAKEUP.  Consume once after the first call.
 */
int xdpu_ring_event(const struct xdpu_map *map, unsigned ring);

uint64_t xdpu_ring_lost(const struct xdpu_map *map, unsigned ring); /* found no room */

/* A record for bpf_user_ringbuf_drain.  One thread at a time may produce.  0, -E2BIG: it can never
 * fit, -ENOSPC: others have to be drained first.
 */
int xdpu_ring_produce(const struct xdpu_map *map, const void *data, size_t size);

#ifdef __cplusplus
}
#endif
#endif
