"""TRL's own preparation of chats, timed; runs in the Python of an environment that has TRL 1.16.

python trl_prepare.py TOKENIZER TEMPLATE CHATS.jsonl MAX_LENGTH OUT.arrow
"""

import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
from transformers import AutoTokenizer
from trl import SFTConfig  # type: ignore[import-not-found, unused-ignore]
from trl.trainer.sft_trainer import SFTTrainer  # type: ignore[import-not-found, unused-ignore]


def main() -> None:
    """Prepare with `assistant_only_loss` and packing; print CPU seconds, write documents and labels."""
    tokenizer_path, template, chats, max_length, out = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    with open(template, encoding="utf-8") as file:
        tokenizer.chat_template = file.read()
    with open(chats, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    datasets.disable_caching()
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_list(rows)
    settings = SFTConfig(
        output_dir="unused",
        assistant_only_loss=True,
        packing=True,
        max_length=int(max_length),
        use_cpu=True,
        bf16=False,
    )
    # `_prepare_dataset` needs no more of its trainer than this.
    trainer: Any = SimpleNamespace(
        chat_template=tokenizer.chat_template, completion_only_loss=False, _tokenizer=tokenizer
    )
    tokenizer.apply_chat_template(rows[0]["messages"])  # compiles the template
    wall, cpu = time.perf_counter(), time.process_time()
    packed = SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, settings, True, None, "train")
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    table = packed.data.table.combine_chunks() if packed._indices is None else packed.flatten_indices().data.table
    documents = pa.table({name: table[name] for name in ("input_ids", "labels", "seq_lengths")})
    with pa.OSFile(out, "wb") as sink, pa.ipc.new_file(sink, documents.schema) as writer:
        writer.write_table(documents)
    print(json.dumps({"cpu_s": cpu, "wall_s": wall, "rows": len(rows)}))


if __name__ == "__main__":
    main()
