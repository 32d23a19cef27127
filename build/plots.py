"""Plots of the report: the effect of INT8 on the similarities of texts, and the error of each text.

They use Matplotlib without pyplot, its defaults instead of the user's settings, and no dates: the same vectors give the
same bytes. The background is white, so that they are readable on a dark page.
"""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from build import files
from build.similarity import Matrix, unit

SIMILARITY = "report_similarity"
ERROR = "report_error"
PLOTS = tuple(f"{stem}.{kind}" for stem in (SIMILARITY, ERROR) for kind in ("png", "svg"))

Floats = NDArray[np.float64]

# Smallest error shown: a log axis has no 0, and float32 vectors do not resolve less.
LEAST_ERROR = 1e-8
# Longest name of a model that fits the figure, characters.
LONGEST_NAME = 90
# Number of texts from which points are smaller and drawn as an image: the SVG would be larger than 300 kB.
MANY = 700
INK = "#333333"
# Colours that colour-blind people can distinguish (Okabe and Ito, https://jfly.uni-koeln.de/color/), without yellow,
# which is faint on white. With the markers, 35 groups look different.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#000000")
MARKERS = ("o", "^", "s", "D", "v")
DASHED: Mapping[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (4, 3))}
NOTE: Mapping[str, Any] = {
    "xytext": (-2, 4),
    "textcoords": "offset points",
    "ha": "right",
    "fontsize": 8,
    "bbox": {"color": "white", "alpha": 0.7, "pad": 1},
}
STYLE = {
    "figure.figsize": (8, 4),
    "figure.dpi": 160,  # 1280 pixels wide
    "text.parse_math": False,  # a $ in a name is a $
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "report",
}


def write(
    out: Path,
    name: str,
    reference: Matrix,
    int8: Matrix,
    groups: list[str],
    tokens: list[int],
    limits: Mapping[str, float] | None = None,
) -> None:
    """Write OUT/report_similarity and OUT/report_error, each as .png and .svg.

    Removes the folder's manifest, as every replaced file does: write the manifest afterwards.

    Args:
        name: the model's name.
        reference: (n, dim), the original's vectors, n at least 2.
        int8: (n, dim), the INT8 file's vectors of the same texts.
        groups: n names, each the group of a text.
        tokens: n lengths, at least 1.
        limits: errors (1 - cosine) to draw as lines, by their labels.

    Raises:
        ValueError: the lengths differ, or there are fewer than two texts.
    """
    if not len(reference) == len(int8) == len(groups) == len(tokens):
        raise ValueError("Each text needs two vectors, a group and a length.")
    if len(reference) < 2:
        raise ValueError("A plot of similarities needs at least two texts.")
    a, b = _unit(reference), _unit(int8)
    with style.context(["default", STYLE]), files.replacing(out, *PLOTS) as part:
        _save(_similarity(name, a, b), part, SIMILARITY)
        error = np.maximum(1 - np.sum(a * b, axis=1), LEAST_ERROR)
        _save(_error(name, error, np.array(groups), np.array(tokens), limits or {}), part, ERROR)


def _unit(a: Matrix) -> Floats:
    """Return (n, dim) vectors scaled to length 1; a broken vector becomes 0, which is similar to nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(unit(a))


def _save(figure: Figure, folder: Path, stem: str) -> None:
    figure.savefig(folder / f"{stem}.png", metadata={"Software": None})
    figure.savefig(folder / f"{stem}.svg", metadata={"Date": None, "Creator": None})


def _figure(headline: str, name: str, sharey: bool = False) -> tuple[Figure, Axes, Axes]:
    """Return a figure with two panels, a title above and the model's name below."""
    figure = Figure(layout="constrained")
    shown = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
    figure.suptitle(headline, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel(_ascii(shown), x=0.01, ha="left", fontsize=8)
    left, right = figure.subplots(1, 2, sharey=sharey)
    return figure, left, right


def _ascii(name: str) -> str:
    """Return the name in ASCII: the font has no Japanese, and would warn and draw empty boxes."""
    return name.encode("ascii", "replace").decode()


def _similarity(name: str, a: Floats, b: Floats) -> Figure:
    """Draw the similarities of all pairs, INT8 against the original, and the difference; (n, dim) of length 1 each."""
    upper = np.triu_indices(len(a), 1)
    original, int8 = (a @ a.T)[upper], (b @ b.T)[upper]
    difference = int8 - original
    mean, most = np.abs(difference).mean(), max(np.abs(difference).max(), 1e-4)
    low, high = min(original.min(), int8.min()), max(original.max(), int8.max())
    span = (low - max(high - low, 0.01) / 20, high + max(high - low, 0.01) / 20)

    headline = f"Similarities of all pairs of {len(a):,} texts, INT8 against the original; mean difference {mean:.2g}"
    figure, left, right = _figure(headline, name)
    bins = int(np.clip(np.sqrt(len(original)), 30, 90))
    shapes = [
        axes.hist2d(original, y, bins, range=(span, y_span), cmin=1, norm="log", rasterized=True)
        for axes, y, y_span in ((left, int8, span), (right, difference, (-1.1 * most, 1.1 * most)))
    ]
    densest = max(np.nanmax(counts) for counts, *_ in shapes)
    for *_, image in shapes:
        image.set_clim(1, max(densest, 10))
    left.plot(span, span, color=INK, linewidth=0.8)
    right.axhline(0, color=INK, linewidth=0.8)
    within = float(np.percentile(np.abs(difference), 99))
    for y in (within, -within):
        right.axhline(y, **DASHED)
    right.set_title(f"Dashed: 99% of the pairs, within ±{within:.2g}", loc="right", fontsize=8)
    left.set(xlabel="Cosine similarity, original", ylabel="Cosine similarity, INT8", box_aspect=1)
    right.set(xlabel="Cosine similarity, original", ylabel="Difference, INT8 minus original", box_aspect=1)
    figure.colorbar(image, right.inset_axes((1.04, 0, 0.05, 1)), label="Pairs", format=_number)
    return figure


def _error(
    name: str, error: Floats, groups: NDArray[np.str_], tokens: NDArray[np.int_], limits: Mapping[str, float]
) -> Figure:
    """Draw each text's error by its length and by its group; (n,) each."""
    headline = f"Error of {len(error):,} texts, INT8 against the original; mean error {error.mean():.2g}"
    figure, left, right = _figure(headline, name, sharey=True)
    looks = dict(zip(dict.fromkeys(groups.tolist()), zip(cycle(COLORS), cycle(MARKERS))))
    members = {group: groups == group for group in looks}
    ranked = sorted(looks, key=lambda group: float(np.median(error[members[group]])))
    many = len(error) > MANY
    points: Mapping[str, Any] = {
        "s": 5 if many else 14,
        "linewidths": 0 if many else 0.3,
        "edgecolors": "white",
        "rasterized": many,
    }
    for place, group in enumerate(ranked):
        errors = error[members[group]]
        color, marker = looks[group]
        # Spread evenly without randomness: multiples of the golden ratio.
        spread = 0.6 * (np.arange(len(errors)) * 0.618034 % 1 - 0.5)
        for axes, x in ((left, tokens[members[group]]), (right, place + spread)):
            axes.scatter(x, errors, color=color, marker=marker, **points)
        right.hlines(np.median(errors), place - 0.45, place + 0.45, color=INK, linewidth=1.5)
    for label, limit in limits.items():
        for axes in (left, right):
            axes.axhline(limit, **DASHED)
        left.annotate(_ascii(label), (1, limit), xycoords=("axes fraction", "data"), **NOTE)
    left.set(xscale="log", yscale="log", xlabel="Length in tokens", ylabel="Error, 1 - cosine")
    decades = np.log10(error.max() / error.min())
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(_number)
        axis.set_minor_locator(NullLocator())
    right.grid(False, axis="x")
    right.set_xlabel("Group: language or kind of text (bar: median)")
    labels = [_ascii(group) for group in ranked]
    right.set_xticks(range(len(labels)), labels, rotation=90, fontsize=min(10, 210 / len(labels)))
    return figure


def _number(value: float, place: object = None) -> str:
    return f"{value:g}"
