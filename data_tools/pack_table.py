"""The packs of a plan, read: one row per pack of `train.arrow` or `validation.arrow` (`data_tools.plan` says which)."""

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.errors import UserError
from data_tools.packing import Packs
from data_tools.store import read_arrow


class PackTable:
    """The packs of one half of a plan, memory-mapped.

    Raises:
        UserError: the file is missing, cut off, or another one.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._batch = read_arrow(path)
            self.tokens: NDArray[np.int32] = self._batch.column("tokens").to_numpy()
            self.trained: NDArray[np.int32] = self._batch.column("trained").to_numpy()
            self.weight: NDArray[np.float64] = self._batch.column("weight").to_numpy()
            self.cost: NDArray[np.float64] = self._batch.column("cost").to_numpy()
        except (OSError, pa.ArrowException, LookupError):
            raise UserError(
                f"{path} is damaged; run `shardtune plan` with the same configuration, which makes it again"
            ) from None

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    @cached_property
    def packs(self) -> Packs:
        """The documents of every pack, without copying."""
        column: pa.ListArray = self._batch.column("documents")
        return Packs(column.values.to_numpy(), column.offsets.to_numpy())

    @cached_property
    def cuts(self) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
        """First token and length of every piece, beside `packs.documents`; None: all documents are whole."""
        if "starts" not in self._batch.schema.names:
            return None
        starts, lengths = (self._batch.column(name).values.to_numpy() for name in ("starts", "lengths"))
        return starts, lengths
