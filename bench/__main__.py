"""python -m bench: all of them."""

from __future__ import annotations

import sys

from bench.all import main

sys.exit(main())
