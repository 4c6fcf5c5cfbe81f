// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The balancer with all its parts: about 7,000 instructions. */
#define WITH_GUE
#define WITH_GRE
#define WITH_EXTENSION_HEADERS
#define WITH_CLAMPED_MSS
#define WITH_TIMESTAMP_IDS
#define WITH_DATAGRAM_IDS
#define WITH_SOURCE_ROUTES
#define WITH_SHARED_TABLE
#define WITH_MOVES
#define UNROLL_OPTIONS

#include "balancer.h"
