"""What is refused and what is gone round: checkpoints that are damaged, of another run, or have no room."""

import json
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.errors import UserError
from launcher.attempts import committed_step
from launcher.run_folder import newest_checkpoint
from sft.config import TrainConfig
from sft.digests import COMMIT, describe_files, file_names, writer
from sft.elastic import check_convertible
from sft.newest import newest_good_checkpoint
from sft.world import World
from tests.ranks import run_ranks
from tests.sft.test_elastic import MODEL, PLAN, save, settings, start, task

ALONE = World(0, 1, torch.device("cpu"))


def make_checkpoint(folder: Path, step: int) -> Path:
    """A committed checkpoint of files with anything in them: whoever unpickles one fails."""
    path = folder / f"step-{step:08d}"
    for name in (
        "state/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "state/mp_rank_00_model_states.pt",
        "rank-00000.pt",
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"{name} of step {step}")
    (path / COMMIT).write_text(json.dumps({"files": describe_files(path, ALONE)}))
    return path


def test_every_file_has_a_rank_that_wrote_it() -> None:
    assert writer("rank-00003.pt") == 3
    assert writer("state/zero_pp_rank_12_mp_rank_00_optim_states.pt") == 12
    assert writer("state/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt") == 1
    assert [writer(name) for name in ("state/mp_rank_00_model_states.pt", "state/zero_to_fp32.py", "probe.pt")] == [
        0
    ] * 3


@pytest.mark.parametrize("kind", ["changed", "longer", "missing", "added", "record", "record without files"])
def test_a_damaged_checkpoint_is_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    good, bad = make_checkpoint(tmp_path, 4), make_checkpoint(tmp_path, 8)
    assert newest_good_checkpoint(tmp_path, ALONE) == bad
    weights = bad / "state" / "mp_rank_00_model_states.pt"
    match kind:
        case "changed":
            weights.write_text(weights.read_text().replace("8", "9"))
        case "longer":
            weights.write_text(weights.read_text() + ".")
        case "missing":
            weights.unlink()
        case "added":
            (bad / "state" / "mp_rank_01_model_states.pt").write_text("DeepSpeed would unpickle this")
        case "record":
            (bad / COMMIT).write_text("{")
        case _:
            (bad / COMMIT).write_text("{}")
    assert newest_good_checkpoint(tmp_path, ALONE) == good
    assert "step-00000008 is damaged (" in capsys.readouterr().out
    assert (tmp_path / "step-00000008.damaged").exists()
    (good / "rank-00000.pt").unlink()
    for _ in range(2):  # who asks again does not begin anew
        with pytest.raises(UserError, match="were damaged; delete them to begin again"):
            newest_good_checkpoint(tmp_path, ALONE)
    assert committed_step(tmp_path.parent) == -1


def test_who_only_reads_renames_nothing(tmp_path: Path) -> None:
    good, bad = make_checkpoint(tmp_path, 4), make_checkpoint(tmp_path, 8)
    (bad / "rank-00000.pt").unlink()
    unfinished = make_checkpoint(tmp_path, 12)
    unfinished.rename(unfinished.with_suffix(".partial"))
    before = sorted(tmp_path.iterdir())
    assert newest_good_checkpoint(tmp_path, ALONE, reading=True) == good
    assert sorted(tmp_path.iterdir()) == before


def test_an_unfinished_checkpoint_is_none(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 4)
    (path / COMMIT).unlink()
    path.rename(path.with_suffix(".partial"))
    assert newest_good_checkpoint(tmp_path, ALONE) is None


def test_one_that_lacks_only_its_name_gets_it(tmp_path: Path) -> None:
    """A kill came before the last rename, perhaps when the one before of the same step was out of the way."""
    path = make_checkpoint(tmp_path / "checkpoints", 4)
    shutil.copytree(path, path.with_suffix(".replaced"))
    path.rename(path.with_suffix(".partial"))
    assert committed_step(tmp_path) == -1 and newest_checkpoint(tmp_path) is None
    assert newest_good_checkpoint(tmp_path / "checkpoints", ALONE) == path
    assert committed_step(tmp_path) == 4 and newest_checkpoint(tmp_path) == path


def test_what_cannot_be_cut_anew_is_said(tmp_path: Path) -> None:
    check_convertible(tmp_path, TrainConfig(), "2 ranks with ZeRO stage 2")
    with pytest.raises(UserError, match=r"written by 2 ranks with ZeRO stage 2, and train\.optimizer=adamw_8bit"):
        check_convertible(tmp_path, TrainConfig(optimizer="adamw_8bit"), "2 ranks with ZeRO stage 2")


def refusals(world: World, folder: str) -> dict[str, Any]:
    """What is said of checkpoints of others, of a full disk and of one that fills up; and what is left then."""
    from sft.checkpoint import check_room, resume

    kind = task(2, (0, 0))
    train, engine, checkpoints = settings(kind), start(kind, world), Path(folder)
    save(engine, checkpoints, 1, train, world)

    def said(act: Any) -> str:
        with pytest.raises(UserError) as error:
            act()
        return str(error.value)

    words = {
        "plan": said(lambda: resume(engine, checkpoints, "other", MODEL, train, world)),
        "model": said(lambda: resume(engine, checkpoints, PLAN, "other", train, world)),
        "room": said(lambda: check_room(checkpoints, shutil.disk_usage(checkpoints).total + 1, world)),
    }
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # files end there, as on a disk that is full
    words["full"] = said(lambda: save(engine, checkpoints, 2, train, world))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    progress = resume(engine, checkpoints, PLAN, MODEL, train, world)
    assert progress is not None
    save(engine, checkpoints, 2, train, world)
    names = sorted(path.name for path in checkpoints.iterdir())
    return {**words, "step": progress.step, "names": names, "files": file_names(checkpoints / "step-00000002")}


def test_one_line_for_checkpoints_of_others_and_for_disks_that_are_full(tmp_path: Path) -> None:
    (found,) = run_ranks(1, "tests.sft.test_checkpoint:refusals", folder=str(tmp_path))
    assert "step-00000001 belongs to another pack plan" in found["plan"]
    assert "step-00000001 belongs to another model: its parameters have other names or shapes" in found["model"]
    assert "make room there (or lower checkpoint.keep_last), and go on with --resume" in found["room"]
    assert f"cannot write {tmp_path}/step-00000002.partial (" in found["full"]
    assert "\n" not in found["full"]
    assert found["step"] == 1, "what was committed before is as it was"
    assert found["names"] == ["step-00000001", "step-00000002"], "what was left of the failed one is gone"
    assert {"probe.pt", "rank-00000.pt", "state/mp_rank_00_model_states.pt"} <= set(found["files"])
