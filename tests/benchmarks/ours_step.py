"""Our training steps, timed.

python ours_step.py MODEL STORE STEPS
"""

import json
import os
import resource
import socket
import sys
import time
from pathlib import Path

from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from data_tools.tokenizer import load_tokenizer
from sft.batches import make_batch
from sft.clock import Clock
from sft.config import TrainConfig
from sft.config_model import ModelConfig
from sft.engine import optimizer_step, start_engine
from sft.lean import keep_less
from sft.model import PackedCausalLM, compute_dtype, load_model
from sft.products import multiply_by_onednn
from sft.world import join_world


def main() -> None:
    """Train; print CPU seconds and loss of every step."""
    model_folder, store_folder, steps = sys.argv[1:]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    world = join_world()
    store = TokenStore(Path(store_folder))
    plan = PackPlan(Path(store_folder) / "plan")
    tokenizer = load_tokenizer(str(store.folder / "tokenizer"))
    settings = ModelConfig(path=model_folder, dtype="float32")
    dtype = compute_dtype(settings, world.device)
    loaded = load_model(settings, tokenizer, store.vocab_size, store.added_tokens, dtype, 0)
    multiply_by_onednn(loaded.config.hidden_size)
    keep_less(loaded)
    model = PackedCausalLM(loaded)
    # One process has nobody to share with: ZeRO would only keep the weights twice.
    settings_of_run = {"learning_rate": 1e-4, "packs_per_step": 1, "betas": (0.9, 0.999), "zero": {"stage": 0}}
    train = TrainConfig.model_validate(settings_of_run)
    engine = start_engine(model, train, dtype, world)
    losses, seconds, tokens = [], [], []
    for step in range(int(steps)):
        started = time.process_time()
        batch = make_batch(store, plan.train, plan.packs_of_step(step))
        weight = plan.size_of_step(step).weight
        result = optimizer_step(engine, [batch], weight, train.learning_rate, world, Clock())
        losses.append(float(result.loss_sum) / weight)
        seconds.append(time.process_time() - started)
        tokens.append(batch.tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"losses": losses, "seconds": seconds, "tokens": tokens, "peak_gib": peak}))


if __name__ == "__main__":
    main()
