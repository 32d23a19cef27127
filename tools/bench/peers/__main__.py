"""python -m tools.bench.peers [FOLDER…]: do the peers compute the same vectors, alone and in requests of 32 texts?

Each vector is compared with SentenceTransformer(source).encode(text), cut at the same length. With
the batch size that the peer is measured with and, where INT8 makes a difference, with its library's own.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.engine import cpu
from build import source
from tools.bench import peers
from tools.bench.load import BATCH, mixed_texts


def main(folders: Sequence[str]) -> None:
    folder = source.fetch("stand-in").folder
    texts = mixed_texts()
    expected = reference(folder, texts)
    print("| peer | batch size | alone: mean | least | in requests of 32: mean | least | start | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for chosen in peers.PEERS:
        if folders and chosen.folder not in folders:
            continue
        peers.prepare(chosen, folder)
        for peer in (chosen, chosen.at_default_batch_size()) if chosen.int8 else (chosen,):
            with peers.serve(peer, folder, cpu.available_cpus()) as server:
                cells = [peer.name, str(peer.batch_size)]
                for size in (1, BATCH):
                    cells += [f"{value:.6f}" for value in peers.accuracy(server, texts, expected, size).values()]
                cells += [f"{server.seconds:.1f} s", f"{server.pss_megabytes():.0f} MB"]
            print(f"| {' | '.join(cells)} |", flush=True)


def reference(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = peers.MAX_LENGTH
    return np.asarray(model.encode(texts, batch_size=1), np.float32)


if __name__ == "__main__":
    main(sys.argv[1:])
