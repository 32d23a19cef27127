"""Tasks: how well a model folder's vectors do in similarity, search and translations, INT8 beside FP32.

    python -m tools.tasks [FILE …] [--model DIR] [--query-prompt NAME] [--document-prompt NAME]

Without a FILE: the build's pairs of translations, the message catalogues of this machine, and JSTS, JaGovFaqs and STSb
where their hosts can be reached. A FILE of your own is JSON lines, or those compressed (.gz), with these fields:

    sentence1, sentence2, score or label    similarity: Spearman's rank correlation of the cosines with the scores
    query, document                         search: nDCG@10 of each query's document among all documents
    source, target                          translations: share of texts whose nearest one is their translation
"""

import argparse
import gzip
import hashlib
import http.client
import json
import os
import struct
import sys
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from app.engine.encoder import Encoder
from app.errors import BootError, ServiceError
from build import BuildError, texts
from build.similarity import Matrix, cosines, translation_accuracy, unit
from tools.encoders import open_encoder

CACHE = Path(__file__).parent.parent / ".cache/tasks"
HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
# Validation split of JSTS (CC BY-SA 4.0), test split of STSb in MTEB's revision, and JaGovFaqs-22k (CC BY 4.0), which
# has no splits: all its questions are asked, so its figure is not comparable with JMTEB's, which asks a part.
DOWNLOADS = {
    "JSTS": "https://raw.githubusercontent.com/yahoojapan/JGLUE/6f071c09316baae89c3d083a90985b4b1cb9968c/"
    "datasets/jsts-v1.3/valid-v1.3.json",
    "STSb": f"{HUB}/datasets/mteb/stsbenchmark-sts/resolve/b0fddb56ed78048fa8b90373c8a3cfc37b684831/test.jsonl.gz",
    "JaGovFaqs": f"{HUB}/datasets/matsuxr/JaGovFaqs-22k/resolve/a9fd35ae0f7d984cef7c054cfa6ae68bc7b5d354/data.jsonl",
}
DOWNLOAD_SECONDS = 60
# Message catalogues: gettext's files of translations from English.
CATALOGUES = Path("/usr/share/locale")
LANGUAGE = "ja"
MIN_MESSAGE_CHARACTERS = 30
MAX_MESSAGES = 1000
# Characters of messages that are left out: placeholders, markup, plural forms, contexts, several lines.
SPECIAL = set("%{\0\x04<\n\ufffd")
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
        encoders = [open_encoder(options.model, f"model_{precision}.onnx") for precision in ("fp32", "int8")]
        prompts = {side: getattr(options, f"{side}_prompt") or _prompt(encoders[0], side) for side in PROMPTS}
        shown = {side: encoders[0].prompt(None, name) for side, name in prompts.items()}
        print(f"In search queries get the prompt {shown['query']!r}, documents {shown['document']!r}.\n")
        print(f"| {options.model} | figure | pairs | FP32 | INT8 | difference |\n| --- | --- | --- | --- | --- | --- |")
        for task in map(read, options.files) if options.files else _built_in():
            fp32, int8 = (figure(task, encoder, prompts) for encoder in encoders)
            row = f"| {task.name} | {FIGURES[task.kind]} | {len(task.left)} | {fp32:.4f} | {int8:.4f} |"
            print(f"{row} {int8 - fp32:+.4f} |", flush=True)
    except (BootError, BuildError, ServiceError, TaskError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _prompt(encoder: Encoder, side: str) -> str | None:
    prompts = encoder.model_folder.manifest.prompts
    return next((name for name in PROMPTS[side] if name in prompts), None)


def _built_in() -> Iterator[Task]:
    """Yield the tasks whose data is at hand; say what the others lack."""
    pairs = texts.pairs()
    yield Task("the build's pairs", "translations", [pair[0] for pair in pairs], [pair[1] for pair in pairs], [])
    tasks: dict[str, Callable[[], Task]] = {name: partial(download, name, url) for name, url in DOWNLOADS.items()}
    tasks["message catalogues"] = catalogues
    for name, make in tasks.items():
        try:
            yield make()
        except TaskError as error:
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)


def download(name: str, url: str) -> Task:
    """Return the task of a data set, downloaded once.

    Raises:
        TaskError: it cannot be downloaded, or is no such data set.
    """
    file = CACHE / hashlib.sha256(url.encode()).hexdigest()[:12] / url.rpartition("/")[2]
    if file.is_file():
        return read(file, name)
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as answer:
            content = answer.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise TaskError(f"{url} cannot be downloaded ({error}).") from None
    part = file.parent / f"part-{file.name}"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    task = read(part, name)
    part.rename(file)
    return task


def read(file: Path, name: str = "") -> Task:
    """Read a file of JSON lines. The fields of its first row tell the kind. name: to show; "": the file's.

    Raises:
        TaskError: the file cannot be read, a row is no JSON object, or a field is missing or wrong.
    """
    try:
        content = file.read_bytes()
        lines = (gzip.decompress(content) if file.suffix == ".gz" else content).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{file} cannot be read: {error}.") from None
    rows: list[dict[str, object]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            raise TaskError(f"{file}, line {number}: it is not a JSON object.") from None
    first = rows[0].keys() if rows else ()
    for kind, fields in FIELDS.items():
        keys = [next((key for key in names if key in first), "") for names in fields]
        if all(keys):
            return _task(file, name, kind, keys, rows)
    kinds = "; ".join(", ".join(" or ".join(names) for names in fields) for fields in FIELDS.values())
    raise TaskError(f"{file}, line 1: a row needs the fields of one of these: {kinds}.")


def _task(file: Path, name: str, kind: str, keys: list[str], rows: list[dict[str, object]]) -> Task:
    """Check the fields of all rows, and return their task. keys: names of the fields."""
    columns: list[list[Any]] = [[], [], []]
    for number, row in enumerate(rows, start=1):
        for key, column in zip(keys, columns):
            value, wanted = row.get(key), "a number" if column is columns[2] else "a string"
            if not isinstance(value, (int, float) if wanted == "a number" else str):
                raise TaskError(f"{file}, line {number}: {key} is {value!r}; it must be {wanted}.")
            column.append(value)
    return Task(name or file.name, kind, *columns)


def catalogues(folder: Path = CATALOGUES) -> Task:
    """Return English messages of programs on this machine with their translations.

    Raises:
        TaskError: there are none.
    """
    translations: dict[str, str] = {}
    for file in sorted((folder / LANGUAGE / "LC_MESSAGES").glob("*.mo")):
        try:
            translations.update(pair for pair in messages(file.read_bytes()) if _is_sentence(*pair))
        except (OSError, struct.error):  # not readable, or not complete
            continue
    pairs = list({target: (source, target) for source, target in sorted(translations.items())}.values())
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
        pair = []
        for table in tables:
            length, start = struct.unpack(f"{order}2I", content[table + 8 * index : table + 8 * index + 8])
            pair.append(content[start : start + length].decode("utf-8", "replace"))
        yield pair[0], pair[1]


def _is_sentence(source: str, target: str) -> bool:
    return len(source) >= MIN_MESSAGE_CHARACTERS and target != source and not SPECIAL & set(source + target)


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
    """Return the mean nDCG@10 of (n, dim) queries, each with one right document: its index in (m, dim) documents.

    Of documents that are equally near the right one counts as the last.
    """
    gains, stored = [], unit(documents).T
    for start in range(0, len(right), 256):
        similarities = unit(queries[start : start + 256]) @ stored
        own = np.take_along_axis(similarities, np.array(right[start : start + 256])[:, None], axis=1)
        nearer = (similarities >= own).sum(1) - 1
        gains.append(np.where(nearer < RANKS, 1 / np.log2(nearer + 2), 0))
    return float(np.concatenate(gains).mean())


if __name__ == "__main__":
    sys.exit(main())
