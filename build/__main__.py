"""`python -m build`: makes a model folder of a MODEL, in four steps: source -> export -> quantize -> verify.

python -m build [--model MODEL] [--revision REV] [--out DIR] [--effort EFFORT] [--fallback stand-in]
"""

import argparse
import sys
from pathlib import Path

from build import cli, files, needs
from build.build_key import build_key, up_to_date
from build.source import fetch

# The source is one step, export and quantize one each, and verify five.
STEPS = 8


def main(arguments: list[str] | None = None) -> int:
    """Run the whole build; return the exit code."""
    parser = cli.parser("python -m build")
    cli.add_model(parser)
    cli.add_effort(parser)
    return cli.run(_build, parser.parse_args(arguments))


def _build(options: argparse.Namespace) -> None:
    out: Path = options.out
    key = build_key(options.model, options.revision, options.effort)
    current = up_to_date(out, key, accept_stand_in=options.fallback is not None)
    if current is not None:
        print(f"{out}/ is up to date: {current['model']}")
        cli.warn(current["warning"])
        return
    with cli.progress_bar(STEPS) as bar:
        with cli.step("source", bar) as report:
            source = fetch(options.model, options.revision, options.fallback)
            report(source.model + (f" at {source.revision}" if source.revision else ""))
            if needed_gb := needs.memory_gb(source.folder):
                report(f"(the build needs about {needed_gb:.0f} GB of memory)")
        cli.warn(source.warning)
        cli.warn(needs.warning(needed_gb, needs.free_gb()))
        files.clean(out)
        # Imported here: they load PyTorch and ONNX, which takes seconds, and are not needed if OUT is up to date.
        from build import export_onnx, quantize, verify

        export_onnx.run_step(source, out, bar)
        quantize.run_step(out, options.effort, bar)
        verify.run_step(source, out, key, bar)
    cli.warn(source.warning)


if __name__ == "__main__":
    sys.exit(main())
