"""Bare engines beside ours: writes docs/bench/engines/<date>-<cpu>.json, and the tables of all such files.

A part of make bench; alone: python -m tools.bench.engines
"""

import datetime
import os
import sys

from app.engine.manifest import Manifest
from app.settings import Settings
from build.source import fetch
from build.texts import pairs, texts
from tests.support import ROOT
from tools.bench import engine, engines, report
from tools.bench.__main__ import machine


def main() -> None:
    settings = Settings.from_env(os.environ)
    manifest = Manifest.load(settings.model_dir)
    if manifest.pooling != "mean":
        sys.exit(
            f"{settings.model_dir} pools by {manifest.pooling}; the other engines' vectors are made by mean pooling."
        )
    source = fetch("stand-in" if manifest.stand_in else manifest.model, manifest.revision)
    fp32 = engine.load(settings, "model_fp32.onnx")
    everything = [text for lines in texts().values() for text in lines] + [text for pair in pairs() for text in pair]
    rows = engines.by_length(fp32, everything)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "model": manifest.model,
        **engines.measure(engines.ENGINES, rows, source.folder, settings.model_dir, fp32),
    }
    path = report.save(result, ROOT / "docs/bench/engines")
    report.write_engines(ROOT)
    print(f"{path.relative_to(ROOT)}, and the tables")


if __name__ == "__main__":
    main()
