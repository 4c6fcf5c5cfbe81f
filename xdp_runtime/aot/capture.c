/* SPDX-License-Identifier: Apache-2.0 */
/* Capture files: reads pcap and pcapng of either byte order, writes pcapng as `xdpu run --out`. */
#include "standalone.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	SECTION = 0x0a0d0d0a, INTERFACE = 1, SIMPLE = 3, ENHANCED = 6, MAGIC = 0x1a2b3c4d,
	SHORTEST_BYTES = 14, INTERFACES_MAX = 64,
};

#define SECOND_NS 1000000000ull

struct interface_block {
	uint32_t snap;
	uint8_t resolution;
	int64_t offset_s;
};

struct reader {
	const char *name;
	const uint8_t *content;
	size_t size, at;
	int swapped, next_generation;
	uint32_t fraction_ns;
	struct interface_block interfaces[INTERFACES_MAX];
	unsigned interface_count;
	uint64_t last_ns;
};

struct record {
	const uint8_t *data;
	uint32_t length, original;
	uint64_t timestamp_ns;
};

static uint32_t u32(const struct reader *r, size_t at)
{
	uint32_t value;

	memcpy(&value, r->content + at, 4);
	return r->swapped ? __builtin_bswap32(value) : value;
}

static uint16_t u16(const struct reader *r, size_t at)
{
	uint16_t value;

	memcpy(&value, r->content + at, 2);
	return r->swapped ? __builtin_bswap16(value) : value;
}

static noreturn void damaged(const struct reader *r)
{
	char why[64];

	snprintf(why, sizeof(why), "is damaged or cut short at byte %zu", r->at);
	fail(EXIT_PORT, r->name, why);
}

static void need_ethernet(const struct reader *r, uint32_t link_type)
{
	if (link_type != 1)
		fail(EXIT_PORT, r->name, "does not hold Ethernet packets");
}

static void open_reader(struct reader *r, const char *name)
{
	struct stat about;
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	uint32_t magic;

	*r = (struct reader){.name = name, .fraction_ns = 1};
	if (fd < 0 || fstat(fd, &about))
		fail(EXIT_PORT, name, strerror(errno));
	r->size = about.st_size;
	if (r->size < 24)
		fail(EXIT_PORT, name, "is not a capture file");
	r->content = mmap(NULL, r->size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (r->content == MAP_FAILED)
		fail(EXIT_PORT, name, strerror(errno));
	close(fd);
	magic = u32(r, 0);
	if (magic == SECTION) {
		r->next_generation = 1;
		return;
	}
	r->swapped = magic == 0xd4c3b2a1 || magic == 0x4d3cb2a1;
	magic = u32(r, 0);
	if (magic == 0xa1b2c3d4)
		r->fraction_ns = 1000;
	else if (magic != 0xa1b23c4d)
		fail(EXIT_PORT, name, "is not a capture file");
	need_ethernet(r, u32(r, 20) & 0x0fffffff);
	r->at = 24;
}

static void read_interface(struct reader *r, size_t at, size_t end)
{
	struct interface_block *made = &r->interfaces[r->interface_count];

	if (r->interface_count == INTERFACES_MAX || end - at < 8)
		damaged(r);
	r->interface_count++;
	need_ethernet(r, u16(r, at));
	*made = (struct interface_block){.snap = u32(r, at + 4), .resolution = 6};
	for (at += 8; end - at >= 4;) {
		uint16_t code = u16(r, at), length = u16(r, at + 2);

		if (code == 0 || length > end - at - 4)
			break;
		if (code == 9 && length)
			made->resolution = r->content[at + 4];
		if (code == 14 && length == 8) {
			memcpy(&made->offset_s, r->content + at + 4, 8);
			if (r->swapped)
				made->offset_s = __builtin_bswap64(made->offset_s);
		}
		at += 4 + ((length + 3) & ~3u);
		if (at > end)
			break;
	}
}

static uint64_t to_ns(const struct interface_block *i, uint64_t ticks)
{
	__uint128_t ns = (__uint128_t)ticks * SECOND_NS;

	if (i->resolution & 0x80)
		ns >>= i->resolution & 0x7f;
	else
		for (int n = 0; n < i->resolution; n++)
			ns /= 10;
	return (uint64_t)ns + i->offset_s * SECOND_NS;
}

/* 1: a packet, 0: the end */
static int next_pcapng(struct reader *r, struct record *record)
{
	while (r->at != r->size) {
		size_t at = r->at, size, body, end;
		uint32_t kind;

		if (r->size - at < 12)
			damaged(r);
		kind = u32(r, at);
		if (kind == SECTION) {
			uint32_t magic;

			memcpy(&magic, r->content + at + 8, 4);
			r->swapped = magic != MAGIC;
			if (r->swapped && __builtin_bswap32(magic) != MAGIC)
				damaged(r);
			r->interface_count = 0;
		}
		size = u32(r, at + 4);
		if (size < 12 || size % 4 || size > r->size - at)
			damaged(r);
		body = at + 8, end = at + size - 4;
		if (kind == INTERFACE)
			read_interface(r, body, end);
		r->at += size;
		if (kind == ENHANCED && end - body >= 20) {
			uint32_t number = u32(r, body);

			record->length = u32(r, body + 12);
			if (number >= r->interface_count || record->length > end - body - 20)
				damaged(r);
			record->original = u32(r, body + 16);
			record->data = r->content + body + 20;
			record->timestamp_ns = to_ns(&r->interfaces[number],
				(uint64_t)u32(r, body + 4) << 32 | u32(r, body + 8));
			r->last_ns = record->timestamp_ns;
			return 1;
		}
		if (kind == SIMPLE && end - body >= 4) {
			if (!r->interface_count)
				damaged(r);
			record->original = u32(r, body);
			record->length = record->original;
			if (r->interfaces[0].snap && record->length > r->interfaces[0].snap)
				record->length = r->interfaces[0].snap;
			if (record->length > end - body - 4)
				damaged(r);
			record->data = r->content + body + 4;
			record->timestamp_ns = r->last_ns;
			return 1;
		}
	}
	return 0;
}

static int next_record(struct reader *r, struct record *record)
{
	if (r->next_generation)
		return next_pcapng(r, record);
	if (r->at == r->size)
		return 0;
	if (r->size - r->at < 16)
		damaged(r);
	*record = (struct record){
		.data = r->content + r->at + 16, .length = u32(r, r->at + 8),
		.original = u32(r, r->at + 12),
		.timestamp_ns = u32(r, r->at) * SECOND_NS + (uint64_t)u32(r, r->at + 4) * r->fraction_ns,
	};
	if (record->length > r->size - r->at - 16)
		damaged(r);
	r->at += 16 + record->length;
	return 1;
}

static void put(FILE *out, const void *bytes, size_t size)
{
	if (out && fwrite(bytes, 1, size, out) != size)
		fail(EXIT_PORT, "output", strerror(errno));
}

static void put_option(FILE *out, uint16_t code, const void *value, uint16_t length)
{
	put(out, &code, 2);
	put(out, &length, 2);
	put(out, value, length);
	put(out, "\0\0\0", -length & 3);
}

static size_t option_bytes(size_t length)
{
	return 4 + ((length + 3) & ~(size_t)3);
}

static void put_header(FILE *out, const char *name)
{
	const char *slash = strrchr(name, '/');
	const char *base = slash ? slash + 1 : name;
	uint32_t section[] = {SECTION, 28 + option_bytes(4) + 4, MAGIC, 1, ~0u, ~0u};
	uint32_t interface[] = {INTERFACE, 20 + option_bytes(strlen(base)) + option_bytes(1) + 4, 1, 0};

	put(out, section, sizeof(section));
	put_option(out, 4, "xdpu", 4);
	put_option(out, 0, "", 0);
	put(out, &section[1], 4);
	put(out, interface, sizeof(interface));
	put_option(out, 2, base, strlen(base));
	put_option(out, 9, "\x09", 1);
	put_option(out, 0, "", 0);
	put(out, &interface[1], 4);
}

static void put_packet(FILE *out, const struct xdpu_packet *packet, const struct record *record)
{
	static const char *const names[] = {"XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX",
					    "XDP_REDIRECT"};
	uint32_t length = packet->data_end - packet->data;
	uint32_t missing = record->original > record->length ? record->original - record->length : 0;
	uint8_t verdict[9] = {2, packet->verdict}; /* of Linux eBPF XDP */
	char comment[64];
	size_t said = snprintf(comment, sizeof(comment), "%s", names[packet->verdict]);
	uint32_t head[] = {ENHANCED, 0, 0, record->timestamp_ns >> 32, record->timestamp_ns, length,
			   length + missing};

	if (packet->verdict == XDPU_REDIRECT && packet->redirect_ifindex)
		said = snprintf(comment, sizeof(comment), "%s ifindex %u", names[XDPU_REDIRECT],
				packet->redirect_ifindex);
	head[1] = 32 + ((length + 3) & ~3u) + option_bytes(said) + option_bytes(9) + 4;
	put(out, head, sizeof(head));
	put(out, packet->data, length);
	put(out, "\0\0\0", -length & 3);
	put_option(out, 1, comment, said);
	put_option(out, 7, verdict, 9);
	put_option(out, 0, "", 0);
	put(out, &head[1], 4);
}

void run_capture(const char *in, const char *out_name, struct counters *counters)
{
	struct xdpu_packet packets[BATCH];
	struct record records[BATCH];
	uint8_t *frames = aligned_alloc(64, (size_t)BATCH * FRAME_BYTES);
	struct reader reader;
	FILE *out = NULL;
	int more = 1;

	if (!frames)
		fail(1, "frames", strerror(errno));
	open_reader(&reader, in);
	if (out_name) {
		out = strcmp(out_name, "-") ? fopen(out_name, "we") : stdout;
		if (!out)
			fail(EXIT_PORT, out_name, strerror(errno));
		put_header(out, in);
	}
	while (more && !stopping) {
		size_t count = 0;

		while (count < BATCH && (more = next_record(&reader, &records[count]))) {
			struct record *record = &records[count];

			if (record->length > LONGEST_BYTES || record->length < SHORTEST_BYTES) {
				counters->lost++;
				continue;
			}
			place(&packets[count], frames + count * FRAME_BYTES, record->length);
			memcpy(packets[count].data, record->data, record->length);
			count++;
		}
		run(packets, count, 0, counters);
		for (size_t i = 0; out && i < count; i++)
			put_packet(out, &packets[i], &records[i]);
	}
	if (out && (out == stdout ? fflush(out) : fclose(out)))
		fail(EXIT_PORT, out_name, strerror(errno));
	free(frames);
}
