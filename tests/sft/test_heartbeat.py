"""A rank that hangs is told from those that wait for it, and from one that was only suspended."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from sft.exits import HUNG

ROOT = Path(__file__).parent.parent.parent
RANK = """
import sys, time
from pathlib import Path
from sft import heartbeat
from sft.world import join_world

world = join_world()
heartbeat.QUIET = 2.0
heart = heartbeat.Heart(Path(sys.argv[1]), world, timeout=float(sys.argv[3]))
time.sleep(3)  # loading: it is not watched yet
for _ in range(30):
    heart.progress("training")
    time.sleep(0.1)
if sys.argv[2] == "end":
    heart.end()
if world.rank == 1 or world.size == 1:
    time.sleep(3 if sys.argv[2] == "end" else 60)  # line 17
world.barrier()
"""


def start_ranks(ranks: int, folder: Path, then: str, timeout: float = 2) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), then, str(timeout)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def test_the_rank_that_does_not_wait_for_others_is_the_one(tmp_path: Path) -> None:
    waiting, stuck = start_ranks(2, tmp_path, "hang")
    _, said = waiting.communicate(timeout=60)
    stuck.kill()
    stuck.communicate()
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert waiting.returncode == HUNG
    host = socket.gethostname()
    assert line == (
        f"error: no progress for 2 s: rank 1 (process {stuck.pid} on {host}) is stuck while training, "
        "last seen at <string>:17"
    )


def test_a_rank_without_a_sign_of_life_is_missed_long_before_the_timeout(tmp_path: Path) -> None:
    waiting, stopped = start_ranks(2, tmp_path, "hang", timeout=600)
    wait_for_training(tmp_path / "heartbeats" / "rank-1.json")
    stopped.send_signal(signal.SIGSTOP)
    _, said = waiting.communicate(timeout=60)
    stopped.kill()
    stopped.communicate()
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert waiting.returncode == HUNG
    assert f"rank 1 (process {stopped.pid} on {socket.gethostname()}) gives no sign of life while training" in line
    assert "rank 0" not in line


def wait_for_training(beats: Path) -> None:
    deadline = time.monotonic() + 60
    while not (beats.exists() and '"training"' in beats.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_suspended_process_goes_on_and_an_end_is_no_hang(tmp_path: Path) -> None:
    (rank,) = start_ranks(1, tmp_path, "end")
    wait_for_training(tmp_path / "heartbeats" / "rank-0.json")
    rank.send_signal(signal.SIGSTOP)
    time.sleep(3)
    rank.send_signal(signal.SIGCONT)
    _, said = rank.communicate(timeout=60)
    assert rank.returncode == 0 and "error: " not in said


def run_alone(body: str, folder: Path) -> tuple[int, str]:
    """One rank that beats every 0.2 s, with a timeout of 2 s; returns its exit code and what it said."""
    folder.mkdir()
    script = f"""
import sys, time
from pathlib import Path
from sft import heartbeat
from sft.world import join_world

heartbeat.QUIET = 2.0
heart = heartbeat.Heart(Path(sys.argv[1]), join_world(), timeout=2)
{body}
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env=os.environ
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
        | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_what_is_done_for_the_first_time_has_longer(tmp_path: Path) -> None:
    first = "heart.progress('training'); time.sleep(4); heart.progress('training'); "
    assert run_alone(first + "heart.end()", tmp_path / "first") == (0, "")
    code, said = run_alone(first + "time.sleep(60)", tmp_path / "second")
    assert code == HUNG and "no progress for 2 s" in said
    code, said = run_alone("heart.progress('training'); time.sleep(60)", tmp_path / "never")
    assert code == HUNG and "no progress for 6 s" in said


def test_a_checkpoint_that_is_written_slowly_is_no_hang(tmp_path: Path) -> None:
    before = "heart.progress('saving'); heart.progress('saving'); "
    file = tmp_path / "checkpoint"
    writing = f"""
with open({str(file)!r}, "wb", buffering=0) as file:
    for _ in range(25):
        file.write(bytes(2**21))
        time.sleep(0.2)
"""
    assert run_alone(before + writing + "heart.end()", tmp_path / "slow") == (0, "")
    code, said = run_alone(before + writing + "time.sleep(60)", tmp_path / "stuck")
    assert code == HUNG and "is stuck while saving" in said
    code, _ = run_alone(before.replace("saving", "training") + writing, tmp_path / "no-checkpoint")
    assert code == HUNG
