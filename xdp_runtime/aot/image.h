/* SPDX-License-Identifier: Apache-2.0 */
/* What the generated file hands to library.c: where map memory is and what it holds at first. */
#ifndef XDPU_IMAGE_H
#define XDPU_IMAGE_H

#include "xdpu.h"

/* NULL where the family has none.  The first argument is the worker. */
struct xdpu_map_operations {
	int64_t (*read)(int64_t worker, const void *key, void *values);
	void *(*peek)(int64_t worker, const void *key);
	int64_t (*update)(int64_t worker, const void *key, const void *value, int64_t flags);
	int64_t (*update_all)(int64_t worker, const void *key, const void *values, int64_t flags);
	int64_t (*delete)(int64_t worker, const void *key);
	int64_t (*next_key)(int64_t worker, const void *key, void *next);
	uint8_t *ring; /* the first of `rings`, each `ring_stride` bytes with `ring_bytes` of data */
	size_t ring_bytes, ring_stride;
	unsigned rings;
	int user_ring; /* written by user space */
	const unsigned *inner; /* of a map of maps: those that fit, by their place from 1; ends with 0 */
	uint8_t *pool; /* its head, if elements are freed: workers say there where batches end */
};

/* Bytes that are not zero at the start. */
struct xdpu_fill {
	uint8_t *at;
	const uint8_t *from;
	size_t size;
};

/* size bytes at `at` appear again right behind themselves */
struct xdpu_mirror {
	uint8_t *at;
	size_t size;
};

/* The address of a map's region in the descriptor of a map that may be in others. */
struct xdpu_pointer {
	uint8_t *at;
	const uint8_t *region;
};

/* A slot of a map of maps that is filled at the start. */
struct xdpu_slot {
	unsigned map;
	uint32_t key, inner;
};

/* 16 random bytes that seed a hash */
extern uint8_t *const xdpu_seeds[];
extern const struct xdpu_fill xdpu_fills[];
extern const struct xdpu_mirror xdpu_mirrors[];
extern const struct xdpu_pointer xdpu_pointers[];
extern const struct xdpu_slot xdpu_slots[];
extern const unsigned xdpu_seed_count, xdpu_fill_count, xdpu_mirror_count;
extern const unsigned xdpu_pointer_count, xdpu_slot_count;
extern uint8_t xdpu_worker_memory[];
extern const size_t xdpu_worker_stride;

#endif
