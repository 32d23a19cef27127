"""Tables of the documents, from the figures that make bench measured."""

from collections.abc import Iterator
from typing import Any, NamedTuple

Result = dict[str, Any]

# Name of this server in tables and charts.
OURS = "this server, INT8"


class Figures(NamedTuple):
    """The READMEs' table of five figures, in one language: its rows, and the separator in a server's name."""

    ours: str
    rows: str
    comma: str


ENGLISH = Figures(
    OURS,
    """\
| 32 clients, 1 text a request | {clients_32:.0f} texts/s |
| 1 client, p50 | {one_client_p50:.1f} ms |
| start to the first vector | {start_seconds:.2f} s |
| memory | {memory_mb:.0f} MB |
| cosine to FP32, mean | {batched[mean]:.5f} |
""",
    ", ",
)
JAPANESE = Figures(
    "このサーバー、INT8",
    """\
| 32 クライアント、1 テキストずつ | {clients_32:.0f} テキスト/秒 |
| 1 クライアント、p50 | {one_client_p50:.1f} ms |
| 起動から最初のベクトルまで | {start_seconds:.2f} 秒 |
| メモリ | {memory_mb:.0f} MB |
| FP32 とのコサイン類似度、平均 | {batched[mean]:.5f} |
""",
    "、",
)
TABLES = """\
| speed | | |
| --- | --- | --- |
| bare engine, FP32 | {engine[fp32]:.0f} texts/s | |
| bare engine, plain INT8 (`quantize_dynamic`) | {engine[plain_int8]:.0f} texts/s | {plain_over_fp32:.2f} × FP32 |
| bare engine, INT8 | {engine[int8]:.0f} texts/s | {int8_over_fp32:.2f} × FP32 |
| HTTP, 32 texts a request, 2 clients | {http[batches]:.0f} texts/s | {http[batches_over_engine]:.2f} × bare engine |
| HTTP, 1 text a request, 32 clients | {http[clients_32]:.0f} texts/s \
| {http[clients_32_over_engine]:.2f} × bare engine |
| the same, texts in the cache | {http[cached]:.0f} texts/s | |
| HTTP, 1 text a request, 1 client, p50 | {http[one_client_p50]:.1f} ms | bare engine + {over_engine_ms:.1f} ms |
| the same, a text in the cache | {cache[hit_p50]:.1f} ms | |

| latency by length (1 client) | p50 | p95 | p99 |
| --- | --- | --- | --- |
{lengths}
| fairness | p50 | p99 |
| --- | --- | --- |
| 1 client, 1 sentence a request, idle server | {unloaded[p50]:.1f} ms | {unloaded[p99]:.1f} ms |
| the same, beside 2 clients with 64 long paragraphs a request | {loaded[p50]:.1f} ms ({slower[p50]:.2f} ×) \
| {loaded[p99]:.1f} ms ({slower[p99]:.2f} ×) |

| overload | | |
| --- | --- | --- |
| capacity (32 clients) | {overload[capacity]:.0f} texts/s | |
| sent | {overload[offered]:.0f} texts/s | {offered_over_capacity:.2f} × capacity |
| answered | {overload[answered]:.0f} texts/s | {overload[goodput]:.2f} × capacity |
| time to a response, p99 | {overload[answered_p99]:.1f} ms | |
| time to a rejection (429), p99 | {overload[refused_p99]:.1f} ms | |

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
| the same, minimum | {fp32[min]:.5f} | {int8[min]:.5f} |
| mean difference of similarities | {fp32[pairwise_difference]:.5f} | {int8[pairwise_difference]:.5f} |
| share of {retrieval[queries]} translations found at rank 1 | {retrieval[reference]:.3f} | {retrieval[int8]:.3f} |
| overlap of a text's {neighbours[nearest]} nearest neighbours | 1 | {neighbours[overlap]:.3f} |
"""
LENGTH = "| {name}, {tokens} tokens | {p50:.1f} ms | {p95:.1f} ms | {p99:.1f} ms |\n"
PEERS = """
| beside others | 32 clients, 1 text each | 2 clients, 32 texts each | 1 client, p50 | memory | start \
| cosine to FP32 in batches, mean | the same, minimum |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
PEER = (
    "| {name} | {clients_32:.0f} texts/s | {batches:.0f} texts/s | {one_client_p50:.1f} ms | {memory_mb:.0f} MB "
    "| {start_seconds:.2f} s | {batched[mean]:.5f} | {batched[min]:.5f} |\n"
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

ENGINES = """\
Bare engines, {date}, {cpus} CPUs of an {cpu} ({features}): texts a second by tokens a text, and the batch with which
they were reached.

| engine | {lengths} | cosine to FP32, mean | the same, minimum | memory | file |
| --- |{dashes} --- | --- | --- | --- |
{rows}"""
ENGINE = (
    "| {name}{version} | {speeds} | {cosine[mean]:.5f} | {cosine[min]:.5f} | {memory_mb:.0f} MB | {file_mb:.0f} MB |\n"
)
BULK = """\
{date}, {cpus} CPUs of an {cpu} ({features}), {model}:

| | texts | tokens a text | texts/s | × bare engine | memory | a million texts | 100 million, on 400 vCPUs | |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}"""
BULK_ROW = (
    "| {kind} | {texts:,} | {tokens:.0f} | {texts_per_second:.0f} | {over_bare:.2f} | {memory_mb:.0f} MB "
    "| €{million:.3f} | €{all:.2f} | {hours:.2f} h |\n"
)
# The job of deploy/job.yaml: vCPUs of all its tasks, memory of a vCPU in GiB, and texts.
JOB_VCPUS, JOB_GIB, JOB_TEXTS = 400, 0.5, 100_000_000


def servers(result: Result) -> list[Result]:
    """Return this server, in the form of a peer, and the peers that were measured."""
    ours = {"name": OURS, "memory_mb": result["memory"]["one_worker_mb"], "start_seconds": result["start_seconds"]}
    # This server's vectors are the same alone and in a batch.
    return [result["http"] | ours | {"batched": result["quality"]["int8"]}, *(result.get("peers") or [])]


def five_figures(result: Result, figures: Figures) -> str:
    """Return the READMEs' table: this server beside the peer with the most texts/s at 32 clients."""
    ours, *peers = servers(result)
    shown = [ours | {"name": figures.ours}]
    if peers:
        best = max(peers, key=lambda peer: float(peer["clients_32"]))
        shown.append(best | {"name": best["name"].replace(", ", figures.comma)})
    columns = [[server["name"], "---", *_values(figures.rows.format(**server))] for server in shown]
    labels = ["", "---", *(row.split("|")[1].strip() for row in figures.rows.splitlines())]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in zip(labels, *columns, strict=True)).replace(
        "|  |", "| |"
    )


def _values(rows: str) -> Iterator[str]:
    return (row.split("|")[2].strip() for row in rows.splitlines())


def benchmarks(result: Result) -> str:
    """Return all tables of docs/benchmarks.md."""
    engine, http, overload, quality = (result[name] for name in ("engine", "http", "overload", "quality"))
    unloaded, loaded = result["fairness"]["unloaded"], result["fairness"]["loaded"]
    text = TABLES.format(
        **result | quality | result["fairness"],
        plain_over_fp32=engine["plain_int8"] / engine["fp32"],
        int8_over_fp32=engine["int8"] / engine["fp32"],
        over_engine_ms=http["one_client_p50"] - http["engine_p50"],
        lengths="".join(LENGTH.format(**row) for row in result["latency_by_length"]),
        slower={name: loaded[name] / unloaded[name] for name in ("p50", "p99")},
        offered_over_capacity=overload["offered"] / overload["capacity"],
        fp32_mb=quality["bytes"]["model_fp32.onnx"] / 1e6,
        int8_mb=quality["bytes"]["model_int8.onnx"] / 1e6,
    )
    if result.get("peers"):
        text += PEERS + "".join(PEER.format(**server) for server in servers(result))
    return text


def engines(result: Result) -> str:
    """Return the table of bare engines of docs/benchmarks.md, the fastest with short texts first."""
    lengths = list(result["lengths"])
    rows = sorted(result["engines"], key=lambda row: -row["best"][lengths[0]]["texts_per_second"])
    machine = result["machine"]
    return ENGINES.format(
        date=result["date"],
        cpus=machine["cpus"],
        cpu=machine["cpu"],
        features=", ".join(machine["features"]),
        lengths=" | ".join(f"{length} tokens" for length in lengths),
        dashes=" --- |" * len(lengths),
        rows="".join(
            ENGINE.format(
                **row,
                version="".join(f" ({version})" for version in list(row["versions"].values())[:1]),
                speeds=" | ".join("{texts_per_second:.0f} ({batch})".format(**row["best"][name]) for name in lengths),
            )
            for row in rows
        ),
    )


def one_cpu(measured: Result) -> str:
    """Return the table of docs/capacity.md."""
    rows = (LOAD.format(**row, s="s"[: row["texts"] > 1], more="s"[: row["clients"] > 1]) for row in measured["loads"])
    return ONE_CPU.format(rows="".join(rows), **measured)


def bulk(result: Result) -> str:
    """Return the table of docs/bulk.md: rates, and what they cost in a Cloud Run Job of as many vCPUs as here CPUs."""
    machine, prices = result["machine"], result["prices"]
    euros_a_second = (prices["cpu_instance"] + JOB_GIB * prices["memory_instance"]) / prices["dollars_per_euro"]
    rows = []
    for kind, row in result["bulk"].items():
        seconds = machine["cpus"] / row["texts_per_second"]  # of one vCPU, for a text
        rows.append(
            BULK_ROW.format(
                kind=kind,
                **row,
                million=seconds * 1e6 * euros_a_second,
                hours=JOB_TEXTS * seconds / JOB_VCPUS / 3600,
                all=JOB_TEXTS * seconds * euros_a_second,
            )
        )
    return BULK.format(
        date=result["date"],
        cpus=machine["cpus"],
        cpu=machine["cpu"],
        features=", ".join(machine["features"]),
        model=result["model"],
        rows="".join(rows),
    )
