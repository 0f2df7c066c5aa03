"""Chains of jobs on a real Slurm of two nodes, each with an address of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.attempts import committed_step, read_attempts
from sft.record import read_metrics
from tests.conftest import chats, write_jsonl
from tests.slurm.cluster import Cluster

SECRET = "planted-5ecret-value"


class Site:
    """A working folder on the cluster, with a configuration to launch."""

    def __init__(self, slurm: Cluster, folder: Path) -> None:
        self.slurm = slurm
        self.folder = folder
        self.environment = {
            **slurm.environment,
            "HOME": str(folder / "home"),
            "XDG_CONFIG_HOME": str(folder / "home" / "etc"),
        }

    def write(self, name: str, **changes: Any) -> Path:
        """A small run, with changes by section."""
        config: dict[str, Any] = {
            "name": name,
            "model": {"config": {"architecture": "llama", "hidden_size": 32, "intermediate_size": 64}},
            "data": {
                "sources": [{"path": str(self.folder / "chats.jsonl")}],
                "tokenizer": {"vocab_size": 300},
                "max_length": 512,
                "validation": {"fraction": 0.02},
            },
            "train": {"packs_per_step": 2, "max_steps": 6, "log_every": 1, "zero": {"stage": 2}},
            "evaluate": {"samples": ["Hello?"], "max_new_tokens": 4, "on_start": False},
            "checkpoint": {"every": 3},
            "cluster": {"nodes": 2, "cpus_per_rank": 1, "time": "00:10:00", "prepare": {"cpus": 1}},
        }
        config["model"]["config"] |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512}
        config["cluster"]["secrets"] = str(self.folder / "home" / ".config" / "shardtune" / "secrets.env")
        for section, values in changes.items():
            config[section] = {**config.get(section, {}), **values}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config), "utf-8")
        return path

    def shardtune(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command of shardtune on the head node."""
        done = subprocess.run(
            [sys.executable, "-m", "launcher", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def launch(self, config: Path, *arguments: object) -> dict[str, str]:
        """Launch on Slurm; returns stage → job id."""
        facts = json.loads(self.shardtune("launch", config, "--on", "slurm", "--json", *arguments).stdout)
        return {job["stage"]: job["id"] for job in facts["jobs"]}

    def wait(self, job: str, how: str = "COMPLETED", seconds: float = 300) -> None:
        """Until a job is over, in this way by Slurm's word."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        found = self.until(lambda: found if (found := self.state(job)) in over else None, seconds)
        assert found == how, f"job {job} is {found}, not {how}{self.logs()}"

    def state(self, job: str) -> str:
        return str(self.slurm.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T"))

    def until(self, look: Callable[[], Any], seconds: float = 120) -> Any:
        """Wait for something to be true, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < deadline, self.slurm.run("squeue", "-t", "all") + self.logs()
            time.sleep(0.1)
        return found

    def status(self, name: str) -> list[dict[str, Any]]:
        """The lines of `shardtune status`."""
        jobs: list[dict[str, Any]] = json.loads(self.shardtune("status", f"runs/{name}", "--json").stdout)["jobs"]
        return jobs

    def logs(self) -> str:
        """The last lines of all jobs, and what their starts led to."""
        told = [*self.folder.glob("runs/*/logs/*.out"), *self.folder.glob("runs/*/jobs/attempts.jsonl")]
        return "".join(f"\n{path}\n{path.read_text('utf-8')[-3000:]}" for path in told)

    def attempts(self, name: str) -> list[dict[str, Any]]:
        """Those since it was launched last."""
        return read_attempts(self.folder / "runs" / name)


@pytest.fixture
def site(slurm: Cluster, tmp_path: Path) -> Site:
    write_jsonl(tmp_path / "chats.jsonl", chats(300))
    secrets = tmp_path / "home" / ".config" / "shardtune" / "secrets.env"
    secrets.parent.mkdir(parents=True)
    secrets.write_text(f"WANDB_API_KEY={SECRET}\n", "utf-8")
    secrets.chmod(0o600)
    return Site(slurm, tmp_path)


def test_a_chain_completes(site: Site) -> None:
    config = site.write("whole", cluster={"fetch": "job"})
    jobs = site.launch(config)
    assert site.launch(config) == jobs  # launched twice it is one chain
    refused = site.shardtune("launch", config, "--on", "slurm", "train.learning_rate=1", code=1)
    assert "has jobs that are not over" in refused.stderr
    rank = site.until(lambda: _ranks(site.folder / "runs" / "whole"))[0]
    assert f"WANDB_API_KEY={SECRET}" in Path(f"/proc/{rank}/environ").read_text("utf-8")
    assert SECRET not in _everything_visible(site, jobs)
    site.wait(jobs["export"])
    looks = json.loads(site.shardtune("status", "whole", "--json").stdout)["jobs"]
    assert [(look["stage"], look["state"]) for look in looks] == [
        ("fetch", "COMPLETED"),
        ("prepare", "COMPLETED"),
        ("train", "COMPLETED"),
        ("export", "COMPLETED"),
    ]
    assert (site.folder / "runs" / "whole" / "lock.json").exists()
    assert looks[2]["progress"].startswith("finished, step 6 / 6")
    assert (site.folder / "runs" / "whole" / "model" / "model.safetensors").exists()
    assert "the ranks ended with 0" in site.shardtune("logs", "whole", "--stage", "train").stdout
    for path in (site.folder / "runs").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def _ranks(run: Path) -> list[int]:
    """Processes that train a run, of all nodes: the host sees them all."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"sft.train" in words and str(run).encode() in words and b"python" in words[0]:
            found.append(int(folder.name))
    return sorted(found)


def _everything_visible(site: Site, jobs: dict[str, str]) -> str:
    """What other users of the cluster can see."""
    shown = [site.slurm.run("scontrol", "show", "job", job) for job in jobs.values()]
    arguments = [
        path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if _is(path)
    ]
    return "\n".join([*shown, *arguments])


def _is(path: Path) -> bool:
    return path.exists()


def test_a_run_survives_kills_and_limits_bit_for_bit(site: Site) -> None:
    steps = {"max_steps": 1500, "log_every": 1}  # the line of a stopped step would divide an interval
    often = {"every": 200}
    whole = site.launch(site.write("calm", train=steps, checkpoint=often), "--stages", "prepare,train")
    site.wait(whole["train"])
    limited = {"time": "00:02:00", "lead": 60}  # Slurm may ask half a minute early, and a start takes up to 20 s
    changes = {"train": steps, "checkpoint": often, "data": {"store": str(site.folder / "runs" / "calm" / "tokens")}}
    config = site.write("rough", **changes, cluster={"nodes": 2, "cpus_per_rank": 1, **limited})
    job = site.launch(config, "--stages", "train")["train"]
    run = site.folder / "runs" / "rough"
    site.until(lambda: (run / "checkpoints" / "step-00000200").exists())
    os.kill(_ranks(run)[0], 9)
    killed = time.monotonic()
    site.until(lambda: len(site.attempts("rough")) > 1)
    assert time.monotonic() - killed < 10
    site.wait(job, seconds=400)
    ends = [line["why"] for line in site.attempts("rough") if "end" in line]
    assert ends[0] == "failed"
    assert ends[-1] == "finished"
    assert set(ends[1:-1]) <= {"stopped"}
    losses = [
        [line["loss"].hex() for line in read_metrics(folder) if "loss" in line] for folder in (run, run.parent / "calm")
    ]
    assert losses[0] == losses[1]


def test_a_time_limit_leads_to_a_checkpoint_and_back_into_the_queue(site: Site) -> None:
    limited = {"nodes": 2, "cpus_per_rank": 1, "time": "00:02:00", "lead": 60, "requeue": {"max_stops": 1}}
    config = site.write("limited", train={"max_steps": 100_000, "log_every": 100}, cluster=limited)
    job = site.launch(config, "--stages", "prepare,train")["train"]
    site.wait(job, "FAILED", seconds=400)  # no more stops are allowed
    history = site.attempts("limited")
    assert [(line.get("why"), line.get("code")) for line in history] == [(None, None), ("stopped", 85)] * 2
    assert history[1]["step"] == history[2]["step"] >= 1  # Slurm's warning may come a minute early
    assert history[3]["step"] > history[1]["step"]
    log = (site.folder / "runs" / "limited" / "logs" / f"train-{job}.out").read_text("utf-8")
    assert "going on when it is its turn" in log
    assert "cluster.requeue.max_stops is 1" in log


def test_a_rank_that_is_held_up_until_the_limit_is_late_but_goes_on(site: Site) -> None:
    limited = {"nodes": 2, "cpus_per_rank": 1, "time": "00:01:00", "lead": 1, "requeue": {"max_stops": 1}}
    config = site.write("late", train={"max_steps": 100_000, "log_every": 100}, cluster=limited)
    job = site.launch(config, "--stages", "prepare,train")["train"]
    run = site.folder / "runs" / "late"
    site.until(lambda: (run / "checkpoints" / "step-00000003").exists())
    os.kill(_ranks(run)[0], signal.SIGSTOP)  # until Slurm ends the job, which wakes it
    site.until(lambda: len(site.attempts("late")) > 2, 240)
    log = (run / "logs" / f"train-{job}.out").read_text("utf-8")
    assert "DUE TO TIME LIMIT" in log
    assert site.attempts("late")[1]["code"] == 85
    assert site.attempts("late")[2]["step"] >= 3
    site.shardtune("cancel", "late")
    site.wait(job, "CANCELLED")


def test_a_preempted_run_saves_and_goes_on(site: Site) -> None:
    taken = {"nodes": 2, "cpus_per_rank": 1, "time": "00:10:00", "partition": "low"}
    config = site.write("polite", train={"max_steps": 1500, "log_every": 100}, cluster=taken)
    job = site.launch(config, "--stages", "prepare,train")["train"]
    site.until(lambda: (site.folder / "runs" / "polite" / "checkpoints" / "step-00000003").exists())
    urgent = site.slurm.submit("--partition=main", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")
    site.wait(urgent)
    site.wait(job)
    history = site.attempts("polite")
    assert [(line.get("why"), line.get("code")) for line in history] == [
        (None, None),
        ("stopped", 85),
        (None, None),
        ("finished", 0),
    ]
    assert history[2]["step"] == history[1]["step"] >= 3


def test_ranks_that_sigterm_ends_while_they_start_begin_again(site: Site) -> None:
    """Slurm may deliver a signal for a step that is over to the step of the same number in the next start."""
    job = site.launch(site.write("hit", cluster={"nodes": 2, "cpus_per_rank": 1}), "--stages", "prepare,train")["train"]
    site.until(lambda: _ranks(site.folder / "runs" / "hit"))
    site.slurm.run("scancel", "--signal=TERM", f"{job}.0")
    site.wait(job)
    ends = [(line["why"], line["reason"]) for line in site.attempts("hit") if "end" in line]
    assert ends[0] in (("cut off", "SIGTERM"), ("stopped", "SIGTERM")), "the second if they had come to listen to it"
    assert ends[1:] == [("finished", "all steps are done")]


def test_one_rank_that_sigterm_ends_while_it_starts_is_a_failure(site: Site) -> None:
    """As of a guard of memory: nobody waits for it, and nothing was committed."""
    job = site.launch(site.write("lost", cluster={"nodes": 2, "cpus_per_rank": 1}), "--stages", "prepare,train")[
        "train"
    ]
    os.kill(site.until(lambda: _ranks(site.folder / "runs" / "lost"))[0], signal.SIGTERM)
    site.wait(job, "FAILED", seconds=60)
    assert [(line.get("why"), line.get("code")) for line in site.attempts("lost")] == [(None, None), ("failed", 143)]


def test_a_crash_loop_stops_after_one_start_and_cancels_what_waits(site: Site) -> None:
    no_network = {
        "nodes": 2,
        "cpus_per_rank": 1,
        "variables": {"GLOO_SOCKET_IFNAME": "nowhere0"},
        "prepare": {"cpus": 1},
    }
    jobs = site.launch(site.write("crashing", cluster=no_network))
    site.wait(jobs["train"], "FAILED")
    site.wait(jobs["export"], "CANCELLED")
    assert [(line.get("why"), line.get("code")) for line in site.attempts("crashing")] == [(None, None), ("failed", 1)]
    assert "giving up" in site.shardtune("logs", "crashing", "--stage", "train").stdout
    states = {look["stage"]: look["state"] for look in site.status("crashing")}
    assert states == {"prepare": "COMPLETED", "train": "FAILED", "export": "CANCELLED"}


def test_a_mistake_is_not_tried_again_and_status_says_it(site: Site) -> None:
    """A checkpoint was committed before, but the same would come of another start."""
    config = site.write("diverging", train={"learning_rate": 1e30, "max_grad_norm": None}, checkpoint={"every": 1})
    job = site.launch(config, "--stages", "prepare,train")["train"]
    site.wait(job, "FAILED")
    assert [line.get("why", "begin") for line in site.attempts("diverging")] == ["begin", "refused"]
    assert site.attempts("diverging")[1]["step"] >= 1
    (look,) = (look for look in site.status("diverging") if look["stage"] == "train")
    assert look["state"] == "FAILED" and "lower train.learning_rate" in look["note"]


def test_a_run_survives_nodes_that_crash(site: Site, tmp_path: Path) -> None:
    """First a node with a rank alone, then the one that the job's script runs on."""
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")), "--nodes", "2", "--silent-seconds", "5")
    try:
        site = Site(cluster, tmp_path)
        config = site.write("unlucky", train={"max_steps": 2500, "log_every": 100}, checkpoint={"every": 100})
        job = site.launch(config, "--stages", "prepare,train")["train"]
        _crash_and_boot(site, "unlucky", "c2", starts=1)
        _crash_and_boot(site, "unlucky", "c1", starts=2)
        site.wait(job)
        history = site.attempts("unlucky")
        begun = [line["step"] for line in history if "begin" in line]
        assert len(begun) == 3 and begun[1] >= 200 and begun[2] >= begun[1] + 200
        ends = [line["why"] for line in history if "end" in line]
        assert ends[-1] == "finished" and set(ends[:-1]) <= {"failed", "cut off"}, (
            "Slurm may be first, and then nobody notes an end"
        )
    finally:
        cluster.stop()


def _crash_and_boot(site: Site, name: str, node: str, starts: int) -> None:
    """Crash a node some checkpoints after the last of these starts, and boot it when Slurm has noticed."""

    def is_far() -> bool:
        begun = [line["step"] for line in site.attempts(name) if "begin" in line]
        return len(begun) == starts and committed_step(site.folder / "runs" / name) >= begun[-1] + 201

    site.until(is_far)
    site.slurm.fault("crash", node)
    site.until(lambda: site.slurm.run("sinfo", "-h", "-n", node, "-o", "%T").startswith("down"))
    site.slurm.fault("boot", node)


def test_cancel_ends_all_jobs(site: Site) -> None:
    config = site.write("unwanted", train={"max_steps": 100_000})
    jobs = site.launch(config)
    record = site.folder / "runs" / "unwanted" / "jobs" / "jobs.json"
    cut_off = json.loads(record.read_text("utf-8"))
    cut_off["jobs"][-1]["id"] = None  # as of a launch that was killed; Slurm still knows what it submitted
    record.write_text(json.dumps(cut_off), "utf-8")
    assert site.launch(config) == jobs
    site.until(lambda: _ranks(site.folder / "runs" / "unwanted"))
    assert set(json.loads(site.shardtune("cancel", "unwanted", "--json").stdout)["cancelled"]) == set(jobs.values()) - {
        jobs["prepare"]
    }
    again = site.until(lambda: _launched_when_it_has_ended(site, config))
    assert not set(again.values()) & set(jobs.values()), "what is ending is not what was asked for"
    assert {site.state(job) for job in (jobs["train"], jobs["export"])} == {"CANCELLED"}
    site.shardtune("cancel", "unwanted")
    site.until(lambda: not _ranks(site.folder / "runs" / "unwanted"))


def _launched_when_it_has_ended(site: Site, config: Path) -> dict[str, str] | None:
    try:
        return site.launch(config)
    except AssertionError as refused:
        assert "are still ending" in str(refused)
        return None


def test_a_chain_that_was_never_released_is_released(site: Site) -> None:
    """A launch was killed at its very end."""
    config = site.write("held", cluster={"options": ["--begin=now+1hour"]})
    jobs = site.launch(config)
    site.slurm.run("scontrol", "uhold", jobs["prepare"])
    reason = ("squeue", "-h", "-j", jobs["prepare"], "-o", "%r")
    site.until(lambda: site.slurm.run(*reason) == "JobHeldUser")
    assert site.launch(config) == jobs
    assert site.slurm.run(*reason) != "JobHeldUser"
    site.slurm.run("scontrol", "uhold", jobs["export"])  # of a person, while the chain goes on
    site.until(lambda: site.slurm.run("squeue", "-h", "-j", jobs["export"], "-o", "%r") == "JobHeldUser")
    before = (site.folder / "runs" / "held" / "jobs" / "jobs.json").read_bytes()
    assert site.launch(config) == jobs
    assert (site.folder / "runs" / "held" / "jobs" / "jobs.json").read_bytes() == before, "nothing is submitted"
    site.shardtune("cancel", "held")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("cluster.partition=nowhere", "there is no partition nowhere; this Slurm has main, low"),
        ("cluster.nodes=3", "partition main has 2"),
        ("cluster.gpus_per_node=64", "a node of partition main has 8"),
        ("cluster.profile=nobody", "there is no cluster profile nobody"),
        ("cluster.time=UNLIMITED", "never unlimited"),
        ("cluster.account='a b'", "only letters"),
        ("runs=/proc/none", "cannot make the folder"),
        ("cluster.options=['--output=x']", "--output is set by shardtune itself"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_submitted(setting: str, said: str, site: Site) -> None:
    before = site.slurm.run("squeue", "-h", "-t", "all", "-o", "%i")
    done = site.shardtune("launch", site.write("wrong"), "--on", "slurm", setting, code=1)
    assert said in done.stderr
    assert done.stderr.count("error:") == 1
    assert site.slurm.run("squeue", "-h", "-t", "all", "-o", "%i") == before


def test_without_slurm_there_is_one_line(site: Site) -> None:
    site.environment["PATH"] = "/usr/nowhere"
    done = site.shardtune("launch", site.write("alone"), "--on", "slurm", code=1)
    assert "there is no sinfo on PATH" in done.stderr


def test_the_doctor_finds_a_cluster_well_and_a_partition_missing(site: Site) -> None:
    found = json.loads(site.shardtune("doctor", "slurm-cpu", "--json").stdout)["checks"]
    assert all(check["good"] for check in found)
    said = {check["what"]: check["said"] for check in found}
    assert said["network"] == "2 nodes met and added up a tensor"
    assert said["shared folder"].endswith("is the same on c1, c2")
    wrong = site.shardtune("doctor", "slurm-cpu", "cluster.partition=nowhere", code=1)
    assert "there is none called nowhere" in wrong.stderr


def test_the_doctor_names_a_node_that_cannot_reach_another(site: Site) -> None:
    """Slurm reaches it, but the ports where ranks meet are closed, as by a firewall."""
    rule = ("ipproto", "tcp", "dport", "20000-31999", "prohibit")
    site.slurm.on("c2", "ip", "rule", "add", *rule)
    try:
        wrong = site.shardtune("doctor", "slurm-cpu", code=1)
    finally:
        site.slurm.on("c2", "ip", "rule", "del", *rule)
    assert "the first: network: c2 did not come to c1:" in " ".join(wrong.stderr.split())


def test_prepare_by_ray_or_by_an_array_makes_the_same_store(site: Site) -> None:
    ways = {
        "one": {"cpus": 1},
        "array": {"how": "array", "tasks": 3, "cpus": 1},
        "ray": {"how": "ray", "nodes": 2, "cpus": 2},
    }
    data = _data(site) | {"actors": 4, "rows_per_shard": 64}
    jobs = {}
    for name, how in ways.items():
        config = site.write(name, data=data if name == "ray" else data | {"actors": 0}, cluster={"prepare": how})
        jobs[name] = site.launch(config, "--stages", "prepare")
    for each in jobs.values():
        site.wait(each["prepare"])
    one, array, ray = (_store(site.folder / "runs" / name) for name in ways)
    assert len(one) > 10
    assert one == array == ray
    looks = json.loads(site.shardtune("status", "array", "--json").stdout)["jobs"]
    assert [(look["stage"], look["progress"]) for look in looks] == [
        ("prepare-shares", "300 / 300 rows"),
        ("prepare", "300 / 300 rows"),
    ]
    assert not list((site.folder / "runs" / "ray" / "jobs").glob("ray-token*"))
    assert not list(Path("/tmp").glob(f"ray-{jobs['ray']['prepare']}-*"))


def _data(site: Site) -> dict[str, Any]:
    return dict(yaml.safe_load(site.write("plain").read_text("utf-8"))["data"])


def _store(run: Path) -> dict[str, bytes]:
    folder = run / "tokens"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock",)
    }


def test_a_sweep_is_an_array_over_one_store(site: Site) -> None:
    sweep = ("--sweep", "train.learning_rate=1e-4,1e-3", "--stages", "prepare,train")
    jobs = site.launch(site.write("swept", cluster={"nodes": 1, "cpus_per_rank": 1, "prepare": {"cpus": 1}}), *sweep)
    assert site.until(lambda: set(site.state(jobs["train"]).split()) == {"COMPLETED"}, 300)
    rates = [
        yaml.safe_load((site.folder / "runs" / f"swept-{n}" / "run.yaml").read_text())["train"]["learning_rate"]
        for n in (0, 1)
    ]
    assert rates == [1e-4, 1e-3]
    for number in (0, 1):
        assert read_metrics(site.folder / "runs" / f"swept-{number}")[-1]["step"] == 6
        assert not (site.folder / "runs" / f"swept-{number}" / "tokens").exists()
    told = {job["stage"]: job for job in site.status("swept")}
    assert told["swept-1"]["note"] == "train.learning_rate=0.001" and "step 6 / 6" in told["swept-1"]["progress"]
    assert told["train"]["state"] == "COMPLETED"
    assert told["train"]["progress"] == "2 of 2 begun runs finished, step 12 / 12"
    record = site.folder / "runs" / "swept" / "jobs" / "jobs.json"
    record.write_text(record.read_text().replace(f'"{jobs["train"]}"', '"999999"'))  # as if Slurm had forgotten it
    assert {job["stage"]: job["state"] for job in site.status("swept") if job["state"]} == {
        "prepare": "COMPLETED",
        "train": "COMPLETED",
    }
    (site.folder / "runs" / "swept-1" / "jobs" / "ends" / "train-1.json").unlink()
    assert {job["stage"]: job for job in site.status("swept")}["train"]["state"] == "UNKNOWN"
