"""What the processes of a run agree on with whatever starts them: how they are asked to stop, and how they end."""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""These ask a rank to stop. SIGTERM and SIGUSR1 come from schedulers; Ctrl-C and a closed terminal reach every process
that was started there."""

STOP_FILE = "stop"
"""In the run's folder, it asks all ranks to stop."""

FINISHED, FAILED, STOPPED, HUNG = 0, 1, 85, 86
"""Exit codes; 85: the run was asked to stop, what it did is committed, and it wants to go on later; 86: this rank saw
that one hangs, and said which."""
