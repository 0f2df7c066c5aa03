"""Memory of one rank before anything is loaded: what DeepSpeed keeps of a model, and what a micro-batch adds.

Of T trained parameters on W ranks, whose model computes in s bytes and sums gradients in g:

    parameters      s · all of them; in stage 3 a rank's share, and whole what is gathered at the same time
    optimizer       the weights in float32 and Adam's two means: 12 · T / W; 8 · T without ZeRO in float32
    gradients       those of the step, and in the optimizer step the same in float32 once more (`_gradients`)
    bucket          gradients on their way to other ranks
    activations     what layers keep for the backward pass: counted, tensor by tensor, on a model without data
    loss head       gradients that it makes in the forward pass, and a chunk of logits

The optimizer step has no activations, and the backward pass not yet the second form of gradients: the peak is the
larger of the two. Model state agrees with DeepSpeed 0.19's to a few percent (a test measures); activations are what the
layers keep, without what a kernel works with.
"""

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sft.attention import repeat_heads
from sft.config import TrainConfig
from sft.config_model import ModelConfig
from sft.fits import weight_bytes
from sft.layers import forget_activations
from sft.lean import keep_less
from sft.lora import add_lora
from sft.loss import CHUNK_LOGITS, logit_form
from sft.model import PackedCausalLM
from sft.own_code import empty_model
from sft.zero import BUCKET, coalesces, gradient_dtype

GATHERED = 10**9
"""Parameters that ZeRO-3 has whole at the same time at most, as in DeepSpeed (`stage3_max_live_parameters`)."""
_COUNTED = "shardtune_counted"


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of one rank."""

    parameters: int
    optimizer: int
    gradients: int
    """In the optimizer step."""
    backward: int
    """Gradients at the end of the last backward pass, with the bucket."""
    activations: int
    loss_head: int

    @property
    def model_state(self) -> int:
        """What is there in the optimizer step."""
        return self.parameters + self.optimizer + self.gradients

    @property
    def peak(self) -> int:
        """The most there is at any time."""
        passes = self.parameters + self.optimizer + self.backward + self.activations + self.loss_head
        return max(self.model_state, passes)


def forecast_memory(
    model: ModelConfig,
    model_config: PretrainedConfig,
    train: TrainConfig,
    dtype: torch.dtype,
    ranks: int,
    tokens: int,
    labels: int,
    added_tokens: int = 0,
) -> MemoryForecast:
    """Forecast for a run.

    Args:
        model_config: of the whole model.
        tokens: of the longest micro-batch.
        labels: trained tokens of the micro-batch that has most.
        added_tokens: rows that are new, which adapters train as well.
    """
    empty = empty_model(model, model_config).to(dtype)
    if model.lora is not None:
        add_lora(empty, model.lora, added_tokens)
    sizes = [parameter.numel() for parameter in empty.parameters()]
    trained = sum(parameter.numel() for parameter in empty.parameters() if parameter.requires_grad)
    parameters = weight_bytes(model, model_config, dtype)
    if model.lora is not None:
        parameters += trained * dtype.itemsize
    if train.zero.stage == 3:
        gathered = min(sum(sizes), GATHERED) * dtype.itemsize
        parameters = (0 if train.zero.offload_parameters else parameters // ranks) + gathered
    if not (train.compile or train.liger):
        keep_less(empty)
    activations = _activations(PackedCausalLM(empty, _COUNTED), train, tokens // train.sequence_parallel)
    return MemoryForecast(
        parameters,
        0 if train.zero.offload_optimizer else _optimizer(train, dtype, ranks, trained),
        _gradients(train, dtype, ranks, trained, in_step=True),
        _gradients(train, dtype, ranks, trained, in_step=False),
        activations,
        _loss_head(empty, dtype, labels // train.sequence_parallel),
    )


def largest_micro_batch(
    model: ModelConfig,
    model_config: PretrainedConfig,
    train: TrainConfig,
    dtype: torch.dtype,
    ranks: int,
    pack: tuple[int, int],
    memory: int,
    added_tokens: int = 0,
) -> int | None:
    """The largest `train.packs_per_micro_batch` whose peak leaves a tenth of some bytes free; None: not even 1.

    Args:
        pack: tokens of a pack, and labels of the one that has most.
        memory: of a rank, in bytes.
    """
    per_step = train.packs_per_step * train.sequence_parallel // ranks
    fitting = None
    for packs in (number for number in range(1, per_step + 1) if per_step % number == 0):
        asked = train.model_copy(update={"packs_per_micro_batch": packs})
        tokens, labels = (packs * number for number in pack)
        forecast = forecast_memory(model, model_config, asked, dtype, ranks, tokens, labels, added_tokens)
        if forecast.peak > 0.9 * memory:
            break
        fitting = packs
    return fitting


def _optimizer(train: TrainConfig, dtype: torch.dtype, ranks: int, trained: int) -> int:
    """Muon's matrices have one mean in place of two: this is a little more than they take."""
    stage, states = train.zero.stage, 2 if train.optimizer == "adamw_8bit" else 8
    if train.pure_bfloat16:
        return 6 * trained // ranks
    if stage == 0:
        return (states if dtype is torch.float32 else 4 + states) * trained
    return (4 + states) * trained // ranks


def _gradients(train: TrainConfig, dtype: torch.dtype, ranks: int, trained: int, in_step: bool) -> int:
    stage, size, summed = train.zero.stage, dtype.itemsize, gradient_dtype(train, dtype).itemsize
    master = 2 if train.pure_bfloat16 else 4
    if stage == 0:
        return (size + (4 if in_step and dtype is not torch.float32 else 0)) * trained
    # In another type, stage 1 sums whole gradients, and stage 2 in the share that the optimizer takes.
    beside = {1: summed * trained, 2: 0, 3: summed * trained // ranks}[stage]
    summed_bytes = size * trained // ranks if summed == size else beside
    in_master = master * trained // ranks
    if train.zero.offload_optimizer:
        in_master = summed_bytes = 0
    # Stage 3 keeps the bucket in which the ranks add up, in the wider of both types.
    wider = max(0, summed - size) * min(BUCKET, trained) if stage == 3 else 0
    if in_step:
        return summed_bytes + in_master + wider
    if coalesces(train, dtype, ranks):
        return size * trained
    return (summed_bytes or in_master) + size * min(BUCKET, trained) + wider


def _loss_head(model: PreTrainedModel, dtype: torch.dtype, labels: int) -> int:
    """The gradient of the weight is in float32 until the backward pass takes it in the weight's own type."""
    weight: torch.Tensor = model.get_output_embeddings().weight
    rows, width = weight.shape
    capped = logit_form(model.config).cap is not None
    chunk = max(CHUNK_LOGITS["cuda"], 16 * rows) * (4 if capped else 2)  # logits and probabilities, or what caps them
    of_weight = (
        rows * width * (4 + (dtype.itemsize if dtype is not torch.float32 else 0)) if weight.requires_grad else 0
    )
    kept: int = of_weight + 2 * labels * width * dtype.itemsize + 4 * min(chunk, labels * rows * (4 if capped else 2))
    return kept


def _activations(packed: PackedCausalLM, train: TrainConfig, tokens: int) -> int:
    """With activation checkpointing, one layer at a time is there as a whole."""
    whole = count_activations(packed, tokens)
    if not train.activation_checkpointing:
        return whole
    layers: int = packed.model.config.get_text_config().num_hidden_layers
    forget_activations(packed.model, train)
    return count_activations(packed, tokens) + whole // layers


def count_activations(packed: PackedCausalLM, tokens: int) -> int:
    """Bytes that the layers keep of a row of one document, for the backward pass.

    The model is on the meta device, where tensors have shapes only. Attention keeps what its kernels do, whatever they
    are: queries, keys, values, results, and a float32 for each.
    """
    model = packed.model
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them keeps their numbers apart

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    row = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    borders = torch.tensor([0, tokens], dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        packed.hidden(row, torch.zeros_like(row), borders, tokens)
    return sum(storage.nbytes() for storage in kept.values())


class _Counted(torch.autograd.Function):
    """Attention that keeps what a kernel keeps, and computes nothing."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        attended = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, attended, sums)
        return attended


def _counted_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, None]:
    # Kernels on CPUs, and some on GPUs, want as many keys as queries.
    key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
    attended: torch.Tensor = _Counted.apply(query, key, value)  # type: ignore[no-untyped-call]
    return attended.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(_COUNTED, _counted_attention)
