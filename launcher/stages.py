"""The stages before training, one function each: configuration in, facts out. Each imports its work when it runs."""

import importlib.util
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from data_tools.lock import LOCK_FILE, Pin
from data_tools.store import MANIFEST, write_json
from launcher.config import RunConfig, save_run
from launcher.pins import check_model_path, find_model
from launcher.run_folder import check_same_run, planned_attention_cost


def fetch_stage(config: RunConfig, console: Console) -> dict[str, Any]:
    """Hub → cache of this machine and lock.json."""
    from data_tools.fetch import fetch

    path = config.folder / LOCK_FILE
    was_locked = path.exists()
    with console.status("fetching and comparing" if was_locked else "fetching"):
        lock = fetch(config.data, config.model.path, config.model.revision, path)
    remote = [pin for pin in lock.pins if pin.commit]
    for line in _what_was_fetched(remote):
        console.print(line, markup=False, highlight=False)
    size = sum(file["size"] for pin in lock.pins for file in pin.files.values())
    what = f"{len(remote)} of {len(lock.pins)} inputs are from the hub" if remote else "all inputs are local"
    done = "everything is still as it was fetched" if was_locked else "fetched"
    console.print(f"[green]{done}[/]: {what}, {size / 1e6:,.1f} MB → {path}")
    return {"lock": str(path), "pins": len(lock.pins), "from_hub": len(remote), "bytes": size}


def _what_was_fetched(pins: list[Pin]) -> list[str]:
    """One line for each repository, whatever number of sources it has."""
    repositories: dict[str, list[Pin]] = {}
    for pin in pins:
        repositories.setdefault(f"{pin.kind} {pin.id} at {pin.commit}", []).append(pin)
    lines = []
    for name, its in repositories.items():
        sources = f"{len(its)} sources, " if len(its) > 1 else ""
        files = len({file for pin in its for file in pin.files})
        lines.append(f"{name}: {sources}{files} file{'s' * (files != 1)}")
    return lines


def prepare_stage(config: RunConfig, console: Console) -> dict[str, Any]:
    """Conversations → token store."""
    from data_tools.mirror import naming_damage
    from data_tools.prepare import prepare
    from data_tools.rejects import REJECTS, reject_reasons
    from launcher.plan_report import show_reasons
    from launcher.progress import tokenizing

    started = time.perf_counter()
    was_finished = (config.store / MANIFEST).exists()
    with tokenizing(console, config.folder) as (on_start, on_unit):
        store = prepare(config.data, config.store, on_unit, config.folder / LOCK_FILE, on_start)
    done = "already prepared" if was_finished else "prepared"
    totals: dict[str, Any] = store.manifest["totals"]
    seconds = time.perf_counter() - started
    console.print(
        f"[green]{done}[/] {totals['rows_out']:,} of {totals['rows_in']:,} rows, {totals['tokens']:,} tokens "
        f"({totals['trained_tokens']:,} trained) in {seconds:.0f} s → {store.folder}"
    )
    for line in _what_was_read(store.manifest["sources"]):
        console.print(line, markup=False, highlight=False)
    if totals["rewritten"]:
        console.print(
            f"[yellow]the template rewrites earlier turns of {totals['rewritten']:,} rows[/], of which "
            f"data.on_rewrite={config.data.on_rewrite} keeps what can be learnt"
        )
    with naming_damage(store.folder):
        reasons = reject_reasons(store.file(REJECTS))
    if refused := totals["rejected"] + totals["dropped"]:
        console.print(
            f"[yellow]rows rejected: {totals['rejected']:,}, dropped: {totals['dropped']:,}[/]; "
            f"the reasons of all {refused:,} are in {store.folder / REJECTS}"
        )
        show_reasons(reasons, console)
    return {
        "store": str(store.folder),
        **totals,
        "reasons": [asdict(reason) for reason in reasons],
        "seconds": round(seconds, 2),
    }


def prepare_share_stage(config: RunConfig, console: Console, which: tuple[int, int]) -> dict[str, Any]:
    """Conversations → one share of the shards of a token store, beside other processes.

    Args:
        which: the number of the share, from 0, and how many there are.
    """
    from data_tools.share import Share, prepare_share
    from launcher.progress import tokenizing

    started, share = time.perf_counter(), Share(*which)
    with tokenizing(console, config.folder, which[0]) as (on_start, on_unit):
        made = prepare_share(config.data, config.store, share, on_unit, config.folder / LOCK_FILE, on_start)
    seconds = time.perf_counter() - started
    if made.finished:
        console.print(f"[green]already prepared[/]: nothing is left for share {share} → {config.store}")
    else:
        console.print(
            f"[green]share {share}[/]: {made.made:,} of its {made.units:,} units made now ({made.of_units:,} in all), "
            f"{made.totals['rows_out']:,} of {made.totals['rows_in']:,} rows, {made.totals['tokens']:,} tokens in "
            f"{seconds:.0f} s → {config.store}"
        )
        console.print("when all shares are done, `shardtune prepare` without --share finishes the store")
        if refused := made.totals["rejected"] + made.totals["dropped"]:
            console.print(f"[yellow]{refused:,} rows became no document[/]; the reasons come with the finished store")
    facts = {"share": str(share), "units": made.units, "units_made": made.made, "units_of_store": made.of_units}
    return {
        "store": str(config.store),
        "finished": made.finished,
        **facts,
        **made.totals,
        "seconds": round(seconds, 2),
    }


def _what_was_read(sources: list[dict[str, Any]]) -> list[str]:
    """One line for each format, with the sources that have it."""
    by_format: dict[str, list[str]] = {}
    for source in sources:
        by_format.setdefault(source["format"], []).append(source["name"])
    return [
        f"  rows of format {name}: {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        for name, names in by_format.items()
    ]


def inspect_stage(folder: Path, console: Console, source: str | None, count: int, html: Path | None) -> dict[str, Any]:
    """Token store → what people look at, on the terminal and as a page."""
    from data_tools.inspect import inspect_store
    from data_tools.mirror import naming_damage, open_store
    from launcher.show_store import show_store

    with naming_damage(folder):
        found = inspect_store(open_store(folder), source, count)
    show_store(found, console)
    if html is not None:
        from data_tools.inspect_page import write_page

        write_page(found, html)
        console.print(f"\n[green]written[/] → {html}")
    return {**found.as_json(), **({"html": str(html)} if html else {})}


def plan_stage(
    config: RunConfig, console: Console, ranks: int, everything: bool = True, gpu_memory: float | None = None
) -> dict[str, Any]:
    """Token store → pack plan.

    Args:
        everything: read the whole store, not only shards that were changed since.
        gpu_memory: GiB of each GPU that will train, to say what fits.
    """
    from data_tools.changes import check_asked
    from data_tools.lengths import length_report
    from data_tools.mirror import open_store
    from data_tools.plan import PlanSettings, make_plan
    from data_tools.stale import stale_sources
    from data_tools.verified import VERIFIED, verify_store
    from launcher.plan_report import plan_facts, show_lengths, show_plan
    from sft.schedule import micro_batches_per_step

    micro_batches_per_step(config.train, ranks)
    check_model_path(config)
    check_same_run(config)
    store = open_store(config.store)
    check_asked(store.folder, store.manifest["asked"], config.data.asked())
    record = config.folder / "plan" / VERIFIED
    verified = verify_store(store, record, everything)
    show_lengths(length_report(store.index["length"], config.data.max_length), config.data.max_length, console)
    attention, model_config = _of_model(config, store)
    embedding_rows = None if model_config is None else int(model_config.get_text_config().vocab_size)
    settings = PlanSettings.of(config.data, config.train.packs_per_step, config.train.seed, attention)
    plan = make_plan(store, settings, config.folder / "plan")
    stale, read = stale_sources(config.data, store, record)
    write_json(record, {**verified, **read})
    save_run(config)
    facts = plan_facts(plan, store, ranks, config.train.packs_per_micro_batch, embedding_rows)
    show_plan(facts, plan, ranks, console)
    if model_config is not None:
        from launcher.memory_report import memory_facts, show_memory

        facts["memory"] = memory_facts(config, model_config, plan, store.added_tokens, ranks, gpu_memory)
        show_memory(facts["memory"], config, console)
    if not config.model.is_given:
        console.print("no model is given, so attention counts as in one of 8 billion parameters; train plans again")
    if stale:
        console.print(
            f"[yellow]changed since `shardtune prepare`[/]: the files of {escape(', '.join(stale))}; the plan is of "
            f"what they were; for the new ones give another name=NAME or data.store=FOLDER and run `shardtune prepare`"
        )
    return {**facts, "stale_sources": stale}


def _of_model(config: RunConfig, store: Any) -> tuple[float, Any]:
    """What attention costs, and transformers' configuration of the model, wherever there is a model, and torch to know
    it; mistakes in `model` are said before ranks are started.
    """
    from data_tools.balance import ATTENTION_COST

    planned = planned_attention_cost(config)
    if not config.model.is_given or importlib.util.find_spec("torch") is None:
        return planned or ATTENTION_COST, None
    from data_tools.tokenizer import load_tokenizer
    from sft.cost import attention_cost
    from sft.lora import check_packages
    from sft.model import check_length, load_config
    from sft.own_code import empty_model

    check_packages(config.model)
    find_model(config)
    tokenizer = load_tokenizer(str(store.folder / "tokenizer"))
    model_config = load_config(config.model, tokenizer, store.vocab_size, store.added_tokens)
    check_length(model_config, config.data.max_length)
    return planned or attention_cost(empty_model(config.model, model_config)), model_config
