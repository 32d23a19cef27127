"""The model folder: any manifest is read or refused in one line, and changed files are detected."""

import copy
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.engine.manifest import FORMAT, Manifest
from app.engine.model_folder import ModelFolder, sha256
from app.errors import BootError

FILES = ("model_int8.onnx", "model_int8.onnx.data", "tokenizer/characters.json", "tokenizer/pieces.npy")
INT8 = "model_int8.onnx"
# A value of every JSON type, and some that are hard: Python's json reads Infinity and lone surrogates.
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    2**31,
    2**70,
    10**400,
    0.0,
    0.5,
    -0.5,
    1e300,
    1.5,
    "",
    "a",
    "\n",
    "\0",
]
VALUES += [
    "\ud800",
    "é" * 2_000,
    "../a",
    "/etc/passwd",
    [],
    [1],
    [None],
    [[]],
    [1.0] * 4,
    [0] * 4,
    [1e308] * 4,
    ["a"],
    {},
]
VALUES += [
    {"a": 1},
    {"a": "b"},
    {"a": None},
    {"a": {}},
    {"a\nb": "c"},
    {"a": {"b": {"c": 1}}},
    float("inf"),
    float("nan"),
]
Place = tuple[str | int, ...]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose files are a few bytes."""
    (tmp_path / "tokenizer").mkdir()
    for name in (*FILES, "tokenizer/tokenizer.json"):
        (tmp_path / name).write_text(name)
    write(tmp_path, valid(tmp_path))
    return tmp_path


def valid(folder: Path) -> dict[str, Any]:
    vectors = {INT8: [0.5, 1, -2.5, 0.0]}
    return {
        "model": "tiny",
        "revision": None,
        "stand_in": False,
        "warning": None,
        "dimension": 4,
        "max_positions": 128,
        "max_seq_length": 64,
        "pooling": "mean",
        "normalize": True,
        "prompts": {"query": "query: "},
        "default_prompt_name": "query",
        "files": {name: sha256(folder / name) for name in FILES},
        "golden": {"text": "猫", "vectors": vectors, "min_cosine": {INT8: 0.999}},
        "quality": {"texts": 10, "int8": {"mean": 0.9999}},
        "versions": {"numpy": "2"},
        "recipe": "INT8",
        "calibration_sha256": "0" * 64,
        "build_key": "key",
        "int8_range": [-0.15, 0.15],
        "format": FORMAT,
    }


def write(folder: Path, content: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(content))


def load(folder: Path) -> ModelFolder:
    return ModelFolder.load(folder, Path(INT8), Path("tokenizer"))


def paths(content: Any, before: Place = ()) -> Iterator[Place]:
    """Yield every place in a JSON document."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield (*before, key)
        yield from paths(value, (*before, key))


def mutate(content: Any, path: Place, change: Callable[[Any, Any], None]) -> Any:
    """Return a copy, changed by change(parent, key) at a path."""
    changed = parent = copy.deepcopy(content)
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return changed


def refusal(folder: Path) -> str | None:
    """Load the folder; the line that refuses it, or None. Nothing else may be raised, and the line is short."""
    try:
        manifest = load(folder).manifest
    except BootError as error:
        line = str(error)
        assert line.startswith((f"{folder}/manifest.json", f"{folder}/{INT8} ", f"{folder}/tokenizer/")), line
        assert line.isprintable() and len(line) < 500 + len(str(folder)), line
        return line
    vector = np.asarray(manifest.golden.vectors[INT8], np.float32)
    assert vector.shape == (manifest.dimension,) and 0 < np.linalg.norm(vector) < np.inf
    written = json.loads((folder / "manifest.json").read_text())
    written.setdefault("int8_range", None)  # older versions did not write it
    known = json.loads(manifest.to_json())
    assert known == {name: value for name, value in written.items() if name in known}
    return None


def test_a_valid_manifest(folder: Path) -> None:
    """A valid manifest is read, and written again unchanged."""
    assert refusal(folder) is None


def test_any_value_anywhere(folder: Path) -> None:
    """A manifest with another value, a missing or a renamed field anywhere is read or refused by the field's name."""
    content = valid(folder)
    accepted = 0
    for path in paths(content):
        changes: list[Callable[[Any, Any], None]] = [lambda parent, key: parent.pop(key)]
        for value in VALUES:
            changes.append(lambda parent, key, value=value: parent.__setitem__(key, value))  # type: ignore[misc]
        if isinstance(path[-1], str):
            changes.append(lambda parent, key: parent.__setitem__("\n" + key, parent.pop(key)))
        for change in changes:
            changed = mutate(content, path, change)
            write(folder, changed)
            line = refusal(folder)
            accepted += line is None
            if line is not None and "cannot be read" not in line:
                names = {str(path[0]), *(["golden"] if path[0] in ("dimension", "files") else [])}
                names |= {"default_prompt_name"} if path[0] == "prompts" else set()
                is_a_file = path[0] == "files" and " is not the file of its manifest.json" in line
                assert is_a_file or any(name in line for name in names) or "does not know" in line, (path, line)
    assert accepted > 50


def test_many_values_anywhere(folder: Path) -> None:
    """Manifests with up to four random changes are read or refused, 5,000 times."""
    choice = random.Random(0)
    for _ in range(5_000):
        content = valid(folder)
        for _ in range(choice.randrange(1, 5)):
            if places := list(paths(content)):
                value = copy.deepcopy(choice.choice(VALUES))
                content = mutate(content, choice.choice(places), lambda parent, key: parent.__setitem__(key, value))
        write(folder, content)
        refusal(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"golden": {"text": 1}}, " is wrong: golden.text: expected str, got int – run `make model`."),
        ({"golden": {"vectors": None}}, " is wrong: golden.vectors: expected object, got null – run `make model`."),
        ({"golden": {"vectors": {INT8: [1.0]}}}, f" is wrong: golden.vectors: that of {INT8} has 1 numbers, not 4 – "),
        ({"golden": {"vectors": {INT8: [0] * 4}}}, f" is wrong: golden.vectors: that of {INT8} has the length 0 – "),
        ({"golden": {"min_cosine": {}}}, f" is wrong: golden.min_cosine: {INT8} is missing – "),
        ({"golden": {"min_cosine": {INT8: 0}}}, " is wrong: golden.min_cosine[...]: expected float > 0.0 – "),
        ({"golden": {"min_cosine": {INT8: 1.1}}}, " is wrong: golden.min_cosine[...]: expected float <= 1.0 – "),
        ({"prompts": {"a": 1}}, " is wrong: prompts[...]: expected str, got int – "),
        ({"default_prompt_name": "nope"}, " is wrong: default_prompt_name: there is no prompt 'nope' – "),
        ({"int8_range": [0.1, 0.1]}, " is wrong: int8_range: (0.1, 0.1) is no range of numbers – "),
        ({"int8_range": [0.1]}, " is wrong: int8_range: expected array of length 2 – "),
        ({"dimension": 0}, " is wrong: dimension: expected int >= 1 – "),
        ({"max_seq_length": 2}, " is wrong: max_seq_length: expected int >= 3 – "),
        ({"files": {INT8: "a" * 63}}, " is wrong: files[...]: expected str matching regex "),
        ({"files": {"../a": "a" * 64}}, " is wrong: files: '../a' is not the path of a file inside the folder – "),
        ({"files": {"/a": "a" * 64}}, " is wrong: files: '/a' is not the path of a file inside the folder – "),
        ({"quality": {"a": {"b": {}}}}, " is wrong: quality[...][...]: expected int | float, got object – "),
        ({"format": 1}, f" has format 1, this server reads {FORMAT} – run `make model`."),
        ({"format": None}, " is wrong: format: expected int, got null – "),
    ],
)
def test_fields_that_make_no_sense(folder: Path, change: dict[str, Any], expected: str) -> None:
    """A field with an impossible value is refused with the names of file and field."""
    content = valid(folder)
    for name, value in change.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    write(folder, content)
    line = refusal(folder)
    assert line is not None and line.startswith(f"{folder}/manifest.json{expected}")


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"[]",
            b"null",
            b"1",
            b'"a"',
            b"{",
            b"{}",
            b"\xff",
            b'{"format": "\xff"}',
            b"\xef\xbb\xbf{}",
            b"\0" * 100,
        ),
        *(b'{"format": NaN}', b'{"format": Infinity}', b'{"format": 1e999}', b'{"format": 1' + b"0" * 10_000 + b"}"),
        *(b"[" * 1_000, DEEP, b'{"format": ' + DEEP + b"}", b'{"x": ' + DEEP + b', "format": 2}', b'{"format": 2} x'),
    ],
    ids=range(19 + 1),
)
def test_files_that_are_no_manifest(folder: Path, content: bytes) -> None:
    """A file that is not JSON, not UTF-8, too deep or too large is refused."""
    (folder / "manifest.json").write_bytes(content)
    line = refusal(folder)
    assert line is not None and line.startswith(f"{folder}/manifest.json")


def test_a_manifest_that_cannot_be_opened(folder: Path) -> None:
    """A folder in place of the manifest is refused."""
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    assert refusal(folder) == f"{folder}/manifest.json cannot be read (Is a directory) – run `make model`."


@pytest.fixture
def checked(folder: Path) -> ModelFolder:
    """A model folder after its check."""
    return load(folder)


@pytest.fixture
def hashed(checked: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are hashed from here on."""
    found: list[Path] = []

    def spy(path: Path) -> str:
        found.append(path)
        return sha256(path)

    monkeypatch.setattr("app.engine.model_folder.sha256", spy)
    return found


def test_nothing_has_changed(checked: ModelFolder, hashed: list[Path]) -> None:
    """Unchanged files are not hashed again."""
    assert checked.changed() is None
    assert hashed == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_overwritten_in_place(checked: ModelFolder, folder: Path, name: str) -> None:
    """An overwritten file is detected, also with the same size and modification time."""
    file = folder / name
    before = file.stat()
    time.sleep(0.02)  # the kernel's clock for files has steps of up to 10 ms
    file.write_bytes(file.read_bytes()[::-1])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    sentence = checked.changed()
    assert sentence is not None and sentence.startswith(f"{file} has changed since the server started (it is not the ")
    assert sentence.endswith("): restart the server, or put the file back.") and sentence.isprintable()


def test_a_changed_file_is_hashed_once_and_may_come_back(
    checked: ModelFolder, hashed: list[Path], folder: Path
) -> None:
    """The reason stays until the file has its old content again; the changed file is hashed once."""
    file = folder / INT8
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    assert checked.changed() == checked.changed() is not None
    assert hashed == [file]
    file.write_bytes(content)
    assert checked.changed() is None and checked.changed() is None
    assert hashed == [file, file]


def test_a_file_is_replaced(checked: ModelFolder, folder: Path) -> None:
    """A replaced file is detected; a copy of the original is accepted."""
    file, other = folder / INT8, folder / "other"
    content = file.read_bytes()
    other.write_bytes(b"other")
    other.replace(file)
    assert checked.changed() is not None
    other.write_bytes(content)
    other.replace(file)
    assert checked.changed() is None


def test_a_file_is_only_touched(checked: ModelFolder, hashed: list[Path], folder: Path) -> None:
    """A touched file is hashed once, and accepted."""
    os.utime(folder / INT8, (1, 1))
    assert checked.changed() is None and checked.changed() is None
    assert hashed == [folder / INT8]


def test_a_file_is_deleted(checked: ModelFolder, folder: Path) -> None:
    """A deleted file is detected, and accepted again when it is put back."""
    file = folder / "tokenizer/pieces.npy"
    file.rename(folder / "elsewhere")
    assert checked.changed() == (
        f"{file} has changed since the server started (it cannot be read (No such file or directory)): "
        "restart the server, or put the file back."
    )
    (folder / "elsewhere").rename(file)
    assert checked.changed() is None


def test_check_begins_anew(checked: ModelFolder, folder: Path) -> None:
    """check() hashes all files again, as a worker that starts later does."""
    (folder / INT8).write_bytes(b"other")
    with pytest.raises(BootError, match=r"model_int8\.onnx is not the file of its manifest\.json \(sha256"):
        checked.check()
    assert Manifest.load(folder) == checked.manifest
