"""Tasks: what a model folder's vectors are worth, INT8 beside FP32.

    python -m tools.tasks [FILE …] [--model DIR] [--query-prompt NAME] [--document-prompt NAME]

Without a FILE: the build's pairs of translations, the message catalogues of this machine, and JSTS, JaGovFaqs and STSb
where their hosts can be reached. A FILE of your own is JSON lines, or those compressed (.gz), with these fields:

    sentence1, sentence2, score or label    similarity: Spearman's rank correlation of the cosines with the scores
    query, document                         search: nDCG@10 of each query's document among all documents
    source, target                          translations: share of texts whose nearest one is their translation
"""

import argparse
import gzip
import json
import os
import struct
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from app.engine import BootError, cpu
from app.engine.encoder import MAX_LENGTH, Encoder
from app.engine.manifest import Manifest
from app.engine.model_folder import ModelFolder
from build import texts
from build.similarity import Matrix, cosines, translation_accuracy, unit

CACHE = Path(__file__).parent.parent / ".cache/tasks"
HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
# Validation split of JSTS (CC BY-SA 4.0), test split of STSb in MTEB's revision, and JaGovFaqs-22k (CC BY 4.0), which
# has no splits: all its questions are asked, so its figure is below JMTEB's, which asks a part.
DOWNLOADS = {
    "JSTS": "https://raw.githubusercontent.com/yahoojapan/JGLUE/6f071c09316baae89c3d083a90985b4b1cb9968c/"
    "datasets/jsts-v1.3/valid-v1.3.json",
    "STSb": f"{HUB}/datasets/mteb/stsbenchmark-sts/resolve/b0fddb56ed78048fa8b90373c8a3cfc37b684831/test.jsonl.gz",
    "JaGovFaqs": f"{HUB}/datasets/matsuxr/JaGovFaqs-22k/resolve/main/data.jsonl",
}
DOWNLOAD_SECONDS = 60
# Message catalogues: gettext's files of translations from English. Short ones say little.
CATALOGUES = Path("/usr/share/locale")
LANGUAGE = "ja"
MIN_MESSAGE_CHARACTERS = 30
MAX_MESSAGES = 1000
# Fields of a file's rows by kind; each may have several names.
FIELDS = {
    "similarity": (("sentence1",), ("sentence2",), ("score", "label")),
    "search": (("query", "Question"), ("document", "Answer")),
    "translations": (("source",), ("target",)),
}
FIGURES = {"similarity": "Spearman", "search": "nDCG@10", "translations": "accuracy"}
RANKS = 10  # of nDCG
# Prompts for search by the names that models give them, if none is chosen.
PROMPTS = {"query": ("query", "検索クエリ"), "document": ("document", "passage", "検索文書")}


class TaskError(Exception):
    """A task has no usable data. The message says why."""


@dataclass(frozen=True)
class Task:
    """Pairs of texts. kind: one of FIELDS. scores: of similarity only."""

    name: str
    kind: str
    left: list[str]
    right: list[str]
    scores: list[float]


def main(arguments: list[str] | None = None) -> int:
    """Print a table; return the exit code."""
    parser = argparse.ArgumentParser("python -m tools.tasks", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JSON lines; see tools/tasks.py")
    parser.add_argument("--model", type=Path, default=Path("model"), help="the model folder (default: %(default)s)")
    parser.add_argument("--query-prompt", help="name of the prompt of queries")
    parser.add_argument("--document-prompt", help="name of the prompt of documents")
    options = parser.parse_args(arguments)
    try:
        encoders = _open(options.model)
        prompts = {side: getattr(options, f"{side}_prompt") or _prompt(encoders[0], side) for side in PROMPTS}
        found = _own(options.files) if options.files else _built_in()
        print(f"| {options.model} | figure | pairs | FP32 | INT8 | difference |\n| --- | --- | --- | --- | --- | --- |")
        for task in found:
            fp32, int8 = (figure(task, encoder, prompts) for encoder in encoders)
            row = f"| {task.name} | {FIGURES[task.kind]} | {len(task.left)} | {fp32:.4f} | {int8:.4f} |"
            print(f"{row} {int8 - fp32:+.4f} |", flush=True)
    except (BootError, TaskError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _open(folder: Path) -> list[Encoder]:
    """Return the encoders of FP32 and of INT8."""
    limit = min(MAX_LENGTH, Manifest.load(folder).max_positions)
    files = (ModelFolder.load(folder, Path(f"model_{name}.onnx"), Path("tokenizer")) for name in ("fp32", "int8"))
    encoders = [Encoder.load(file, max_length=limit, threads=cpu.available_cpus()) for file in files]
    for encoder in encoders:
        encoder.open()
    return encoders


def _prompt(encoder: Encoder, side: str) -> str | None:
    prompts = encoder.model_folder.manifest.prompts
    return next((name for name in PROMPTS[side] if name in prompts), None)


def _own(files: list[Path]) -> Iterator[Task]:
    for file in files:
        try:
            yield read(file, file.name)
        except OSError as error:
            raise TaskError(f"{file} cannot be read: {error.strerror}.") from None


def _built_in() -> Iterator[Task]:
    """Yield the tasks whose data is at hand; say what the others lack."""
    pairs = texts.pairs()
    yield Task("the build's pairs", "translations", [pair[0] for pair in pairs], [pair[1] for pair in pairs], [])
    tasks: dict[str, Callable[[], Task]] = {name: partial(_downloaded, name, url) for name, url in DOWNLOADS.items()}
    tasks["message catalogues"] = catalogues
    for name, make in tasks.items():
        try:
            yield make()
        except TaskError as error:
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)


def _downloaded(name: str, url: str) -> Task:
    return read(download(name, url), name)


def download(name: str, url: str) -> Path:
    """Return the file of a task, downloaded once."""
    file = CACHE / name / url.rpartition("/")[2]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as answer:
                content = answer.read()
        except (OSError, ValueError) as error:
            raise TaskError(f"{url} cannot be downloaded ({error}).") from None
        part = file.with_suffix(".part")
        part.write_bytes(content)
        part.rename(file)
    return file


def read(file: Path, name: str) -> Task:
    """Read a file of JSON lines. The fields of its first row tell the kind.

    Raises:
        TaskError: a row is no JSON object, or lacks a field.
    """
    content = file.read_bytes()
    lines = (gzip.decompress(content) if file.suffix == ".gz" else content).splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append({str(key): value for key, value in json.loads(line).items()})
        except (ValueError, AttributeError):
            raise TaskError(f"{file}, line {number}: it is not a JSON object.") from None
    for kind, fields in FIELDS.items():
        if rows and all(set(names) & rows[0].keys() for names in fields):
            columns = []
            for names in fields:
                key = next(key for key in names if key in rows[0])
                for number, row in enumerate(rows, start=1):
                    if key not in row:
                        raise TaskError(f"{file}, line {number}: it has no {key!r}.")
                columns.append([row[key] for row in rows])
            left, right = ([str(text) for text in column] for column in columns[:2])
            return Task(name, kind, left, right, [float(score) for score in columns[2]] if columns[2:] else [])
    kinds = "; ".join(", ".join(" or ".join(names) for names in fields) for fields in FIELDS.values())
    raise TaskError(f"{file}, line 1: a row needs the fields of one of these: {kinds}.")


def catalogues(folder: Path = CATALOGUES) -> Task:
    """Return English messages of programs on this machine with their translations.

    Raises:
        TaskError: there are none.
    """
    found: dict[str, str] = {}
    for file in sorted((folder / LANGUAGE / "LC_MESSAGES").glob("*.mo")):
        found.update((source, target) for source, target in messages(file.read_bytes()) if _says_much(source, target))
    pairs = list({target: (source, target) for source, target in sorted(found.items())}.values())
    if not pairs:
        raise TaskError(f"there are no message catalogues in {folder / LANGUAGE}.")
    some = pairs[:: max(1, len(pairs) // MAX_MESSAGES)][:MAX_MESSAGES]
    return Task(
        "message catalogues", "translations", [source for source, _ in some], [target for _, target in some], []
    )


def messages(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the messages of a .mo file with their translations.

    https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html
    """
    order = "<" if content[:4] == b"\xde\x12\x04\x95" else ">"
    count, *tables = struct.unpack(f"{order}3I", content[8:20])
    for index in range(count):
        texts = []
        for table in tables:
            length, start = struct.unpack(f"{order}2I", content[table + 8 * index : table + 8 * index + 8])
            texts.append(content[start : start + length].decode("utf-8", "replace"))
        yield texts[0], texts[1]


def _says_much(source: str, target: str) -> bool:
    return (
        len(source) >= MIN_MESSAGE_CHARACTERS
        and target != source
        and not set("%{\0\x04<\n\ufffd") & set(source + target)
    )


def figure(task: Task, encoder: Encoder, prompts: dict[str, str | None]) -> float:
    """Return the figure of a task. Queries and documents get their prompts, other texts the model's default."""
    if task.kind == "search":
        documents = list(dict.fromkeys(task.right))
        places = {document: index for index, document in enumerate(documents)}
        queries = encoder.encode(task.left, prompt_name=prompts["query"]).vectors
        stored = encoder.encode(documents, prompt_name=prompts["document"]).vectors
        return ndcg(queries, stored, [places[document] for document in task.right])
    left, right = encoder.encode(task.left).vectors, encoder.encode(task.right).vectors
    if task.kind == "translations":
        return translation_accuracy(left, right)
    return float(spearmanr(cosines(left, right), task.scores).statistic)


def ndcg(queries: Matrix, documents: Matrix, right: list[int]) -> float:
    """Return the mean nDCG@10 of (n, dim) queries, each with one right document: its index in (m, dim) documents."""
    found, stored = [], unit(documents).T
    for start in range(0, len(right), 256):
        similarities = unit(queries[start : start + 256]) @ stored
        own = np.take_along_axis(similarities, np.array(right[start : start + 256])[:, None], axis=1)
        ranks = (similarities > own).sum(1)
        found.append(np.where(ranks < RANKS, 1 / np.log2(ranks + 2), 0))
    return float(np.concatenate(found).mean())


if __name__ == "__main__":
    sys.exit(main())
