"""DeepSpeed's configuration: what is written into it, and what is refused before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data_tools.errors import UserError
from sft.config import OWN_SETTINGS, TrainConfig
from sft.zero import check_device, check_train, coalesces, deepspeed_settings, gradient_dtype, merged

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16


def train(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"packs_per_step": 4} | values)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT])
def test_what_deepspeed_would_decide_itself_is_said(stage: int, dtype: torch.dtype) -> None:
    settings = deepspeed_settings(train(zero={"stage": stage, "coalesce": None}), dtype, 2, 1000)
    assert settings["gradient_clipping"] == 1.0
    assert settings["zero_optimization"] == {"stage": stage, "reduce_bucket_size": 1000}
    assert settings["bf16"] == {"enabled": dtype is BFLOAT, "check_grad_overflow": False}
    assert settings["gradient_accumulation_steps"] == (1 if stage == 2 and dtype is FLOAT else 2)


@pytest.mark.parametrize(
    ("values", "dtype", "said"),
    [
        ({"zero": {"stage": 2}}, torch.bfloat16, "fp32"),
        ({"zero": {"stage": 3}}, torch.float16, "fp32"),
        ({"zero": {"stage": 2}, "gradient_dtype": "bfloat16"}, torch.bfloat16, None),
        ({"zero": {"stage": 2}, "pure_bfloat16": True}, torch.bfloat16, None),
        ({"zero": {"stage": 2}}, torch.float32, None),
    ],
)
def test_ranks_add_up_gradients_in_what_micro_batches_do(
    values: dict[str, Any], dtype: torch.dtype, said: str | None
) -> None:
    settings = deepspeed_settings(train(**values), dtype, 1, 1000)
    assert settings.get("communication_data_type") == said


def test_buckets_are_as_large_as_the_model_and_not_larger_than_deepspeeds() -> None:
    assert deepspeed_settings(train(), FLOAT, 1, 10**12)["zero_optimization"]["reduce_bucket_size"] == 5 * 10**8


def test_no_clipping_is_said_too() -> None:
    assert deepspeed_settings(train(max_grad_norm=None), FLOAT, 1, 1)["gradient_clipping"] == 0.0


def test_gradients_are_reduced_once_only_where_that_changes_no_sum() -> None:
    assert coalesces(train(), FLOAT, 2)
    assert not coalesces(train(), FLOAT, 4), "one micro-batch"
    assert not coalesces(train(), BFLOAT, 2), "sums of float32 would be sums of bfloat16"
    assert coalesces(train(gradient_dtype="bfloat16"), BFLOAT, 2)
    assert not coalesces(train(zero={"stage": 3}), FLOAT, 2)
    assert coalesces(train(zero={"stage": 3, "coalesce": True}), FLOAT, 2)
    assert not coalesces(train(zero={"coalesce": False}), FLOAT, 2)
    assert not coalesces(train(zero={"stage": 1}), FLOAT, 2)


def test_gradients_are_summed_in() -> None:
    assert gradient_dtype(train(), BFLOAT) is FLOAT
    assert gradient_dtype(train(zero={"stage": 0}), BFLOAT) is BFLOAT, "DeepSpeed has nothing else"
    assert gradient_dtype(train(pure_bfloat16=True), BFLOAT) is BFLOAT


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero": {"stage": 0, "offload_optimizer": "cpu"}}, "offload_optimizer needs stage 1, 2 or 3"),
        ({"zero": {"stage": 2, "offload_parameters": "cpu"}}, "offload_parameters needs stage 3"),
        ({"zero": {"stage": 2, "hpz_partition_size": 2}}, "hpz_partition_size needs stage 3"),
        ({"zero": {"stage": 3, "offload_parameters": "nvme"}}, "give both or neither"),
        ({"zero": {"stage": 3, "nvme_path": "/disk"}}, "give both or neither"),
        ({"zero": {"stage": 3, "offload_optimizer": "nvme"}}, "and a resumed run would be another; set cpu"),
        ({"zero": {"stage": 1, "coalesce": True}}, "stage 1 reduces gradients once a step anyway"),
        ({"zero": {"coalesce": True, "offload_optimizer": "cpu"}}, "choose one"),
        ({"pure_bfloat16": True, "zero": {"stage": 0}}, "pure_bfloat16 needs zero.stage 1, 2 or 3"),
        (
            {"pure_bfloat16": True, "zero": {"offload_optimizer": "cpu"}},
            "keeps all states on the GPU; leave out zero.off",
        ),
        ({"optimizer": "muon"}, "set max_grad_norm=null"),
        ({"optimizer": "muon", "max_grad_norm": None, "pure_bfloat16": True}, "leave out pure_bfloat16"),
        ({"optimizer": "adamw_8bit", "zero": {"offload_optimizer": "cpu"}}, "stays on the GPU"),
        ({"muon_learning_rate": 0.1}, "muon_learning_rate needs optimizer=muon"),
        ({"activation_checkpointing": -1}, "greater than or equal to 1"),
        ({"schedule": {"name": "warmup_stable_decay", "warmup_ratio": 0.5, "decay_ratio": 0.6}}, "more than the whole"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "zero_optimization.stage: train.zero.stage says it"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        train(**values)
    assert message in str(error.value)


@pytest.mark.parametrize("path", OWN_SETTINGS)
def test_every_key_that_is_ours_is_refused(path: str) -> None:
    values: Any = 1
    for part in reversed(path.split(".")):
        values = {part: values}
    reasons = r"says it|its name is|is committed|of their own|counts on it|ends the run|chooses|mean over ranks"
    with pytest.raises(ValidationError, match=reasons):
        train(deepspeed=values)


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ({"packs_per_step": 5}, FLOAT, "not a multiple of 2 ranks"),
        ({"zero": {"stage": 3, "hpz_partition_size": 4}}, FLOAT, "hpz_partition_size=4 does not divide 2 ranks"),
        ({"pure_bfloat16": True}, FLOAT, "train.pure_bfloat16: the model computes in float32"),
        ({"gradient_dtype": "bfloat16"}, HALF, "train.gradient_dtype: the model computes in float16"),
        ({"zero": {"coalesce": True}}, BFLOAT, "set train.gradient_dtype=bfloat16, or leave it out"),
    ],
)
def test_what_type_and_ranks_forbid(values: dict[str, Any], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_train(train(**values), dtype, 2)
    check_train(train(), dtype, 2)


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ({}, HALF, "model.dtype=float16 trains on GPUs only"),
        ({"optimizer": "adamw_8bit"}, FLOAT, "runs on GPUs only"),
    ],
)
def test_what_needs_a_gpu(values: dict[str, Any], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_device(train(**values), dtype, torch.device("cpu"))
    check_device(train(), BFLOAT, torch.device("cpu"))


def test_offloading_and_partitions_are_passed_on() -> None:
    zero = {"stage": 3, "offload_optimizer": "cpu", "offload_parameters": "nvme", "nvme_path": "/disk"}
    settings = deepspeed_settings(train(zero={**zero, "hpz_partition_size": 2}), BFLOAT, 2, 10)
    assert settings["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 10,
        "zero_hpz_partition_size": 2,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "nvme", "nvme_path": "/disk"},
    }
    assert settings["zero_force_ds_cpu_optimizer"] is False


def test_other_keys_of_deepspeed_join_ours() -> None:
    own = {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 7}, "communication_data_type": "fp32"}
    settings = deepspeed_settings(train(deepspeed=own), FLOAT, 2, 100)
    assert settings["zero_optimization"] == {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 7}
    assert settings["communication_data_type"] == "fp32"
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"gradient_predivide_facto": 2},
            "deepspeed.gradient_predivide_facto; did you mean gradient_predivide_factor?",
        ),
        ({"xyzzy": 2}, "unknown key train.deepspeed.xyzzy; DeepSpeed 0"),
        ({"zero_optimization": {"overlap_com": True}}, "refuses overlap_com: Extra inputs are not permitted"),
        ({"fp16": {"loss_scale": -1}}, "refuses loss_scale"),
        ({"communication_data_type": "fp7"}, "DeepSpeed refuses it: "),
        ({"aio": {"thread_count": 1}, "steps_per_print": 5, "tensorboard": {"enabled": False}}, ""),
    ],
)
def test_deepspeed_reads_its_keys_before_the_start(own: dict[str, Any], message: str) -> None:
    from sft.engine import check_settings

    settings = deepspeed_settings(train(deepspeed=own), FLOAT, 2, 100)
    if not message:
        check_settings(settings)
        return
    with pytest.raises(UserError) as error:
        check_settings(settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_offloading_to_a_disk_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    """DeepSpeed compiles what it reads and writes disks by, against libaio."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    from sft.engine import check_offload

    zero = {"stage": 3, "offload_parameters": "nvme", "nvme_path": str(tmp_path / "gone")}
    words = "is no folder that can be written to" if AsyncIOBuilder().is_compatible() else r"needs libaio .*or use cpu"
    with pytest.raises(UserError, match=words):
        check_offload(train(zero=zero).zero)
    check_offload(train(zero={"offload_optimizer": "cpu"}).zero)
