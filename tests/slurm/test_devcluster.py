"""The cluster that the other tests run on is a real one."""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.slurm.cluster import DEVCLUSTER, Cluster

ALL_REDUCE = """
import os, socket, torch, torch.distributed as dist
dist.init_process_group("gloo", rank=int(os.environ["SLURM_PROCID"]), world_size=int(os.environ["SLURM_NTASKS"]))
x = torch.full((1000,), dist.get_rank() + 1.0)
dist.all_reduce(x)
name = socket.gethostname()
print(dist.get_rank(), name, socket.gethostbyname(name), x.unique().tolist(), flush=True)
dist.barrier()
dist.destroy_process_group()
"""
BATCH = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --output={folder}/out
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500 OMP_NUM_THREADS=1
srun --label {python} {folder}/all_reduce.py
srun --label bash -c 'echo "$CUDA_VISIBLE_DEVICES"'
"""


def test_two_nodes_are_idle(slurm: Cluster) -> None:
    assert slurm.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T %c %G") == "c1 idle 16 gpu:8\nc2 idle 16 gpu:8"
    assert slurm.on("c2", "hostname") == "c2"
    assert slurm.on("c1", "getent", "hosts", "c2").split() == ["10.77.0.12", "c2"]


def test_ranks_on_two_nodes_reduce(slurm: Cluster, tmp_path: Path) -> None:
    """As training does it: one task a rank, the first node is the master, gloo over the nodes' own addresses."""
    (tmp_path / "all_reduce.py").write_text(ALL_REDUCE, encoding="utf-8")
    (tmp_path / "job.sh").write_text(BATCH.format(python=sys.executable, folder=tmp_path), encoding="utf-8")
    job = slurm.submit(tmp_path / "job.sh")
    state, said = slurm.wait(job), (tmp_path / "out").read_text(encoding="utf-8")
    assert state == "COMPLETED", said
    assert sorted(line for line in said.splitlines() if "10.77" in line) == [
        "0: 0 c1 10.77.0.11 [3.0]",
        "1: 1 c2 10.77.0.12 [3.0]",
    ]
    assert {"0: 0,1,2,3", "1: 0,1,2,3"} <= set(said.splitlines())


def test_an_exit_code_and_what_is_impossible(slurm: Cluster, tmp_path: Path) -> None:
    job = slurm.submit("--output=/dev/null", "--wrap", "exit 85")
    assert slurm.wait(job) == "FAILED"
    assert "ExitCode=85:0" in slurm.run("scontrol", "show", "job", job)
    refused = slurm.call("sbatch", "--test-only", "--nodes=9", "--wrap", "true")
    assert refused.returncode == 1 and "allocation failure" in refused.stderr


def processes_of(folder: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line]


def test_a_node_that_crashes_and_a_cluster_that_ends_with_who_started_it(can_run_slurm: None) -> None:
    """A cluster of its own beside the other one, with the same addresses."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = Cluster(folder, "--nodes", "1", "--gpus", "0", "--silent-seconds", "2")
    try:
        job = cluster.submit("--no-requeue", "--output=/dev/null", "--wrap", "sleep 300")
        cluster.wait(job, ["RUNNING"])
        cluster.fault("crash", "c1")
        assert cluster.wait(job) == "NODE_FAIL"
        cluster.fault("boot", "c1")
        assert cluster.wait(cluster.submit("--output=/dev/null", "--wrap", "true")) == "COMPLETED"
    finally:
        cluster.stop()
    assert not folder.exists() and not processes_of(folder)

    folder.mkdir()
    starter = subprocess.Popen(["sleep", "1000"])
    options = ["--nodes", "1", "--exit-with", str(starter.pid)]
    subprocess.run([DEVCLUSTER / "up.sh", *options, folder], capture_output=True, check=True)
    assert processes_of(folder)
    starter.kill()
    starter.wait()
    end = time.monotonic() + 20
    while processes_of(folder):
        assert time.monotonic() < end
        time.sleep(0.2)
    shutil.rmtree(folder)


def test_with_a_database_sacct_knows_the_job(can_run_slurm: None) -> None:
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")), "--nodes", "1", "--accounting")
    try:
        job = cluster.submit("--output=/dev/null", "--wrap", "exit 3")
        assert cluster.wait(job) == "FAILED"
        end = time.monotonic() + 30
        command = ("sacct", "-n", "-X", "-P", "-j", job, "-o", "jobid,state,exitcode")
        while (said := cluster.run(*command)) != f"{job}|FAILED|3:0":
            assert time.monotonic() < end, said
            time.sleep(0.5)
    finally:
        cluster.stop()


def test_mistakes_are_one_line(can_run_slurm: None) -> None:
    for arguments, said in {
        ("--nodes", "0", "/tmp/x"): "--nodes: a number from 1 to 200, not 0",
        ("--node", "1", "/tmp/x"): "unknown option --node; see the head of ",
        (): "usage: up.sh [options] DIR; see the head of ",
        ("/tmp/x y",): "/tmp/x y : only letters, digits and _ . / - can be in a path",
        ("/tmp/" + 60 * "x",): "is longer than 60 characters",
    }.items():
        done = subprocess.run([DEVCLUSTER / "up.sh", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.startswith("up.sh: ") and said in done.stderr
        assert done.stderr.count("\n") == 1 and not done.stdout
    assert not Path("/tmp/x y").exists()
