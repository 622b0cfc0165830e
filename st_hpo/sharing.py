"""Work that trials share: texts are tokenised once, not once in every trial.

While a trial runs, the modules of sentence-transformers that tokenise texts, and the fast tokenizers of transformers,
ask a :class:`~st_hpo.token_cache.TokenCache` first. That is done in their classes, and undone when the trial ends:
no model, tokenizer or collator refers to it, so none of them takes it along when it is saved, pickled or copied. What
is not one of their own classes, or is called in any other way, works as ever.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from transformers import PreTrainedTokenizerFast

from st_hpo.distributed import Ranks
from st_hpo.token_cache import TokenCache
from st_hpo.token_file import TokenFile
from st_hpo.token_rows import Flat, Padded

MEMORY_BYTES = 128 * 2**20  # of each process
FILE_BYTES = 512 * 2**20  # of all processes of a search on one machine
CHANGES_IDS = ("truncation", "max_length", "add_special_tokens")
CHANGES_PADDING = ("padding", "padding_side", "pad_to_multiple_of", "return_tensors")

_lock = threading.RLock()
_active: list[TokenCache] = []
_patches: list[tuple[type, str, Any, Any]] = []
_scope = threading.local()


class SharedWork:
    """What the trials of one process share. Pickled or copied, it comes without what it has in memory.

    Args:
        max_bytes: How much memory the tokens may take in each process, in bytes; 0 to share nothing.
        place: Where another process shares with this one: its :attr:`place`, after :meth:`with_others`. On another
            machine it has no effect.
        makes_file: Whether it may make a file; only for who leaves the block of it, which removes the file.
    """

    def __init__(
        self, max_bytes: int = MEMORY_BYTES, place: tuple[str, int, str] | None = None, makes_file: bool = True
    ) -> None:
        self.max_bytes = max_bytes
        path, size = None, FILE_BYTES
        if place is not None and place[2] == _machine() and os.path.exists(place[0]):
            path, size = place[:2]
        self.tokens = TokenCache(max_bytes, TokenFile(size, path, makes_file))

    @classmethod
    def with_others(cls, max_bytes: int = MEMORY_BYTES) -> SharedWork:
        """Returns what other processes that get a copy of it, or its :attr:`place`, share with this one."""
        file = TokenFile(FILE_BYTES)
        file.make()
        shared = cls(max_bytes)
        shared.tokens = TokenCache(max_bytes, file)
        return shared

    @property
    def place(self) -> tuple[str, int, str] | None:
        """The file of what is shared with other processes, its size at most and the machine; None for no file."""
        file = self.tokens.file
        return None if file.path is None else (file.path, file.max_bytes, _machine())

    def __reduce__(self) -> tuple[type[SharedWork], tuple[int, tuple[str, int, str] | None, bool]]:
        return SharedWork, (self.max_bytes, self.place, False)

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """Shares the work of what runs inside: one trial, or the evaluation of the untrained model."""
        if self.max_bytes <= 0:
            yield
            return
        self.tokens.begin_trial()
        with _lock:
            _active.append(self.tokens)
            if len(_active) == 1:
                _patch()
        try:
            yield
        finally:
            with _lock:
                _active.remove(self.tokens)
                if not _active:
                    _undo()

    def __enter__(self) -> SharedWork:
        return self

    def __exit__(self, *exception: object) -> None:
        self.tokens.clear()


def shared_work(share: bool, ranks: Ranks | None, alone: bool) -> SharedWork:
    """Returns what the trials of a search share.

    Args:
        share: Whether they share anything.
        ranks: The ranks of the search, all of which must call this; None for one process.
        alone: Whether all trials run in this process.
    """
    if not share:
        return SharedWork(0)
    if ranks is None:
        return SharedWork() if alone else SharedWork.with_others()
    made: list[SharedWork] = []

    def make() -> tuple[str, int, str] | None:
        made.append(SharedWork.with_others())
        return made[0].place

    place = ranks.share(make)
    return made[0] if made else SharedWork(place=None if place is None else tuple(place))


def _machine() -> str:
    """Names this machine until it is started again: machines may share a folder, but not a file that is mapped."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _patch() -> None:
    for owner, name, make in (
        (Transformer, "preprocess", functools.partial(_in_scope, attribute="processor")),
        (SparseStaticEmbedding, "preprocess", functools.partial(_in_scope, attribute="tokenizer")),
        (StaticEmbedding, "preprocess", _static_preprocess),
        (PreTrainedTokenizerFast, "__call__", _tokenizer_call),
    ):
        wrapper = make(getattr(owner, name))
        _patches.append((owner, name, vars(owner).get(name), wrapper))
        setattr(owner, name, wrapper)


def _undo() -> None:
    while _patches:
        owner, name, original, wrapper = _patches.pop()
        if vars(owner).get(name) is not wrapper:  # another one has wrapped ours, which passes everything on from here
            continue
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


def _cache() -> TokenCache | None:
    return _active[-1] if _active else None


def _cache_of(tokenizer: Any) -> TokenCache | None:
    """The cache, while a module of sentence-transformers tokenises with this tokenizer."""
    return _cache() if getattr(_scope, "tokenizer", None) is tokenizer else None


def _is_of(package: str, obj: Any) -> bool:
    return type(obj).__module__.startswith(f"{package}.")


def _in_scope(original: Callable[..., Any], attribute: str) -> Callable[..., Any]:
    """A method in which the tokenizer of its module asks the cache: elsewhere one may want its whole output."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        outer = getattr(_scope, "tokenizer", None)
        _scope.tokenizer = getattr(self, attribute, None) if _is_of("sentence_transformers", self) else None
        try:
            return original(self, *args, **kwargs)
        finally:
            _scope.tokenizer = outer

    return method


def _tokenizer_call(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def __call__(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        cache = None if args else _cache_of(self)
        if cache is None or not _is_usual(self, text, kwargs):
            return original(self, text, *args, **kwargs)
        setting = (
            type(self),
            self.model_max_length,
            self.truncation_side,
            self.split_special_tokens,
            tuple(self.model_input_names),
            tuple((name, kwargs[name]) for name in CHANGES_IDS if name in kwargs),
        )
        longest = kwargs["padding"] in (True, "longest") and kwargs.get("pad_to_multiple_of") is None
        side = kwargs.get("padding_side") or self.padding_side
        layout = Padded(self.pad_token_id, self.pad_token_type_id, side, longest)

        def call(texts: Any) -> Any:
            return original(self, texts, **kwargs)

        return cache.tokenize(self, self.backend_tokenizer, setting, text, call, layout)

    return __call__


def _is_usual(tokenizer: Any, text: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call is one for padded tensors of a list of texts, to a tokenizer that keeps nothing between calls."""
    return (
        isinstance(text, list)
        and len(text) > 1
        and set(kwargs) <= {*CHANGES_IDS, *CHANGES_PADDING}
        and all(isinstance(value, str | int | None) for value in kwargs.values())
        and kwargs.get("return_tensors") == "pt"
        and kwargs.get("padding") in (True, "longest", "max_length")
        and tokenizer.pad_token_id is not None
        and _is_of("transformers", tokenizer)
        and not hasattr(tokenizer, "_switch_to_input_mode")  # sets the language anew in every call
    )


def _static_preprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def preprocess(self: Any, inputs: Any, prompt: str | None = None, **kwargs: Any) -> Any:
        cache = _cache()
        usual = (
            type(self) is StaticEmbedding and isinstance(inputs, list) and all(type(item) is str for item in inputs)
        )
        if cache is None or not usual or len(inputs) < 2 or self.tokenizer.padding is not None:
            return original(self, inputs, prompt, **kwargs)
        if not all(type(item) is str for item in inputs):
            return original(self, inputs, prompt, **kwargs)
        texts = [prompt + text for text in inputs] if prompt else inputs
        truncation = self.tokenizer.truncation
        setting = (StaticEmbedding, self.tokenizer.encode_special_tokens, repr(truncation))

        def call(chosen: Any) -> Any:
            return original(self, chosen, None, **kwargs)

        return cache.tokenize(self, self.tokenizer, setting, texts, call, Flat())

    return preprocess
