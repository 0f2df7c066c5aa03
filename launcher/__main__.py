"""The `shardtune` command, also as `python -m launcher`: all else is imported when Ctrl-C is already dealt with."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 128 + signal.SIGINT


def main() -> int:
    """Run the command that sys.argv names; returns the exit code."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # it is another where Ctrl-C is ignored, as below nohup
        signal.signal(signal.SIGINT, _leave)
    from launcher.cli import main as command

    try:
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, handler)
        return command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def _leave(signal_number: int, frame: FrameType | None) -> NoReturn:
    """An exception would be a traceback, or lost in whatever is being imported; nothing has begun that needs an end."""
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
