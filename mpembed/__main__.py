"""Entry point of the command line: ``mpembed`` and ``python -m mpembed``."""

import signal
import sys

from mpembed.train import PACKAGES


def main() -> int:
    """Run the command line.

    Returns
    -------
    int
        The exit status.
    """
    # A signal while packages are imported ends the process, without a traceback of the import;
    # commands that have something to lose handle signals themselves.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from mpembed.cli import app
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        if sys.argv[1:] == ["info"]:  # works without the extra packages
            from mpembed.info import print_info

            print_info()
            return 0
        print(
            f"mpembed: the command line needs {error.name}; install mpembed[train]", file=sys.stderr
        )
        return 1
    app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
