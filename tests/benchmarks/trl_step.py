"""TRL's training steps, timed; runs in the Python of an environment that has TRL 1.16.

python trl_step.py MODEL PACKS.parquet STEPS
"""

import json
import resource
import sys
import tempfile
import time
from itertools import pairwise
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found, unused-ignore]


class Times(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Notes the CPU clock at the end of every step, and the loss that the trainer logs."""

    def __init__(self) -> None:
        self.clock = [time.process_time()]
        self.losses: list[float] = []

    def on_train_begin(self, *arguments: Any, **facts: Any) -> None:
        self.clock = [time.process_time()]

    def on_log(self, arguments: Any, state: Any, control: Any, logs: dict[str, float], **facts: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])
            self.clock.append(time.process_time())


def main() -> None:
    """Train; print CPU seconds and loss of every step."""
    model_folder, packs, steps = sys.argv[1:]
    dataset = datasets.Dataset.from_parquet(packs, cache_dir=tempfile.mkdtemp())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="</s>",
    )
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        packing=True,
        padding_free=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=1,
        max_steps=int(steps),
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        adam_beta2=0.999,
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    times = Times()
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    trainer = SFTTrainer(model, settings, train_dataset=dataset, processing_class=tokenizer, callbacks=[times])
    trainer.train()
    seconds = [after - before for before, after in pairwise(times.clock)]
    tokens = [len(row) for row in dataset["input_ids"]]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"losses": times.losses, "seconds": seconds, "tokens": tokens, "peak_gib": peak}))


if __name__ == "__main__":
    main()
