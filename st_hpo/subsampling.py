"""Evaluators on a seeded sample of their data: cheap evaluations, to compare models with each other."""

from __future__ import annotations

import copy
import inspect
import random
from collections import Counter
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderNanoBEIREvaluator,
    CrossEncoderRerankingEvaluator,
)
from sentence_transformers.multi_vector_encoder.evaluation import MultiVectorDistillationEvaluator
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    MSEEvaluator,
    NanoBEIREvaluator,
    RerankingEvaluator,
    SequentialEvaluator,
    TranslationEvaluator,
    TripletEvaluator,
)

from st_hpo.errors import ConfigurationError, NotSupportedError

Evaluator = TypeVar("Evaluator")


class _Rows(NamedTuple):
    """How an evaluator keeps its examples.

    Attributes:
        names: The attributes with one item for every example.
        target: Which of them has what the model is compared with, one number an example; without several different
            numbers there is no correlation and no classification.
        classes: Whether these numbers are classes.
    """

    names: tuple[str, ...]
    target: str | None = None
    classes: bool = False


_ROWS = {
    EmbeddingSimilarityEvaluator: _Rows(("sentences1", "sentences2", "scores"), "scores"),
    BinaryClassificationEvaluator: _Rows(("sentences1", "sentences2", "labels"), "labels", classes=True),
    TripletEvaluator: _Rows(("anchors", "positives", "negatives")),
    RerankingEvaluator: _Rows(("samples",)),
    TranslationEvaluator: _Rows(("source_sentences", "target_sentences")),
    MSEEvaluator: _Rows(("target_sentences", "source_embeddings")),
    CrossEncoderCorrelationEvaluator: _Rows(("sentence_pairs", "scores"), "scores"),
    CrossEncoderClassificationEvaluator: _Rows(("sentence_pairs", "labels"), "labels", classes=True),
    CrossEncoderRerankingEvaluator: _Rows(("samples",)),
    MultiVectorDistillationEvaluator: _Rows(("queries", "documents", "scores")),
}
_CORPUS = (InformationRetrievalEvaluator,)
_HOLDERS = (SequentialEvaluator, NanoBEIREvaluator, CrossEncoderNanoBEIREvaluator)
_SUPPORTED = sorted(item.__name__ for item in (*_ROWS, *_CORPUS, *_HOLDERS))

_RANK_CACHE = "_corpus_id_ranks"  # of `get_corpus_id_ranks`, filled at the first tie; no public name empties it
_SETTINGS = {"csv_headers", "score_function_names", _RANK_CACHE}  # lists that are no arguments of the constructor


class _Request(NamedTuple):
    """What the caller asks for, checked."""

    size: int | float
    seed: int
    corpus_size: int | float | None

    @property
    def label(self) -> str:
        corpus = "" if self.corpus_size is None else f"_corpus-{self.corpus_size}"
        return f"_sample-{self.size}{corpus}_seed-{self.seed}"


def subsample_evaluator(
    evaluator: Evaluator, size: int | float, *, seed: int = 0, corpus_size: int | float | None = None
) -> Evaluator:
    """Returns an evaluator like the given one that evaluates a sample of its data.

    Class, name and settings stay, and with them the names of the metrics and the primary metric. The given evaluator
    is not changed. A sample has a score of its own: compare it with scores on the same sample only.

    What is drawn, by the class of the evaluator (subclasses of each as well, so those for sparse and multi-vector
    models too):

    - Embedding similarity, triplets, reranking, translation, MSE, distillation, and a cross-encoder's correlation:
      examples, all equally likely. A sample of reranking keeps every document of its queries. Correlations are not
      stratified by score: a plain sample has the whole's distribution but for chance, the same for all models.
    - Classification: examples, from each class as many as is its share (Sainte-Laguë's method), because a rare class
      may otherwise be missing.
    - Information retrieval: queries that have relevant documents. The corpus has every relevant document of these
      queries, and other documents up to the same share of the whole corpus, or to ``corpus_size``. With fewer
      documents a query is easier, so the scores are higher than on the whole corpus.
    - ``SequentialEvaluator``, NanoBEIR evaluators and lists: each evaluator in them, with the same seed, so that
      evaluators of the same examples keep the same ones.

    The examples stay in their order. The same seed gives the same sample on any machine, whatever the state of the
    global random generators; a smaller sample of examples or queries is a part of a larger one with the same seed.

    CSV files and predictions are written under names of their own (``..._sample-0.25_seed-0.csv``), so that a file has
    the results of one set of data only.

    An ``InformationRetrievalEvaluator`` with several score functions and without ``main_score_function`` chooses its
    primary metric in its first run, by its data. Pass ``main_score_function``, or run it once before.

    Args:
        evaluator: The evaluator, or a list of them.
        size: How many examples (or queries) to keep: an int is their number, a float in (0, 1] their share, rounded,
            of each evaluator at least one.
        seed: Which sample, 0 or greater.
        corpus_size: For information retrieval, how many documents to keep: an int is their number, a float in (0, 1]
            their share. Relevant documents are kept even where they are more than this share. None takes the same
            share as of the queries.

    Returns:
        The new evaluator, or a list of them for a list.

    Raises:
        ConfigurationError: A number that makes no sense or is more than there is; a ``corpus_size`` without a corpus,
            or with less room than the relevant documents need; a sample whose scores or labels are all the same.
        NotSupportedError: An evaluator of another class, a function, or a subclass with more lists that belong to its
            data.
    """
    size = _checked("size", size)
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise ConfigurationError(f"seed={seed!r} of subsample_evaluator must be an int of 0 or greater.")
    if corpus_size is not None:
        corpus_size = _checked("corpus_size", corpus_size)
        if not _has_corpus(evaluator):
            raise ConfigurationError(
                f"corpus_size={corpus_size!r} is for evaluators with a corpus (InformationRetrievalEvaluator), and "
                f"{_called(evaluator)} has none. Leave it out."
            )
    return _sampled(evaluator, _Request(size, int(seed), corpus_size))


def _checked(name: str, size: Any) -> int | float:
    number = size if isinstance(size, Real) and not isinstance(size, bool) else 0
    value = int(number) if isinstance(number, Integral) else float(number)
    if not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
        raise ConfigurationError(
            f"{name}={size!r} of subsample_evaluator must be an int of 1 or greater (how many) or a float in (0, 1] "
            "(which share)."
        )
    return value


def _has_corpus(evaluator: Any) -> bool:
    if isinstance(evaluator, _HOLDERS):
        evaluator = evaluator.evaluators
    if isinstance(evaluator, list | tuple):
        return any(map(_has_corpus, evaluator))
    return isinstance(evaluator, _CORPUS)


def _called(evaluator: Any) -> str:
    name = getattr(evaluator, "name", "")
    return f"{type(evaluator).__name__} {name!r}" if name and isinstance(name, str) else type(evaluator).__name__


def _sampled(evaluator: Any, request: _Request) -> Any:
    if isinstance(evaluator, list | tuple):
        return [_sampled(item, request) for item in evaluator]
    if isinstance(evaluator, _HOLDERS):
        return _changed(evaluator, request, evaluators=_sampled(list(evaluator.evaluators), request))
    if isinstance(evaluator, _CORPUS):
        return _sampled_retrieval(evaluator, request)
    for known in type(evaluator).__mro__:
        if known in _ROWS:
            return _sampled_rows(evaluator, request, known, _ROWS[known])
    raise NotSupportedError(
        f"subsample_evaluator cannot sample {_called(evaluator)}: it knows {', '.join(_SUPPORTED)} and their "
        "subclasses. Build a smaller evaluator of your own, and pass that instead."
    )


def _sampled_rows(evaluator: Any, request: _Request, known: type, rows: _Rows) -> Any:
    length = len(getattr(evaluator, rows.names[0]))
    count = _count(evaluator, request.size, length)
    _check_nothing_else_belongs(evaluator, known, rows.names, {length})
    target = None if rows.target is None else np.asarray(list(getattr(evaluator, rows.target))).tolist()
    kept = sorted(_order(length, random.Random(request.seed), target if rows.classes else None)[:count])
    if target is not None and len({target[place] for place in kept}) < 2 <= len(set(target)):
        raise ConfigurationError(
            f"A sample of {count} of the {length} examples of {_called(evaluator)} has a single value of "
            f"{rows.target!r}, {target[kept[0]]!r}, so it has no score. Ask for a greater size."
        )
    return _changed(evaluator, request, **{name: _taken(getattr(evaluator, name), kept) for name in rows.names})


def _sampled_retrieval(evaluator: Any, request: _Request) -> Any:
    queries, documents = len(evaluator.queries), len(evaluator.corpus)
    count = _count(evaluator, request.size, queries)
    names = ("queries", "queries_ids", "corpus", "corpus_ids", "relevant_docs")
    _check_nothing_else_belongs(evaluator, InformationRetrievalEvaluator, names, {queries, documents})
    generator = random.Random(request.seed)
    kept = sorted(_order(queries, generator)[:count])
    relevant_docs = {query: evaluator.relevant_docs[query] for query in _taken(evaluator.queries_ids, kept)}

    relevant = {document for found in relevant_docs.values() for document in found}
    needed = [place for place, document in enumerate(evaluator.corpus_ids) if document in relevant]
    room = _room(evaluator, request, count / queries, len(needed))
    others = [place for place in _order(documents, generator) if evaluator.corpus_ids[place] not in relevant]
    corpus = sorted([*needed, *others[: room - len(needed)]])
    changes: dict[str, Any] = {name: _taken(getattr(evaluator, name), kept) for name in names[:2]}
    changes |= {name: _taken(getattr(evaluator, name), corpus) for name in names[2:4]}
    changes |= {_RANK_CACHE: None} if hasattr(evaluator, _RANK_CACHE) else {}
    return _changed(evaluator, request, **changes, relevant_docs=relevant_docs)


def _room(evaluator: Any, request: _Request, share: float, needed: int) -> int:
    """Returns how many documents to keep."""
    documents, size = len(evaluator.corpus), request.corpus_size
    if not isinstance(size, int):
        share = size or (request.size if isinstance(request.size, float) else share)
        return max(needed, round(share * documents))
    if not needed <= size <= documents:
        raise ConfigurationError(
            f"corpus_size={size!r} must be from {needed}, the relevant documents of the queries that are kept, to "
            f"{documents}, the documents of {_called(evaluator)}. A float is a share, which makes room for them."
        )
    return size


def _count(evaluator: Any, size: int | float, length: int) -> int:
    if not length:
        raise ConfigurationError(f"{_called(evaluator)} has no examples to take a sample of.")
    if isinstance(size, float):
        return max(1, round(size * length))
    if size > length:
        raise ConfigurationError(
            f"size={size!r} is more than the {length} examples of {_called(evaluator)}. A float in (0, 1] is a share."
        )
    return size


def _order(length: int, generator: random.Random, classes: Sequence[Any] | None = None) -> list[int]:
    """Returns all places in the order in which samples take them.

    Only ``random()`` is drawn, whose numbers Python guarantees for a seed. With classes, the j-th drawn of a class of
    m comes at (j - 1/2) / m: so any number of them, from the start, has each class by its share (Sainte-Laguë).
    """
    keys = [generator.random() for _ in range(length)]
    order = sorted(range(length), key=keys.__getitem__)
    if classes is None:
        return order
    sizes, seen, turns = Counter(classes), Counter[Any](), {}
    for place in order:
        seen[classes[place]] += 1
        turns[place] = (seen[classes[place]] - 0.5) / sizes[classes[place]]
    return sorted(order, key=turns.__getitem__)


def _taken(items: Any, places: list[int]) -> Any:
    if isinstance(items, np.ndarray | torch.Tensor):
        return items[places]
    items = list(items)  # also a column of a dataset, which reads the file for every item
    return [items[place] for place in places]


def _check_nothing_else_belongs(evaluator: Any, known: type, names: Sequence[str], lengths: set[int]) -> None:
    """Refuses an evaluator with another list as long as its data, which would no longer fit them.

    What finds its items by something else than their place (a dict) still fits.
    """
    settings = {*inspect.signature(known).parameters, *names, *_SETTINGS}
    for name, value in vars(evaluator).items():
        is_list = isinstance(value, list | tuple | np.ndarray | torch.Tensor) and getattr(value, "ndim", 1) > 0
        if name not in settings and is_list and len(value) in lengths:
            raise NotSupportedError(
                f"{_called(evaluator)} has {name!r}, as long as its data ({len(value)}), of which {known.__name__} "
                "knows nothing. subsample_evaluator cannot tell whether it belongs to the data. Build a smaller "
                "evaluator of your own, and pass that instead."
            )


def _changed(evaluator: Any, request: _Request, **changes: Any) -> Any:
    """Returns a copy with other data, which shares nothing that a run changes."""
    copied = copy.copy(evaluator)
    for name, value in vars(evaluator).items():
        if name in ("csv_file", "predictions_file") and value:
            changes[name] = str(Path(value).with_name(f"{Path(value).stem}{request.label}{Path(value).suffix}"))
        elif name not in changes and isinstance(value, list | dict | set):  # runs append to csv_headers
            changes[name] = copy.copy(value)
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied
