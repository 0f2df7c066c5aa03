"""What `shardtune inspect` found, as one HTML file without outside references."""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from data_tools.errors import UserError
from data_tools.inspect import Inspection, visible
from data_tools.store import write_text

_TEMPLATE = Path(__file__).with_name("inspect.jinja")
_BLUE, _ORANGE, _GREY = "#4a7fd6", "#e07b00", "#888888"
_BINS_PER_DOUBLING = 4


def write_page(found: Inspection, path: Path) -> None:
    """Write the page.

    Raises:
        UserError: the file cannot be written.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["visible"] = visible
    html = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        found=found,
        name=found.store.folder.absolute(),
        picture=base64.b64encode(draw_lengths(found.lengths)).decode() if len(found.lengths) else None,
        settings={
            part: yaml.safe_dump(found.store.manifest[part], sort_keys=False, allow_unicode=True)
            for part in ("asked", "settings")
        },
    )
    try:
        write_text(path, html)
    except OSError as error:
        raise UserError(f"--html: cannot write {path}: {error.strerror}; choose another file") from None


def draw_lengths(lengths: NDArray[np.int32]) -> bytes:
    """The lengths as an SVG that is legible on white and on black: bins of equal ratio, a line at 2k, 4k, 8k, …

    Args:
        lengths: [documents], at least one.
    """
    edges = bin_edges(lengths)
    ticks = [2**power for power in range(31) if edges[0] <= 2**power + 0.5 <= edges[-1]]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lengths", "font.size": 11, "text.color": _GREY}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.hist(lengths, bins=edges.tolist(), color=_BLUE)
        axes.set_xscale("log", base=2)
        axes.set_xlim(edges[0] * 0.97, edges[-1] * 1.03)
        axes.set_xticks(ticks, [_short(tick) for tick in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        for tick in ticks:
            if 2048 <= tick <= lengths.max():
                axes.axvline(tick + 0.5, color=_ORANGE, linewidth=1, linestyle="--")
        axes.set_xlabel("tokens of a document", color=_GREY)
        axes.set_ylabel("documents", color=_GREY)
        axes.tick_params(which="both", colors=_GREY)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_color(_GREY)
            spine.set_visible(side in ("left", "bottom"))
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    return picture.getvalue()


def bin_edges(lengths: NDArray[np.int32]) -> NDArray[np.float64]:
    """Ascending edges around all lengths, four a doubling; 2,048 tokens are left of the line at 2k."""
    first = np.ceil(np.log2(lengths.min())) - 1
    last = max(first + 1, np.ceil(np.log2(lengths.max())))
    steps = np.arange(int(last - first) * _BINS_PER_DOUBLING + 1) / _BINS_PER_DOUBLING
    return np.asarray(np.exp2(first + steps) + 0.5)


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)
