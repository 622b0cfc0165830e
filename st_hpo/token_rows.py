"""The tokens of texts as small objects, and batches of them as the tensors that a tokenizer gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy
import torch
from transformers import BatchEncoding

ENTRY_BYTES = 200  # what an entry takes beside its ids: its key, its place in the dict, two objects


class Row(NamedTuple):
    """The tokens of one text, without padding.

    Attributes:
        ids: Token ids, as bytes of int32.
        types: Token types, as bytes of uint8; empty if all are 0.
    """

    ids: bytes
    types: bytes = b""

    @property
    def size(self) -> int:
        """What it takes in memory, in bytes."""
        return ENTRY_BYTES + len(self.ids) + len(self.types)

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.ids) // 4


class Layout(Protocol):
    """How the rows of a batch lie in tensors; hashable."""

    @property
    def as_wide_as_the_longest(self) -> bool:
        """Whether a batch is padded to its longest row, and not further."""

    def rows(self, output: Any) -> list[Row] | None:
        """Takes the tokenizer's output apart; None if that cannot be undone."""

    def batch(self, rows: Sequence[Row], names: Sequence[str], width: int) -> Any:
        """Puts a batch together.

        Args:
            rows: The rows of the batch.
            names: What the tokenizer returns.
            width: How long its rows are, with padding.
        """

    def width(self, output: Any) -> int:
        """Returns how long the rows of an output are, with padding."""


@dataclass(frozen=True)
class Padded:
    """A row of a matrix for each text, padded: what tokenizers of transformers give.

    Attributes:
        pad_id: The token id of padding.
        pad_type: The token type of padding.
        side: Where padding is, ``"right"`` or ``"left"``.
        as_wide_as_the_longest: See :class:`Layout`.
    """

    pad_id: int
    pad_type: int
    side: str
    as_wide_as_the_longest: bool

    def rows(self, output: Any) -> list[Row] | None:
        """See :meth:`Layout.rows`."""
        if not {"input_ids", "attention_mask"} <= set(output) <= {"input_ids", "attention_mask", "token_type_ids"}:
            return None
        if output["input_ids"].device.type != "cpu":  # torch.set_default_device
            return None
        mask = output["attention_mask"].numpy().astype(bool)
        ends = numpy.cumsum(mask.sum(axis=1)).tolist()
        ids = _split(output["input_ids"].numpy()[mask].astype(numpy.int32), ends)
        if "token_type_ids" not in output or not output["token_type_ids"].any():
            rows = [Row(part) for part in ids]
        else:
            types = _split(output["token_type_ids"].numpy()[mask].astype(numpy.uint8), ends)
            rows = [Row(part, kinds if any(kinds) else b"") for part, kinds in zip(ids, types, strict=True)]
        return rows if _equal(self.batch(rows, list(output), self.width(output)), output) else None

    def batch(self, rows: Sequence[Row], names: Sequence[str], width: int) -> Any:
        """See :meth:`Layout.batch`."""
        lengths = numpy.array([len(row) for row in rows])[:, None]
        places = numpy.arange(width)[None, :]
        mask = places < lengths if self.side == "right" else places >= width - lengths
        ids = numpy.full(mask.shape, self.pad_id, dtype=numpy.int64)
        ids[mask] = numpy.frombuffer(b"".join(row.ids for row in rows), dtype=numpy.int32)
        found = {"input_ids": ids, "attention_mask": mask.astype(numpy.int64)}
        if "token_type_ids" in names:
            types = numpy.full(mask.shape, self.pad_type, dtype=numpy.int64)
            flat = b"".join(row.types or bytes(len(row)) for row in rows)
            types[mask] = numpy.frombuffer(flat, dtype=numpy.uint8)
            found["token_type_ids"] = types
        return BatchEncoding({name: torch.from_numpy(found[name]) for name in names})

    def width(self, output: Any) -> int:
        """See :meth:`Layout.width`."""
        return int(output["input_ids"].shape[1])


@dataclass(frozen=True)
class Flat:
    """The tokens of all texts in one row, and where each begins: what ``StaticEmbedding`` takes."""

    as_wide_as_the_longest: bool = True  # there is no padding

    def rows(self, output: Any) -> list[Row] | None:
        """See :meth:`Layout.rows`."""
        if output["input_ids"].device.type != "cpu":
            return None
        ids = output["input_ids"].numpy().astype(numpy.int32)
        rows = [Row(part) for part in _split(ids, [*output["offsets"].tolist()[1:], len(ids)])]
        return rows if _equal(self.batch(rows, list(output), self.width(output)), output) else None

    def batch(self, rows: Sequence[Row], names: Sequence[str], width: int) -> Any:
        """See :meth:`Layout.batch`."""
        ids = numpy.frombuffer(b"".join(row.ids for row in rows), dtype=numpy.int32).astype(numpy.int64)
        offsets = numpy.cumsum([0, *(len(row) for row in rows[:-1])])
        return {"input_ids": torch.from_numpy(ids), "offsets": torch.from_numpy(offsets)}

    def width(self, output: Any) -> int:
        """See :meth:`Layout.width`."""
        return 0


def _split(flat: Any, ends: Sequence[int]) -> list[bytes]:
    """The bytes of an array, cut where its parts end."""
    data, width = flat.tobytes(), flat.itemsize
    return [data[start * width : end * width] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _equal(ours: Any, theirs: Any) -> bool:
    return list(ours) == list(theirs) and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs
    )
