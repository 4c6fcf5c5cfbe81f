// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A balancer of layer 4 with consistent hashing, a table of connections and IPIP; its parts are
 * those of the tests' balancers, about 2,700 instructions.
 */
#include "balancer.h"
