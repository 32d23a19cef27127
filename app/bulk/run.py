"""Run: rows -> blocks -> vectors -> parts, in the order of the inputs.

Blocks are computed a few at a time, each by a thread that tokenizes it and hands its texts to the encoder's threads:
these have work while the next block is read and tokenized and the last one is written.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.bulk import BulkError
from app.bulk.inputs import describe
from app.bulk.outputs import Output, concatenate, line
from app.bulk.progress import Progress
from app.bulk.reader import Reader
from app.bulk.rows import MAX_RAW_CHARACTERS, Row, Unit
from app.bulk.work import Join, State, Work
from app.engine.embeddings import Vector
from app.engine.encoder import Encoder
from app.engine.options import VectorOptions
from app.errors import InvalidText

# A block is full with so many rows, or characters. Texts of equal length within a block are computed together.
BLOCK_ROWS = 2048
BLOCK_CHARACTERS = 100_000
# Blocks that are computed at once, and read ahead.
BLOCKS_AT_ONCE = 2
BLOCKS_AHEAD = 3
# A part is full with so many rows, or tokens that the model reads: 12 s of one CPU with the default model. A kill loses
# the unfinished part, and the blocks that are being computed.
PART_ROWS = 4096
PART_TOKENS = 100_000
# Type of an id in State -> its name in messages.
ID_TYPES = {"str": "strings", "int": "whole numbers"}


class Block(NamedTuple):
    """Rows of one or several units. number: of the first row in the shard, from 0, counting bad ones."""

    number: int
    rows: list[Row]

    @property
    def end(self) -> int:
        """Number of the first row after the block."""
        return self.number + len(self.rows)


class Computed(NamedTuple):
    """A block with its vectors. tokens: of the good rows, before truncation. bad: the others, each with its error."""

    block: Block
    good: list[tuple[Row, Vector]]
    tokens: list[int]
    bad: list[Row]


@dataclass
class Run:
    """Everything that a run needs."""

    files: Sequence[str]
    units: Sequence[Unit]
    reader: Reader
    encoder: Encoder
    options: VectorOptions
    output: Output
    work: Work
    progress: Progress

    def __call__(self) -> None:
        """Compute what is left, and put the parts together.

        Raises:
            BulkError: an input cannot be read, has changed, or has a bad row and there is no file for these.
            ServiceError: the encoder is not ready.
        """
        state = self.work.state
        if state.bad and self.work.errors is None:
            raise BulkError(f"{state.bad} bad rows were put aside already: give --errors FILE again.")
        self._id_type = state.id_type
        # Sizes of all units before each unit.
        self._before = list(itertools.accumulate((unit.size for unit in self.units), initial=0))
        part: list[Computed] = []
        rows = tokens = 0
        for computed in self._computed():
            self._show(computed)
            part.append(computed)
            rows += len(computed.block.rows)
            tokens += sum(min(count, self.encoder.max_length) for count in computed.tokens)
            if tokens >= PART_TOKENS or rows >= PART_ROWS:
                self._add(part)
                part, rows, tokens = [], 0, 0
        if part:
            self._add(part)
        if describe(self.files) != self.work.recipe["inputs"]:
            raise BulkError(f"An input has changed while it was read: remove {self.work.folder} and start anew.")
        self.work.finish({stream: self._join(stream) for stream in self.work.files})

    def _blocks(self) -> Iterator[Block]:
        """Yield the rows that are left, in blocks."""
        state = self.work.state
        number = state.rows
        rows: list[Row] = []
        characters = 0
        for index in range(state.unit, len(self.units)):
            skip, digest = (state.position, state.digest) if index == state.unit else (0, "")
            for row in self.reader.read(self.units[index], skip, digest):
                rows.append(self._checked(row._replace(unit=index), number + len(rows)))
                characters += len(row.text)
                if len(rows) >= BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
                    yield Block(number, rows)
                    number += len(rows)
                    rows, characters = [], 0
        if rows:
            yield Block(number, rows)

    def _computed(self) -> Iterator[Computed]:
        """Yield the blocks with their vectors, in order."""
        waiting: deque[Future[Computed]] = deque()
        with ThreadPoolExecutor(BLOCKS_AT_ONCE) as pool:
            try:
                for block in self._blocks():
                    waiting.append(pool.submit(self._compute, block))
                    if len(waiting) > BLOCKS_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _compute(self, block: Block) -> Computed:
        bad = [row for row in block.rows if row.error]
        good = [row for row in block.rows if not row.error]
        options = self.options
        while True:
            try:
                result = self.encoder.encode(
                    [row.text for row in good], prompt=options.prompt, prompt_name=options.prompt_name
                )
                break
            except InvalidText as error:  # raised before anything is computed
                bad.append(good[error.index]._replace(error=error.reason.rstrip(".")))
                del good[error.index]
        computed = Computed(block, [], [], bad)
        limit = self.encoder.max_length
        for row, vector, tokens in zip(good, result.rows, result.tokens, strict=True):
            if tokens > limit and not options.truncate:
                bad.append(row._replace(error=f"has {tokens} tokens, over the limit of {limit} (MAX_LENGTH)"))
            else:
                computed.good.append((row, vector))
                computed.tokens.append(tokens)
        bad.sort(key=lambda row: (row.unit, row.position))
        return computed

    def _checked(self, row: Row, number: int) -> Row:
        """Return the row with its id: all ids must be strings, or all numbers, as in a column of Parquet."""
        if not self.reader.columns.id:
            return row._replace(id=number)
        if row.error:
            return row
        kind = type(row.id).__name__
        self._id_type = self._id_type or kind
        if kind != self._id_type:
            error = f"has the id {row.id!r:.60}; the ids before it are {ID_TYPES[self._id_type]}"
            return row._replace(error=error)
        return row

    def _add(self, part: list[Computed]) -> None:
        """Keep a part."""
        old = self.work.state
        block = part[-1].block
        last = block.rows[-1]
        good = [pair for computed in part for pair in computed.good]
        bad = [row for computed in part for row in computed.bad]
        tokens = [count for computed in part for count in computed.tokens]
        streams = {}
        if good:
            vectors = self.options.shape([vector for _, vector in good])
            streams = self.output.part([row.id for row, _ in good], vectors)
        if bad:
            streams["errors"] = b"".join(line(self._description(row)) for row in bad)
        state = State(
            unit=last.unit,
            position=last.position,
            digest=last.digest,
            rows=block.end,
            consumed=self._consumed(block),
            vectors=old.vectors + len(good),
            tokens=old.tokens + sum(tokens),
            truncated=old.truncated + sum(count > self.encoder.max_length for count in tokens),
            bad=old.bad + len(bad),
            id_type=self._id_type,
        )
        self.work.add(streams, state)

    def _description(self, row: Row) -> dict[str, Any]:
        """Return a bad row for the file of bad rows: where it is, what is wrong, and the row or what is known of it."""
        unit = self.units[row.unit]
        known: dict[str, Any] = {"id": row.id} if self.reader.columns.id and row.id is not None else {}
        if row.text:
            known["text"] = row.text[:MAX_RAW_CHARACTERS]
        if row.raw:
            known = {"row": row.raw}
        return {"file": unit.path, unit.measure: row.line, "error": row.error, **known}

    def _show(self, computed: Computed) -> None:
        """Show the progress, or stop at a bad row."""
        if computed.bad and self.work.errors is None:
            row = computed.bad[0]
            raise BulkError(
                f"{self.units[row.unit].place(row.line)} {row.error}. Correct it, remove {self.work.folder} and start "
                "anew, or give --errors FILE: such rows then go to that file, and the others get their vectors."
            )
        self.progress.update(computed.block.end, self._consumed(computed.block))

    def _consumed(self, block: Block) -> int:
        """Return how much of the inputs was read with a block, in the measure of Unit.size."""
        last = block.rows[-1]
        return self._before[last.unit] + last.consumed

    def _join(self, stream: str) -> Join:
        if stream == "errors":
            return concatenate
        state = self.work.state
        return lambda parts, out: self.output.join(stream, parts, state.vectors, state.id_type, out)
