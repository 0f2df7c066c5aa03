"""From a run's folder to a run in memory: what cannot be is refused before anything is loaded."""

import socket
from collections.abc import Callable

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from data_tools.chat import ChatTemplate
from data_tools.errors import UserError
from data_tools.tokenizer import load_tokenizer, template_of
from sft.adapter import fill_adapters
from sft.attention import check_heads, choose_attention
from sft.copies import Copies
from sft.digests import gathered
from sft.engine import check_offload, start_engine
from sft.fits import check_weights_fit, free_memory
from sft.heartbeat import Heart
from sft.hollow import hollow_model, share_what_is_no_parameter
from sft.layers import check_compiler, check_liger, compile_layers, forget_activations, use_liger
from sft.lean import keep_less
from sft.lora import add_lora, check_packages, check_quantize, trains_embeddings
from sft.model import PackedCausalLM, check_length, compute_dtype, load_config, load_model, model_hash
from sft.node_local import find_ranks_here, keepers_of
from sft.optimizers import check_muon
from sft.products import multiply_by_onednn
from sft.record import RunRecord
from sft.run import TrainingRun
from sft.self_test import check_documents_are_apart
from sft.sequence import join_sequence_group
from sft.session import Session
from sft.stop import Stop
from sft.timings import Timings
from sft.trackers import check_trackers
from sft.world import World, be_deterministic
from sft.zero import check_device, check_train


def _load(run: TrainingRun, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, world: World) -> PreTrainedModel:
    """The model that is trained, with its adapters; what cannot be is said before its weights are read."""
    model, vocab_size, added = run.model, run.store.vocab_size, run.store.added_tokens
    check_packages(model)
    check_quantize(model, run.train.zero.stage, world.device)
    is_split = run.train.zero.stage == 3
    model_config = load_config(model, tokenizer, vocab_size, added)
    _check_memory(run, model_config, dtype, world)
    if is_split and not world.is_main:
        loaded = hollow_model(model, tokenizer, vocab_size, added, dtype)
    else:
        loaded = load_model(model, tokenizer, vocab_size, added, dtype, run.train.seed)
    if model.lora is not None:
        view = add_lora(loaded, model.lora, added)
        if model.lora.start_from is not None and not (is_split and not world.is_main):
            fill_adapters(view, model.lora, trains_embeddings(model.lora, added))
    if is_split:
        share_what_is_no_parameter(loaded, world)
    return loaded


def _check_memory(run: TrainingRun, model_config: PretrainedConfig, dtype: torch.dtype, world: World) -> None:
    """Is there memory for the weights where they are read, and where they are used? All ranks call it."""
    cpu, is_split = torch.device("cpu"), run.train.zero.stage == 3
    if is_split and world.is_main:  # it reads for all
        check_weights_fit(run.model, model_config, dtype, cpu)
    if world.device.type == "cuda" and run.train.zero.offload_parameters is None:
        check_weights_fit(run.model, model_config, dtype, world.device, world.size if is_split else 1)
    if world.device.type == "cpu" and not is_split:
        host = socket.gethostname()
        told = gathered(world, (host, free_memory()))  # before any rank has begun to read
        here = [free for name, free in told if name == host]
        least = None if None in here else min(here)
        check_weights_fit(run.model, model_config, dtype, cpu, ranks=len(here), free=least)


def start_session(run: TrainingRun, world: World, signalled: Callable[[], bool]) -> Session:
    """Load model and tokenizer and start the engine.

    Args:
        signalled: says whether this rank was told to stop.

    Raises:
        UserError: the run cannot be trained as it is configured.
    """
    if run.train.deterministic:
        be_deterministic()
    stop = Stop(run.folder, world, signalled)
    check_validation(run)
    dtype = compute_dtype(run.model, world.device)
    check_train(run.train, dtype, world.size)
    check_device(run.train, dtype, world.device)
    check_liger(run.train, world.device)
    check_compiler(run.train)
    check_offload(run.train.zero)
    check_trackers(run.track)
    if run.checkpoint.node_local:
        world = find_ranks_here(run.folder, world)
    keepers = keepers_of(world)
    copies = (
        Copies(run.folder, run.checkpoint, world, keepers) if world.keeps_folder and run.checkpoint.copy_to else None
    )
    record = RunRecord(run.folder, run.total_steps, writes=world.is_main)
    record.status("loading", 0)
    heart = Heart(run.folder, world, run.train.hang_timeout)
    tokenizer = load_tokenizer(str(run.store.folder / "tokenizer"))
    template = ChatTemplate(template_of(tokenizer), tokenizer.special_tokens_map, run.template_date)
    loaded = _load(run, tokenizer, dtype, world)
    if world.device.type == "cpu":
        multiply_by_onednn(loaded.config.get_text_config().hidden_size)
    attention = choose_attention(run.model.attention, loaded.config, world.device)
    check_heads(loaded.config, attention, run.train.sequence_parallel)
    check_muon(loaded, run.train)
    use_liger(loaded, run.train)
    if not (run.train.compile or run.train.liger):  # programs and kernels decide by themselves what they keep
        keep_less(loaded)
    model = PackedCausalLM(loaded, attention, run.train.neftune_alpha)
    check_length(model.model.config, run.plan.settings.max_length)
    alone = run.plan.settings.packing == "none" and run.train.packs_per_micro_batch == 1
    is_split = run.train.zero.stage == 3
    if not is_split:
        check_documents_are_apart(model.to(world.device), world.device, alone)
    forget_activations(loaded, run.train)
    shapes = model_hash(model)  # before ZeRO-3 splits them
    engine = start_engine(model, run.train, dtype, world)
    if is_split:  # no rank had the weights before
        check_documents_are_apart(model, world.device, alone)
    compile_layers(loaded, run.train)
    torch.manual_seed(run.train.seed + world.rank)  # ranks with other documents have other dropout and noise
    group = join_sequence_group(world, run.train.sequence_parallel)
    timings = Timings(run.folder, world.is_main)
    return Session(run, world, engine, tokenizer, template, record, shapes, group, stop, heart, timings, copies)


def check_validation(run: TrainingRun) -> None:
    """What decides by the validation loss needs one.

    Raises:
        UserError: the plan holds no documents out.
    """
    for name, asked in (
        ("evaluate.early_stopping", run.evaluate.early_stopping is not None),
        ("checkpoint.keep_best", run.checkpoint.keep_best),
    ):
        if asked and not len(run.plan.validation):
            raise UserError(f"{name} needs validation documents, and the plan has none; set data.validation")
