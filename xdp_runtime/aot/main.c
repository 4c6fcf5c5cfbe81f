/* SPDX-License-Identifier: Apache-2.0 */
/* A compiled XDP program as a program: on a capture file or an interface, without Python. */
#include "standalone.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

volatile sig_atomic_t stopping;

static const char *const verdict_names[] = {"aborted", "drop", "pass", "tx", "redirect"};

noreturn void fail(int code, const char *what, const char *why)
{
	fprintf(stderr, "%s: %s: %s\n", xdpu_program, what, why);
	exit(code);
}

static void stop(int signal)
{
	(void)signal;
	stopping = 1;
}

void place(struct xdpu_packet *packet, uint8_t *frame, size_t length)
{
	*packet = (struct xdpu_packet){
		.data = frame + HEADROOM_BYTES,
		.data_end = frame + HEADROOM_BYTES + length,
		.data_meta = frame + HEADROOM_BYTES,
		.hard_start = frame + XDP_FRAME_BYTES,
		.frame_end = frame + FRAME_BYTES - TAILROOM_BYTES,
	};
}

void run(struct xdpu_packet *packets, size_t count, unsigned worker, struct counters *counters)
{
	xdpu_run(packets, count, worker);
	for (size_t i = 0; i < count; i++) {
		if (packets[i].verdict > XDPU_REDIRECT) {
			packets[i].verdict = XDPU_ABORTED;
			counters->invalid++;
		}
		counters->verdicts[packets[i].verdict]++;
	}
	counters->rx += count;
	records_of_batch();
}

static void usage(FILE *to)
{
	fprintf(to,
		"usage: %s [OPTIONS] --pcap IN [--out OUT]\n"
		"       %s [OPTIONS] --iface IF [--tap NAME] [--mode native|skb]\n\n"
		"The XDP program %s, compiled by xdpu.\n\n"
		"  --pcap IN       run on the packets of this pcap or pcapng file\n"
		"  --out OUT       write each packet and its verdict to this pcapng file, - for\n"
		"                  standard output\n"
		"  --iface IF      run on this interface (AF_XDP), on its first %u queue(s), until a signal\n"
		"  --tap NAME      a TAP device to make: packets that are passed arrive there, and what\n"
		"                  the host sends there leaves by the interface.  Without it they are lost\n"
		"  --mode MODE     XDP in the driver (native) or in the stack (skb); native\n"
		"  --set-map ...   a map entry at the start; key and value in hex, as they lie in memory\n"
		"  --records NAME=FILE  what the program writes to this ring buffer or perf event array,\n"
		"                  a line of hex digits for each record; - for standard output\n"
		"\nCounters are printed at the end, as JSON.\n",
		xdpu_program, xdpu_program, xdpu_program, xdpu_workers);
}

static int hex(const char *text, size_t digits, uint8_t *to, size_t size)
{
	if (digits != 2 * size)
		return -1;
	for (size_t i = 0; i < size; i++) {
		char byte[3] = {text[2 * i], text[2 * i + 1], 0};
		char *end;

		to[i] = strtoul(byte, &end, 16);
		if (*end || byte[0] == '-' || byte[0] == '+' || byte[0] == ' ')
			return -1;
	}
	return 0;
}

static void set_map(char *setting)
{
	char *key = strchr(setting, '=');
	char *value = key ? strchr(key, ':') : NULL;
	const struct xdpu_map *map;
	uint8_t *raw;
	size_t stride;
	int error;

	if (!value)
		fail(EXIT_USAGE, setting, "is not NAME=KEY:VALUE");
	*key++ = *value++ = 0;
	map = xdpu_map_find(setting);
	if (!map)
		fail(EXIT_USAGE, setting, "the program has no such map");
	stride = (map->value_size + 7) & ~7u;
	raw = calloc(1, map->key_size + stride * map->values);
	if (!raw)
		fail(1, setting, strerror(errno));
	if (hex(key, strlen(key), raw, map->key_size) ||
	    hex(value, strlen(value), raw + map->key_size, map->value_size))
		fail(EXIT_USAGE, setting, "key and value are not as many hex digits as the map's have");
	for (uint32_t i = 1; i < map->values; i++)
		memcpy(raw + map->key_size + i * stride, raw + map->key_size, map->value_size);
	error = xdpu_map_update(map, raw, raw + map->key_size, 0);
	if (error)
		fail(1, setting, strerror(-error));
	free(raw);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"pcap", 1, 0, 'p'}, {"out", 1, 0, 'o'}, {"iface", 1, 0, 'i'}, {"tap", 1, 0, 't'},
		{"mode", 1, 0, 'm'}, {"set-map", 1, 0, 's'}, {"records", 1, 0, 'r'}, {"help", 0, 0, 'h'}, {0},
	};
	struct interface interface = {0};
	struct counters counters = {0};
	const char *in = NULL, *out = NULL;
	struct sigaction action = {.sa_handler = stop};
	int letter, records = 0, code = 0;

	while ((letter = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (letter) {
		case 'p': in = optarg; break;
		case 'o': out = optarg; break;
		case 'i': interface.name = optarg; break;
		case 't': interface.tap = optarg; break;
		case 's': set_map(optarg); break;
		case 'r': take_records(optarg); records = 1; break;
		case 'h': usage(stdout); return 0;
		case 'm':
			interface.generic = !strcmp(optarg, "skb");
			if (!interface.generic && strcmp(optarg, "native"))
				fail(EXIT_USAGE, optarg, "is not a mode: native or skb");
			break;
		default: usage(stderr); return EXIT_USAGE;
		}
	}
	if (optind != argc || !in == !interface.name || (out && !in)) {
		usage(stderr);
		return EXIT_USAGE;
	}
	if (records_on_stdout && out && !strcmp(out, "-"))
		fail(EXIT_USAGE, "--out -", "standard output cannot be shared with --records NAME=-");
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	if (in)
		run_capture(in, out, &counters);
	else {
		follow_records();
		code = run_interface(&interface, &counters);
	}
	FILE *to = out && !strcmp(out, "-") ? stderr : stdout;
	fprintf(to, "{\"rx\": %llu", (unsigned long long)counters.rx);
	for (int i = 0; i < 5; i++)
		fprintf(to, ", \"%s\": %llu", verdict_names[i], (unsigned long long)counters.verdicts[i]);
	fprintf(to, ", \"invalid\": %llu, \"lost\": %llu", (unsigned long long)counters.invalid,
		(unsigned long long)counters.lost);
	if (records) {
		fprintf(to, ", \"rings\": {");
		end_records(to);
		fprintf(to, "}");
	}
	fprintf(to, "}\n");
	return fflush(to) ? 1 : code;
}
