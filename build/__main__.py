"""MODEL -> a model folder: source -> export -> quantize -> verify.

python -m build [--model MODEL] [--revision REV] [--out DIR] [--fallback stand-in]
"""

import argparse
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from build import BuildError, files
from build.source import DEFAULT_MODEL, Source, fetch, revision_of

ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> int:
    """The whole build; returns the exit code."""
    parser = _parser("python -m build")
    _add_model(parser)
    _add_effort(parser)
    return _run(_build, parser.parse_args(arguments))


def main_export() -> int:
    """`python -m build.export_onnx`: source and export alone."""
    parser = _parser("python -m build.export_onnx")
    _add_model(parser)
    return _run(_export_alone, parser.parse_args())


def main_quantize() -> int:
    """`python -m build.quantize`: quantize alone."""
    parser = _parser("python -m build.quantize")
    _add_effort(parser)
    return _run(_quantize_alone, parser.parse_args())


def main_verify() -> int:
    """`python -m build.verify`: the proof alone, of what the two other steps have made."""
    parser = _parser("python -m build.verify")
    _add_model(parser)
    parser.add_argument("--name", help="the name to show for the model")
    return _run(_verify_alone, parser.parse_args())


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program, description="Make a model folder for the embedding server.")
    parser.add_argument("--out", type=Path, default=Path("model"), help="the folder to write (default: %(default)s)")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id, folder, or stand-in (default: %(default)s)")
    parser.add_argument("--revision", help="the hub's branch, tag or commit")
    parser.add_argument("--fallback", choices=["stand-in"], help="go on with it where the hub cannot be reached")


def _add_effort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--effort",
        choices=["fast", "default", "best"],
        default="default",
        help="of the search for what to quantize how: none, a minute or two, several minutes (default: %(default)s)",
    )


def _run(work: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Work in the folder alone; an error is a line, not a stack trace. Returns the exit code."""
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    if "model" in options:
        options.revision = revision_of(options.model, options.revision)
    try:
        with files.locked(options.out):
            work(options)
    except (BuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _build(options: argparse.Namespace) -> None:
    out: Path = options.out
    key = build_key(options.model, options.revision, options.effort)
    current = _current(out, key, accept_stand_in=options.fallback is not None)
    if current is not None:
        print(f"{out}/ is up to date: {current['model']}")
        _warn(current["warning"])
        return
    with tqdm(total=8, disable=None, bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} {elapsed}", leave=False) as bar:
        with _step("source", bar) as done:
            source = fetch(options.model, options.revision, options.fallback)
            done(source.model + (f" at {source.revision}" if source.revision else ""))
        _warn(source.warning)
        files.clean(out)
        model, facts = _export(source, out, bar)
        _quantize(out, options.effort, bar)
        _verify(model, facts, source, out, key, bar)
    _warn(source.warning)


def _export_alone(options: argparse.Namespace) -> None:
    with tqdm(disable=True) as bar:
        source = fetch(options.model, options.revision, options.fallback)
        _warn(source.warning)
        _export(source, options.out, bar)


def _quantize_alone(options: argparse.Namespace) -> None:
    with tqdm(disable=True) as bar:
        _quantize(options.out, options.effort, bar)


def _verify_alone(options: argparse.Namespace) -> None:
    from build import export_onnx
    from build.quantize import effort_of

    key = build_key(options.model, options.revision, effort_of(options.out))
    with tqdm(disable=True) as bar:
        source = fetch(options.model, options.revision, options.fallback)
        source = replace(source, model=options.name or source.model)
        model = export_onnx.load(source.folder)
        _verify(model, export_onnx.inspect(model), source, options.out, key, bar)
    _warn(source.warning)


def _export(source: Source, out: Path, bar: Any) -> tuple[Any, Any]:
    from build import export_onnx, pieces

    with _step("export", bar) as done:
        model = export_onnx.load(source.folder)
        facts = export_onnx.export(model, out)
        done(_sizes(out, export_onnx.FP32, pieces.TOKENIZER))
    return model, facts


def _quantize(out: Path, effort: str, bar: Any) -> None:
    from build import quantize

    with _step("quantize", bar) as done:
        recipe = quantize.quantize(out, effort)
        done(f"{_sizes(out, quantize.INT8)}: {recipe}")


def _verify(model: Any, facts: Any, source: Source, out: Path, key: str, bar: Any) -> None:
    from build.verify import verify

    with _step("verify", bar) as done:
        report, speed = verify(model, facts, source, out, key, progress=bar.update)
        int8, retrieval = report["int8"], report["retrieval"]
        done(
            f"cosine to sentence-transformers: mean {int8['mean']:.4f}, least {int8['min']:.4f}; "
            f"difference of similarities {int8['pairwise_difference']:.4f}; "
            f"translations found: {retrieval['int8']:.3f}, by the original {retrieval['reference']:.3f}; "
            f"{speed['int8_over_fp32']} x the speed of FP32"
        )


@contextmanager
def _step(name: str, bar: Any) -> Iterator[Any]:
    """One line when a step is done: what, how long, and a result such as its size."""
    start = time.monotonic()
    bar.set_description(f"{name:8}")
    results: list[str] = []
    yield results.append
    bar.update()
    tqdm.write(f"{name:8} {time.monotonic() - start:6.1f} s  {' '.join(results)}", file=sys.stdout)
    sys.stdout.flush()


def _sizes(out: Path, *names: str) -> str:
    shown = []
    for name in names:
        size = sum(path.stat().st_size for path in (out / name, out / f"{name}.data") if path.is_file())
        shown.append(f"{out / name} {size / 1e6:.1f} MB")
    return ", ".join(shown)


def _warn(warning: str | None) -> None:
    if warning:
        width = min(shutil.get_terminal_size().columns, 100)
        print(f"{'!' * width}\nWARNING: {warning}\n{'!' * width}", file=sys.stderr, flush=True)


def build_key(model: str, revision: str | None, effort: str) -> str:
    """What a model folder is made from: the model asked for, the effort, this code, its packages, its texts."""
    digest = hashlib.sha256(json.dumps([_local(model), revision, effort]).encode())
    inputs = [path for pattern in ("*.py", "*.txt", "*.tsv") for path in (ROOT / "build").rglob(pattern)]
    inputs += (ROOT / "app/engine").glob("*.py")
    inputs += [ROOT / f"requirements/{name}.txt" for name in ("runtime", "build", "torch")]
    for path in sorted(inputs):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _local(model: str) -> list[Any]:
    """A model's name and, for a folder, its files' times and sizes."""
    folder = Path(model)
    if not folder.is_dir():
        return [model]
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(folder.resolve()), [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]


def _current(out: Path, key: str, accept_stand_in: bool) -> dict[str, Any] | None:
    """The manifest, if OUT is whole and made from the same; a fallback counts only where it is allowed."""
    try:
        manifest: dict[str, Any] = json.loads((out / files.SEAL).read_text(encoding="utf-8"))
        if manifest["build_key"] != key or (manifest["warning"] and not accept_stand_in):
            return None
        whole = all(files.sha256(out / name) == known for name, known in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


if __name__ == "__main__":
    sys.exit(main())
