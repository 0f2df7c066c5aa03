"""`kill -9` of actors, drivers and nodes at any moment: the finished store has the bytes of an undisturbed one."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.config import DataConfig
from data_tools.prepare import prepare
from data_tools.records import UnitRecord
from data_tools.store import TokenStore
from tests.conftest import chats, write_jsonl
from tests.data_tools.processes import start
from tests.data_tools.test_prepare import content

UNITS = 40


@pytest.fixture(scope="module")
def many_units(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    file = write_jsonl(tmp_path_factory.mktemp("faults") / "chats.jsonl", chats(UNITS * 50))
    values = {"sources": [{"path": str(file)}], "tokenizer": {"vocab_size": 400}, "rows_per_shard": 50, "actors": 0}
    return DataConfig.model_validate(values)


@pytest.fixture(scope="module")
def undisturbed(many_units: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(many_units, tmp_path_factory.mktemp("undisturbed"))


def test_drivers_killed_at_random_moments(many_units: DataConfig, undisturbed: TokenStore, tmp_path: Path) -> None:
    """The moments spread over a whole preparation."""
    start(prepare, many_units, tmp_path / "warm").join()
    started = time.perf_counter()
    start(prepare, many_units, tmp_path / "first").join()
    whole = time.perf_counter() - started
    moments = random.Random(0)
    killed = stores = 0
    while killed < 10:
        driver = start(prepare, many_units, tmp_path / f"{stores}")
        driver.join(whole * moments.random())
        if driver.exitcode is None:
            killed += 1
        else:
            assert driver.exitcode == 0
            stores += 1
        driver.kill()
        driver.join()
    assert list(tmp_path.glob("*/shards/[0-9]*")), "no driver came to its work"
    for store in range(stores + 1):
        prepare(many_units, tmp_path / f"{store}")
        assert content(tmp_path / f"{store}") == content(undisturbed.folder)


def workers() -> Iterator[int]:
    """The process ids of this machine's `DocumentMaker` actors that this test's driver started."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        if "ray::DocumentMaker" in line and _descends_from_here(int(line.split()[0])):
            yield int(line.split()[0])


def _descends_from_here(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return False
    return False


SLEEPING = """
import pathlib, sys, time

def rows(row):
    if row["first"] and "default_worker" in sys.argv[0] and not pathlib.Path("slept").exists():
        pathlib.Path("slept").touch()
        time.sleep(60)
    return row
"""


SLOWLY = """
import time

def rows(row):
    time.sleep(0.002)
    return row
"""

DRIVER = """
import sys
from pathlib import Path
from data_tools.config import DataConfig
from data_tools.prepare import prepare
prepare(DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_actors_and_drivers_killed_at_20_random_moments(
    many_units: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten drivers, each from its start-up to the end of its work, and ten actors at work, in any order."""
    (tmp_path / "slowly.py").write_text(SLOWLY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    root = str(Path(__file__).parent.parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, str(tmp_path)]))
    slow_source = many_units.sources[0].model_copy(update={"function": "slowly:rows"})
    slow = many_units.model_copy(update={"sources": [slow_source], "actors": 2})

    def start(config: DataConfig, store: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", DRIVER, config.model_dump_json(), store])

    assert start(slow.model_copy(update={"actors": 0}), "alone").wait() == 0
    moments = random.Random(2)
    victims = ["driver", "actor"] * 10
    moments.shuffle(victims)
    stores = 0
    while victims:
        driver = start(slow, f"{stores}")
        while victims and driver.poll() is None:
            if victims[-1] == "driver":
                time.sleep(10 * moments.random())
                if driver.poll() is None:
                    driver.kill()
                    driver.wait()
                    victims.pop()
                break
            if at_work := list(workers()):
                time.sleep(moments.random())
                with contextlib.suppress(ProcessLookupError):  # it was done
                    os.kill(moments.choice(at_work), signal.SIGKILL)
                    victims.pop()
            time.sleep(0.1)
        if driver.wait() == 0:
            stores += 1
    assert start(slow, f"{stores}").wait() == 0
    for store in range(stores + 1):
        assert content(tmp_path / f"{store}") == content(tmp_path / "alone")


@pytest.mark.slow
def test_a_unit_that_another_actor_finishes_first_is_stopped_without_a_word(store: TokenStore, tmp_path: Path) -> None:
    """The first unit sleeps on one of two actors; the other repeats it, and the sleeper is killed."""
    (tmp_path / "sleeping.py").write_text(SLEEPING, encoding="utf-8")
    rows = [{**chat, "first": number == 0} for number, chat in enumerate(chats(30))]
    source = f"{{path: {write_jsonl(tmp_path / 'chats.jsonl', rows)}, function: 'sleeping:rows'}}"
    (tmp_path / "run.yaml").write_text(
        f"name: sleeping\nmodel: {{config: {{architecture: llama}}}}\ndata: {{sources: [{source}], actors: 2, "
        f"rows_per_shard: 10, tokenizer: {store.folder / 'tokenizer'}}}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "launcher", "prepare", "run.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "slept").exists()
    assert "prepared 30 of 30 rows" in done.stdout and "raylet" not in done.stdout and not done.stderr, done


@pytest.mark.slow
def test_actors_and_a_node_killed_while_smoltalk2_is_prepared(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of a real Ray cluster, six actors killed at random moments, then one of the nodes."""
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from ray.cluster_utils import Cluster

    smoltalk = DataConfig.model_validate(
        {
            "sources": [{"path": str(real_data / "smoltalk2_mini"), "config": "SFT", "split": "all"}],
            "tokenizer": str(real_data / "tokenizers" / "smollm3"),
            "rows_per_shard": 50,
            "actors": 0,
        }
    )
    alone = prepare(smoltalk, tmp_path / "alone")
    units = len(alone.manifest["shards"])
    moments = random.Random(1)
    kills = sorted(moments.sample(range(4, units - 20), 6))
    killed, seen = [], []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)

        def on_unit(record: UnitRecord, rows: int) -> None:
            seen.append(record.unit)
            if kills and len(seen) >= kills[0] and (at_work := list(workers())):
                killed.append(moments.choice(at_work))
                os.kill(killed[-1], signal.SIGKILL)
                kills.pop(0)
            if len(seen) == units - 10:
                cluster.remove_node(second, allow_graceful=False)

        prepare(smoltalk.model_copy(update={"actors": 2}), tmp_path / "tokens", on_unit)
    finally:
        cluster.shutdown()
    assert len(killed) == 6
    assert content(tmp_path / "tokens") == content(tmp_path / "alone")
