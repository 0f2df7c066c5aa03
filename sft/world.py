"""Ranks and devices. The only file of `sft` that reads the environment."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from data_tools.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among all the processes of a run."""

    rank: int
    size: int
    device: torch.device
    hosts: dist.ProcessGroup | None = None
    """How ranks exchange numbers that are not on a GPU; None: as all else."""
    here: tuple[int, ...] | None = None
    """The ranks that share this one's run folder, where each node has its own (`checkpoint.node_local`); None: all."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what exists once."""
        return self.rank == 0

    @property
    def ranks_here(self) -> tuple[int, ...]:
        """The ranks that share this one's run folder, in order."""
        return tuple(range(self.size)) if self.here is None else self.here

    @property
    def keeps_folder(self) -> bool:
        """Whether this rank makes and deletes what exists once in each run folder."""
        return self.rank == self.ranks_here[0]

    def sum(self, *values: torch.Tensor | float) -> list[float]:
        """Add up numbers over all ranks, in one collective."""
        total = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        if self.size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def max(self, number: int) -> int:
        """The largest of all ranks' numbers; the hosts exchange them, and nobody waits for a GPU."""
        largest = torch.tensor(number)
        if self.size > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.hosts)
        return int(largest)

    def leave(self) -> None:
        """Part from the other ranks, as the last thing: threads that still listen to them can abort an exit, and who
        leaves first closes what another may still read.
        """
        self.barrier()
        dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


def join_world(timeout: float = 600) -> World:
    """Meet the other ranks at MASTER_ADDR:MASTER_PORT: NCCL where there are GPUs, gloo on CPUs.

    Args:
        timeout: seconds that a rank waits for the others in one collective; then it fails.

    Raises:
        UserError: a variable that the launcher sets is missing.
    """
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except KeyError as error:
        raise UserError(f"{error} is not set; start training with `shardtune train CONFIG`") from None
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", local_rank), "nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
    longest = timedelta(seconds=timeout)
    if not dist.is_initialized():  # Ray Train has done it
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=longest)
    hosts = dist.new_group(backend="gloo", timeout=longest) if backend == "nccl" else None
    return World(rank, size, device, hosts)


def be_deterministic() -> None:
    """Let torch take kernels whose results have the same bits every time, or refuse; before a GPU computes anything."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling memory before it is written is for finding mistakes.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def deadline() -> float:
    """When the run has to stop, in seconds since the epoch: SHARDTUNE_DEADLINE; never, where it is not set.

    Raises:
        UserError: it is no number.
    """
    text = os.environ.get("SHARDTUNE_DEADLINE") or "inf"
    try:
        return float(text)
    except ValueError:
        raise UserError(f"SHARDTUNE_DEADLINE={text}: it must be seconds since the epoch (date -d … +%s)") from None
