// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* DPDK's librte_bpf as a peer.
 *
 * Its checker knows neither struct xdp_md nor maps: a program gets a pointer to a packet of at least
 * 64 bytes.  So it runs objects that have such a function, too: for the program NAME the section
 * "dpdk/NAME".  It knows instructions of cpu v2, without 32-bit jumps.
 *
 *     cc -O2 -fPIC -shared -o dpdk_bpf.so dpdk_bpf.c $(pkg-config --cflags libdpdk) -lrte_bpf
 */
#include "peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_bpf.h>
#include <rte_errno.h>

#define CHECKED 64	/* bytes of a packet that programs may touch */
#define LONGEST 4096
#define RING 8		/* frames, as a load right behind the copy would wait for its stores */

struct loaded {
	struct rte_bpf *bpf;
	uint64_t (*run)(void *packet);
};

static uint8_t frames[RING][LONGEST] __attribute__((aligned(64)));

const char *peer_name(void)
{
	return "librte_bpf";
}

void *peer_load(const char *object, const char *program, char *why, size_t why_bytes)
{
	struct rte_bpf_prm prm = {.prog_arg = {.type = RTE_BPF_ARG_PTR, .size = CHECKED}};
	struct loaded *loaded = calloc(1, sizeof(*loaded));
	char section[128];

	if (!loaded)
		return NULL;
	snprintf(section, sizeof(section), "dpdk/%s", program);
	loaded->bpf = rte_bpf_elf_load(&prm, object, section);
	if (!loaded->bpf) {
		snprintf(why, why_bytes, "no section %s that it accepts: %s", section,
			 rte_strerror(rte_errno));
		free(loaded);
		return NULL;
	}
	return loaded;
}

int peer_compile(void *place, char *why, size_t why_bytes)
{
	struct loaded *loaded = place;
	struct rte_bpf_jit jit = {};

	if (rte_bpf_get_jit(loaded->bpf, &jit) || !jit.func) {
		snprintf(why, why_bytes, "it has no JIT for this CPU");
		return -1;
	}
	loaded->run = jit.func;
	return 0;
}

static uint64_t nothing(void *packet)
{
	(void)packet;
	return 2; /* XDP_PASS */
}

int64_t peer_run(void *place, const uint8_t *packet, uint32_t bytes, uint64_t count, uint8_t *out,
		 uint32_t *out_bytes)
{
	struct loaded *loaded = place;
	uint64_t (*volatile run)(void *) = loaded ? loaded->run : nothing;
	uint64_t verdict = 0;

	if (bytes < CHECKED || bytes > LONGEST || bytes > *out_bytes || !count)
		return -1;
	for (int i = 0; i < RING / 2; i++)
		memcpy(frames[i], packet, bytes);
	for (uint64_t i = 0; i < count; i++) {
		memcpy(frames[(i + RING / 2) % RING], packet, bytes);
		verdict = run(frames[i % RING]);
	}
	memcpy(out, frames[(count - 1) % RING], bytes);
	*out_bytes = bytes;
	return (int64_t)verdict;
}

void peer_close(void *place)
{
	struct loaded *loaded = place;

	rte_bpf_destroy(loaded->bpf);
	free(loaded);
}
