"""Builds dpdk._native: the EAL, devices and pools of DPDK, for cffi in API mode.

Set-up and take-down are here.  Packets are moved by compiled code (bursts.py), which calls a
driver's burst functions straight from `rte_eth_fp_ops` and reaches an mbuf's fields by the offsets
that the C compiler gives for the installed headers.  What compiled code calls of this file has the
shape of a burst, `uint16_t f(void *, struct rte_mbuf **, uint16_t)`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

from cffi import FFI  # type: ignore[import-untyped]

# Their value is part of the templates' names, so that machine code of other headers is not reused.
OFFSETS = {
    "BUF_ADDR": "offsetof(struct rte_mbuf, buf_addr)",
    "REARM": "offsetof(struct rte_mbuf, data_off)",
    "OL_FLAGS": "offsetof(struct rte_mbuf, ol_flags)",
    "PKT_LEN": "offsetof(struct rte_mbuf, pkt_len)",
    "DATA_LEN": "offsetof(struct rte_mbuf, data_len)",
    "BUF_LEN": "offsetof(struct rte_mbuf, buf_len)",
    "POOL": "offsetof(struct rte_mbuf, pool)",
    "NEXT": "offsetof(struct rte_mbuf, next)",
    "RX_BURST": "offsetof(struct rte_eth_fp_ops, rx_pkt_burst)",
    "RX_DATA": "offsetof(struct rte_eth_fp_ops, rxq.data)",
    "TX_BURST": "offsetof(struct rte_eth_fp_ops, tx_pkt_burst)",
    "TX_DATA": "offsetof(struct rte_eth_fp_ops, txq.data)",
    "MBUF": "sizeof(struct rte_mbuf)",
    "HEADROOM": "RTE_PKTMBUF_HEADROOM",
}

CDEF = "".join(f"#define XDPU_{name} ...\n" for name in OFFSETS) + """
struct link { uint32_t speed_mbps; int up; };
struct device {
    uint16_t rx_max, tx_max; int socket; char driver[64]; uint8_t mac[6]; uint16_t mtu;
};
struct totals { uint64_t ipackets, opackets, imissed, ierrors, oerrors, rx_nombuf; };

int xdpu_init(int argc, char **argv, int log_fd);
void xdpu_cleanup(void);
char *xdpu_version(void);
int xdpu_probe(const char *devargs, const char *name);
int xdpu_query(uint16_t port, struct device *device);
void *xdpu_pool(const char *name, unsigned count, unsigned private_bytes, unsigned room,
                int socket);
void xdpu_pool_free(void *pool);
unsigned xdpu_available(void *pool);
unsigned xdpu_pool_size(void *pool);
int xdpu_start(uint16_t port, uint16_t queues, uint16_t descriptors, void **pools,
               int promiscuous, int segments, int *sends_segments);
int xdpu_stop(uint16_t port);
int xdpu_remove(uint16_t port);
int xdpu_link(uint16_t port, struct link *link);
int xdpu_totals(uint16_t port, struct totals *totals);
int xdpu_xstats(uint16_t port, char *names, uint64_t *values, unsigned count);
void *xdpu_fp_ops(uint16_t port);
int xdpu_huge_pages(void);
uintptr_t xdpu_function(int which);
void xdpu_free_all(void **mbufs, unsigned count);
"""

SOURCE = "".join(f"#define XDPU_{name} {value}\n" for name, value in OFFSETS.items()) + r"""
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>
#include <rte_eal.h>
#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_version.h>

/* bursts.py reads data_off, refcnt and nb_segs as one word, with ol_flags behind */
#define BEHIND_DATA_OFF(field) \
    (offsetof(struct rte_mbuf, field) - offsetof(struct rte_mbuf, data_off))
_Static_assert(BEHIND_DATA_OFF(refcnt) == 2 && BEHIND_DATA_OFF(nb_segs) == 4 &&
               BEHIND_DATA_OFF(ol_flags) == 8, "mbuf");
_Static_assert(RTE_MBUF_F_EXTERNAL >> 61 == 1 && RTE_MBUF_F_INDIRECT >> 61 == 2, "mbuf");

struct link { uint32_t speed_mbps; int up; };
struct device {
    uint16_t rx_max, tx_max; int socket; char driver[64]; uint8_t mac[6]; uint16_t mtu;
};
struct totals { uint64_t ipackets, opackets, imissed, ierrors, oerrors, rx_nombuf; };

static pthread_key_t leaving;
static FILE *log_stream;

static void leave(void *unused) { (void)unused; rte_thread_unregister(); }

/* EAL pins the calling thread: that is undone.  What it prints beside its log goes there, too. */
static int xdpu_init(int argc, char **argv, int log_fd)
{
    cpu_set_t before;
    int done, out, err;

    log_stream = fdopen(log_fd, "a");
    if (log_stream == NULL)
        return -1;
    setvbuf(log_stream, NULL, _IOLBF, 0);
    rte_openlog_stream(log_stream);
    pthread_key_create(&leaving, leave);
    pthread_getaffinity_np(pthread_self(), sizeof(before), &before);
    fflush(NULL);
    out = dup(1);
    err = dup(2);
    dup2(log_fd, 1);
    dup2(log_fd, 2);
    done = rte_eal_init(argc, argv);
    fflush(NULL);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    pthread_setaffinity_np(pthread_self(), sizeof(before), &before);
    return done < 0 ? -rte_errno : 0;
}

static void xdpu_cleanup(void) { rte_eal_cleanup(); }
static char *xdpu_version(void) { return (char *)rte_version(); }

/* The device's port, or a negative errno. */
static int xdpu_probe(const char *devargs, const char *name)
{
    uint16_t port;
    int done = rte_dev_probe(devargs);

    if (done)
        return done < 0 ? done : -done;
    return rte_eth_dev_get_port_by_name(name, &port) ? -ENODEV : port;
}

static int xdpu_query(uint16_t port, struct device *device)
{
    struct rte_eth_dev_info info;
    struct rte_ether_addr mac;
    int done = rte_eth_dev_info_get(port, &info);

    if (done)
        return done;
    device->rx_max = info.max_rx_queues;
    device->tx_max = info.max_tx_queues;
    device->socket = rte_eth_dev_socket_id(port);
    snprintf(device->driver, sizeof(device->driver), "%s", info.driver_name);
    if (rte_eth_macaddr_get(port, &mac) == 0)
        memcpy(device->mac, mac.addr_bytes, 6);
    device->mtu = 1500;
    rte_eth_dev_get_mtu(port, &device->mtu);
    return 0;
}

static void *xdpu_pool(const char *name, unsigned count, unsigned private_bytes, unsigned room,
                       int socket)
{
    return rte_pktmbuf_pool_create(name, count, 256, private_bytes, room, socket);
}

static void xdpu_pool_free(void *pool) { rte_mempool_free(pool); }
static unsigned xdpu_available(void *pool) { return rte_mempool_avail_count(pool); }
static unsigned xdpu_pool_size(void *pool) { return ((struct rte_mempool *)pool)->size; }

/* `segments`: packets may come in several mbufs, and leave so where the driver can. */
static int xdpu_start(uint16_t port, uint16_t queues, uint16_t descriptors, void **pools,
                      int promiscuous, int segments, int *sends_segments)
{
    struct rte_eth_conf conf = {0};
    struct rte_eth_dev_info info;
    uint16_t rx = descriptors, tx = descriptors, q;
    int done = rte_eth_dev_info_get(port, &info);

    if (done)
        return done;
    if (segments) {
        conf.rxmode.offloads |= info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER;
        conf.txmode.offloads |= info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    }
    /* net_pcap sends them, and forgot to say so: its eth_pcap_tx* read by rte_pktmbuf_read */
    *sends_segments = (conf.txmode.offloads & RTE_ETH_TX_OFFLOAD_MULTI_SEGS) ||
                      (segments && strcmp(info.driver_name, "net_pcap") == 0);
    if (queues > 1) {
        conf.rx_adv_conf.rss_conf.rss_hf = info.flow_type_rss_offloads &
            (RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP);
        if (conf.rx_adv_conf.rss_conf.rss_hf)
            conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
    }
    done = rte_eth_dev_configure(port, queues, queues, &conf);
    if (done)
        return done;
    done = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx, &tx);
    for (q = 0; q < queues && !done; q++) {
        done = rte_eth_rx_queue_setup(port, q, rx, rte_eth_dev_socket_id(port), NULL, pools[q]);
        if (!done)
            done = rte_eth_tx_queue_setup(port, q, tx, rte_eth_dev_socket_id(port), NULL);
    }
    if (done)
        return done;
    done = rte_eth_dev_start(port);
    if (!done && promiscuous)
        done = rte_eth_promiscuous_enable(port);
    return done == -ENOTSUP ? 0 : done; /* of drivers that know nothing else */
}

static int xdpu_stop(uint16_t port)
{
    if (rte_eth_promiscuous_get(port) == 1)
        rte_eth_promiscuous_disable(port);
    return rte_eth_dev_stop(port);
}

static int xdpu_remove(uint16_t port)
{
    struct rte_eth_dev_info info;
    int done = rte_eth_dev_info_get(port, &info);

    rte_eth_dev_close(port);
    return done ? done : rte_dev_remove(info.device);
}

static int xdpu_link(uint16_t port, struct link *link)
{
    struct rte_eth_link now = {0};
    int done = rte_eth_link_get_nowait(port, &now);

    link->up = now.link_status;
    link->speed_mbps = now.link_speed;
    return done;
}

static int xdpu_totals(uint16_t port, struct totals *totals)
{
    struct rte_eth_stats stats = {0};
    int done = rte_eth_stats_get(port, &stats);

    *totals = (struct totals){stats.ipackets, stats.opackets, stats.imissed, stats.ierrors,
                              stats.oerrors, stats.rx_nombuf};
    return done;
}

/* How many there are; with count 0 nothing is written.  Names are 64 bytes each. */
static int xdpu_xstats(uint16_t port, char *names, uint64_t *values, unsigned count)
{
    struct rte_eth_xstat_name *name = NULL;
    struct rte_eth_xstat *value = NULL;
    int i, n = rte_eth_xstats_get_names(port, NULL, 0);

    if (n <= 0 || count < (unsigned)n)
        return n;
    name = calloc(n, sizeof(*name));
    value = calloc(n, sizeof(*value));
    if (name == NULL || value == NULL || rte_eth_xstats_get_names(port, name, n) != n ||
        (n = rte_eth_xstats_get(port, value, n)) < 0)
        n = -1;
    for (i = 0; i < n; i++) {
        snprintf(names + 64 * i, 64, "%s", name[value[i].id].name);
        values[i] = value[i].value;
    }
    free(name);
    free(value);
    return n;
}

static void *xdpu_fp_ops(uint16_t port) { return &rte_eth_fp_ops[port]; }
static int xdpu_huge_pages(void) { return rte_eal_has_hugepages(); }

/* ---- what compiled code calls ---- */

/* A thread of ours gets an lcore number, and with it a mempool's cache; it gives it back. */
static uint16_t attach(void *unused, struct rte_mbuf **unused2, uint16_t unused3)
{
    (void)unused; (void)unused2; (void)unused3;
    if (likely(rte_lcore_id() != LCORE_ID_ANY))
        return 1;
    if (rte_thread_register())
        return 0;
    pthread_setspecific(leaving, (void *)1);
    return 1;
}

/* Back to the pool: by the dozen what is whole, direct and nobody else's, else as DPDK does. */
static uint16_t give_back(void *pool, struct rte_mbuf **mbufs, uint16_t count)
{
    uint16_t i, whole = 0;

    for (i = 0; i < count; i++) {
        struct rte_mbuf *m = mbufs[i];

        if (likely(m->pool == pool && rte_mbuf_refcnt_read(m) == 1 && m->nb_segs == 1 &&
                   RTE_MBUF_DIRECT(m)))
            mbufs[whole++] = m;
        else
            rte_pktmbuf_free(m);
    }
    if (whole)
        rte_mempool_put_bulk(pool, (void **)mbufs, whole);
    return count;
}

/* Back to the pool what is known to be whole, direct, nobody else's, and of this pool. */
static uint16_t put(void *pool, struct rte_mbuf **mbufs, uint16_t count)
{
    rte_mempool_put_bulk(pool, (void **)mbufs, count);
    return count;
}

static uint16_t take(void *pool, struct rte_mbuf **mbufs, uint16_t count)
{
    return rte_pktmbuf_alloc_bulk(pool, mbufs, count) == 0 ? count : 0;
}

/* One packet into one buffer that is ours alone; 0, and it is freed, if that cannot be. */
static uint16_t settle(void *pool, struct rte_mbuf **mbuf, uint16_t unused)
{
    struct rte_mbuf *old = *mbuf, *copy = NULL;

    (void)unused;
    copy = rte_pktmbuf_copy(old, pool, 0, UINT32_MAX);
    rte_pktmbuf_free(old);
    if (copy != NULL && copy->nb_segs != 1) {
        rte_pktmbuf_free(copy);
        copy = NULL;
    }
    *mbuf = copy;
    return copy != NULL;
}

/* A packet whose segments are all ours alone -> how many; 0, and it is freed, if that cannot be. */
static uint16_t make_own(void *pool, struct rte_mbuf **mbuf, uint16_t most)
{
    struct rte_mbuf *m, *old = *mbuf;

    for (m = old; m != NULL; m = m->next)
        if (rte_mbuf_refcnt_read(m) != 1 || !RTE_MBUF_DIRECT(m))
            break;
    if (m != NULL) {
        *mbuf = rte_pktmbuf_copy(old, pool, 0, UINT32_MAX);
        rte_pktmbuf_free(old);
        if (*mbuf == NULL)
            return 0;
    }
    if ((*mbuf)->nb_segs <= most)
        return (*mbuf)->nb_segs;
    rte_pktmbuf_free(*mbuf);
    return 0;
}

static uintptr_t xdpu_function(int which)
{
    uint16_t (*functions[])(void *, struct rte_mbuf **, uint16_t) = {
        attach, give_back, take, settle, make_own, put};
    return (uintptr_t)functions[which];
}

static void xdpu_free_all(void **mbufs, unsigned count)
{
    rte_pktmbuf_free_bulk((struct rte_mbuf **)mbufs, count);
}
"""


def _pkg_config(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["pkg-config", *words, "libdpdk"], capture_output=True, text=True,
                          check=False)


def is_installed() -> bool:
    """pkg-config finds the library; what is missing is said on stderr."""
    if shutil.which("pkg-config") is None:
        print("dpdk: not built: pkg-config is not installed", file=sys.stderr)
        return False
    asked = _pkg_config("--print-errors", "--exists")
    if asked.returncode:
        print("dpdk: not built, the DPDK port will not work (apt install libdpdk-dev dpdk): "
              f"{asked.stderr.strip()}", file=sys.stderr)
    return asked.returncode == 0


ffi = FFI()
ffi.cdef(CDEF)
if shutil.which("pkg-config") and _pkg_config("--exists").returncode == 0:
    # DPDK's mempool and mbuf functions are inline: -O3 is what its own programs get.
    ffi.set_source("dpdk._native", SOURCE, py_limited_api=True,
                   extra_compile_args=["-O3", "-Wall", "-Wno-unused-function",
                                       *shlex.split(_pkg_config("--cflags").stdout)],
                   extra_link_args=["-lpthread", "-Wl,--no-as-needed",
                                    *shlex.split(_pkg_config("--libs").stdout)])
