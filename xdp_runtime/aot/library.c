/* SPDX-License-Identifier: Apache-2.0 */
/* The part of a compiled program that is the same for all: memory at the start, and the functions
 * of xdpu.h.  The layouts of pool and worker memory come from the generated file (XDPU_* macros).
 */
#define _GNU_SOURCE
#include "image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

extern int64_t batch(struct xdpu_packet *, int64_t count, void *memory, int64_t worker)
	__asm__("xdpu.batch");

static void die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", xdpu_program, what, strerror(errno));
	abort();
}

static void map_twice(const struct xdpu_mirror *mirror)
{
	int fd = memfd_create("xdpu", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, mirror->size))
		die("memory of a ring buffer");
	for (int i = 0; i < 2; i++)
		if (mmap(mirror->at + i * mirror->size, mirror->size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			die("memory of a ring buffer");
	close(fd);
}

/* A worker's list of the lines that it writes at the start and end of a batch. */
static void watch_pools(unsigned worker)
{
	uint64_t *list = calloc(1 + 2 * xdpu_map_count, sizeof(*list));

	if (!list)
		die("memory");
	for (unsigned i = 0; i < xdpu_map_count; i++) {
		uint8_t *head = xdpu_maps[i].operations->pool;

		if (!head)
			continue;
		list[1 + 2 * list[0]] =
			(uintptr_t)(head + XDPU_POOL_LINES + worker * XDPU_POOL_LINE_BYTES);
		list[2 + 2 * list[0]] = (uintptr_t)(head + XDPU_POOL_EPOCH);
		list[0]++;
	}
	memcpy(xdpu_worker_memory + worker * xdpu_worker_stride + XDPU_WORKER_LINES, &list,
	       sizeof(list));
}

__attribute__((constructor)) static void prepare(void)
{
	for (unsigned i = 0; i < xdpu_mirror_count; i++)
		map_twice(&xdpu_mirrors[i]);
	for (unsigned i = 0; i < xdpu_fill_count; i++)
		memcpy(xdpu_fills[i].at, xdpu_fills[i].from, xdpu_fills[i].size);
	for (unsigned i = 0; i < xdpu_seed_count; i++)
		if (getrandom(xdpu_seeds[i], 16, 0) != 16)
			die("random numbers");
	for (unsigned i = 0; i < xdpu_pointer_count; i++)
		memcpy(xdpu_pointers[i].at, &xdpu_pointers[i].region, sizeof(void *));
	for (unsigned i = 0; i < xdpu_slot_count; i++) {
		const struct xdpu_slot *slot = &xdpu_slots[i];

		errno = -xdpu_map_update(&xdpu_maps[slot->map], &slot->key, &slot->inner, 0);
		if (errno)
			die(xdpu_maps[slot->map].name);
	}
	for (unsigned worker = 0; worker < xdpu_workers; worker++)
		watch_pools(worker);
}

void xdpu_run(struct xdpu_packet *packets, size_t count, unsigned worker)
{
	batch(packets, count, xdpu_worker_memory + worker * xdpu_worker_stride, worker);
}

const struct xdpu_map *xdpu_map_find(const char *name)
{
	for (unsigned i = 0; i < xdpu_map_count; i++)
		if (!strcmp(xdpu_maps[i].name, name))
			return &xdpu_maps[i];
	return NULL;
}

static size_t padded(const struct xdpu_map *map)
{
	return (map->value_size + 7) & ~(size_t)7;
}

int xdpu_map_lookup(const struct xdpu_map *map, const void *key, void *values)
{
	const struct xdpu_map_operations *op = map->operations;

	if (op->read)
		return op->read(0, key, values) ? -ENOENT : 0;
	if (!op->peek)
		return -EOPNOTSUPP;
	for (unsigned worker = 0; worker < map->values; worker++) {
		const void *found = op->peek(worker, key);

		if (!found)
			return -ENOENT;
		memcpy((uint8_t *)values + worker * padded(map), found, map->value_size);
	}
	return 0;
}

static int fits(const unsigned *inner, const void *value)
{
	uint32_t place;

	memcpy(&place, value, sizeof(place));
	while (*inner && *inner != place)
		inner++;
	return *inner != 0;
}

int xdpu_map_update(const struct xdpu_map *map, const void *key, const void *values, uint64_t flags)
{
	const struct xdpu_map_operations *op = map->operations;

	if (op->inner && !fits(op->inner, values))
		return -EINVAL;
	if (op->update_all)
		return op->update_all(xdpu_workers, key, values, flags);
	if (!op->update)
		return -EOPNOTSUPP;
	if (op->pool)
		return op->update(xdpu_workers, key, values, flags);
	for (unsigned worker = 0; worker < map->values; worker++) {
		int status = op->update(worker, key, (const uint8_t *)values + worker * padded(map), flags);

		if (status)
			return status;
	}
	return 0;
}

int xdpu_map_delete(const struct xdpu_map *map, const void *key)
{
	return map->operations->delete ? map->operations->delete(0, key) : -EOPNOTSUPP;
}

int xdpu_map_next_key(const struct xdpu_map *map, const void *key, void *next)
{
	return map->operations->next_key ? map->operations->next_key(0, key, next) : -EOPNOTSUPP;
}
