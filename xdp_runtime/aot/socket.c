/* SPDX-License-Identifier: Apache-2.0 */
/* An interface by AF_XDP, with nothing but the kernel's own interface: a socket and a thread for
 * each of the first queues.  The kernel's half is the program `return bpf_redirect_map(&xsks,
 * ctx->rx_queue_index, XDP_PASS)` on a BPF link, which goes with the process, as the TAP does.
 *
 * A frame is in exactly one place: the fill ring, a batch, the transmit ring, or `free`.
 */
#define _GNU_SOURCE
#include "standalone.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/if_xdp.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RING = 2048, FRAMES = 2 * RING, POLL_MS = 100, BIND_TRIES = 100 };

static volatile sig_atomic_t gone; /* the interface, while it ran */

struct ring {
	uint32_t *producer, *consumer, *flags;
	void *entries;
};

struct queue {
	const struct interface *interface;
	unsigned number, ifindex;
	int fd, tap;
	uint8_t *umem;
	struct ring fill, completion, rx, tx;
	uint64_t free[FRAMES];
	uint32_t free_count, in_tx;
	struct counters counters;
	pthread_t thread;
};

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static noreturn void failed(const char *name, const char *what)
{
	char why[160];

	snprintf(why, sizeof(why), "%s: %s", what, strerror(errno));
	fail(EXIT_PORT, name, why);
}

static int make_map(unsigned entries)
{
	union bpf_attr attr = {.map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4,
			       .max_entries = entries};

	return bpf(BPF_MAP_CREATE, &attr);
}

static int load_redirect(int map)
{
	struct bpf_insn insns[] = {
		{.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = 2, .src_reg = 1, .off = 16},
		{.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map},
		{0},
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = XDP_PASS},
		{.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
		{.code = BPF_JMP | BPF_EXIT},
	};
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_XDP, .insn_cnt = sizeof(insns) / sizeof(*insns),
		.insns = (uintptr_t)insns, .license = (uintptr_t)"GPL", .expected_attach_type = BPF_XDP,
	};

	return bpf(BPF_PROG_LOAD, &attr);
}

static int attach(const struct interface *interface, unsigned ifindex, int program)
{
	union bpf_attr attr = {.link_create = {
		.prog_fd = program, .target_ifindex = ifindex, .attach_type = BPF_XDP,
		.flags = interface->generic ? XDP_FLAGS_SKB_MODE : XDP_FLAGS_DRV_MODE}};

	return bpf(BPF_LINK_CREATE, &attr);
}

static void map_ring(struct queue *q, struct ring *ring, int option, uint64_t page,
		     const struct xdp_ring_offset *offset, size_t entry)
{
	int size = RING;
	uint8_t *base;

	if (setsockopt(q->fd, SOL_XDP, option, &size, sizeof(size)))
		failed(q->interface->name, "a ring of the AF_XDP socket");
	base = mmap(NULL, offset->desc + RING * entry, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_POPULATE, q->fd, page);
	if (base == MAP_FAILED)
		failed(q->interface->name, "a ring of the AF_XDP socket");
	ring->producer = (uint32_t *)(base + offset->producer);
	ring->consumer = (uint32_t *)(base + offset->consumer);
	ring->flags = (uint32_t *)(base + offset->flags);
	ring->entries = base + offset->desc;
}

/* Offsets of rings are known only after all have a size, which map_ring sets; the kernel's answer
 * does not depend on it.
 */
static void open_socket(struct queue *q)
{
	struct sockaddr_xdp address = {.sxdp_family = AF_XDP, .sxdp_ifindex = q->ifindex,
				       .sxdp_queue_id = q->number, .sxdp_flags = XDP_USE_NEED_WAKEUP};
	struct xdp_mmap_offsets at;
	socklen_t length = sizeof(at);
	struct xdp_umem_reg umem = {.len = (uint64_t)FRAMES * FRAME_BYTES, .chunk_size = FRAME_BYTES};

	q->umem = mmap(NULL, umem.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (q->umem == MAP_FAILED)
		failed(q->interface->name, "memory for frames");
	umem.addr = (uintptr_t)q->umem;
	q->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (q->fd < 0 || setsockopt(q->fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof(umem)) ||
	    getsockopt(q->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &length))
		failed(q->interface->name, "an AF_XDP socket");
	map_ring(q, &q->fill, XDP_UMEM_FILL_RING, XDP_UMEM_PGOFF_FILL_RING, &at.fr, 8);
	map_ring(q, &q->completion, XDP_UMEM_COMPLETION_RING, XDP_UMEM_PGOFF_COMPLETION_RING, &at.cr, 8);
	map_ring(q, &q->rx, XDP_RX_RING, XDP_PGOFF_RX_RING, &at.rx, sizeof(struct xdp_desc));
	map_ring(q, &q->tx, XDP_TX_RING, XDP_PGOFF_TX_RING, &at.tx, sizeof(struct xdp_desc));
	for (int tries = 0; bind(q->fd, (struct sockaddr *)&address, sizeof(address)); tries++) {
		if (errno != EBUSY || tries == BIND_TRIES) /* a socket just closed stays for a while */
			failed(q->interface->name, "an AF_XDP socket on its queue");
		usleep(2000);
	}
	for (uint64_t i = 0; i < FRAMES; i++)
		q->free[q->free_count++] = i * FRAME_BYTES;
}

static int open_tap(const char *name, int multi_queue)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (strlen(name) >= IFNAMSIZ)
		fail(EXIT_USAGE, name, "is too long for the name of a TAP device (15 letters)");
	if (multi_queue)
		request.ifr_flags |= IFF_MULTI_QUEUE;
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request))
		failed(name, "the TAP device");
	return fd;
}

static void bring_up(const char *name)
{
	struct ifreq request = {0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request))
		failed(name, "the TAP device");
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request))
		failed(name, "the TAP device");
	close(fd);
}

static void refill(struct queue *q)
{
	uint32_t at = *q->fill.producer;
	uint32_t room = RING - (at - __atomic_load_n(q->fill.consumer, __ATOMIC_ACQUIRE));

	for (; room && q->free_count; room--)
		((uint64_t *)q->fill.entries)[at++ & (RING - 1)] = q->free[--q->free_count];
	__atomic_store_n(q->fill.producer, at, __ATOMIC_RELEASE);
}

static void reap(struct queue *q)
{
	uint32_t at = *q->completion.consumer;
	uint32_t end = __atomic_load_n(q->completion.producer, __ATOMIC_ACQUIRE);

	for (; at != end; at++, q->in_tx--)
		q->free[q->free_count++] =
			((uint64_t *)q->completion.entries)[at & (RING - 1)] & ~(uint64_t)(FRAME_BYTES - 1);
	__atomic_store_n(q->completion.consumer, at, __ATOMIC_RELEASE);
}

/* The frame is the kernel's afterwards, or free if there was no room. */
static void transmit(struct queue *q, uint64_t address, size_t length)
{
	uint32_t at = *q->tx.producer;

	if (at - __atomic_load_n(q->tx.consumer, __ATOMIC_ACQUIRE) == RING) {
		q->counters.lost++;
		q->free[q->free_count++] = address & ~(uint64_t)(FRAME_BYTES - 1);
		return;
	}
	((struct xdp_desc *)q->tx.entries)[at & (RING - 1)] =
		(struct xdp_desc){.addr = address, .len = length};
	__atomic_store_n(q->tx.producer, at + 1, __ATOMIC_RELEASE);
	q->in_tx++;
}

static void dispose(struct queue *q, const struct xdpu_packet *packet)
{
	uint64_t address = packet->data - q->umem;
	size_t length = packet->data_end - packet->data;
	int here = packet->verdict == XDPU_REDIRECT && packet->redirect_ifindex == q->ifindex;

	if (packet->verdict == XDPU_TX || here) {
		transmit(q, address, length);
		return;
	}
	if (packet->verdict == XDPU_PASS) {
		if (q->tap < 0 || write(q->tap, packet->data, length) != (ssize_t)length)
			q->counters.lost++;
	} else if (packet->verdict == XDPU_REDIRECT) {
		q->counters.lost++;
	}
	q->free[q->free_count++] = address & ~(uint64_t)(FRAME_BYTES - 1);
}

static size_t receive(struct queue *q)
{
	struct xdpu_packet packets[BATCH];
	uint32_t at = *q->rx.consumer, count;

	count = __atomic_load_n(q->rx.producer, __ATOMIC_ACQUIRE) - at;
	if (count > BATCH)
		count = BATCH;
	for (uint32_t i = 0; i < count; i++) {
		const struct xdp_desc *d = &((struct xdp_desc *)q->rx.entries)[(at + i) & (RING - 1)];
		uint8_t *data = q->umem + d->addr;

		place(&packets[i], q->umem + (d->addr & ~(uint64_t)(FRAME_BYTES - 1)), d->len);
		packets[i].data = packets[i].data_meta = data;
		packets[i].data_end = data + d->len;
		packets[i].ingress_ifindex = q->ifindex;
		packets[i].rx_queue_index = q->number;
	}
	__atomic_store_n(q->rx.consumer, at + count, __ATOMIC_RELEASE);
	if (count)
		run(packets, count, q->number, &q->counters);
	for (uint32_t i = 0; i < count; i++)
		dispose(q, &packets[i]);
	return count;
}

/* What the host sends to the TAP leaves by the interface. */
static size_t from_tap(struct queue *q)
{
	size_t count = 0;

	while (q->tap >= 0 && count < BATCH && q->free_count) {
		uint64_t frame = q->free[q->free_count - 1];
		ssize_t length = read(q->tap, q->umem + frame, FRAME_BYTES);

		if (length <= 0)
			break;
		q->free_count--;
		transmit(q, frame, length);
		count++;
	}
	return count;
}

static int has_error(int fd)
{
	int error = 0;
	socklen_t length = sizeof(error);

	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) || error;
}

static void *work(void *argument)
{
	struct queue *q = argument;

	while (!stopping) {
		size_t done;

		reap(q);
		/* a quarter stays for what the host sends */
		if (q->free_count > FRAMES / 4)
			refill(q);
		done = receive(q) + from_tap(q);
		if (q->in_tx && __atomic_load_n(q->tx.flags, __ATOMIC_ACQUIRE) & XDP_RING_NEED_WAKEUP &&
		    sendto(q->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN &&
		    errno != EBUSY && errno != ENOBUFS && errno != EINTR)
			failed(q->interface->name, "transmit");
		if (!done) {
			struct pollfd wait[] = {{.fd = q->fd, .events = POLLIN},
						{.fd = q->tap, .events = POLLIN}};

			/* of an interface that is gone, poll(2) says nothing */
			if (poll(wait, 2, q->in_tx ? 1 : POLL_MS) == 0 && has_error(q->fd))
				gone = stopping = 1;
		}
	}
	return NULL;
}

/* Packets of queues without a worker go to the host's stack, as if there were no program. */
static void say_other_queues(const char *name)
{
	struct ethtool_channels channels = {.cmd = ETHTOOL_GCHANNELS};
	struct ifreq request = {.ifr_data = (void *)&channels};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	unsigned queues = 0;

	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (fd >= 0 && !ioctl(fd, SIOCETHTOOL, &request))
		queues = channels.combined_count + channels.rx_count;
	if (queues > xdpu_workers)
		fprintf(stderr, "%s: %s has %u queues, and packets of those behind the first %u go past the "
			"program (xdpu aot --workers %u)\n", xdpu_program, name, queues, xdpu_workers, queues);
	if (fd >= 0)
		close(fd);
}

static void add(struct counters *to, const struct counters *from)
{
	to->rx += from->rx;
	to->invalid += from->invalid;
	to->lost += from->lost;
	for (int i = 0; i < 5; i++)
		to->verdicts[i] += from->verdicts[i];
}

int run_interface(const struct interface *interface, struct counters *counters)
{
	unsigned ifindex = if_nametoindex(interface->name);
	struct queue *queues = calloc(xdpu_workers, sizeof(*queues));
	int map, program;

	if (!ifindex || !queues)
		failed(interface->name, "the interface");
	map = make_map(xdpu_workers);
	program = map < 0 ? -1 : load_redirect(map);
	if (program < 0)
		failed(interface->name, "the kernel's half of AF_XDP");
	for (unsigned i = 0; i < xdpu_workers; i++) {
		struct queue *q = &queues[i];
		union bpf_attr attr = {.map_fd = map, .key = (uintptr_t)&q->number};

		*q = (struct queue){.interface = interface, .number = i, .ifindex = ifindex, .tap = -1};
		open_socket(q);
		refill(q);
		if (interface->tap)
			q->tap = open_tap(interface->tap, xdpu_workers > 1);
		attr.value = (uintptr_t)&q->fd;
		if (bpf(BPF_MAP_UPDATE_ELEM, &attr))
			failed(interface->name, "the map of its sockets");
	}
	if (interface->tap)
		bring_up(interface->tap);
	if (attach(interface, ifindex, program) < 0)
		failed(interface->name, interface->generic ? "attach XDP in the stack"
			: "attach XDP in its driver (--mode skb works with any)");
	fprintf(stderr, "%s: running on %s, XDP in %s, %u queue(s)\n", xdpu_program, interface->name,
		interface->generic ? "the stack" : "its driver", xdpu_workers);
	say_other_queues(interface->name);
	for (unsigned i = 0; i < xdpu_workers; i++)
		if ((errno = pthread_create(&queues[i].thread, NULL, work, &queues[i])))
			failed(interface->name, "a thread");
	for (unsigned i = 0; i < xdpu_workers; i++) {
		pthread_join(queues[i].thread, NULL);
		add(counters, &queues[i].counters);
	}
	if (gone)
		fprintf(stderr, "%s: %s: the interface is gone\n", xdpu_program, interface->name);
	return gone ? EXIT_PORT : 0;
}
