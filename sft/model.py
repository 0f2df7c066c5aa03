"""Load or build the causal language model, and give it the packed forward pass."""

import hashlib
import json
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from data_tools.errors import UserError
from data_tools.hub import model_folder
from sft.attention import PACKED
from sft.config_model import ModelConfig
from sft.lora import check_packages, quantization
from sft.loss import install_loss_head
from sft.new_tokens import add_rows
from sft.own_code import build_model, check_code, code_arguments
from sft.sequence import SequenceGroup


class PackedCausalLM(torch.nn.Module):
    """A causal language model that takes packed rows and returns (sum of losses, stats of every label)."""

    def __init__(self, model: PreTrainedModel, attention: str = PACKED, neftune_alpha: float | None = None) -> None:
        super().__init__()
        self.model = model
        self.attention = attention
        self.neftune_alpha = neftune_alpha
        if any(not parameter.requires_grad for parameter in model.parameters()):
            self.register_state_dict_post_hook(_keep_trained)  # type: ignore[no-untyped-call]
        install_loss_head(model)
        model.set_attn_implementation(attention)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        borders: torch.Tensor,
        longest: int,
        places: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        group: SequenceGroup | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One micro-batch; arguments as in `batches.Batch` and its `Targets`, results of `TrainedTokensLoss`."""
        hidden = self.hidden(input_ids, positions, borders, longest, group)
        head = self.model.get_output_embeddings()
        result: tuple[torch.Tensor, torch.Tensor] = head(hidden, places=places, labels=labels, weights=weights)
        return result

    def logits(
        self, input_ids: torch.Tensor, positions: torch.Tensor, borders: torch.Tensor, longest: int
    ) -> torch.Tensor:
        """[1, T, V], for looking at the model; training never makes them."""
        hidden = self.hidden(input_ids, positions, borders, longest)
        logits: torch.Tensor = self.model.get_output_embeddings()(hidden, finished=True)
        return logits

    def hidden(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        borders: torch.Tensor,
        longest: int,
        group: SequenceGroup | None = None,
    ) -> Any:
        """[1, T, H], what the output layer is given."""
        shared = {} if group is None else {"sequence_group": group}
        tokens = {"input_ids": input_ids}
        if self.training and self.neftune_alpha is not None:
            embedded = self.model.get_input_embeddings()(input_ids)
            tokens = {"inputs_embeds": embedded + embedding_noise(embedded, borders, self.neftune_alpha, group)}
        return self.model.base_model(
            **tokens,
            position_ids=positions,
            use_cache=False,
            cu_seq_lens_q=borders,
            cu_seq_lens_k=borders,
            max_length_q=longest,
            max_length_k=longest,
            **shared,
        ).last_hidden_state


def embedding_noise(
    embedded: torch.Tensor, borders: torch.Tensor, alpha: float, group: SequenceGroup | None = None
) -> torch.Tensor:
    """NEFTune (arXiv 2310.05914): uniform noise of ± alpha / √(L · H), where L is the length of a token's own document.

    A document then has the noise that it would have alone, whatever is packed beside it.

    Args:
        embedded: [1, T, H], of this rank's part of the row where a group shares it.
        borders: [D + 1], of the whole row.
    """
    lengths = borders.diff()
    tokens = embedded.shape[1] * (group.size if group is not None else 1)
    of_token = lengths.repeat_interleave(lengths, output_size=tokens)  # [T], without asking the GPU how many
    if group is not None:
        of_token = of_token.chunk(group.size)[group.rank]
    most = alpha / (of_token * embedded.shape[-1]).sqrt()
    return torch.empty_like(embedded).uniform_(-1, 1) * most.to(embedded.dtype)[None, :, None]


def _keep_trained(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Of a model with frozen weights, only the others are state: checkpoints are small, also where a frozen weight goes
    by two names (tied) or has parts that are no parameters (4 bits).
    """
    trained = {prefix + name for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name in set(state) - trained:
        del state[name]


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Resolve `model.dtype` for a device.

    Raises:
        UserError: the device cannot compute in it.
    """
    has_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and has_bfloat16 else torch.float32
    if config.dtype == "bfloat16" and not has_bfloat16:
        raise UserError("model.dtype=bfloat16: this GPU has no bfloat16; set model.dtype=float16 or float32")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.dtype]


def load_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    added: int,
    dtype: torch.dtype,
    seed: int,
) -> PreTrainedModel:
    """Load the model of `model.path`, or build the one of `model.config` with random weights.

    Args:
        vocab_size: rows that the token store needs in the embedding.
        added: how many of them, the last ones, are new tokens (`add_rows`).
        seed: of random weights, the same on every rank.

    Raises:
        UserError: there is no such model, or its embedding is smaller than the vocabulary.
    """
    check_packages(config)
    model_config = load_config(config, tokenizer, vocab_size, added)
    torch.manual_seed(seed)
    if config.path is not None:
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                model_folder(config.path, config.revision),
                revision=config.revision,
                config=model_config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, in a line
                **code_arguments(config),
                **quantization(config, dtype),
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"model.path: cannot load {config.path}: {str(error).splitlines()[0]}") from None
        for name, found, needed in sorted(loading["mismatched_keys"]):
            raise UserError(
                f"model.path: {name} in {config.path} has the shape {list(found)}, and its config.json says "
                f"{list(needed)}; bring back the one that belongs to the other"
            )
        if missing := sorted(loading["missing_keys"]):
            raise UserError(f"model.path: {config.path} lacks {len(missing)} weights, among them {missing[0]}")
        model.name_or_path = model.config.name_or_path = config.path  # adapters name it, not a folder of this machine
        add_rows(model, vocab_size, added)
        model.train()  # as one with random weights is
    else:
        model = build_model(config, model_config, dtype=dtype)
    return model


def model_hash(model: torch.nn.Module) -> str:
    """A digest of the names and shapes of all parameters: what the weights of a checkpoint fit into."""
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()


def check_length(config: PretrainedConfig, max_length: int) -> None:
    """A model has positions for a certain length.

    Raises:
        UserError: packs hold longer documents.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and positions < max_length:
        raise UserError(f"data.max_length={max_length} is more than the {positions} positions of the model; lower it")


def load_config(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int, added: int
) -> PretrainedConfig:
    """The transformers configuration of the model, checked against the vocabulary; that of `model.path` as it was
    before rows for new tokens.
    """
    if config.path is not None:
        model_config, where, needed = _read_config(config), config.path, vocab_size - added
    else:
        model_config = _random_config(dict(config.config or {}), tokenizer, vocab_size)
        where, needed = "model.config", vocab_size
    rows = model_config.get_text_config().vocab_size
    if rows < needed:
        raise UserError(
            f"{where}: the embedding has {rows} rows, the tokenizer of the store needs {needed}; "
            f"use the tokenizer that belongs to the model, or a larger vocab_size"
        )
    return model_config


def _read_config(config: ModelConfig) -> PretrainedConfig:
    try:
        check_code(config)
        folder = model_folder(str(config.path), config.revision)
        return AutoConfig.from_pretrained(folder, revision=config.revision, **code_arguments(config))
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: cannot load {config.path}: {str(error).splitlines()[0]}") from None


def _random_config(keys: dict[str, Any], tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> PretrainedConfig:
    architecture = keys.pop("architecture")
    keys.setdefault("vocab_size", vocab_size)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        keys.setdefault(name, getattr(tokenizer, name))
    try:
        known = AutoConfig.for_model(architecture)
    except ValueError:
        raise UserError(f"model.config.architecture: transformers knows no {architecture!r}") from None
    unknown = sorted(key for key in keys if not hasattr(known, key))
    if unknown:
        raise UserError(f"model.config: {architecture} has no {', '.join(unknown)}; see transformers' configuration")
    try:
        return AutoConfig.for_model(architecture, **keys)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model.config: {architecture} refuses it: {reason}") from None
