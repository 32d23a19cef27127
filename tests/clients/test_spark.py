"""Spark's program of docs/bulk.md, on a Spark of one process: every worker opens the engine and gets its bits."""

import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.engine.encoder import Encoder
from tests import clients
from tests.support import ROOT
from tests.support.documents import blocks
from tests.support.programs import require

TEXTS = ["cat", "東京 の 首都", "", "the " * 300, *(f"a mat {number}" for number in range(200))]


def test_the_program_of_the_page(tmp_path: Path, tiny_model: Path, tiny_encoder: Encoder) -> None:
    """texts.parquet becomes vectors.parquet, with the encoder's bits."""
    require("java", "default-jre-headless")
    clients.install()
    ids = [f"row{number}" for number in range(len(TEXTS))]
    pq.write_table(pa.table({"id": ids, "text": TEXTS}), tmp_path / "texts.parquet")
    ((_, program),) = blocks("docs/bulk.md", "python")
    variables = {
        "MODEL_DIR": str(tiny_model),
        "MAX_LENGTH": "64",
        "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}",
    }
    variables |= {"PYSPARK_PYTHON": str(clients.PYTHON), "SPARK_LOCAL_IP": "127.0.0.1"}
    program = program.replace('{"MODEL_DIR": MODEL_DIR}', '{"MODEL_DIR": MODEL_DIR, "MAX_LENGTH": "64"}')
    clients.run("python", program, tmp_path, variables=variables)
    table = pq.read_table(tmp_path / "vectors.parquet").sort_by("id")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    assert table["id"].to_pylist() == [ids[index] for index in order]
    found = np.array(table["vector"].to_pylist(), np.float32)
    np.testing.assert_array_equal(found, tiny_encoder.encode([TEXTS[index] for index in order]).vectors)
