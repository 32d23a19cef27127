"""Work: the finished parts of a run and where it goes on, in a folder beside the output.

    vectors.parquet.work/  00000000.vectors  00000001.vectors  00000001.errors  …  state.json
    vectors.parquet        vectors.parquet.json (what it was made from)

A part is written, then state.json, each under another name first. A part therefore counts once it is there in full, and
one that does not count yet is written again, with the same bytes. The parts become the output at the end.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from app.bulk import BulkError
from app.bulk.outputs import Streams, write_file

STATE = "state.json"
# Fields of State that are in the summary of a finished output.
RESULT = ("rows", "vectors", "bad", "tokens", "truncated", "position", "digest")
# Everything that decides about the vectors: name -> value, as JSON has it.
Recipe = dict[str, Any]
Join = Callable[[Sequence[Path], IO[bytes]], None]


@dataclass
class State:
    """Place where a run goes on, and counts of what it has done.

    unit, position: the next row, as index of the shard's unit and rows of it. digest: of stdin up to there. parts:
    number of finished parts. streams: stream -> how many of them have it. rows: rows read, good and bad. consumed: the
    same in the measure of Unit.size. vectors, tokens, truncated, bad: of these rows. id_type: "str" or "int", "" before
    the first id.
    """

    unit: int = 0
    position: int = 0
    digest: str = ""
    parts: int = 0
    streams: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    consumed: int = 0
    vectors: int = 0
    tokens: int = 0
    truncated: int = 0
    bad: int = 0
    id_type: str = ""


class Work:
    """The folder of an unfinished run.

    files: stream -> file that the run makes; "vectors" is OUT. errors: the file of bad rows. folder, summary: of OUT.
    """

    def __init__(self, files: Mapping[str, Path], recipe: Recipe) -> None:
        out = files["vectors"]
        self.files = files
        self.recipe = recipe
        self.summary = out.with_name(f"{out.name}.json")
        self.folder = out.with_name(f"{out.name}.work")
        self.errors = files.get("errors")
        self.state = State()
        self._lock: IO[bytes] | None = None

    def open(self) -> bool:
        """Create the folder, or find the state in it. Return whether the output is complete already.

        Raises:
            BulkError: a file is in the way, was made from something else, or is being made by another process.
        """
        self._check_names()
        if self.summary.exists() and self._is_complete(_load(self.summary, self.summary)):
            shutil.rmtree(self.folder, ignore_errors=True)  # the end was interrupted
            return True
        known = self._known()
        for path in self.files.values():
            if path.exists() and str(path) not in known.get("files", ()):
                raise BulkError(f"{path} exists, and this run has not made it: move it away, or name another file.")
            path.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        self._take_lock()
        if known := self._known():  # again: another process may have gone on until now
            self.state = State(**known["state"])
        else:  # files of a part that does not count
            for path in self.folder.glob("[0-9]*"):
                path.unlink()
        return False

    def _known(self) -> dict[str, Any]:
        """Return the content of state.json, or an empty one."""
        if not (self.folder / STATE).exists():
            return {}
        known: dict[str, Any] = _load(self.folder / STATE, self.folder)
        self._compare(known["recipe"], self.folder)
        return known

    def _check_names(self) -> None:
        """Raise BulkError if two of the run's files are the same, or one is a folder."""
        paths = [*self.files.values(), self.summary, self.folder]
        for index, path in enumerate(paths):
            if path.resolve() in [other.resolve() for other in paths[:index]]:
                raise BulkError(f"{path} would be written twice: name another file for the bad rows.")
            if path.is_dir() and path != self.folder:
                raise BulkError(f"{path} is a folder: name a file.")

    def _is_complete(self, known: dict[str, Any]) -> bool:
        """Return whether the output that a summary describes is there. Remove the summary of one that is gone."""
        outputs = [path.exists() for stream, path in self.files.items() if stream != "errors"]
        if not any(outputs):
            self.summary.unlink()
        if not all(outputs):
            return False
        self._compare(known["recipe"], self.files["vectors"])
        self.state = State(**{name: known[name] for name in RESULT})
        self.errors = Path(known["errors"]) if known["errors"] else None
        return True

    def _take_lock(self) -> None:
        self._lock = (self.folder / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            out = self.files["vectors"]
            raise BulkError(f"Another process is making {out}: wait for it, or stop it.") from None
        except OSError:  # a file system without locks
            pass

    def _compare(self, known: Recipe, path: Path) -> None:
        for name, value in self.recipe.items():
            if name == "inputs" and known.get(name) != value:
                old = known.get(name) or []
                changes = (item[0] for item in [*value, *old] if item not in old or item not in value)
                changed = next(changes, "their order")
                difference = f"other inputs: {changed} is new, changed or gone"
            elif known.get(name) != value:
                difference = f"{name} {_short(known.get(name))}, not {_short(value)}"
            else:
                continue
            raise BulkError(f"{path} was made with {difference}. Remove it to start anew, or name another file.")

    def add(self, streams: Streams, state: State) -> None:
        """Keep a part and the state after it."""
        for stream, content in streams.items():
            write_file(self.folder / f"{self.state.parts:08d}.{stream}", lambda out: out.write(content))
        counts = self.state.streams
        state.parts = self.state.parts + 1
        state.streams = counts | {stream: counts.get(stream, 0) + 1 for stream in streams}
        files = list(map(str, self.files.values()))
        content = json.dumps({"recipe": self.recipe, "files": files, "state": asdict(state)}).encode()
        write_file(self.folder / STATE, lambda out: out.write(content))
        self.state = state

    def finish(self, joins: Mapping[str, Join]) -> None:
        """Make the output of the parts, and remove the folder. joins: stream -> function that makes its file of parts.

        Raises:
            BulkError: the file of a part is missing.
        """
        for stream, path in self.files.items():
            names = (self.folder / f"{number:08d}.{stream}" for number in range(self.state.parts))
            parts = [name for name in names if name.exists()]  # a part of bad rows only has no vectors
            if len(parts) != self.state.streams.get(stream, 0):
                raise BulkError(f"Files are missing in {self.folder}: remove it to start anew.")
            write_file(path, lambda out: joins[stream](parts, out))
        result = {name: getattr(self.state, name) for name in RESULT}
        errors = str(self.errors) if self.errors else None
        content = json.dumps({**result, "errors": errors, "recipe": self.recipe}, ensure_ascii=False, indent=1)
        write_file(self.summary, lambda out: out.write(f"{content}\n".encode()))
        shutil.rmtree(self.folder)


def _load(path: Path, remove: Path) -> Any:
    """Return the content of state.json or of a summary. remove: what to remove if it is none."""
    try:
        content = json.loads(path.read_bytes())
        State(**(content["state"] if path.name == STATE else {name: content[name] for name in RESULT}))
        if isinstance(content["recipe"], dict) and ("files" in content or "errors" in content):
            return content
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    raise BulkError(f"{path} is not a file of this command, or of another version: remove {remove} to start anew.")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}…"
