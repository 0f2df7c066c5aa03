"""Settings of the optimization."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_tools.config import Location, Section


class ScheduleConfig(Section):
    """How the learning rate moves over the run."""

    name: Literal["constant_with_warmup", "linear", "cosine", "cosine_with_min_lr", "warmup_stable_decay"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of all steps in which the rate rises from zero."""
    warmup_steps: int | None = Field(None, ge=0)
    """These steps in place of `warmup_ratio`."""
    decay_ratio: float = Field(0.1, ge=0, le=1)
    """Share of all steps, the last ones, in which `warmup_stable_decay` falls in a straight line."""
    min_ratio: float = Field(0.1, ge=0, le=1)
    """What `cosine_with_min_lr` and `warmup_stable_decay` end at, as a share of `learning_rate`."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "ScheduleConfig":
        rises = self.warmup_ratio if self.warmup_steps is None else 0.0
        if self.name == "warmup_stable_decay" and rises + self.decay_ratio > 1:
            raise ValueError(f"warmup_ratio={rises} and decay_ratio={self.decay_ratio} are more than the whole run")
        return self


class ZeroConfig(Section):
    """DeepSpeed's ZeRO: what is split over the ranks, and what is kept outside the GPU."""

    stage: Literal[0, 1, 2, 3] = 2
    """0 nothing, 1 optimizer states, 2 and gradients, 3 and parameters."""
    offload_optimizer: Literal["cpu", "nvme"] | None = None
    """Where optimizer states are kept and weights updated, in place of the GPU; from stage 1 on. Not `nvme`."""
    offload_parameters: Literal["cpu", "nvme"] | None = None
    """Where the parts of parameters wait until they are needed, in place of the GPU; stage 3."""
    nvme_path: Location | None = None
    """A folder on a local NVMe disk, for `nvme`, that no other run uses."""
    hpz_partition_size: int = Field(1, ge=1)
    """Stage 3: each group of so many ranks (those of a node) keeps a whole copy of the parameters, split among them, so
    that the backward pass gathers within a node; 1: none."""
    coalesce: bool | None = None
    """Reduce gradients once a step, in place of once a micro-batch, in stages 2 and 3: less traffic, but all gradients
    stay in memory until then. By default in stage 2, where it changes no sum."""

    @model_validator(mode="after")
    def _stage_can(self) -> "ZeroConfig":
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer needs stage 1, 2 or 3")
        if self.offload_optimizer == "nvme":
            raise ValueError(
                "offload_optimizer=nvme: DeepSpeed does not bring back from a checkpoint all that it keeps there, "
                "and a resumed run would be another; set cpu"
            )
        if self.offload_parameters and self.stage != 3:
            raise ValueError("offload_parameters needs stage 3")
        if self.hpz_partition_size > 1 and self.stage != 3:
            raise ValueError("hpz_partition_size needs stage 3")
        if self.coalesce and self.stage < 2:
            raise ValueError(f"coalesce: stage {self.stage} reduces gradients once a step anyway; leave it out")
        if self.coalesce and self.offload_optimizer:
            raise ValueError("coalesce keeps all gradients on the GPU, offload_optimizer takes them away; choose one")
        if (self.offload_parameters == "nvme") != (self.nvme_path is not None):
            raise ValueError("nvme_path and offload_parameters=nvme belong together; give both or neither")
        return self


class TrainConfig(Section):
    """The optimization."""

    packs_per_step: int = Field(16, ge=1)
    """Packs in one optimizer step, all ranks and micro-batches together."""
    packs_per_micro_batch: int = Field(1, ge=1)
    """Packs in one forward and backward pass of one rank."""
    sequence_parallel: int = Field(1, ge=1)
    """Ranks that share each pack, every one with a part of its tokens."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data, unless `max_steps` is set."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps."""
    learning_rate: float = Field(2e-5, gt=0)
    """The highest rate of the schedule."""
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: Literal["adamw", "muon", "adamw_8bit"] = "adamw"
    """`muon`: Muon for the matrices of the layers, AdamW for the rest; `adamw_8bit`: bitsandbytes' AdamW with states of
    8 bits, on CUDA."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's mean and of its square."""
    eps: float = Field(1e-8, gt=0)
    """What AdamW adds to the root of the square's mean."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's."""
    muon_learning_rate: float | None = Field(None, gt=0)
    """The highest rate of Muon's matrices; by default `learning_rate`."""
    weight_decay: float = Field(0.0, ge=0)
    """Of matrices and embeddings; norms and biases are not decayed."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm; null: they are left as they are."""
    zero: ZeroConfig = ZeroConfig()
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """What gradients of micro-batches are summed in; without ZeRO (stage 0) it is what the model computes in."""
    pure_bfloat16: bool = False
    """Keep weights, gradients and optimizer states in bfloat16 only: 8 bytes a parameter in place of 18, and updates
    smaller than a weight's last bit are lost; from stage 1 on."""
    activation_checkpointing: bool | Annotated[int, Field(ge=1)] = False
    """Forget the activations of layers and compute them again in the backward pass; a number: of every n-th layer."""
    deterministic: bool = False
    """Let no kernel of a GPU add up in whatever order it comes to it: the same run has the same bits, and so has one
    that was resumed; costs some speed. On CPUs it is so without."""
    compile: bool = False
    """Compile each layer with torch.compile; the first step then takes minutes."""
    liger: bool = False
    """Use Liger's kernels for norms, rotary positions and activations, on CUDA, where liger-kernel is installed."""
    neftune_alpha: float | None = Field(None, gt=0)
    """NEFTune: noise on embeddings in training, uniform within ± alpha / √(tokens of the document · hidden size); 5 is
    usual."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Any other keys of DeepSpeed's configuration, as they stand there."""
    seed: int = 0
    """Of weights, dropout and the order of packs."""
    log_every: int = Field(1, ge=1)
    """Steps between lines of metrics.jsonl."""
    hang_timeout: float = Field(600.0, gt=0)
    """Seconds without progress after which a run ends and names the ranks that hang."""

    @model_validator(mode="after")
    def _belong_together(self) -> "TrainConfig":
        if self.optimizer == "muon" and self.max_grad_norm is not None:
            raise ValueError(
                "optimizer=muon: clipping would see Muon's updates, which are large; set max_grad_norm=null"
            )
        if self.optimizer != "adamw" and self.zero.offload_optimizer:
            raise ValueError(f"optimizer={self.optimizer} stays on the GPU; leave out zero.offload_optimizer")
        if self.optimizer == "muon" and self.pure_bfloat16:
            raise ValueError("optimizer=muon needs weights in float32; leave out pure_bfloat16")
        if self.muon_learning_rate is not None and self.optimizer != "muon":
            raise ValueError("muon_learning_rate needs optimizer=muon")
        if self.optimizer == "adamw_8bit" and self.zero.offload_parameters == "nvme":
            raise ValueError("optimizer=adamw_8bit cannot go on after a stop with offload_parameters=nvme; set cpu")
        if self.pure_bfloat16 and self.zero.stage == 0:
            raise ValueError("pure_bfloat16 needs zero.stage 1, 2 or 3")
        if self.pure_bfloat16 and self.zero.offload_optimizer:
            raise ValueError("pure_bfloat16 keeps all states on the GPU; leave out zero.offload_optimizer")
        for path, ours in OWN_SETTINGS.items():
            if _has(self.deepspeed, path.split(".")):
                raise ValueError(f"deepspeed.{path}: {ours}")
        return self


OWN_SETTINGS = {
    "train_batch_size": "train.packs_per_step says it",
    "train_micro_batch_size_per_gpu": "train.packs_per_micro_batch says it",
    "gradient_accumulation_steps": "train.packs_per_step says it",
    "gradient_clipping": "train.max_grad_norm says it",
    "optimizer": "train.optimizer says it",
    "scheduler": "train.schedule says it",
    "fp16.enabled": "model.dtype says it",
    "bf16.enabled": "model.dtype says it",
    "bfloat16": "its name is bf16",
    "torch_autocast": "model.dtype says it",
    "bf16.check_grad_overflow": "a gradient that is no number ends the run, and no step is left out",
    "bf16.bf16_master_weights_and_grads": "train.pure_bfloat16 says it",
    "bf16.bf16_optimizer_states": "train.pure_bfloat16 says it",
    "data_types.grad_accum_dtype": "train.gradient_dtype says it",
    "activation_checkpointing": "train.activation_checkpointing says it",
    "compile": "train.compile says it",
    "checkpoint": "a checkpoint is committed when all of it is written",
    "datastates": "a checkpoint is committed when all of it is written",
    "nebula": "a checkpoint is committed when all of it is written",
    "tensor_parallel": "ranks have packs of their own, or train.sequence_parallel shares them",
    "gradient_allreduce_op": "the loss is scaled for a mean over ranks",
    "managed_gradient_accumulation": "shardtune counts on it",
    "zero_allow_untested_optimizer": "shardtune chooses the optimizer",
    "zero_force_ds_cpu_optimizer": "shardtune chooses the optimizer",
    "zero_optimization.stage": "train.zero.stage says it",
    "zero_optimization.zero_hpz_partition_size": "train.zero.hpz_partition_size says it",
    "zero_optimization.offload_optimizer.device": "train.zero.offload_optimizer says it",
    "zero_optimization.offload_optimizer.nvme_path": "train.zero.offload_optimizer says it",
    "zero_optimization.offload_param.device": "train.zero.offload_parameters says it",
    "zero_optimization.offload_param.nvme_path": "train.zero.nvme_path says it",
}
"""Keys of DeepSpeed that are not for `train.deepspeed`, and why."""


def _has(values: Any, path: list[str]) -> bool:
    first, *rest = path
    return isinstance(values, dict) and first in values and (not rest or _has(values[first], rest))
