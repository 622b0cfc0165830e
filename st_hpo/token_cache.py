"""Token ids of texts that were tokenised before, in memory and in a file, both bounded.

A text is tokenised once for each tokenizer and each setting that changes its ids. Padding is not stored: a batch is
padded when it is put together, and is what the tokenizer would give.

In one of :data:`CHECK_EVERY` batches, and in each with a new text, the longest of the known texts is tokenised anew.
If that does not give what was stored, bit for bit, then the tokenizer draws at random or has changed in a way that its
key does not show, and it is left alone from there on. A call also leaves its truncation and padding in the tokenizer,
with which they are saved: a batch whose call would change them has such a text, too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from st_hpo.token_file import TokenFile, digest_of
from st_hpo.token_rows import Layout, Row

CHECK_EVERY = 16
COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor")


@dataclass
class Space:
    """The texts of one tokenizer with one setting.

    Attributes:
        name: The tokenizer's fingerprint, and the setting.
        digest: What the file calls it.
        rows: The tokens of each text, by its digest.
        size: What they take in memory, in bytes.
        trial: When it was used last, counted in trials.
    """

    name: Hashable
    digest: bytes
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

    When the memory is full, what earlier trials have used and this one has not goes into the file, a whole setting at
    a time, and then what is new. Where other processes read the file, too, everything goes there at once.

    Args:
        max_bytes: How much memory the stored tokens may take.
        file: Where other processes find tokens, and what does not fit.
    """

    def __init__(self, max_bytes: int, file: TokenFile) -> None:
        self.max_bytes = max_bytes
        self.file = file
        self._for_others = file.path is not None
        self._trial = 0
        self._size = 0
        self._spaces: dict[Hashable, Space] = {}
        self._dropped: list[Space] = []
        self._fingerprints: WeakKeyDictionary[Any, tuple[Any, Any, bytes]] = WeakKeyDictionary()
        self._last: WeakKeyDictionary[Any, dict[Hashable, Last]] = WeakKeyDictionary()
        self._left_alone: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
        self._lock = threading.RLock()
        self._process = os.getpid()

    @property
    def size(self) -> int:
        """What the stored tokens take in memory, in bytes."""
        return self._size

    def begin_trial(self) -> None:
        """Notes that a trial begins."""
        self._trial += 1
        self.file.begin_trial()

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
        if self._process != os.getpid():  # forked: a thread of the other process may have held the lock
            self._process, self._lock = os.getpid(), threading.RLock()
        keys = [_digest(text) for text in texts]
        if None in keys or owner in self._left_alone or not _is_deterministic(backend):
            return call(texts)
        with self._lock:
            name = (self._fingerprint(owner, backend), setting)
            if name not in self._spaces:
                self._spaces[name] = Space(name, digest_of(name))
            space = self._spaces[name]
            space.trial = self._trial
        rows = self._known(space, keys)  # type: ignore[arg-type]
        fresh = [index for index, row in enumerate(rows) if row is None]
        known = [index for index, row in enumerate(rows) if row is not None]
        calls = self._last.setdefault(owner, {})
        if len(known) < 2:
            output = call(texts)
            found = layout.rows(output)
            if found is None:
                self._left_alone[owner] = True
            else:
                self._store(space, dict(zip(keys, found, strict=True)))  # type: ignore[arg-type]
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
            self.file.refuse(space.digest)
            return call(texts)
        for index, row in zip(fresh, found, strict=False):
            rows[index] = row
        self._store(space, {keys[index]: row for index, row in zip(fresh, found, strict=False)})  # type: ignore[misc]
        calls[setting, layout] = Last(list(output), _state(backend))
        return layout.batch(rows, list(output), layout.width(output))  # type: ignore[arg-type]

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._spaces.clear()
            self._dropped.clear()
            self._size = 0
            self._fingerprints.clear()
            self._last.clear()
            self._left_alone.clear()
            self.file.close()

    def _known(self, space: Space, keys: Sequence[bytes]) -> list[Row | None]:
        rows = [space.rows.get(key) for key in keys]
        if self.file.path is not None and None in rows:
            found = self.file.get(space.digest, [key for key, row in zip(keys, rows, strict=True) if row is None])
            self._keep(space, found)
            rows = [found.get(key) if row is None else row for key, row in zip(keys, rows, strict=True)]
        return rows

    def _store(self, space: Space, rows: Mapping[bytes, Row]) -> None:
        left = self._keep(space, rows)
        if self._for_others:
            self.file.put(space.digest, rows)
        elif left:
            self.file.make()
            self.file.put(space.digest, left)

    def _write_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, []
        for space in dropped:
            if not self._for_others:
                self.file.make()
                self.file.put(space.digest, space.rows)

    def _keep(self, space: Space, rows: Mapping[bytes, Row]) -> dict[bytes, Row]:
        """Keeps rows in memory; returns those for which there is no room."""
        left = dict(rows)
        with self._lock:
            if self._spaces.get(space.name) is not space:  # dropped by another thread
                return left
            for key, row in rows.items():
                if key not in space.rows:
                    if self._size + row.size > self.max_bytes and not self._make_room(row.size):
                        break
                    space.rows[key] = row
                    space.size += row.size
                    self._size += row.size
                del left[key]
        self._write_dropped()
        return left

    def _make_room(self, size: int) -> bool:
        """Drops what no text of this trial has used, the oldest first; returns whether there is room now.

        It is to be written to the file then.
        """
        while self._size + size > self.max_bytes:
            old = [name for name, space in self._spaces.items() if space.trial < self._trial]
            if not old:
                return False
            oldest = self._spaces[min(old, key=lambda name: self._spaces[name].trial)]
            self._drop(oldest.name)
            self._dropped.append(oldest)
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
