"""How a rank ends."""

import subprocess
import sys

PROGRAM = """
import atexit
from sft.exits import exit_now

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
atexit.register(print, "hook")
print("done", end=" ")
exit_now(85)
"""


def test_hooks_run_and_output_arrives_but_the_interpreter_is_not_taken_apart() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (85, "done hook\n", "")
