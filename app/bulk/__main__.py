"""The command line: python -m app.bulk IN [IN …] OUT [options]

Settings (MODEL_DIR, MAX_LENGTH, CPUS, …) are those of the server: docs/configuration.md.
"""

import argparse
import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from app import logs
from app.bulk import BulkError
from app.bulk.inputs import Shard, Written, describe, find_files, find_units, format_of, parse_shard
from app.bulk.outputs import files_of, output_of
from app.bulk.progress import Progress
from app.bulk.reader import FORMATS, Reader
from app.bulk.rows import HALF, STDIN, Columns, Unit
from app.bulk.run import Run
from app.bulk.work import Recipe, Work
from app.engine.dtypes import DTYPES, WITH_RANGE
from app.engine.encoder import Encoder
from app.engine.options import VectorOptions
from app.engine.session import ONNX_RUNTIME_VERSION
from app.errors import BootError, ServiceError
from app.loading import load_encoder
from app.settings import Settings

GOES_ON = "What was done is kept: the same command goes on."


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m app.bulk",
        description="Turn files of texts into a file of vectors. The same command goes on after any interruption.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="file, glob pattern in quotes, or - for stdin")
    parser.add_argument("out", type=Path, metavar="OUT", help="file that ends in .parquet, .jsonl or .npy")
    parser.add_argument("--text", default="text", metavar="COLUMN", help="column of the texts (default: text)")
    parser.add_argument("--id", default="", metavar="COLUMN", help="column of the ids (default: rows are numbered)")
    parser.add_argument("--format", default="", choices=FORMATS, help="of the inputs (default: by their names)")
    parser.add_argument("--errors", type=Path, metavar="FILE", help="put bad rows there (default: stop at the first)")
    parser.add_argument("--shard", default="", metavar="I/N", help="part I, from 0, of N (default: a Cloud Run task's)")
    parser.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    parser.add_argument("--dimensions", type=int, metavar="N", help="keep the first N numbers of each vector")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="type of the numbers (default: float32)")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="text put before each text")
    prompts.add_argument("--prompt-name", metavar="NAME", help="one of the model's prompts")
    parser.add_argument("--no-truncate", action="store_true", help="long texts are bad rows instead of being cut")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    occupy_standard_files()
    options = parse(arguments)
    progress = Progress()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, partial(stop, progress))
    try:
        settings = Settings.from_env(os.environ)
        log_format = "text" if progress.is_terminal else settings.log_format
        logs.configure(log_format, settings.log_level, settings.google_cloud_project)
        execute(options, settings, progress)
    except (BootError, ServiceError) as error:
        progress.say("ERROR", str(error))
        return 1
    except OSError as error:
        progress.say("ERROR", f"{error.filename or options.out}: {error.strerror}. {GOES_ON}")
        return 1
    return 0


def occupy_standard_files() -> None:
    """Open what is closed of stdin, stdout and stderr: a file of vectors would get its number, and log lines."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def stop(progress: Progress, number: int, frame: Any) -> None:
    """Exit at once: finished parts are kept, and threads are in the middle of others."""
    progress.say("WARNING", f"Stopped by {signal.Signals(number).name}. {GOES_ON}")
    os._exit(128 + number)


def execute(options: argparse.Namespace, settings: Settings, progress: Progress) -> None:
    """Do all the work of a command.

    Raises:
        BootError: a setting, the model, an option or an input is wrong.
        ServiceError: the model is not ready on this CPU.
        OSError: a file cannot be written.
    """
    began = time.monotonic()
    check_unicode(options)
    shard = parse_shard(options.shard, os.environ)
    if shard.count > 1 and not options.id:
        raise BulkError("The outputs of several shards need ids: give --id COLUMN.")
    files = find_files(options.inputs, Written([*files_of(options.out).values()], options.errors))
    reader = Reader(format_of(files, options.format), Columns(options.text, options.id), settings.max_body_bytes)
    units = find_units(files, reader.format)
    encoder = load_encoder(settings, settings.cpus)
    encoder.open()
    vectors = vector_options(options, encoder)
    dimensions = options.dimensions or encoder.dimension
    is_packed = options.dtype in ("binary", "ubinary")
    number_type = {"binary": "int8", "ubinary": "uint8"}.get(options.dtype, options.dtype)
    output = output_of(options.out, math.ceil(dimensions / 8) if is_packed else dimensions, number_type)
    targets = files_of(Path(shard.name(str(options.out))))
    if options.errors:
        targets["errors"] = Path(shard.name(str(options.errors)))
    work = Work(targets, recipe(options, encoder, files, reader, shard))
    out, mine = targets["vectors"], shard.of(units)
    if work.open():
        check_stdin(files, reader, work)
    else:
        state = work.state
        state.id_type = state.id_type or ("" if STDIN in files else reader.id_type(units))
        goes_on = f", going on after {state.rows:,} rows" if state.rows else ""
        model = encoder.model_folder.manifest.model
        message = f"{', '.join(options.inputs)} -> {out} with {model} on {settings.cpus} CPUs{goes_on}"
        progress.say("INFO", message, files=len(files), shard=shard.index, shards=shard.count, rows=state.rows)
        progress.start(sum(unit.size for unit in mine), state.rows, state.consumed)
        Run(files, mine, reader, encoder, vectors, output, work, progress)()
    state, seconds = work.state, time.monotonic() - began
    parts = [f"{out} has {state.vectors:,} vectors"]
    if state.truncated:
        parts.append(f"{state.truncated:,} texts were cut at {encoder.max_length} tokens")
    if state.bad:
        parts.append(f"{state.bad:,} bad rows are in {work.errors}")
    counts = {name: getattr(state, name) for name in ("rows", "vectors", "bad", "tokens", "truncated")}
    progress.say("INFO", "; ".join(parts), seconds=round(seconds, 1), **counts)


def check_unicode(options: argparse.Namespace) -> None:
    """Raise BulkError for an argument that is not UTF-8: it could not be written into a log or a file."""
    for name, value in vars(options).items():
        for text in value if isinstance(value, list) else [str(value)]:
            if HALF.search(text):
                raise BulkError(f"{name} is {HALF.sub('?', text)!r}, which is not UTF-8: use another name.")


def check_stdin(files: Sequence[str], reader: Reader, work: Work) -> None:
    """Raise BulkError if stdin has other rows than those of which a complete output was made."""
    if STDIN in files:
        for _ in reader.read(Unit(STDIN), work.state.position, work.state.digest):
            raise BulkError(
                f"{work.files['vectors']} was made of other rows on stdin. Remove it, or name another file."
            )


def vector_options(options: argparse.Namespace, encoder: Encoder) -> VectorOptions:
    """Return the checked options of the vectors."""
    if options.dimensions is not None and not 1 <= options.dimensions <= encoder.dimension:
        raise BulkError(f"--dimensions is {options.dimensions}; it must be from 1 to {encoder.dimension}.")
    int8_range = encoder.model_folder.manifest.int8_range
    if options.dtype in WITH_RANGE and int8_range is None:
        raise BulkError(f"--dtype is {options.dtype}, and this model folder has no range for it: build it again.")
    encoder.prompt(options.prompt, options.prompt_name)  # raises InvalidRequest for an unknown name
    return VectorOptions(
        normalize=options.normalize,
        dimensions=options.dimensions,
        dtype=options.dtype,
        prompt=options.prompt,
        prompt_name=options.prompt_name,
        truncate=not options.no_truncate,
        int8_range=int8_range,
    )


def recipe(options: argparse.Namespace, encoder: Encoder, files: Sequence[str], reader: Reader, shard: Shard) -> Recipe:
    """Return all that decides about the output."""
    folder = encoder.model_folder
    return {
        "inputs": describe(files),
        "format": reader.format,
        "max_line_bytes": reader.max_bytes,
        "text": reader.columns.text,
        "id": reader.columns.id,
        "shard": [shard.index, shard.count],
        "normalize": options.normalize,
        "dimensions": options.dimensions,
        "dtype": options.dtype,
        "prompt": encoder.prompt(options.prompt, options.prompt_name),
        "truncate": not options.no_truncate,
        "max_length": encoder.max_length,
        "model": folder.manifest.model,
        "model_files": hashlib.sha256(repr(sorted(folder.manifest.files.items())).encode()).hexdigest(),
        "model_file": folder.model_file.name,
        "onnxruntime": ONNX_RUNTIME_VERSION,
    }


if __name__ == "__main__":
    sys.exit(main())
