"""Ranks and devices. The only file of `sft` that reads the environment."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from data_tools.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among all the processes of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what exists once."""
        return self.rank == 0

    def sum(self, *values: torch.Tensor | float) -> list[float]:
        """Add up numbers over all ranks, in one collective."""
        total = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        if self.size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


def join_world() -> World:
    """Meet the other ranks at MASTER_ADDR:MASTER_PORT: NCCL where there are GPUs, gloo on CPUs.

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
    dist.init_process_group(backend, rank=rank, world_size=size)
    return World(rank, size, device)
