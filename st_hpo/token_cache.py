"""Token ids of texts that were tokenised before, in bounded memory; a batch of them is what the tokenizer would give.

A text is tokenised once for each tokenizer and each setting that changes its ids. Padding is not stored: a batch is
padded when it is put together.

In one of :data:`CHECK_EVERY` batches, and in each with a new text, the longest of the known texts is tokenised anew.
If that does not give what was stored, bit for bit, then the tokenizer draws at random or has changed in a way that its
key does not show, and it is left alone from there on. A call also leaves its truncation and padding in the tokenizer,
with which they are saved: a batch whose call would change them has such a text, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from st_hpo.token_rows import Layout, Row

CHECK_EVERY = 16
COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor")


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


@dataclass
class Last:
    """The last call of a tokenizer with one setting.

    Attributes:
        names: What it returned.
        state: The truncation, padding and so on that it left in the tokenizer.
        batches: How many batches have needed no call since then.
    """

    names: list[str]
    state: tuple[Any, ...]
    batches: int = 0


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
        self._last: WeakKeyDictionary[Any, dict[Hashable, Last]] = WeakKeyDictionary()
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
        calls = self._last.setdefault(owner, {})
        if len(known) < 2:
            output = call(texts)
            found = layout.rows(output)
            if found is None:
                self._left_alone[owner] = True
            else:
                self._store(name, keys, found)
                calls[setting, layout] = Last(list(output), _state(backend))
            return output
        longest = max(known, key=lambda index: len(rows[index]))  # type: ignore[arg-type]
        last = calls.get((setting, layout)) if not fresh and layout.as_wide_as_the_longest else None
        if last is not None and last.batches < CHECK_EVERY - 1 and last.state == _state(backend):
            last.batches += 1
            return layout.batch(rows, last.names, len(rows[longest]))  # type: ignore[arg-type]
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
        calls[setting, layout] = Last(list(output), _state(backend))
        return layout.batch(rows, list(output), layout.width(output))  # type: ignore[arg-type]

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._spaces.clear()
            self._size = 0
            self._fingerprints.clear()
            self._last.clear()
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


def _state(backend: Any) -> tuple[Any, ...]:
    return backend.truncation, backend.padding, backend.encode_special_tokens


def _digest(text: Any) -> bytes | None:
    """The key of a text or a pair of texts; None for anything else."""
    if type(text) is str:
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if isinstance(text, list | tuple) and len(text) == 2 and type(text[0]) is str and type(text[1]) is str:
        first, second = (part.encode("utf-8", "surrogatepass") for part in text)
        return blake2b(b"%d:%b%b" % (len(first), first, second), digest_size=16, person=b"pair").digest()
    return None
