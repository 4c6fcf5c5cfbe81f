// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The AF_XDP loop one would write by hand: the rival that our compiled loop is measured against.
 *
 *     xsk_loop -i IFACE [-q QUEUE] [-a drop|tx] [-d SECONDS] [-p spin|poll]
 *
 * One socket on one queue, libxdp's rings, copy mode, need_wakeup, batches of 64.  The action is
 * what a small XDP program would do: look at the Ethernet header and drop, or swap the addresses
 * and send the frame back.  Prints {"rx": packets, "tx": packets, "seconds": s}.
 */
#include <errno.h>
#include <getopt.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <xdp/xsk.h>

enum { FRAME_BYTES = 4096, RING = 2048, FRAMES = 2 * RING, BATCH = 64 };

static volatile sig_atomic_t stopping;

struct port {
	uint8_t *frames;
	struct xsk_umem *umem;
	struct xsk_socket *xsk;
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons comp, rx;
	uint32_t in_tx; /* frames sent and not yet completed */
	uint64_t received, sent, touched;
};

static void stop(int signal)
{
	(void)signal;
	stopping = 1;
}

static void die(const char *what, int error)
{
	fprintf(stderr, "xsk_loop: %s: %s\n", what, strerror(error));
	exit(1);
}

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

/* return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS); */
static int load_redirect(int map_fd)
{
	struct bpf_insn insns[] = {
		{.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = 2, .src_reg = 1, .off = 16},
		{.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD,
		 .imm = map_fd},
		{0},
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = XDP_PASS},
		{.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
		{.code = BPF_JMP | BPF_EXIT},
	};
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = BPF_XDP);
	int fd = bpf_prog_load(BPF_PROG_TYPE_XDP, "xsk_loop", "GPL", insns,
			       sizeof(insns) / sizeof(insns[0]), &opts);

	if (fd < 0)
		die("load the redirect program", -fd);
	return fd;
}

static void give_frames(struct port *p)
{
	uint32_t at;

	if (xsk_ring_prod__reserve(&p->fill, RING, &at) != RING)
		die("fill ring", ENOSPC);
	for (uint32_t i = 0; i < RING; i++)
		*xsk_ring_prod__fill_addr(&p->fill, at + i) = (uint64_t)i * FRAME_BYTES;
	xsk_ring_prod__submit(&p->fill, RING);
}

static void open_port(struct port *p, const char *iface, uint32_t queue)
{
	struct xsk_umem_config umem_config = {
		.fill_size = RING, .comp_size = RING, .frame_size = FRAME_BYTES,
	};
	struct xsk_socket_config config = {
		.rx_size = RING, .tx_size = RING,
		.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
		.bind_flags = XDP_COPY | XDP_USE_NEED_WAKEUP,
	};
	size_t bytes = (size_t)FRAMES * FRAME_BYTES;
	int error;

	p->frames = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (p->frames == MAP_FAILED)
		die("umem", errno);
	/* The queue of a socket just closed stays busy for some milliseconds; libxdp tears the
	 * umem's rings down when the bind fails, so both are made again.
	 */
	for (int tries = 0;; tries++) {
		error = xsk_umem__create(&p->umem, p->frames, bytes, &p->fill, &p->comp, &umem_config);
		if (error)
			die("umem", -error);
		error = xsk_socket__create(&p->xsk, iface, queue, p->umem, &p->rx, &p->tx, &config);
		if (!error)
			break;
		xsk_umem__delete(p->umem);
		if (error != -EBUSY || tries == 100)
			die("bind", -error);
		usleep(2000);
	}
	give_frames(p);
}

static void kick_tx(struct port *p)
{
	if (!xsk_ring_prod__needs_wakeup(&p->tx))
		return;
	if (sendto(xsk_socket__fd(p->xsk), NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN &&
	    errno != EBUSY && errno != ENOBUFS && errno != ENETDOWN)
		die("transmit", errno);
}

/* Completed frames go back to the fill ring. */
static void recycle(struct port *p)
{
	uint32_t from, to, n;

	if (!p->in_tx)
		return;
	n = xsk_ring_cons__peek(&p->comp, BATCH, &from);
	if (!n)
		return;
	while (xsk_ring_prod__reserve(&p->fill, n, &to) != n)
		;
	for (uint32_t i = 0; i < n; i++)
		*xsk_ring_prod__fill_addr(&p->fill, to + i) =
			*xsk_ring_cons__comp_addr(&p->comp, from + i);
	xsk_ring_prod__submit(&p->fill, n);
	xsk_ring_cons__release(&p->comp, n);
	p->in_tx -= n;
	p->sent += n;
}

static void drop_batch(struct port *p, uint32_t from, uint32_t n)
{
	uint32_t to;

	while (xsk_ring_prod__reserve(&p->fill, n, &to) != n)
		;
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *desc = xsk_ring_cons__rx_desc(&p->rx, from + i);

		p->touched += p->frames[desc->addr + 12];
		*xsk_ring_prod__fill_addr(&p->fill, to + i) = desc->addr & ~(FRAME_BYTES - 1ULL);
	}
	xsk_ring_prod__submit(&p->fill, n);
}

static void tx_batch(struct port *p, uint32_t from, uint32_t n)
{
	uint32_t to;

	while (xsk_ring_prod__reserve(&p->tx, n, &to) != n) {
		kick_tx(p);
		recycle(p);
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *desc = xsk_ring_cons__rx_desc(&p->rx, from + i);
		uint8_t *mac = p->frames + desc->addr, was[6];

		memcpy(was, mac, 6);
		memcpy(mac, mac + 6, 6);
		memcpy(mac + 6, was, 6);
		*xsk_ring_prod__tx_desc(&p->tx, to + i) = *desc;
	}
	xsk_ring_prod__submit(&p->tx, n);
	p->in_tx += n;
}

static void run(struct port *p, int sends, int polls, double seconds)
{
	struct pollfd pollfd = {.fd = xsk_socket__fd(p->xsk), .events = POLLIN};
	double until = now_s() + seconds;

	for (uint32_t turn = 0; !stopping; turn++) {
		uint32_t from, n;

		if (!(turn & 255) && now_s() > until)
			break;
		if (p->in_tx) {
			kick_tx(p);
			recycle(p);
		}
		n = xsk_ring_cons__peek(&p->rx, BATCH, &from);
		if (!n) {
			if (polls && !p->in_tx) {
				poll(&pollfd, 1, 100);
				turn |= 255; /* look at the clock */
			} else if (xsk_ring_prod__needs_wakeup(&p->fill)) {
				recvfrom(pollfd.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
			}
			continue;
		}
		if (sends)
			tx_batch(p, from, n);
		else
			drop_batch(p, from, n);
		xsk_ring_cons__release(&p->rx, n);
		p->received += n;
	}
}

int main(int argc, char **argv)
{
	const char *iface = NULL, *action = "drop", *wait = "spin";
	struct port port = {0};
	double seconds = 5, start;
	uint32_t queue = 0, ifindex;
	int option, map_fd, link_fd, socket_fd;

	while ((option = getopt(argc, argv, "i:q:a:d:p:")) != -1) {
		switch (option) {
		case 'i': iface = optarg; break;
		case 'q': queue = atoi(optarg); break;
		case 'a': action = optarg; break;
		case 'd': seconds = atof(optarg); break;
		case 'p': wait = optarg; break;
		default: return 2;
		}
	}
	if (!iface || (strcmp(action, "drop") && strcmp(action, "tx"))) {
		fprintf(stderr, "usage: %s -i IFACE [-q QUEUE] [-a drop|tx] [-d SECONDS] "
				"[-p spin|poll]\n", argv[0]);
		return 2;
	}
	ifindex = if_nametoindex(iface);
	if (!ifindex)
		die(iface, errno);
	signal(SIGINT, stop);
	signal(SIGTERM, stop);

	open_port(&port, iface, queue);
	map_fd = bpf_map_create(BPF_MAP_TYPE_XSKMAP, "xsks", 4, 4, 256, NULL);
	if (map_fd < 0)
		die("xskmap", -map_fd);
	socket_fd = xsk_socket__fd(port.xsk);
	if (bpf_map_update_elem(map_fd, &queue, &socket_fd, 0))
		die("xskmap", errno);
	link_fd = bpf_link_create(load_redirect(map_fd), ifindex, BPF_XDP, NULL);
	if (link_fd < 0)
		die("attach", -link_fd);
	fprintf(stderr, "ready\n");

	start = now_s();
	run(&port, !strcmp(action, "tx"), !strcmp(wait, "poll"), seconds);
	printf("{\"rx\": %llu, \"tx\": %llu, \"seconds\": %.6f}\n",
	       (unsigned long long)port.received, (unsigned long long)port.sent, now_s() - start);
	close(link_fd);
	xsk_socket__delete(port.xsk);
	xsk_umem__delete(port.umem);
	return 0;
}
