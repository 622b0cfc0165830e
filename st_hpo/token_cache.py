"""Token ids of texts that were tokenised before, in bounded memory; a batch of them is what the tokenizer would give.

A text is tokenised once for each tokenizer and each setting that changes its ids. Padding is not stored: a batch is
padded when it is put together, to the width that the tokenizer itself gives to the longest of its texts. So every
batch has at least one text that was tokenised for it. If that is not what was stored, bit for bit, then the tokenizer
draws at random or has changed in a way that its key does not show, and it is left alone from there on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy
import torch
from transformers import BatchEncoding

ENTRY_BYTES = 200  # what an entry takes beside its ids: its key, its place in the dict, two objects
COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor")


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
    """How the rows of a batch lie in tensors."""

    def rows(self, output: Any) -> list[Row] | None:
        """Takes the tokenizer's output apart; None if that cannot be undone."""

    def batch(self, rows: Sequence[Row], output: Any) -> Any:
        """Puts a batch together.

        Args:
            rows: The rows of the batch.
            output: The tokenizer's output for some of them, the longest included.
        """


@dataclass
class Padded:
    """A row of a matrix for each text, padded: what tokenizers of transformers give.

    Attributes:
        pad_id: The token id of padding.
        pad_type: The token type of padding.
        side: Where padding is, ``"right"`` or ``"left"``.
    """

    pad_id: int
    pad_type: int
    side: str

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
        return rows if _equal(self.batch(rows, output), output) else None

    def batch(self, rows: Sequence[Row], output: Any) -> Any:
        """See :meth:`Layout.batch`."""
        width = output["input_ids"].shape[1]
        lengths = numpy.array([len(row) for row in rows])[:, None]
        places = numpy.arange(width)[None, :]
        mask = places < lengths if self.side == "right" else places >= width - lengths
        ids = numpy.full(mask.shape, self.pad_id, dtype=numpy.int64)
        ids[mask] = numpy.frombuffer(b"".join(row.ids for row in rows), dtype=numpy.int32)
        found = {"input_ids": ids, "attention_mask": mask.astype(numpy.int64)}
        if "token_type_ids" in output:
            types = numpy.full(mask.shape, self.pad_type, dtype=numpy.int64)
            flat = b"".join(row.types or bytes(len(row)) for row in rows)
            types[mask] = numpy.frombuffer(flat, dtype=numpy.uint8)
            found["token_type_ids"] = types
        return BatchEncoding({name: torch.from_numpy(found[name]) for name in output})


class Flat:
    """The tokens of all texts in one row, and where each begins: what ``StaticEmbedding`` takes."""

    def rows(self, output: Any) -> list[Row] | None:
        """See :meth:`Layout.rows`."""
        if output["input_ids"].device.type != "cpu":
            return None
        ids = output["input_ids"].numpy().astype(numpy.int32)
        rows = [Row(part) for part in _split(ids, [*output["offsets"].tolist()[1:], len(ids)])]
        return rows if _equal(self.batch(rows, output), output) else None

    def batch(self, rows: Sequence[Row], output: Any) -> Any:
        """See :meth:`Layout.batch`."""
        ids = numpy.frombuffer(b"".join(row.ids for row in rows), dtype=numpy.int32).astype(numpy.int64)
        offsets = numpy.cumsum([0, *(len(row) for row in rows[:-1])])
        return {"input_ids": torch.from_numpy(ids), "offsets": torch.from_numpy(offsets)}


@dataclass
class Space:
    """The texts of one tokenizer with one setting.

    Attributes:
        rows: The tokens of each text, by its digest.
        size: What they take in memory, in bytes.
        trial: When it was used last, counted in trials.
    """

    rows: dict[bytes, Row] = field(default_factory=dict)
    size: int = 0
    trial: int = 0


class TokenCache:
    """Tokens by tokenizer, setting and text.

    When it is full, what earlier trials have used and this one has not is dropped, a whole setting at a time; if that
    is not enough, nothing more is stored.

    Args:
        max_bytes: How much memory the stored tokens may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.trial = 0
        self._size = 0
        self._spaces: dict[Hashable, Space] = {}
        self._fingerprints: WeakKeyDictionary[Any, tuple[Any, Any, bytes]] = WeakKeyDictionary()
        self._left_alone: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
        self._lock = threading.RLock()

    @property
    def size(self) -> int:
        """What the stored tokens take in memory, in bytes."""
        return self._size

    def tokenize(
        self,
        owner: Any,
        backend: Any,
        setting: Hashable,
        texts: Sequence[Any],
        call: Callable[[Any], Any],
        layout: Layout,
    ) -> Any:
        """Returns what ``call(texts)`` returns, and calls it with no more texts than it must.

        Args:
            owner: What holds the tokenizer; texts of another owner with an equal tokenizer are the same texts.
            backend: The ``tokenizers.Tokenizer``.
            setting: What changes the ids of a text, beside the tokenizer.
            texts: Strings, or pairs of strings.
            call: Tokenises texts.
            layout: How their tokens lie in its output.
        """
        keys = [_digest(text) for text in texts]
        if None in keys or owner in self._left_alone or not _is_deterministic(backend):
            return call(texts)
        with self._lock:
            name = (self._fingerprint(owner, backend), setting)
            space = self._spaces.setdefault(name, Space())
            space.trial = self.trial
        rows = [space.rows.get(key) for key in keys]  # type: ignore[arg-type]
        fresh = [index for index, row in enumerate(rows) if row is None]
        known = [index for index, row in enumerate(rows) if row is not None]
        if len(known) < 2:
            output = call(texts)
            found = layout.rows(output)
            if found is None:
                self._left_alone[owner] = True
            else:
                self._store(name, keys, found)
            return output
        longest = max(known, key=lambda index: len(rows[index]))  # type: ignore[arg-type]
        asked = [*fresh, longest]
        output = call([texts[index] for index in asked])
        found = layout.rows(output)
        if found is None or found[-1] != rows[longest]:
            self._left_alone[owner] = True
            self._drop(name)
            return call(texts)
        for index, row in zip(fresh, found, strict=False):
            rows[index] = row
        self._store(name, [keys[index] for index in fresh], found[:-1])
        return layout.batch(rows, output)  # type: ignore[arg-type]

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._spaces.clear()
            self._size = 0
            self._fingerprints.clear()
            self._left_alone.clear()

    def _store(self, name: Hashable, keys: Sequence[bytes | None], rows: Sequence[Row]) -> None:
        with self._lock:
            space = self._spaces.get(name)
            if space is None:  # dropped by another thread
                return
            new = {key: row for key, row in zip(keys, rows, strict=True) if key is not None and key not in space.rows}
            for key, row in new.items():
                if self._size + row.size > self.max_bytes and not self._make_room(row.size):
                    return
                space.rows[key] = row
                space.size += row.size
                self._size += row.size

    def _make_room(self, size: int) -> bool:
        """Drops what no text of this trial has used, the oldest first; returns whether there is room now."""
        while self._size + size > self.max_bytes:
            old = [name for name, space in self._spaces.items() if space.trial < self.trial]
            if not old:
                return False
            self._drop(min(old, key=lambda name: self._spaces[name].trial))
        return True

    def _drop(self, name: Hashable) -> None:
        with self._lock:
            space = self._spaces.pop(name, None)
            self._size -= 0 if space is None else space.size

    def _fingerprint(self, owner: Any, backend: Any) -> bytes:
        """A digest of all that a tokenizer is; made anew where one of its small parts has changed."""
        parts = [getattr(backend, name) for name in COMPONENTS]
        state = (backend.get_vocab_size(), *(None if part is None else part.__getstate__() for part in parts))
        found = self._fingerprints.get(owner)
        if found is None or found[0] is not backend or found[1] != state:
            text = backend.to_str()  # truncation and padding come first: they are set anew by every call
            digest = blake2b(text[max(text.find('"added_tokens"'), 0) :].encode(), digest_size=16).digest()
            found = self._fingerprints[owner] = (backend, state, digest)
        return found[2]


def _is_deterministic(backend: Any) -> bool:
    """Whether a text always has the same ids: with BPE dropout and Unigram's sampling they are drawn at random."""
    model = backend.model
    return not getattr(model, "dropout", None) and getattr(model, "alpha", None) is None


def _digest(text: Any) -> bytes | None:
    """The key of a text or a pair of texts; None for anything else."""
    if type(text) is str:
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if isinstance(text, list | tuple) and len(text) == 2 and type(text[0]) is str and type(text[1]) is str:
        first, second = (part.encode("utf-8", "surrogatepass") for part in text)
        return blake2b(b"%d:%b%b" % (len(first), first, second), digest_size=16, person=b"pair").digest()
    return None


def _split(flat: Any, ends: Sequence[int]) -> list[bytes]:
    """The bytes of an array, cut where its parts end."""
    data, width = flat.tobytes(), flat.itemsize
    return [data[start * width : end * width] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _equal(ours: Any, theirs: Any) -> bool:
    return list(ours) == list(theirs) and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs
    )
