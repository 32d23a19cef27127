"""Report: writes the figures of make bench into the documents, and draws the charts.

Again from a file: python -m tools.bench.report docs/bench/X.json
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support import ROOT
from tools.bench import charts, tables
from tools.bench.tables import Result

CHARTS = {
    "bench_throughput.svg": charts.throughput,
    "bench_latency.svg": charts.latency,
    "bench_accuracy.svg": charts.accuracy,
}


def write(result: Result, root: Path) -> None:
    """Write the tables into the documents under root, and the charts to docs/img/.

    Peers that were not measured are left out. Without "one_cpu", docs/capacity.md stays as it is.

    Raises:
        ValueError: a document has no marks around its tables. Nothing is written.
    """
    places = [
        ("README.md", "bench", tables.five_figures(result, tables.ENGLISH)),
        ("README.ja.md", "bench", tables.five_figures(result, tables.JAPANESE)),
        ("docs/benchmarks.md", "bench", tables.benchmarks(result)),
    ]
    if result.get("one_cpu"):
        places.append(("docs/capacity.md", "one_cpu", tables.one_cpu(result["one_cpu"])))
    _write_documents(places, root)
    for name, draw in CHARTS.items():
        charts.save(draw, result, root / "docs/img" / name)


def save(result: Result, folder: Path) -> Path:
    """Write the figures to FOLDER/<date>-<cpu>.json and return its path."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{result['date']} {result['machine']['cpu']}".lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def write_engines(root: Path) -> None:
    """Write the tables of bare engines into docs/benchmarks.md under root: the newest file of each set of features.

    Raises:
        ValueError: the document has no marks around the tables.
    """
    newest: dict[tuple[str, ...], Result] = {}
    for path in sorted((root / "docs/bench/engines").glob("*.json"), reverse=True):
        result = json.loads(path.read_text(encoding="utf-8"))
        newest.setdefault(tuple(result["machine"]["features"]), result)
    text = "\n".join(map(tables.engines, newest.values()))
    _write_documents([("docs/benchmarks.md", "engines", text)], root)


def write_bulk(result: Result, root: Path) -> None:
    """Write the table of the bulk command into docs/bulk.md under root.

    Raises:
        ValueError: the document has no marks around the table.
    """
    _write_documents([("docs/bulk.md", "bulk", tables.bulk(result))], root)


def _write_documents(places: Sequence[tuple[str, str, str]], root: Path) -> None:
    documents = {name: with_tables(root / name, mark, text) for name, mark, text in places}
    for name, text in documents.items():
        (root / name).write_text(text, encoding="utf-8")


def with_tables(path: Path, mark: str, tables: str) -> str:
    """Return the text of a document with these tables between its two marks."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not end:
        raise ValueError(f"{path.name} has no tables between <!-- {mark} --> and <!-- /{mark} -->.")
    return before + begin + tables + end + after


def main() -> None:
    """Write documents and charts from a file of make bench; with one of engines or bulk, their tables."""
    result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if "engines" in result:
        write_engines(ROOT)
    elif "bulk" in result:
        write_bulk(result, ROOT)
    else:
        write(result, ROOT)


if __name__ == "__main__":
    main()
