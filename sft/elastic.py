"""Where parameters lie in the flat tensors of an engine, and an engine filled from those of another split.

ZeRO puts parameters end to end and cuts them into one part per rank, at places that depend on stage and ranks:

    2 ranks   |q_proj......|k_pr|   |oj...|v_proj......|        flat tensor of rank 0 | of rank 1
    3 ranks   |q_proj...|   |...|k_proj..|   |v_proj......|

Every rank saves with its files where each piece of a parameter lies in its flat tensors. A rank of another split reads
the pieces that it needs, and no more, out of all ranks' files: weights in float32 and every state of the optimizer.

DeepSpeed's universal checkpoint writes the same whole tensors (a test compares), one folder a parameter; it needs the
disk for another copy of everything, one rank that makes it while the others wait, and cannot go from one stage to
another, to or from stage 0, or take Muon's momentum along.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_tools.errors import UserError
from sft.config import TrainConfig
from sft.engine import scaler_of


class Piece(NamedTuple):
    """A stretch of a parameter in a flat tensor."""

    name: str
    start: int
    """Where it begins in the flat tensor."""
    offset: int
    """Where it begins in the parameter, flattened."""
    numel: int


Pieces = list[Piece]
Layout = list[dict[str, Pieces]]
"""For every flat tensor of a rank, the pieces of `weights` (and of states that lie as these do), and of `momentum`."""


def layout_of(engine: Any) -> Layout:
    """What lies where in this rank's flat tensors, in the order of `flat_weights`."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    optimizer = engine.optimizer
    match engine.zero_optimization_stage():
        case 0:
            trained = [parameter for group in _groups_without_zero(engine) for parameter in group]
            whole = [[Piece(names[parameter], 0, 0, parameter.numel())] for parameter in trained]
            return [{"weights": pieces, "momentum": pieces} for pieces in whole]
        case 3:
            parts = [_parts(optimizer, group, names) for group in optimizer.fp16_groups]
            return [{"weights": pieces, "momentum": pieces} for pieces in parts]
        case _ if hasattr(optimizer, "bf16_groups"):
            parts = [_slices(group, names) for group in optimizer.bf16_groups]
            return [{"weights": pieces, "momentum": pieces} for pieces in parts]
        case _:
            # Muon needs whole matrices: each rank has the momentum of all those that its part touches.
            return [
                {"weights": _slices(group, names), "momentum": _end_to_end(touched, names)}
                for group, touched in zip(optimizer.bit16_groups, optimizer.params_in_partition, strict=True)
            ]


def _groups_without_zero(engine: Any) -> list[list[torch.nn.Parameter]]:
    """The model's own parameters, as the optimizer has them in groups."""
    wrapped = getattr(engine.optimizer, "fp16_groups", None)
    return wrapped or [group["params"] for group in engine.optimizer.param_groups]


def _parts(optimizer: Any, group: list[Any], names: dict[Any, str]) -> Pieces:
    """Stage 3: each parameter is cut into one part per rank, and the parts lie end to end."""
    pieces, start = [], 0
    for parameter in group:
        size = parameter.partition_numel()
        offset = optimizer._get_param_partition_rank(parameter) * size
        pieces.append(Piece(names[parameter], start, offset, max(0, min(size, parameter.ds_numel - offset))))
        start += size
    return pieces


def _slices(group: list[Any], names: dict[Any, str]) -> Pieces:
    """Stages 1 and 2: all parameters lie end to end, and are cut into one part per rank."""
    links = [(names[parameter], parameter._hp_mapping) for parameter in group]
    return [
        Piece(name, link.hp_fragment_address.start, link.lp_fragment_address.start, link.lp_fragment_address.numel)
        for name, link in links
        if link is not None
    ]


def _end_to_end(parameters: list[Any], names: dict[Any, str]) -> Pieces:
    pieces, start = [], 0
    for parameter in parameters:
        pieces.append(Piece(names[parameter], start, 0, parameter.numel()))
        start += parameter.numel()
    return pieces


def flat_weights(engine: Any) -> list[torch.Tensor]:
    """This rank's weights as its optimizer updates them."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            flat: list[torch.Tensor] = getattr(optimizer, name)
            return flat
    groups = getattr(optimizer, "fp32_groups", None) or _groups_without_zero(engine)
    return [weights for group in groups for weights in group]


def has_weights_on_disk(engine: Any) -> bool:
    """Whether some of the weights that this rank's model computes with are on a disk (`offload_parameters: nvme`)."""
    return any(flat is None for flat in getattr(engine.optimizer, "fp16_partitioned_groups_flat", ()))


def state_bytes(engine: Any) -> int:
    """What this rank's weights and states take on a disk, about; without ZeRO they are written by rank 0 alone."""
    flat = flat_weights(engine)
    states = [value for weights in flat for value in engine.basic_optimizer.state.get(weights, {}).values()]
    total = sum(value.nbytes for value in (*flat, *states) if torch.is_tensor(value))
    if engine.global_rank and engine.zero_optimization_stage() == 0:
        return 0
    model = sum(parameter.nbytes for parameter in engine.module.parameters())  # in stage 3 a part of it, or nothing
    return total + (model if engine.global_rank == 0 else 0)


def check_convertible(checkpoint: Path, train: TrainConfig, written: str) -> None:
    """What cannot be cut anew is said before anything is read.

    Args:
        written: how the checkpoint was written, in words.

    Raises:
        UserError: states of the optimizer are not one number per weight.
    """
    if train.optimizer == "adamw_8bit":
        reason = "train.optimizer=adamw_8bit keeps its states in blocks that cannot be cut anew"
        raise UserError(f"{checkpoint} was written by {written}, and {reason}; resume with the same ranks and stage")


class _Saved(NamedTuple):
    """The flat tensors of one rank in a checkpoint, mapped and not read."""

    layout: Layout
    weights: list[torch.Tensor]
    states: dict[int, dict[str, Any]]
    scale: float | None
    """By which float16's losses were multiplied; None: they were not."""


def _open_rank(state: Path, layout: Layout, rank: int, stage: int) -> _Saved:
    def mapped(pattern: str) -> dict[str, Any]:
        (path,) = state.glob(pattern)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
        return content

    if stage == 0:
        content = mapped("mp_rank_00_model_states.pt")
        optimizer = content["optimizer"]
        if "fp32_groups" not in optimizer:  # the plain optimizer works on the model's own weights
            weights = [content["module"][pieces["weights"][0].name].flatten() for pieces in layout]
            return _Saved(layout, weights, optimizer["state"], None)
        weights = [weights.flatten() for group in optimizer["fp32_groups"] for weights in group]
        return _Saved(layout, weights, optimizer["optimizer_state_dict"]["state"], optimizer.get("cur_scale"))
    optimizer = mapped(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
    scale = getattr(optimizer.get("loss_scaler"), "cur_scale", None)
    if stage == 3:
        return _Saved(layout, optimizer["fp32_flat_groups"], optimizer["optimizer_state_dict"]["state"], scale)
    states = optimizer["base_optimizer_state"]["state"]
    return _Saved(layout, optimizer["single_partition_of_fp32_groups"], states, scale)


def read_layout(values: Any) -> Layout:
    """A layout as it comes out of a file, where pieces are plain tuples."""
    return [{kind: [Piece(*piece) for piece in pieces] for kind, pieces in group.items()} for group in values]


@torch.no_grad()
def load_other_split(engine: Any, state: Path, layouts: list[Layout], stage: int) -> None:
    """Fill a new engine from a checkpoint of another number of ranks or ZeRO stage; all ranks call it.

    Args:
        state: the folder of DeepSpeed's files.
        layouts: of the ranks that wrote it.
        stage: the ZeRO stage that they had.
    """
    # Without ZeRO, every rank had everything, and rank 0 wrote it.
    writers = layouts[:1] if stage == 0 else layouts
    saved = [_open_rank(state, layout, rank, stage) for rank, layout in enumerate(writers)]
    keys = {key for rank in saved for states in rank.states.values() for key in states}
    places = {key: _places(saved, key) for key in ("weights", *keys)}
    optimizer = engine.basic_optimizer
    for weights, own in zip(flat_weights(engine), layout_of(engine), strict=True):
        _fill(weights.data, own["weights"], places["weights"])
        optimizer.state[weights] = _states(weights, own, saved, places, bool(optimizer.defaults.get("fused")))
    _load_buffers(engine, state)
    _weights_to_model(engine)
    if engine.fp16_enabled() and saved[0].scale is not None:  # with DeepSpeed's first one steps would be left out
        scaler_of(engine.optimizer).cur_scale = saved[0].scale


Places = dict[str, list[tuple[torch.Tensor, Piece]]]
"""By parameter: the flat tensors that have pieces of it."""


def _places(saved: list[_Saved], key: str) -> Places:
    places: Places = {}
    for rank in saved:
        for number, group in enumerate(rank.layout):
            flat = rank.weights[number] if key == "weights" else rank.states.get(number, {}).get(key)
            if isinstance(flat, torch.Tensor):
                for piece in group[_kind(key)]:
                    places.setdefault(piece.name, []).append((flat.flatten(), piece))
    return places


def _kind(key: str) -> str:
    return "momentum" if key == "momentum_buffer" else "weights"


def _states(
    weights: torch.Tensor, own: dict[str, Pieces], saved: list[_Saved], places: dict[str, Places], fused: bool
) -> dict[str, Any]:
    """The optimizer's states of one flat tensor; those that are no tensor per weight are the same in all parts."""
    filled: dict[str, Any] = {}
    for key, example in _states_of(saved, {piece.name for piece in own["weights"]}):
        if torch.is_tensor(example) and example.dim() > 0:
            pieces = own[_kind(key)]
            size = weights.shape if pieces is own["weights"] else (sum(piece.numel for piece in pieces),)
            filled[key] = torch.zeros(size, dtype=example.dtype, device=weights.device)
            _fill(filled[key], pieces, places[key])
        elif torch.is_tensor(example):
            filled[key] = example.clone().to(weights.device if fused else "cpu")
        else:
            filled[key] = example
    return filled


def _states_of(saved: list[_Saved], names: set[str]) -> Iterator[tuple[str, Any]]:
    """Names and examples of the states that some parameters have."""
    for rank in saved:
        for number, group in enumerate(rank.layout):
            if names & {piece.name for piece in group["weights"]}:
                yield from rank.states.get(number, {}).items()
                return


def _fill(target: torch.Tensor, pieces: Pieces, places: Places) -> None:
    """Copy what the pieces of a flat tensor are to hold from wherever it lies now."""
    flat = target.view(-1)
    for piece in pieces:
        missing = piece.numel
        for source, other in places.get(piece.name, []):
            first = max(piece.offset, other.offset)
            count = min(piece.offset + piece.numel, other.offset + other.numel) - first
            if count <= 0 or missing <= 0:
                continue
            here, there = piece.start + first - piece.offset, other.start + first - other.offset
            flat[here : here + count].copy_(source[there : there + count])
            missing -= count
        assert missing <= 0, f"{piece.name}: {missing} of {piece.numel} numbers are in no file"


def _load_buffers(engine: Any, state: Path) -> None:
    """Buffers that a model saves are whole on every rank."""
    (path, *_) = sorted(state.glob("*mp_rank_00_model_states.pt"))
    content = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    saved = {name: content["module"][name] for name in content["buffer_names"] if name in content["module"]}
    for name, buffer in engine.module.named_buffers():
        if name in saved:
            buffer.copy_(saved[name])


def _weights_to_model(engine: Any) -> None:
    """The model computes with the optimizer's weights from now on."""
    optimizer = engine.optimizer
    match engine.zero_optimization_stage():
        case 0:
            for group, copies in zip(_groups_without_zero(engine), getattr(optimizer, "fp32_groups", []), strict=False):
                for parameter, copy in zip(group, copies, strict=True):
                    parameter.copy_(copy)
        case 3:
            optimizer.checkpoint_event_prologue()
            for number in range(len(optimizer.fp32_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(number)  # as after a step
            optimizer.checkpoint_event_epilogue()
        case _:
            optimizer.update_lp_params()
