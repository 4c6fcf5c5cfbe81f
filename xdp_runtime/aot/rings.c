/* SPDX-License-Identifier: Apache-2.0 */
/* Records from programs and to them: the rings of xdpu.h.  Their layout is that of the kernel's ring
 * buffers (XDPU_RING_* come from the generated file); maps/ringbuf.py has the other side.
 */
#include "image.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <string.h>

enum { HEAD_BYTES = 8 };

#define BUSY 0x80000000u
#define DISCARD 0x40000000u

static uint8_t *ring_of(const struct xdpu_map *map, unsigned ring)
{
	const struct xdpu_map_operations *op = map->operations;

	return ring < op->rings ? op->ring + ring * op->ring_stride : NULL;
}

static uint64_t *position(uint8_t *ring, size_t at)
{
	return (uint64_t *)(ring + at);
}

static size_t padded(size_t size)
{
	return HEAD_BYTES + ((size + 7) & ~(size_t)7);
}

unsigned xdpu_ring_count(const struct xdpu_map *map)
{
	return map->operations->user_ring ? 0 : map->operations->rings;
}

int64_t xdpu_ring_consume(const struct xdpu_map *map, unsigned ring, xdpu_record record,
			  void *context)
{
	uint8_t *base = xdpu_ring_count(map) ? ring_of(map, ring) : NULL;
	uint64_t at, mask = map->operations->ring_bytes - 1;
	int64_t count = 0;
	int stop = 0;

	if (!base)
		return -EOPNOTSUPP;
	at = *position(base, XDPU_RING_CONSUMER);
	/* in this order: whoever commits looks for the consumer's position after the record is there,
	 * and signals if it is at that record */
	while (!stop && at < __atomic_load_n(position(base, XDPU_RING_PRODUCER), __ATOMIC_SEQ_CST)) {
		const uint8_t *head = base + XDPU_RING_DATA + (at & mask);
		uint32_t length = __atomic_load_n((const uint32_t *)head, __ATOMIC_SEQ_CST);

		if (length & BUSY)
			break;
		if (!(length & DISCARD)) {
			stop = record(context, head + HEAD_BYTES, length);
			count++;
		}
		at += padded(length & ~DISCARD);
		__atomic_store_n(position(base, XDPU_RING_CONSUMER), at, __ATOMIC_SEQ_CST);
	}
	return count;
}

int xdpu_ring_event(const struct xdpu_map *map, unsigned ring)
{
	uint8_t *base = xdpu_ring_count(map) ? ring_of(map, ring) : NULL;
	uint32_t *event;
	int fd;

	if (!base)
		return -EOPNOTSUPP;
	event = (uint32_t *)(base + XDPU_RING_EVENT);
	if (*event)
		return *event;
	fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	__atomic_store_n(event, fd, __ATOMIC_SEQ_CST);
	return fd;
}

uint64_t xdpu_ring_lost(const struct xdpu_map *map, unsigned ring)
{
	uint8_t *base = ring_of(map, ring);

	return base ? __atomic_load_n(position(base, XDPU_RING_LOST), __ATOMIC_RELAXED) : 0;
}

int xdpu_ring_produce(const struct xdpu_map *map, const void *data, size_t size)
{
	uint8_t *base = ring_of(map, 0), *head;
	uint64_t at, room = map->operations->ring_bytes;

	if (!base || !map->operations->user_ring)
		return -EOPNOTSUPP;
	if (size > room || padded(size) > room)
		return -E2BIG;
	at = *position(base, XDPU_RING_PRODUCER);
	if (room - (at - __atomic_load_n(position(base, XDPU_RING_CONSUMER), __ATOMIC_ACQUIRE)) <
	    padded(size))
		return -ENOSPC;
	head = base + XDPU_RING_DATA + (at & (room - 1));
	memcpy(head + HEAD_BYTES, data, size);
	memcpy(head, &(uint64_t){size}, HEAD_BYTES);
	__atomic_store_n(position(base, XDPU_RING_PRODUCER), at + padded(size), __ATOMIC_RELEASE);
	return 0;
}
