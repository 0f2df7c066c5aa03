"""A loss or gradient that is no finite number ends the run, and what it was computed from is named."""

import math

from data_tools.errors import UserError
from sft.batches import make_batch
from sft.metrics import BadLoss, Summary
from sft.run import TrainingRun


def check_finite(summary: Summary, last_step: int, run: TrainingRun, ranks: int) -> None:
    """Called at every line of metrics, and so before every checkpoint: none has weights that are no numbers.

    Args:
        last_step: number of the interval's last step, from 1.

    Raises:
        UserError: a loss or gradient of the interval was not finite; it says where first.
    """
    first_step = last_step + 1 - len(summary.sizes)
    bad = summary.bad_loss
    for number, norm in enumerate(summary.norms):
        if bad is not None and number == bad.step:
            raise UserError(_explain(bad, first_step + number, run, ranks))
        if not math.isfinite(norm):
            raise UserError(f"step {first_step + number}: the gradient is {norm}; lower train.learning_rate")


def _explain(bad: BadLoss, step: int, run: TrainingRun, ranks: int) -> str:
    value = "nan" if bad.is_nan else "inf"
    if bad.everywhere and run.plan.size_of_step(step - 1).packs > 1:
        return (
            f"step {step}: the loss of all packs is {value}: the weights went wrong before; lower train.learning_rate"
        )
    shared = run.train.sequence_parallel  # by so many ranks in turn
    of_rank = run.plan.micro_batches(step - 1, bad.rank // shared, ranks // shared, run.train.packs_per_micro_batch)
    share = of_rank[bad.micro_batch]
    documents = make_batch(run.store, run.plan.train, share).documents.tolist()
    rows: dict[int, set[int]] = {}
    for source, row in map(run.store.place, documents):
        rows.setdefault(source, set()).add(row)
    names = [source["name"] for source in run.store.manifest["sources"]]
    where = "; ".join(f"{names[source]}: {', '.join(map(str, sorted(of_it)))}" for source, of_it in rows.items())
    return (
        f"step {step}: the loss of micro-batch {bad.micro_batch} of rank {bad.rank} is {value}; its documents are of "
        f"rows {where} (from 0); mend or leave out what is odd there, or lower train.learning_rate"
    )
