"""Lengths: the vectors at the model's own limit, where sentence-transformers truncates, beside those at MAX_LENGTH.

Texts up to the smaller of the two have the same vectors at both. A longer one is another text after truncation.
"""

from collections.abc import Callable
from typing import Any

from app.engine.encoder import Encoder
from build import evaluate
from build.evaluate import Report
from build.similarity import Matrix, cosines


def measure(
    model: Any,
    open_at_own_limit: Callable[[], dict[str, Encoder]],
    served: Matrix,
    texts: list[str],
    tokens: list[int],
    limits: list[int],
) -> Report:
    """Return the report of the texts that are longer than the smaller limit.

    Args:
        model: the original, a SentenceTransformer.
        open_at_own_limit: opens the encoders that truncate at the model's own limit, by the names of the report.
        served: the texts' INT8 vectors as they are served, (n, dim).
        tokens: the texts' lengths.
        limits: the model's own limit and the served one, tokens.

    Returns: the limits, the number of these texts and, if there are any, cosines to the original that truncates at its
        own limit: of each encoder, and of the served vectors (int8_as_served).
    """
    long = [index for index, length in enumerate(tokens) if length > min(limits)] if limits[0] != limits[1] else []
    report: Report = {"model": limits[0], "served": limits[1], "texts": len(long)}
    if not long:
        return report
    some = [texts[index] for index in long]
    model.max_seq_length = limits[0]
    reference = evaluate.reference_vectors(model, some)
    vectors = {name: encoder.encode(some).vectors for name, encoder in open_at_own_limit().items()}
    vectors["int8_as_served"] = served[long]
    return {**report, **{name: evaluate.cosine_figures(cosines(rows, reference)) for name, rows in vectors.items()}}


def summary(report: Report) -> Report:
    """Return the figures that GET / shows."""
    measured = [name for name in ("int8", "int8_as_served") if name in report]
    return {
        **{name: report[name] for name in ("model", "served", "texts")},
        **{f"{name}_{figure}": report[name][figure] for name in measured for figure in ("mean", "min")},
    }
