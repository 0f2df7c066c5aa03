"""Chats for benchmarks: real questions and answers, glued to conversations of 1 to 4 turns."""

import json
import random
from pathlib import Path

import pyarrow as pa


def write_chats(datasets: Path, count: int, out: Path) -> Path:
    """Write `count` conversations as JSONL, and beside it as the Arrow file that `datasets` makes of it.

    They are the same every time.

    Args:
        datasets: the folder with GPTeacher and GSM8K.
        count: conversations.
        out: the file.
    """
    pairs: list[tuple[str, str]] = []
    for file in ("gpteacher/codegen-instruct.json", "gpteacher/toolformer-dedupe-only-dataset.json"):
        for row in json.loads((datasets / file).read_text(encoding="utf-8")):
            question = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
            pairs.append((question, row["response"]))
    for line in (datasets / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        pairs.append((row["question"], row["answer"]))
    rng, rows = random.Random(0), []
    with open(out, "w", encoding="utf-8") as lines:
        for _ in range(count):
            messages = []
            if rng.random() < 0.3:
                messages.append({"role": "system", "content": "You are a helpful assistant."})
            for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3, 4])):
                question, answer = rng.choice(pairs)
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            lines.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
            rows.append({"messages": messages})
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(out.with_suffix(".arrow")), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return out
