"""Charts of docs/benchmarks.md, drawn with Matplotlib from the figures that make bench measured.

They have a white background of their own, so that they are readable on a dark page.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from build.plots import COLORS, INK, STYLE
from tools.bench.tables import OURS, Result, servers

# Smallest error shown: a log axis has no 0, and float32 vectors hardly resolve less.
LEAST_ERROR = 1e-6
GREY = "#9aa2ad"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Legend above the axes, where no value can be.
LEGEND: dict[str, Any] = {"frameon": False, "loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "fontsize": 9}
# Offsets of a label from its point, in points, in order of preference: beside, above, below, then farther away.
NEAR = [(9, 0), (-9, 0), (0, 12), (0, -12)]
OFFSETS = NEAR + [(x, y) for far in (20, 34, 48) for y in (far, -far) for x in (14, -14, 60, -60)]


def save(draw: Callable[[Result], Figure], result: Result, path: Path) -> None:
    """Draw a chart and save it; the same figures give the same bytes."""
    with style.context(["default", STYLE]):
        draw(result).savefig(path, metadata={"Date": None, "Creator": None})


def throughput(result: Result) -> Figure:
    """Return a bar for each server in two panels: requests of one text, and of 32."""
    shown = servers(result)
    names, colors = [server["name"] for server in shown], [COLORS[0]] + [GREY] * (len(shown) - 1)
    figure = _titled("Throughput over HTTP, texts/s; more is better", result, 1.4 + 0.36 * len(shown))
    panels = (("clients_32", "32 clients, 1 text a request"), ("batches", "2 clients, 32 texts a request"))
    for axes, (key, title) in zip(figure.subplots(1, 2, sharex=True, sharey=True), panels, strict=True):
        bars = axes.barh(names, [server[key] for server in shown], color=colors, height=0.66)
        axes.bar_label(bars, fmt="%.0f", padding=4)
        axes.set_title(title, loc="left", fontsize=10)
        axes.margins(x=0.16)
        axes.grid(False, axis="y")
        axes.tick_params(left=False)
    axes.invert_yaxis()
    return figure


def latency(result: Result) -> Figure:
    """Return the percentiles by the number of clients, with the throughput of all clients below each."""
    rows = result["latency_by_clients"]
    clients = [row["clients"] for row in rows]
    figure = _titled("Latency over HTTP, ms, by number of clients; less is better", result, 4)
    axes = figure.subplots()
    for name, color, marker, away in (
        ("p99", COLORS[3], "s", 8),
        ("p95", COLORS[1], "^", 0),
        ("p50", COLORS[0], "o", -15),
    ):
        axes.plot(clients, [row[name] for row in rows], color=color, marker=marker, linewidth=2, label=name)
        for row in rows if away else ():
            near: Any = {"xytext": (0, away), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(f"{row[name]:.{int(row[name] < 10)}f}", (row["clients"], row[name]), color=color, **near)
    axes.set_title(
        "1 text a request: those of build/texts/ in random order, from words to pages, in 10 languages and code",
        loc="left",
        fontsize=9,
        pad=24,
    )
    axes.set(
        xscale="log", yscale="log", xlabel="Clients (below: texts/s of all clients together)", ylabel="Latency, ms"
    )
    axes.set_xticks(clients, [f"{row['clients']}\n{row['texts_per_second']:.0f}/s" for row in rows])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.margins(y=0.15)
    axes.grid(False, axis="x")
    axes.legend(**LEGEND)
    return figure


def accuracy(result: Result) -> Figure:
    """Return error against throughput over HTTP for all servers, and of bare engines as a second group."""
    engine, quality = result["engine"], result["quality"]
    ours, *peers = servers(result)
    engines = [
        ("FP32", engine["fp32"], quality["fp32"]["mean"]),
        ("plain INT8", engine["plain_int8"], result["accuracy"]["plain_int8"]["mean"]),
        ("INT8", engine["int8"], quality["int8"]["mean"]),
    ]
    groups = (
        ("this server, HTTP", COLORS[0], "o", [(OURS, ours["batches"], ours["batched"]["mean"])]),
        (
            "other servers, HTTP",
            COLORS[3],
            "D",
            [(peer["name"], peer["batches"], peer["batched"]["mean"]) for peer in peers],
        ),
        ("bare engines, without HTTP", GREY, "s", engines),
    )
    figure = _titled("Error against throughput, 2 clients with 32 texts a request; upper right is better", result, 4.4)
    axes = figure.subplots()
    points = []
    for label, color, marker, members in groups:
        at = [(name, speed, max(1 - mean, LEAST_ERROR), color) for name, speed, mean in members]
        if at:
            _, x, y, _ = zip(*at, strict=True)
            axes.scatter(x, y, s=48, c=color, marker=marker, label=label, zorder=3)
        points += at
    least, most = 0.2 * LEAST_ERROR, 5 * max(y for _, _, y, _ in points)
    fastest = 1.25 * max(x for _, x, _, _ in points)
    axes.set(
        yscale="log",
        xlabel="Texts/s",
        ylabel="Error, 1 - mean cosine to FP32",
        xlim=(0, fastest),
        ylim=(most, least),
    )
    axes.yaxis.set_major_locator(LogLocator(numticks=20))
    axes.yaxis.set_major_formatter(_power)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(**LEGEND)
    figure.draw_without_rendering()
    _label_points(axes, points)
    return figure


def _titled(headline: str, result: Result, height: float) -> Figure:
    """Return a figure with a title above, and the model, machine and date below."""
    machine = result["machine"]
    where = f"{result['model']}; {machine['cpus']} CPUs of {machine['cpu']}; {result['date']}"
    figure = Figure(figsize=(8, height), layout="constrained")
    figure.suptitle(headline, x=0.01, ha="left", fontsize=11, fontweight="bold")
    # The font has no Japanese.
    note = where.encode("ascii", "replace").decode()
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8)
    return figure


def _power(value: float, place: object = None) -> str:
    exponent = round(math.log10(value))
    return ("≤ 10" if 10**exponent <= LEAST_ERROR else "10") + str(exponent).translate(SUPERSCRIPTS)


def _label_points(axes: Axes, points: Sequence[tuple[str, float, float, str]]) -> None:
    """Label each point at the first offset where the label covers nothing; far labels get a line to their point."""
    taken = [Bbox.from_extents(*(at - 12), *(at + 12)) for at in (axes.transData.transform(xy) for _, *xy, _ in points)]
    for name, x, y, color in points:
        for dx, dy in OFFSETS:
            side = "left" if dx > 0 else "right" if dx else "center"
            line = None if (dx, dy) in NEAR else {"arrowstyle": "-", "color": color, "linewidth": 0.8}
            ink = INK if color == GREY else color
            note = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=side, va="center", color=ink, arrowprops=line
            )
            note.set_in_layout(False)
            box = note.get_window_extent()
            inside = (
                axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 <= box.y1 <= axes.bbox.y1
            )
            if inside and not box.count_overlaps(taken):
                break
            note.remove()
        taken.append(box)
