"""make bench: every figure of the README and of docs/capacity.md, measured here and now.

Writes docs/bench/<date>-<cpu>.json, and from it the tables and charts (tools/bench/report.py). PEERS=no leaves
other people's servers out. What is compared is measured in alternation in one run, since machines are noisy; medians of
rounds. The server's cache is off, except where it is what is measured.
"""

import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from app.engine import cpu
from app.engine.manifest import Manifest
from app.settings import Settings
from build.source import fetch
from tests.support import ROOT
from tools.bench import engine, load, one_cpu, peers, report, serving
from tools.bench.load import BATCH

Result = dict[str, Any]


def main() -> None:
    settings = load.settings()
    manifest = Manifest.load(settings.model_dir)
    result = measure(settings, manifest, with_peers=os.environ.get("PEERS") != "no")
    path = report.save(result, ROOT / "docs/bench")
    report.write(result, ROOT)
    print(f"{path.relative_to(ROOT)}, and the tables and charts made from it")


def measure(settings: Settings, manifest: Manifest, with_peers: bool) -> Result:
    texts = load.mixed_texts()
    source = fetch("stand-in" if manifest.stand_in else manifest.model, manifest.revision)
    result: Result = {
        "date": datetime.date.today().isoformat(),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "machine": machine(),
        "model": manifest.model,
        "texts": len(texts),
        "rounds": serving.ROUNDS,
        "quality": dict(manifest.quality),
    }

    def add(name: str, part: Result) -> None:
        result.update(part)
        print(f"{name}: {json.dumps(part, ensure_ascii=False)}", flush=True)

    int8, fp32 = (engine.load(settings, f"model_{precision}.onnx") for precision in ("int8", "fp32"))
    with engine.plain_int8(settings, manifest, str(source.folder)) as plain:
        engines = {"fp32": engine.encode_with(fp32), "plain_int8": plain, "int8": engine.encode_with(int8)}
        add("engine and HTTP", serving.compare(settings, texts, engines))
        add("accuracy", {"accuracy": {"plain_int8": engine.accuracy(plain, engines["fp32"], texts)}})
    add("latency", serving.latencies(settings, texts, int8))
    add("fairness", {"fairness": serving.fairness(settings, texts, int8)})
    add("overload", {"overload": serving.overload(settings, texts)})
    add("start and memory", serving.start_and_memory(settings))
    add("one CPU", {"one_cpu": one_cpu.measure(settings, texts)})
    if with_peers:
        reference = fp32.encode(texts).vectors
        add("peers", {"peers": [measured(peer, settings, source.folder, texts, reference) for peer in peers.PEERS]})
    return result


def measured(peer: peers.Peer, settings: Settings, source: Path, texts: list[str], reference: Any) -> Result:
    """Measure a peer under the same load, with a new server in each of three rounds."""
    print(f"{peer.name} …", file=sys.stderr, flush=True)
    peers.prepare(peer, source, settings.max_length)
    rounds: list[Result] = []
    accuracy: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        prompt = "" if peer.prompts else peers.models.default_prompt(source)
        prompted = [prompt + text for text in texts]
        bodies = {size: load.write_bodies(folder, prompted, size, peer.folder, peer.field) for size in (1, BATCH)}
        for _ in range(peers.ROUNDS):
            with peers.serve(peer, source, cpu.available_cpus()) as server:
                seconds = peers.SECONDS
                rounds.append(
                    {
                        "start_seconds": server.seconds,
                        "one_client_p50": load.wrk(server, bodies[1], 1, seconds, peer.path).p50,
                        "clients_32": load.wrk(server, bodies[1], 32, seconds, peer.path).requests_per_second,
                        "batches": load.wrk(server, bodies[BATCH], 2, seconds, peer.path).requests_per_second * BATCH,
                        "memory_mb": server.pss_megabytes(),
                    }
                )
                if not accuracy:
                    accuracy = [peers.accuracy(server, texts, reference, size) for size in (1, BATCH)]
    return {
        "name": peer.name,
        "versions": peer.versions,
        "int8": peer.int8,
        **serving.medians(rounds),
        "alone": accuracy[0],
        "batched": accuracy[1],
    }


def machine() -> Result:
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": models[0] if models else cpu.features()["architecture"],
        "cpus": cpu.available_cpus(),
        "features": [name for name, value in cpu.features().items() if value is True],
    }


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
