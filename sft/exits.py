"""What the processes of a run agree on with whatever starts them: how they are asked to stop, and how they end."""

import atexit
import os
import signal
import sys
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""These ask a rank to stop. SIGTERM and SIGUSR1 come from schedulers; Ctrl-C and a closed terminal reach every process
that was started there."""

STOP_FILE = "stop"
"""In the run's folder, it asks all ranks to stop."""

MISTAKE = "jobs/mistake.txt"
"""In the run's folder, why a rank refused to go on, for who can change it: another start would say the same."""

FINISHED, FAILED, STOPPED, HUNG = 0, 1, 85, 86
"""Exit codes; 85: the run was asked to stop, what it did is committed, and it wants to go on later; 86: this rank saw
that one hangs, and said which."""


def exit_now(code: int) -> NoReturn:
    """End a rank: hooks of the exit run (trackers send their rest in them), but the interpreter is not taken apart.

    Threads of gloo and of autograd outlive the process group; one that lets go of a Python object while Python goes
    down aborts the process ("terminate called without an active exception"), and a finished run would count as failed.
    And pools of threads take no more work once Python goes down, where MLflow needs one for the last metrics.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
