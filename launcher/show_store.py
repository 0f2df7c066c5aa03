"""What `shardtune inspect` finds, on the terminal."""

from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from data_tools.inspect import Inspection, ShownDocument, SourceFacts, length_bins, visible
from data_tools.rejects import reason_lines

_TRAINED, _WEIGHTED, _UNTRAINED = Style.parse("green"), Style.parse("yellow"), Style.parse("dim")
_CONTROL = Style.parse("bold reverse")
_NARROWEST_NAME = 12


def show_store(found: Inspection, console: Console) -> None:
    """Print totals, lengths, reasons of rejects, proofs and documents."""
    console.print(Text(visible(str(found.store.folder)), "bold"))
    _print_sources(found, console)
    if len(found.lengths):
        console.print()
        console.print(_length_table(found))
    if found.duplicates:
        console.print(Text(found.duplicates_told, "yellow"))
    for line in reason_lines(found.rejects):
        console.print(Text(visible(line), "yellow"))
    for name, proof in found.proofs.items():
        console.print(Text(visible(f"{name}: {_checked(proof)}; {proof['text']}")))
    marks = ("", "") if console.color_system else ("⟦", "⟧")
    if found.documents:
        console.print(_legend(found, marks))
    for document in found.documents:
        console.print()
        console.print(Text(_caption(document), "bold"))
        console.print(_text(document, marks))


def _checked(proof: dict[str, Any]) -> str:
    if why := proof.get("not_applicable"):
        return f"does not apply ({why})"
    return f"{proof['checked']:,} of {proof['of']:,} checked"


def _print_sources(found: Inspection, console: Console) -> None:
    """No number is ever shortened: a narrow terminal breaks long names; a file is as wide as the table."""
    table = _source_table(found)
    needed = _width(table, console)
    if console.is_terminal and needed > console.width:
        longest = max(cell.cell_len for cell in table.columns[0].cells if isinstance(cell, Text))
        table.columns[0].width = min(longest, max(_NARROWEST_NAME, longest - (needed - console.width)))
    before = console.width
    console.width = max(before, _width(table, console))
    console.print(table, soft_wrap=False)
    console.width = before


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(width=1000)).maximum


def _source_table(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("source", overflow="fold")
    for column in ("rows in", "kept", "rejected", "dropped", "docs", "tokens", "trained", "share", "mean"):
        table.add_column(column, justify="right", no_wrap=True)
    for source in found.sources:
        table.add_row(*_source_cells(source))
    if len(found.sources) > 1:
        table.add_row(*_source_cells(found.totals), style="bold")
    return table


def _source_cells(source: SourceFacts) -> list[Text]:
    share, mean = source.trained_share, source.mean_length
    told = [text for text in (source.format, *source.notes) if text]
    counts = (source.rows_in, source.rows_out, source.rejected, source.dropped, source.documents)
    return [
        Text(visible(source.name + (f" ({'; '.join(told)})" if told else ""))),
        *(Text(f"{count:,}") for count in (*counts, source.tokens, source.trained_tokens)),
        Text("–" if share is None else f"{share:.1%}"),
        Text("–" if mean is None else f"{mean:,.0f}"),
    ]


def _length_table(found: Inspection) -> Table:
    bins = length_bins(found.lengths)
    most = max(bin.documents for bin in bins)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("tokens", "", "documents", "up to here"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for bin in bins:
        lengths = f"{bin.first:,}–{bin.last:,}"
        bar = Bar(most, 0, bin.documents, width=32, color="blue")
        table.add_row(lengths, bar, f"{bin.documents:,}", f"{bin.share_up_to:.1%}")
    return table


def _legend(found: Inspection, marks: tuple[str, str]) -> Text:
    weighted = any(document.has_weights for document in found.documents)
    legend = Text.assemble("\n", (f"{marks[0]}trained{marks[1]}", _TRAINED), " ", ("not trained", _UNTRAINED), " ")
    if weighted:
        legend.append("trained with a weight other than 1", _WEIGHTED).append(" ")
    return legend.append("control token", _CONTROL)


def _caption(document: ShownDocument) -> str:
    return (
        f"{visible(document.source)}, row {document.row:,}, document {document.number:,}: "
        f"{document.tokens:,} tokens, {document.trained_tokens:,} trained"
    )


def _text(document: ShownDocument, marks: tuple[str, str]) -> Text:
    """The document in colours; without colours, trained text stands between marks."""
    text = Text()
    for run in document.runs:
        style = _UNTRAINED if not run.trained else _TRAINED if run.weight == 1 else _WEIGHTED
        text.append(marks[0] if run.trained else "", style)
        for piece in run.pieces:
            shown = visible(piece.text).replace("\n", "↵\n")
            text.append(shown, style + _CONTROL if piece.control else style)
        text.append(marks[1] if run.trained else "", style)
    return text
