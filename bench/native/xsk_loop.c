// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The AF_XDP loop one would write by hand: the rival that our compiled loop is measured against.
 *
 *     xsk_loop -i IFACE [-n QUEUES] [-a drop|tx|redirect] [-o IFACE2] [-d SECONDS] [-p spin|poll]
 *
 * A socket and a thread a queue, each on the next CPU it may run on; libxdp's rings, copy mode,
 * need_wakeup, batches of 64.  The action is what a small XDP program would do: look at the
 * Ethernet header and drop, swap the addresses and send the frame back, or send it out of another
 * interface, both ways, whose sockets share the umem.  Prints {"rx": packets, "tx": packets,
 * "seconds": s}.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
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

#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET 9
#endif

enum { FRAME_BYTES = 4096, RING = 2048, FRAMES = 4 * RING, BATCH = 64, QUEUES_MAX = 16 };

static volatile sig_atomic_t stopping;

struct port {
	uint8_t *frames;
	struct xsk_umem *umem;
	struct xsk_socket *xsk;
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons comp, rx;
	struct port *out; /* where its packets leave: itself, or one that shares its umem */
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

static void give_frames(struct port *p, uint32_t first)
{
	uint32_t at;

	if (xsk_ring_prod__reserve(&p->fill, RING, &at) != RING)
		die("fill ring", ENOSPC);
	for (uint32_t i = 0; i < RING; i++)
		*xsk_ring_prod__fill_addr(&p->fill, at + i) = (uint64_t)(first + i) * FRAME_BYTES;
	xsk_ring_prod__submit(&p->fill, RING);
}

/* One wake-up may send 256 packets, as in ours; older kernels send 32 and know no such option. */
static void allow_batches(struct port *p)
{
	int budget = 256;

	setsockopt(xsk_socket__fd(p->xsk), SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof(budget));
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
	allow_batches(p);
	give_frames(p, 0);
	p->out = p;
}

/* Another interface's queue, with the frames of the first. */
static void open_beside(struct port *p, struct port *first, const char *iface, uint32_t queue)
{
	struct xsk_socket_config config = {
		.rx_size = RING, .tx_size = RING,
		.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
		.bind_flags = XDP_COPY | XDP_USE_NEED_WAKEUP,
	};
	int error = xsk_socket__create_shared(&p->xsk, iface, queue, first->umem, &p->rx, &p->tx,
					      &p->fill, &p->comp, &config);

	if (error)
		die("bind beside", -error);
	p->umem = first->umem;
	p->frames = first->frames;
	allow_batches(p);
	give_frames(p, RING);
	p->out = first;
	first->out = p;
}

static void kick_tx(struct port *p)
{
	if (!xsk_ring_prod__needs_wakeup(&p->tx))
		return;
	if (sendto(xsk_socket__fd(p->xsk), NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN &&
	    errno != EBUSY && errno != ENOBUFS && errno != ENETDOWN)
		die("transmit", errno);
}

/* Frames that p's peer has sent go back to p's fill ring: they came in there. */
static void recycle_into(struct port *in, struct port *p)
{
	uint32_t from, to, n;

	if (!p->in_tx)
		return;
	n = xsk_ring_cons__peek(&p->comp, BATCH, &from);
	if (!n)
		return;
	while (xsk_ring_prod__reserve(&in->fill, n, &to) != n)
		;
	for (uint32_t i = 0; i < n; i++)
		*xsk_ring_prod__fill_addr(&in->fill, to + i) =
			*xsk_ring_cons__comp_addr(&p->comp, from + i) & ~(FRAME_BYTES - 1ULL);
	xsk_ring_prod__submit(&in->fill, n);
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
	struct port *out = p->out;
	uint32_t to;

	while (xsk_ring_prod__reserve(&out->tx, n, &to) != n) {
		kick_tx(out);
		recycle_into(p, out);
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *desc = xsk_ring_cons__rx_desc(&p->rx, from + i);
		uint8_t *mac = p->frames + desc->addr, was[6];

		if (out == p) {
			memcpy(was, mac, 6);
			memcpy(mac, mac + 6, 6);
			memcpy(mac + 6, was, 6);
		} else {
			p->touched += mac[12];
		}
		*xsk_ring_prod__tx_desc(&out->tx, to + i) = *desc;
	}
	xsk_ring_prod__submit(&out->tx, n);
	out->in_tx += n;
}

struct job {
	pthread_t thread;
	struct port in, beside;
	const char *iface, *out;
	int sends, polls, cpu;
	double seconds;
};

static int look(struct port *p, int sends)
{
	uint32_t from, n;

	if (p->out->in_tx) {
		kick_tx(p->out);
		recycle_into(p, p->out);
	}
	n = xsk_ring_cons__peek(&p->rx, BATCH, &from);
	if (!n) {
		if (xsk_ring_prod__needs_wakeup(&p->fill))
			recvfrom(xsk_socket__fd(p->xsk), NULL, 0, MSG_DONTWAIT, NULL, NULL);
		return 0;
	}
	if (sends)
		tx_batch(p, from, n);
	else
		drop_batch(p, from, n);
	xsk_ring_cons__release(&p->rx, n);
	p->received += n;
	return n;
}

static void *run(void *argument)
{
	struct job *job = argument;
	struct pollfd pollfds[2] = {{.fd = xsk_socket__fd(job->in.xsk), .events = POLLIN}};
	double until = now_s() + job->seconds;
	cpu_set_t own;

	if (job->cpu >= 0) {
		CPU_ZERO(&own);
		CPU_SET(job->cpu, &own);
		pthread_setaffinity_np(pthread_self(), sizeof(own), &own);
	}
	if (job->out)
		pollfds[1] = (struct pollfd){.fd = xsk_socket__fd(job->beside.xsk), .events = POLLIN};
	for (uint32_t turn = 0; !stopping; turn++) {
		int done = look(&job->in, job->sends);

		if (!(turn & 255) && now_s() > until)
			break;
		if (job->out)
			done += look(&job->beside, job->sends);
		if (!done && job->polls && !job->in.in_tx && !job->beside.in_tx) {
			poll(pollfds, job->out ? 2 : 1, 100);
			turn |= 255; /* look at the clock */
		}
	}
	return NULL;
}

static int attach(const char *iface, int map_fd)
{
	int fd = bpf_link_create(load_redirect(map_fd), if_nametoindex(iface), BPF_XDP, NULL);

	if (fd < 0)
		die("attach", -fd);
	return fd;
}

static int make_map(void)
{
	int fd = bpf_map_create(BPF_MAP_TYPE_XSKMAP, "xsks", 4, 4, 256, NULL);

	if (fd < 0)
		die("xskmap", -fd);
	return fd;
}

static void admit(int map_fd, uint32_t queue, struct port *p)
{
	int fd = xsk_socket__fd(p->xsk);

	if (bpf_map_update_elem(map_fd, &queue, &fd, 0))
		die("xskmap", errno);
}

int main(int argc, char **argv)
{
	static struct job jobs[QUEUES_MAX];
	const char *iface = NULL, *out = NULL, *action = "drop", *wait = "spin";
	unsigned long long received = 0, sent = 0;
	int option, queues = 1, cpu = -1, in_map, out_map = -1;
	double seconds = 5, start;
	cpu_set_t allowed;

	while ((option = getopt(argc, argv, "i:o:n:a:d:p:")) != -1) {
		switch (option) {
		case 'i': iface = optarg; break;
		case 'o': out = optarg; break;
		case 'n': queues = atoi(optarg); break;
		case 'a': action = optarg; break;
		case 'd': seconds = atof(optarg); break;
		case 'p': wait = optarg; break;
		default: return 2;
		}
	}
	if (!iface || queues < 1 || queues > QUEUES_MAX || !strcmp(action, "redirect") != !!out ||
	    (!out && strcmp(action, "drop") && strcmp(action, "tx"))) {
		fprintf(stderr, "usage: %s -i IFACE [-n QUEUES] [-a drop|tx|redirect] [-o IFACE2] "
				"[-d SECONDS] [-p spin|poll]\n", argv[0]);
		return 2;
	}
	if (!if_nametoindex(iface) || (out && !if_nametoindex(out)))
		die("interface", errno);
	signal(SIGINT, stop);
	signal(SIGTERM, stop);

	in_map = make_map();
	if (out)
		out_map = make_map();
	sched_getaffinity(0, sizeof(allowed), &allowed);
	for (int queue = 0; queue < queues; queue++) {
		struct job *job = &jobs[queue];

		open_port(&job->in, iface, queue);
		admit(in_map, queue, &job->in);
		if (out) {
			open_beside(&job->beside, &job->in, out, queue);
			admit(out_map, queue, &job->beside);
		}
		do
			cpu = (cpu + 1) % CPU_SETSIZE;
		while (!CPU_ISSET(cpu, &allowed));
		job->iface = iface;
		job->out = out;
		job->cpu = queues > 1 ? cpu : -1;
		job->sends = strcmp(action, "drop");
		job->polls = !strcmp(wait, "poll");
		job->seconds = seconds;
	}
	attach(iface, in_map);
	if (out)
		attach(out, out_map);
	fprintf(stderr, "ready\n");

	start = now_s();
	for (int queue = 1; queue < queues; queue++)
		if (pthread_create(&jobs[queue].thread, NULL, run, &jobs[queue]))
			die("thread", errno);
	run(&jobs[0]);
	for (int queue = 1; queue < queues; queue++)
		pthread_join(jobs[queue].thread, NULL);
	for (int queue = 0; queue < queues; queue++) {
		received += jobs[queue].in.received + jobs[queue].beside.received;
		sent += jobs[queue].in.sent + jobs[queue].beside.sent;
	}
	printf("{\"rx\": %llu, \"tx\": %llu, \"seconds\": %.6f}\n", received, sent, now_s() - start);
	return 0;
}
