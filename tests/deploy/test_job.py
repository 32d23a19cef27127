"""deploy/job.yaml: its tasks, run here with their own arguments, compute the whole; its figures fit together."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.support import ROOT
from tests.support.bulk import bulk, read, read_jsonl

JOB: dict[str, Any] = yaml.safe_load((ROOT / "deploy/job.yaml").read_text())
EXECUTION = JOB["spec"]["template"]["spec"]
TASK = EXECUTION["template"]["spec"]
(CONTAINER,) = TASK["containers"]


def test_the_tasks(tmp_path: Path, tiny_model: Path) -> None:
    """Three tasks of the job, with its command and arguments on a folder as the bucket, share the files' rows."""
    assert CONTAINER["command"] == ["bulk"] and (ROOT / "deploy/bulk").stat().st_mode & 0o111 == 0o111
    for name in ("texts", "vectors"):
        (tmp_path / name).mkdir()
    for number in range(4):
        ids = [f"{number}-{row}" for row in range(50)]
        table = pa.table({"id": ids, "text": [f"cat {key}" for key in ids[:-1]] + [None]})
        pq.write_table(table, tmp_path / f"texts/{number}.parquet", row_group_size=20)
    arguments = [argument.replace("/data", str(tmp_path)) for argument in CONTAINER["args"]]
    found: list[Any] = []
    for task in range(3):
        environ: dict[str, Any] = {"CLOUD_RUN_TASK_INDEX": task, "CLOUD_RUN_TASK_COUNT": 3, "CPUS": 1}
        bulk(tiny_model, *arguments, **environ)
        ids, vectors = read(tmp_path / f"vectors/vectors-0000{task}-of-00003.parquet")
        assert np.isfinite(vectors).all() and vectors.shape == (len(ids), 32)
        bad = read_jsonl(tmp_path / f"vectors/bad-0000{task}-of-00003.jsonl")
        found += [*ids, *(row["id"] for row in bad)]
    assert sorted(found) == sorted(f"{number}-{row}" for number in range(4) for row in range(50))


def test_its_figures() -> None:
    """CPUS is the limit of CPUs, no more tasks run at once than there are, the bucket belongs to the image's user."""
    limits, environ = CONTAINER["resources"]["limits"], {item["name"]: item["value"] for item in CONTAINER["env"]}
    assert environ["CPUS"] == limits["cpu"] == "4"
    assert EXECUTION["parallelism"] <= EXECUTION["taskCount"] <= 10_000
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.M)
    (volume,) = TASK["volumes"]
    assert user and volume["csi"]["volumeAttributes"]["mountOptions"] == f"uid={user[1]},gid={user[2]}"
    assert [mount["name"] for mount in CONTAINER["volumeMounts"]] == [volume["name"]]
    assert all(argument.startswith(("/data/", "-")) or argument == "id" for argument in CONTAINER["args"])
