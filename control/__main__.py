"""`xdpu`, and `python -m control`."""

import _signal  # type: ignore[import-not-found]
import sys


def main() -> int:
    # A Ctrl-C before anything is set up ends us by the signal, without a traceback of imports.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from control import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
