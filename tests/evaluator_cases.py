"""Evaluators of every class of which a sample can be taken, each built from the examples with given places."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderNanoBEIREvaluator,
    CrossEncoderRerankingEvaluator,
)
from sentence_transformers.multi_vector_encoder import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.evaluation import (
    MultiVectorDistillationEvaluator,
    MultiVectorInformationRetrievalEvaluator,
    MultiVectorNanoBEIREvaluator,
    MultiVectorRerankingEvaluator,
    MultiVectorTripletEvaluator,
)
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    MSEEvaluator,
    NanoBEIREvaluator,
    RerankingEvaluator,
    TranslationEvaluator,
    TripletEvaluator,
)
from sentence_transformers.sparse_encoder import SparseEncoder
from sentence_transformers.sparse_encoder.evaluation import (
    SparseBinaryClassificationEvaluator,
    SparseEmbeddingSimilarityEvaluator,
    SparseInformationRetrievalEvaluator,
    SparseMSEEvaluator,
    SparseNanoBEIREvaluator,
    SparseRerankingEvaluator,
    SparseTranslationEvaluator,
    SparseTripletEvaluator,
)
from transformers import set_seed

from embedded import model_path, sts_benchmark

COUNT = 16
Build = Callable[[Sequence[int]], Any]


@cache
def model(family: str) -> Any:
    set_seed(0)
    if family == "sparse":
        return SparseEncoder(model_path(), device="cpu")
    if family == "multi":
        return MultiVectorEncoder(model_path(), device="cpu")
    if family == "cross":
        return CrossEncoder(model_path(), num_labels=1, device="cpu")
    if family == "cross classes":
        return CrossEncoder(model_path(), num_labels=3, device="cpu")
    return SentenceTransformer(model_path(), device="cpu")


@cache
def columns() -> tuple[list[str], list[str], list[float]]:
    """Pairs whose first sentences are all different, so that they tell which examples an evaluator has."""
    rows = {row["sentence1"]: row for row in sts_benchmark("dev", 80)}
    data = list(rows.values())[: COUNT + 1]
    return [row["sentence1"] for row in data], [row["sentence2"] for row in data], [row["score"] for row in data]


def pairs(places: Sequence[int]) -> tuple[list[str], list[str], list[float]]:
    left, right, scores = columns()
    return [left[i] for i in places], [right[i] for i in places], [scores[i] for i in places]


def similarity(kind: type, places: Sequence[int], **settings: Any) -> Any:
    return kind(*pairs(places), name="dev", batch_size=8, **settings)


def classification(kind: type, places: Sequence[int], **settings: Any) -> Any:
    left, right, scores = pairs(places)
    return kind(left, right, [int(score > 0.5) for score in scores], name="dev", batch_size=8, **settings)


def triplets(kind: type, places: Sequence[int], **settings: Any) -> Any:
    """The first examples have their positive and negative exchanged, which no model gets right."""
    left, right, _ = columns()
    found = [(right[i], right[i + 1]) if i > 4 else (right[i + 1], right[i]) for i in places]
    positives, negatives = [one for one, _ in found], [other for _, other in found]
    return kind([left[i] for i in places], positives, negatives, name="dev", batch_size=8, **settings)


def reranking(kind: type, places: Sequence[int], others: str = "negative", **settings: Any) -> Any:
    left, right, _ = columns()
    texts = [right[(place + 2) % COUNT if place < 4 else place] for place in range(COUNT)]  # the first are wrong
    samples = [
        {"query": left[i], "positive": [texts[i]], others: [right[(i + j) % COUNT] for j in range(3, 6 + i % 3)]}
        for i in places
    ]
    return kind(samples, at_k=3, name="dev", batch_size=8, **settings)


def translation(kind: type, places: Sequence[int], **settings: Any) -> Any:
    left, right, _ = pairs(places)
    return kind(left, right, name="dev", batch_size=8, **settings)


def teaching(kind: type, family: str, places: Sequence[int]) -> Any:
    """The teacher of all examples is asked at once, since the size of its batches changes the last bit."""
    left, right, _ = columns()
    made = kind(left[:COUNT], left[:COUNT], teacher_model=model(family), name="dev")
    made.target_sentences = [right[i] for i in places]
    made.source_embeddings = made.source_embeddings[list(places)]
    return made


def text_pairs(kind: type, places: Sequence[int], classes: int = 0) -> Any:
    left, right, scores = pairs(places)
    targets = [int(score > 0.5) + int(classes > 2 and score > 0.97) for score in scores] if classes else scores
    return kind(list(zip(left, right, strict=True)), targets, name="dev", batch_size=8)


def distillation(nested: bool, places: Sequence[int]) -> Any:
    left, right, scores = columns()
    documents: list[Any] = [[right[i], right[i + 1]] if nested else right[i] for i in places]
    teacher: list[Any] = [[scores[i], 0.1 * i] if nested else scores[i] for i in places]
    return MultiVectorDistillationEvaluator([left[i] for i in places], documents, teacher, name="dev", batch_size=8)


# What tells an example's place
FIRST: dict[type, Callable[[Any], list[str]]] = {
    EmbeddingSimilarityEvaluator: lambda found: found.sentences1,
    BinaryClassificationEvaluator: lambda found: found.sentences1,
    TripletEvaluator: lambda found: found.anchors,
    RerankingEvaluator: lambda found: [sample["query"] for sample in found.samples],
    TranslationEvaluator: lambda found: found.source_sentences,
    CrossEncoderCorrelationEvaluator: lambda found: [pair[0] for pair in found.sentence_pairs],
    CrossEncoderClassificationEvaluator: lambda found: [pair[0] for pair in found.sentence_pairs],
    CrossEncoderRerankingEvaluator: lambda found: [sample["query"] for sample in found.samples],
    MultiVectorDistillationEvaluator: lambda found: found.queries,
}


def places(evaluator: Any) -> list[int]:
    """Which examples an evaluator has."""
    left, right, _ = columns()
    if isinstance(evaluator, MSEEvaluator):
        return [right.index(sentence) for sentence in evaluator.target_sentences]
    sentences = next(find(evaluator) for kind, find in FIRST.items() if isinstance(evaluator, kind))
    return [left.index(sentence) for sentence in sentences]


ROWS: dict[str, tuple[str, Build]] = {
    "similarity": (
        "dense",
        partial(
            similarity, EmbeddingSimilarityEvaluator, truncate_dim=32, similarity_fn_names=["cosine", "euclidean"]
        ),
    ),
    "similarity int8": ("dense", partial(similarity, EmbeddingSimilarityEvaluator, precision="int8")),
    "classification": ("dense", partial(classification, BinaryClassificationEvaluator)),
    "triplets": ("dense", partial(triplets, TripletEvaluator, margin=0.05)),
    "reranking": ("dense", partial(reranking, RerankingEvaluator)),
    "translation": ("dense", partial(translation, TranslationEvaluator)),
    "teacher": ("dense", partial(teaching, MSEEvaluator, "dense")),
    "sparse similarity": ("sparse", partial(similarity, SparseEmbeddingSimilarityEvaluator, max_active_dims=50)),
    "sparse classification": ("sparse", partial(classification, SparseBinaryClassificationEvaluator)),
    "sparse triplets": ("sparse", partial(triplets, SparseTripletEvaluator)),
    "sparse reranking": ("sparse", partial(reranking, SparseRerankingEvaluator)),
    "sparse translation": ("sparse", partial(translation, SparseTranslationEvaluator)),
    "sparse teacher": ("sparse", partial(teaching, SparseMSEEvaluator, "sparse")),
    "multi-vector triplets": ("multi", partial(triplets, MultiVectorTripletEvaluator)),
    "multi-vector reranking": ("multi", partial(reranking, MultiVectorRerankingEvaluator)),
    "distillation": ("multi", partial(distillation, False)),
    "distillation of candidates": ("multi", partial(distillation, True)),
    "cross-encoder correlation": ("cross", partial(text_pairs, CrossEncoderCorrelationEvaluator)),
    "cross-encoder binary": ("cross", partial(text_pairs, CrossEncoderClassificationEvaluator, classes=2)),
    "cross-encoder classes": ("cross classes", partial(text_pairs, CrossEncoderClassificationEvaluator, classes=3)),
    "cross-encoder reranking": ("cross", partial(reranking, CrossEncoderRerankingEvaluator)),
    "cross-encoder first stage": ("cross", partial(reranking, CrossEncoderRerankingEvaluator, others="documents")),
}


def retrieval(
    kind: type, queries: Sequence[int] | None = None, corpus: Sequence[int] | None = None, **settings: Any
) -> Any:
    """Each query has one or two relevant documents; the ids do not sort as the documents are ordered."""
    left, right, _ = columns()
    queries = range(COUNT) if queries is None else queries
    corpus = range(3 * COUNT) if corpus is None else corpus
    texts = [f"{right[i % COUNT]} {i // COUNT}" for i in range(3 * COUNT)]
    return kind(
        queries={f"q{i}": left[i] for i in queries},
        corpus={document_id(i): texts[i] for i in corpus},
        relevant_docs={f"q{i}": {document_id(i), document_id(i + COUNT * (i % 2))} for i in queries},
        name="dev",
        batch_size=8,
        **settings,
    )


def document_id(place: int) -> str:
    return f"d{place * 31 % 97:02d}"


RETRIEVAL: dict[str, tuple[str, type]] = {
    "retrieval": ("dense", InformationRetrievalEvaluator),
    "sparse retrieval": ("sparse", SparseInformationRetrievalEvaluator),
    "multi-vector retrieval": ("multi", MultiVectorInformationRetrievalEvaluator),
}
NANO: dict[str, tuple[str, type]] = {
    "nano": ("dense", NanoBEIREvaluator),
    "sparse nano": ("sparse", SparseNanoBEIREvaluator),
    "multi-vector nano": ("multi", MultiVectorNanoBEIREvaluator),
    "cross-encoder nano": ("cross", CrossEncoderNanoBEIREvaluator),
}


def nano_folder(folder: Path) -> str:
    """Two datasets in the format of NanoBEIR, on disk, where the evaluators' own loading finds them."""
    left, right, _ = columns()
    splits = {"NanoMSMARCO": range(8), "NanoNQ": range(8, 14)}
    configs = []
    for subset in ("corpus", "queries", "qrels", "bm25"):
        configs += [f"- config_name: {subset}", "  data_files:"]
        for split, chosen in splits.items():
            rows = {
                "corpus": [{"_id": f"d{i}", "text": right[i]} for i in chosen],
                "queries": [{"_id": f"q{i}", "text": left[i]} for i in chosen],
                "qrels": [{"query-id": f"q{i}", "corpus-id": f"d{i}"} for i in chosen],
                "bm25": [{"query-id": f"q{i}", "corpus-ids": [f"d{j}" for j in chosen]} for i in chosen],
            }[subset]
            path = folder / subset / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            configs += [f"  - split: {split}", f"    path: {subset}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]), encoding="utf-8")
    return str(folder)


def state(evaluator: Any) -> Any:
    """All that an evaluator holds, as plain values that compare."""
    if isinstance(evaluator, np.ndarray | torch.Tensor):
        return evaluator.tolist()
    if isinstance(evaluator, list | tuple):
        return [state(item) for item in evaluator]
    if isinstance(evaluator, dict):
        return {key: state(item) for key, item in evaluator.items()}
    return state(vars(evaluator)) if isinstance(evaluator, BaseEvaluator) else evaluator
