"""What make bench measured, as the documents show it: the tables of both READMEs and of docs/capacity.md, and charts.

Again from a file: python -m tools.bench.report docs/bench/X.json
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from build.plots import COLORS, INK, STYLE
from tests.support import ROOT

Result = dict[str, Any]


@dataclass(frozen=True)
class Words:
    """The README's tables in one language. Each language has the same figures in the same order."""

    tables: str
    length: str
    lengths: dict[str, str]
    peers: str
    peer: str
    ours: str
    comma: str


ENGLISH = Words(
    """\
| speed | | |
| --- | --- | --- |
| bare engine, FP32 | {engine[fp32]:.0f} texts/s | |
| bare engine, plain INT8 (`quantize_dynamic`) | {engine[plain_int8]:.0f} texts/s | {plain_over_fp32:.2f} x FP32 |
| bare engine, INT8 | {engine[int8]:.0f} texts/s | {int8_over_fp32:.2f} x FP32 |
| HTTP, 32 texts a request, 2 clients | {http[batches]:.0f} texts/s | {http[batches_over_engine]:.2f} x bare engine |
| HTTP, 1 text a request, 32 clients | {http[clients_32]:.0f} texts/s \
| {http[clients_32_over_engine]:.2f} x bare engine |
| the same, texts seen before (cache) | {http[cached]:.0f} texts/s | |
| HTTP, 1 text, 1 client, p50 | {http[one_client_p50]:.1f} ms | bare engine + {over_engine_ms:.1f} ms |
| the same, a text seen before (cache) | {cache[hit_p50]:.1f} ms | |

| latency by length (1 client) | p50 | p95 | p99 |
| --- | --- | --- | --- |
{lengths}
| fairness | p50 | p99 |
| --- | --- | --- |
| 1 client, 1 sentence a request, nothing else | {unloaded[p50]:.1f} ms | {unloaded[p99]:.1f} ms |
| the same, beside 64 long paragraphs a request, 2 clients | {loaded[p50]:.1f} ms ({slower[p50]:.2f} x) \
| {loaded[p99]:.1f} ms ({slower[p99]:.2f} x) |

| overload | | |
| --- | --- | --- |
| the most it answers (32 clients) | {overload[capacity]:.0f} texts/s | |
| sent | {overload[offered]:.0f} texts/s | {sent:.2f} x the most |
| answered | {overload[answered]:.0f} texts/s | {overload[goodput]:.2f} x the most |
| until an answer, p99 | {overload[answered_p99]:.1f} ms | |
| until a refusal (429), p99 | {overload[refused_p99]:.1f} ms | |

| start and memory | |
| --- | --- |
| `gunicorn` to first vector | {start_seconds:.2f} s |
| memory (PSS), one worker | {memory[one_worker_mb]:.0f} MB |
| each further worker | {memory[further_worker_mb]:.0f} MB |

| model | FP32 | INT8 |
| --- | --- | --- |
| size | {fp32_mb:.0f} MB | {int8_mb:.0f} MB |
| cosine to sentence-transformers, mean | {fp32[mean]:.5f} | {int8[mean]:.5f} |
| the same, 1st percentile | {fp32[p1]:.5f} | {int8[p1]:.5f} |
| the same, least | {fp32[min]:.5f} | {int8[min]:.5f} |
| mean difference of similarities | {fp32[pairwise_difference]:.5f} | {int8[pairwise_difference]:.5f} |
| translations found first, of {retrieval[queries]} | {retrieval[reference]:.3f} | {retrieval[int8]:.3f} |
| of a text's {neighbours[nearest]} nearest, the same | 1 | {neighbours[overlap]:.3f} |
""",
    length="| {name}, {tokens} tokens | {p50:.1f} ms | {p95:.1f} ms | {p99:.1f} ms |\n",
    lengths={},
    peers="""
| beside others | 32 clients, 1 text each | 2 clients, 32 texts each | 1 client, p50 | memory | start \
| cosine to FP32 in batches, mean | the same, least |
| --- | --- | --- | --- | --- | --- | --- | --- |
""",
    peer="| {name} | {clients_32:.0f} texts/s | {batches:.0f} texts/s | {one_client_p50:.1f} ms | {memory_mb:.0f} MB "
    "| {start_seconds:.2f} s | {batched[mean]:.5f} | {batched[min]:.5f} |\n",
    ours="this server, INT8",
    comma=", ",
)
JAPANESE = Words(
    """\
| 速度 | | |
| --- | --- | --- |
| エンジン単体、FP32 | {engine[fp32]:.0f} テキスト/秒 | |
| エンジン単体、一般的な INT8（`quantize_dynamic`） | {engine[plain_int8]:.0f} テキスト/秒 \
| {plain_over_fp32:.2f} 倍（FP32 比） |
| エンジン単体、INT8 | {engine[int8]:.0f} テキスト/秒 | {int8_over_fp32:.2f} 倍（FP32 比） |
| HTTP、32 テキストずつ、2 クライアント | {http[batches]:.0f} テキスト/秒 | {http[batches_over_engine]:.2f} 倍（エンジン単体比） |
| HTTP、1 テキストずつ、32 クライアント | {http[clients_32]:.0f} テキスト/秒 \
| {http[clients_32_over_engine]:.2f} 倍（エンジン単体比） |
| 同上、処理済みのテキスト（キャッシュ） | {http[cached]:.0f} テキスト/秒 | |
| HTTP、1 テキスト、1 クライアント、p50 | {http[one_client_p50]:.1f} ms | エンジン単体 + {over_engine_ms:.1f} ms |
| 同上、処理済みのテキスト（キャッシュ） | {cache[hit_p50]:.1f} ms | |

| 長さ別の応答時間（1 クライアント） | p50 | p95 | p99 |
| --- | --- | --- | --- |
{lengths}
| 公平性 | p50 | p99 |
| --- | --- | --- |
| 1 クライアント、1 文ずつ、他の負荷なし | {unloaded[p50]:.1f} ms | {unloaded[p99]:.1f} ms |
| 同上、長い段落を 64 件ずつ送る 2 クライアントと並行 | {loaded[p50]:.1f} ms（{slower[p50]:.2f} 倍） \
| {loaded[p99]:.1f} ms（{slower[p99]:.2f} 倍） |

| 過負荷 | | |
| --- | --- | --- |
| 処理できる上限（32 クライアント） | {overload[capacity]:.0f} テキスト/秒 | |
| 送信した量 | {overload[offered]:.0f} テキスト/秒 | {sent:.2f} 倍（上限比） |
| 応答した量 | {overload[answered]:.0f} テキスト/秒 | {overload[goodput]:.2f} 倍（上限比） |
| 応答までの時間、p99 | {overload[answered_p99]:.1f} ms | |
| 拒否（429）までの時間、p99 | {overload[refused_p99]:.1f} ms | |

| 起動とメモリ | |
| --- | --- |
| `gunicorn` の起動から最初のベクトルまで | {start_seconds:.2f} 秒 |
| メモリ（PSS）、単一ワーカー | {memory[one_worker_mb]:.0f} MB |
| 追加のワーカーごと | {memory[further_worker_mb]:.0f} MB |

| モデル | FP32 | INT8 |
| --- | --- | --- |
| サイズ | {fp32_mb:.0f} MB | {int8_mb:.0f} MB |
| sentence-transformers とのコサイン類似度、平均 | {fp32[mean]:.5f} | {int8[mean]:.5f} |
| 同上、1 パーセンタイル | {fp32[p1]:.5f} | {int8[p1]:.5f} |
| 同上、最小 | {fp32[min]:.5f} | {int8[min]:.5f} |
| 類似度の差の平均 | {fp32[pairwise_difference]:.5f} | {int8[pairwise_difference]:.5f} |
| 最初に見つかった翻訳の割合、{retrieval[queries]} 件中 | {retrieval[reference]:.3f} | {retrieval[int8]:.3f} |
| 各テキストに近い {neighbours[nearest]} 件のうち、同じもの | 1 | {neighbours[overlap]:.3f} |
""",
    length="| {name}（{tokens} トークン） | {p50:.1f} ms | {p95:.1f} ms | {p99:.1f} ms |\n",
    lengths={"word": "単語", "sentence": "文", "paragraph": "段落", "page": "長文"},
    peers="""
| 他のサーバーとの比較 | 32 クライアント、1 テキストずつ | 2 クライアント、32 テキストずつ | 1 クライアント、p50 | メモリ | 起動 \
| バッチでの FP32 とのコサイン類似度、平均 | 同左、最小 |
| --- | --- | --- | --- | --- | --- | --- | --- |
""",
    peer="| {name} | {clients_32:.0f} テキスト/秒 | {batches:.0f} テキスト/秒 | {one_client_p50:.1f} ms | {memory_mb:.0f} MB "
    "| {start_seconds:.2f} 秒 | {batched[mean]:.5f} | {batched[min]:.5f} |\n",
    ours="このサーバー、INT8",
    comma="、",
)
ONE_CPU = """\
| one CPU | texts/s | p50 | p95 | p99 | CPU time a text |
| --- | --- | --- | --- | --- | --- |
{rows}
| one CPU: most clients measured with p95 under {p95_limit} ms, 1 text a request | {most_clients} |
| --- | --- |
| one CPU: `gunicorn` to first vector | {start_seconds:.2f} s |
| one CPU: memory (PSS) after the load | {memory_mb:.0f} MB |
| one CPU: the largest request, {largest_texts:,} pages | {largest_seconds:.0f} s |
"""
LOAD = (
    "| {texts} text{s} a request, {clients} client{more} | {texts_per_second:.0f} "
    "| {p50:.0f} ms | {p95:.0f} ms | {p99:.0f} ms | {cpu_ms_per_text:.2f} ms |\n"
)

CHARTS = ("bench_latency.svg", "bench_throughput.svg", "bench_accuracy.svg")
LEAST_ERROR = 1e-6  # a log axis has no 0, and float32 vectors tell little less
GREY = "#b4bac2"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Above the axes, where no value can be.
LEGEND: dict[str, Any] = {"frameon": False, "loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "fontsize": 9}
# Where a label may stand: right or left of its point, above, below, then farther away; in points.
NEAR = [(9, 0), (-9, 0), (0, 12), (0, -12)]
PLACES = NEAR + [(x, y) for far in (20, 34, 48) for y in (far, -far) for x in (14, -14, 60, -60)]


def write(result: Result, root: Path) -> None:
    """Put the figures into the documents under root and draw docs/*.svg.

    Peers that were not measured are left out; without "one_cpu", docs/capacity.md stays as it is.

    Raises:
        ValueError: a document has no place for its tables. Nothing is written.
    """
    places = [("README.md", "bench", readme(result, ENGLISH)), ("README.ja.md", "bench", readme(result, JAPANESE))]
    if result.get("one_cpu"):
        places.append(("docs/capacity.md", "one_cpu", one_cpu(result["one_cpu"])))
    documents = {name: replaced(root / name, mark, tables) for name, mark, tables in places}
    for name, text in documents.items():
        (root / name).write_text(text, encoding="utf-8")
    with style.context(["default", STYLE]):
        for name, draw in zip(CHARTS, (latency, throughput, accuracy), strict=True):
            draw(result).savefig(root / "docs" / name, metadata={"Date": None, "Creator": None})


def replaced(path: Path, mark: str, tables: str) -> str:
    """The document with other tables between its two marks."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not end:
        raise ValueError(f"{path.name} has no tables between <!-- {mark} --> and <!-- /{mark} -->.")
    return before + begin + tables + end + after


def readme(result: Result, words: Words) -> str:
    engine, http, overload, quality = (result[name] for name in ("engine", "http", "overload", "quality"))
    unloaded, loaded = result["fairness"]["unloaded"], result["fairness"]["loaded"]
    lengths = (row | {"name": words.lengths.get(row["name"], row["name"])} for row in result["latency_by_length"])
    text = words.tables.format(
        **result | quality | result["fairness"],
        plain_over_fp32=engine["plain_int8"] / engine["fp32"],
        int8_over_fp32=engine["int8"] / engine["fp32"],
        over_engine_ms=http["one_client_p50"] - http["engine_p50"],
        lengths="".join(words.length.format(**row) for row in lengths),
        slower={name: loaded[name] / unloaded[name] for name in ("p50", "p99")},
        sent=overload["offered"] / overload["capacity"],
        fp32_mb=quality["bytes"]["model_fp32.onnx"] / 1e6,
        int8_mb=quality["bytes"]["model_int8.onnx"] / 1e6,
    )
    if result.get("peers"):
        rows = ((server["name"].replace(", ", words.comma), server) for server in servers(result, words.ours))
        text += words.peers + "".join(words.peer.format(**server | {"name": name}) for name, server in rows)
    return text


def servers(result: Result, name: str) -> list[Result]:
    """This server, by its name, as if it were a peer, and the peers."""
    ours = {"name": name, "memory_mb": result["memory"]["one_worker_mb"], "start_seconds": result["start_seconds"]}
    # A vector of ours is the same alone and in a batch.
    return [result["http"] | ours | {"batched": result["quality"]["int8"]}, *(result.get("peers") or [])]


def one_cpu(measured: Result) -> str:
    rows = (LOAD.format(**row, s="s"[: row["texts"] > 1], more="s"[: row["clients"] > 1]) for row in measured["loads"])
    return ONE_CPU.format(rows="".join(rows), **measured)


def titled(headline: str, result: Result, height: float) -> Figure:
    """A figure with its title above and what was measured below."""
    machine = result["machine"]
    where = f"{result['model']}; {machine['cpus']} CPUs of {machine['cpu']}; {result['date']}"
    figure = Figure(figsize=(8, height), layout="constrained")
    figure.suptitle(headline, x=0.01, ha="left", fontsize=11, fontweight="bold")
    # The font at hand has no Japanese.
    note = where.encode("ascii", "replace").decode()
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8)
    return figure


def latency(result: Result) -> Figure:
    """Percentiles by the number of clients, and how many texts a second these get."""
    rows = result["latency_by_clients"]
    clients = [row["clients"] for row in rows]
    figure = titled("Latency by number of clients, 1 text a request", result, 3.8)
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
    axes.set(xscale="log", yscale="log", xlabel="Clients; below, the texts/s they get together", ylabel="Latency, ms")
    axes.set_xticks(clients, [f"{row['clients']}\n{row['texts_per_second']:.0f}/s" for row in rows])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.margins(y=0.15)
    axes.grid(False, axis="x")
    axes.legend(**LEGEND)
    return figure


def throughput(result: Result) -> Figure:
    """A bar for each server, in two panels: requests of one text, and of many."""
    shown = servers(result, ENGLISH.ours)
    names, colors = [server["name"] for server in shown], [COLORS[0]] + [GREY] * (len(shown) - 1)
    figure = titled("Texts a second over HTTP", result, 1.4 + 0.36 * len(shown))
    panels = (("clients_32", "1 text a request, 32 clients"), ("batches", "32 texts a request, 2 clients"))
    for axes, (key, title) in zip(figure.subplots(1, 2, sharex=True, sharey=True), panels, strict=True):
        bars = axes.barh(names, [server[key] for server in shown], color=colors, height=0.66)
        axes.bar_label(bars, fmt="%.0f", padding=4)
        axes.set_title(title, loc="left", fontsize=10)
        axes.margins(x=0.16)
        axes.grid(False, axis="y")
        axes.tick_params(left=False)
    axes.invert_yaxis()
    return figure


def accuracy(result: Result) -> Figure:
    """Mean error against speed; the best is at the upper right."""
    engine, quality, peers = result["engine"], result["quality"], result.get("peers") or []
    others = [
        ("FP32", engine["fp32"], quality["fp32"]["mean"]),
        ("plain INT8 (quantize_dynamic)", engine["plain_int8"], result["accuracy"]["plain_int8"]["mean"]),
    ]
    kinds = (
        ("bare engine, ours", COLORS[0], "o", [("INT8, ours", engine["int8"], quality["int8"]["mean"])]),
        ("bare engine, to compare", INK, "s", others),
        (
            "servers, 32 texts a request, 2 clients",
            COLORS[3],
            "D",
            [(peer["name"], peer["batches"], peer["batched"]["mean"]) for peer in peers],
        ),
    )
    figure = titled("Accuracy against speed: the upper right is best", result, 4.4)
    axes = figure.subplots()
    points = []
    for label, color, marker, found in kinds:
        at = [(name, speed, max(1 - mean, LEAST_ERROR), color) for name, speed, mean in found]
        if at:
            _, x, y, _ = zip(*at, strict=True)
            axes.scatter(x, y, s=48, c=color, marker=marker, label=label, zorder=3)
        points += at
    least, most = 0.2 * LEAST_ERROR, 5 * max(y for _, _, y, _ in points)
    fastest = 1.25 * max(x for _, x, _, _ in points)
    axes.set(
        yscale="log", xlabel="Texts/s", ylabel="Error, 1 - mean cosine to FP32", xlim=(0, fastest), ylim=(most, least)
    )
    axes.yaxis.set_major_locator(LogLocator(numticks=20))
    axes.yaxis.set_major_formatter(power)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(**LEGEND)
    figure.draw_without_rendering()
    label_points(axes, points)
    return figure


def power(value: float, place: object = None) -> str:
    exponent = round(math.log10(value))
    return ("≤ 10" if 10**exponent <= LEAST_ERROR else "10") + str(exponent).translate(SUPERSCRIPTS)


def label_points(axes: Axes, points: Sequence[tuple[str, float, float, str]]) -> None:
    """Each at the first place where it covers neither a point nor another label, with a line to it if that is far."""
    taken = [Bbox.from_extents(*(at - 12), *(at + 12)) for at in (axes.transData.transform(xy) for _, *xy, _ in points)]
    for name, x, y, color in points:
        for dx, dy in PLACES:
            side = "left" if dx > 0 else "right" if dx else "center"
            line = None if (dx, dy) in NEAR else {"arrowstyle": "-", "color": color, "linewidth": 0.8}
            note = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=side, va="center", color=color, arrowprops=line
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


def main() -> None:
    write(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), ROOT)


if __name__ == "__main__":
    main()
