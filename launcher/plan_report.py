"""What `shardtune plan` shows: how long documents are, what is taken of every source, and what training will see."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data_tools.inspect import tell_duplicates, visible
from data_tools.mirror import naming_damage
from data_tools.mixture import repeats
from data_tools.plan import PackPlan, PlanSettings
from data_tools.rejects import REJECTS, RejectReason, reason_lines, reject_reasons
from data_tools.store import TokenStore

_REASONS = {
    "validation": "held out",
    "too_long": "too long",
    "no_labels": "no labels left",
    "duplicate": "duplicate",
    "not_taken": "not taken",
}
_PADDING = 0.1
"""More rows of an embedding than tokens, as a share: up to here they are padding, or kept for tokens to come."""


def show_lengths(report: dict[str, Any], max_length: int, console: Console) -> None:
    """A table of limits, with the configured one marked."""
    shares = {"100": "longest", "50": "half have at most"}
    said = [
        f"{shares.get(share, f'{share} % at most')} {tokens:,}"
        for share, tokens in sorted(report["percentiles"].items(), key=lambda item: int(item[0]))
    ]
    console.print(f"{_count(report['documents'], 'document')} of {report['tokens']:,} tokens: {', '.join(said)}")
    table = Table(box=None)
    for column in ("max_length", "longer", "tokens in the others", "tokens if cut"):
        table.add_column(column, justify="right")
    for limit, facts in report["limits"].items():
        if int(limit) > 2 * report["percentiles"]["100"] and int(limit) != max_length:
            continue
        table.add_row(
            f"{int(limit):,}",
            f"{facts['longer']:,}",
            f"{facts['tokens_fit']:.1%}",
            f"{facts['tokens_kept']:.1%}",
            style="bold" if int(limit) == max_length else None,
        )
    console.print(table)


def show_rows(facts: dict[str, Any], console: Console) -> None:
    """What became of the rows that were read, and the most frequent reasons of those that are not in the store."""
    console.print(
        f"{_count(facts['rows_in'], 'row')} read: {facts['rows_out']:,} in the store, {facts['rejected']:,} rejected, "
        f"{facts['dropped']:,} dropped"
    )
    show_reasons([RejectReason(**reason) for reason in facts["reasons"]], console)


def show_reasons(reasons: list[RejectReason], console: Console) -> None:
    """Why rows are not in the store, below their number."""
    for line in reason_lines(reasons):
        console.print(Text(f"  {visible(line)}", "yellow"))


def show_sources(sources: list[dict[str, Any]], console: Console) -> None:
    """A table of sources: what is taken, and what is not and why."""
    reasons = [reason for reason in _REASONS if any(source[reason] for source in sources)]
    table = Table(box=None)
    table.add_column("source", overflow="fold")
    for column in ("documents", "taken", "tokens", *(_REASONS[reason] for reason in reasons)):
        table.add_column(column, justify="right")
    keys = ("documents", "taken_documents", "taken_tokens", *reasons)
    for source in sources:
        style = None if source["taken_documents"] else "yellow"
        table.add_row(escape(source["name"]), *(f"{source[key]:,}" for key in keys), style=style)
    if len(sources) > 1:
        table.add_row("all", *(f"{sum(source[key] for source in sources):,}" for key in keys), style="bold")
    console.print(table)


def plan_facts(
    plan: PackPlan, store: TokenStore, ranks: int, packs_per_micro_batch: int, embedding_rows: int | None = None
) -> dict[str, Any]:
    """What a plan comes to, for people and for `--json`; without a complete step its imbalance is None.

    Args:
        embedding_rows: of the model, where it is known.
    """
    sources = plan.facts["sources"]
    tokens, trained = int(plan.train.tokens.sum()), int(plan.train.trained.sum())
    with naming_damage(store.folder):
        reasons = reject_reasons(store.file(REJECTS))
    return {
        "plan": str(plan.folder),
        **{key: store.manifest["totals"][key] for key in ("rows_in", "rows_out", "rejected", "dropped")},
        "reasons": [asdict(reason) for reason in reasons],
        "packs": len(plan.train),
        "validation_packs": len(plan.validation),
        "fill": round(plan.fill, 5),
        "steps_per_epoch": plan.steps_per_epoch,
        "imbalance": round(plan.imbalance(ranks, packs_per_micro_batch), 5),
        "imbalance_complete_steps": round(plan.imbalance(ranks, packs_per_micro_batch, complete_steps=True), 5)
        if len(plan.train) >= plan.settings.packs_per_step
        else None,
        "too_long": plan.facts["too_long"],
        "documents": sum(source["taken_documents"] for source in sources),
        "tokens": tokens,
        "trained_tokens": trained,
        "trained_share": round(trained / tokens, 5),
        "left_out": {reason: sum(source[reason] for source in sources) for reason in _REASONS},
        "duplicates": int(repeats(store.index["digest"]).sum()),
        "pieces_without_labels": plan.facts["pieces_without_labels"],
        "tokens_in_rows_without_labels": plan.facts["tokens_in_rows_without_labels"]["train"],
        "sources": sources,
        "lengths": plan.facts["lengths"],
        "vocab_size": store.vocab_size,
        "embedding_rows": embedding_rows,
        "attention_cost": plan.settings.attention_cost,
        "store_bytes": _bytes(store.folder),
        "plan_bytes": _bytes(plan.folder),
    }


def show_plan(facts: dict[str, Any], plan: PackPlan, ranks: int, console: Console) -> None:
    """Packs, steps, balance and sizes."""
    settings = plan.settings
    show_rows(facts, console)
    show_sources(facts["sources"], console)
    console.print(
        f"[green]planned[/] {_count(facts['packs'], 'pack')} of {settings.max_length:,} tokens, {plan.fill:.1%} full, "
        f"{_count(facts['steps_per_epoch'], 'step')} an epoch; {facts['trained_share']:.1%} of the tokens are trained"
    )
    console.print(
        f"{_balance(facts, settings, ranks)}; "
        f"on disk: tokens {_megabytes(facts['store_bytes'])}, plan {_megabytes(facts['plan_bytes'])}"
    )
    rows, tokens = facts["embedding_rows"] or 0, facts["vocab_size"]
    if rows > tokens * (1 + _PADDING):
        console.print(
            f"[yellow]the embedding of the model has {rows:,} rows[/], of which the {tokens:,} tokens of the tokenizer "
            f"leave {rows - tokens:,} unused; take the model's own tokenizer, or leave model.config.vocab_size out"
        )
    if not facts["validation_packs"]:
        console.print(_no_validation(settings, sum(source["documents"] for source in facts["sources"])))
    if (duplicates := facts["duplicates"]) and not settings.deduplicate:
        told = tell_duplicates(duplicates, sum(source["documents"] for source in facts["sources"]))
        console.print(told, style="yellow", highlight=False)
    if longer := facts["too_long"]:
        done = {"drop": "left out", "truncate": "truncated", "split": "split"}[settings.too_long]
        console.print(
            f"[yellow]{done}: {_count(longer, 'document')}[/] of more than data.max_length={settings.max_length} tokens"
        )
    if pieces := facts["pieces_without_labels"]:
        console.print(f"[yellow]left out: {_count(pieces, 'piece')} without labels[/]")
    if lost := facts["tokens_in_rows_without_labels"]:
        told = f"{_count(lost, 'token')} in rows without labels"
        console.print(f"[yellow]left out: {told}[/] (data.packing={settings.packing})")


def _balance(facts: dict[str, Any], settings: PlanSettings, ranks: int) -> str:
    over = f"uneven over {_count(ranks, 'rank')}"
    if facts["imbalance_complete_steps"] is None:
        few = f"{_count(facts['packs'], 'pack')}, and train.packs_per_step={settings.packs_per_step}"
        return f"no step is complete: {few}; work is {facts['imbalance']:.1%} {over}"
    return (
        f"work is {facts['imbalance_complete_steps']:.1%} {over}, "
        f"{facts['imbalance']:.1%} with the last step of the epoch, which may have fewer packs"
    )


def _no_validation(settings: PlanSettings, documents: int) -> str:
    nothing = "nothing is held out for validation"
    if settings.validation_count == 0 or (settings.validation_count is None and not settings.validation_fraction):
        return f"{nothing}, as data.validation asks for"
    chosen = f"data.validation.fraction={settings.validation_fraction:g} of {_count(documents, 'document')} chose none"
    return f"[yellow]{nothing}[/]: {chosen}; data.validation={{count: N}} holds out N documents"


def _count(number: int, noun: str) -> str:
    """`1 pack`, `1,024 packs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
