// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The balancer with UDP tunnels, source routes and ids that move: about 4,200 instructions. */
#define WITH_GUE
#define WITH_SOURCE_ROUTES
#define WITH_MOVES

#include "balancer.h"
