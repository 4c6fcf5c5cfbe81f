"""python -m control is xdpu."""

import _signal  # type: ignore[import-not-found]
import sys

if __name__ == "__main__":
    # A Ctrl-C before anything is set up ends us by the signal, without a traceback of imports.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from control.cli import main
    sys.exit(main())
