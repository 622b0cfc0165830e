"""Which examples a sample has: its size, order, nesting and shares, for any data."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    InformationRetrievalEvaluator,
    TripletEvaluator,
)

from st_hpo import subsample_evaluator

SHARES = st.floats(0.001, 1.0)
SEEDS = st.integers(0, 2**40)


def numbered(count: int) -> TripletEvaluator:
    texts = [str(place) for place in range(count)]
    return TripletEvaluator(texts, texts, texts)


def drawn(count: int, size: int | float, seed: int = 0) -> list[int]:
    sample = subsample_evaluator(numbered(count), size, seed=seed)
    assert sample.anchors == sample.positives == sample.negatives
    return [int(text) for text in sample.anchors]


@given(st.integers(1, 200), SHARES, SHARES, SEEDS)
def test_a_sample_has_its_size_and_order_and_is_a_part_of_every_larger_one(count, one, other, seed):
    smaller, larger = (drawn(count, share, seed) for share in sorted((one, other)))
    assert set(smaller) <= set(larger)
    for share, found in zip(sorted((one, other)), (smaller, larger), strict=True):
        assert len(found) == max(1, round(share * count)) and found == sorted(set(found))
        assert found == drawn(count, len(found), seed)


def test_the_sample_of_a_seed_stays_what_it_is():
    """Records of searches name a seed: it must mean the same with every version, on every machine."""
    assert drawn(20, 5) == [3, 5, 7, 12, 15]
    assert drawn(20, 5, seed=1) == [0, 8, 9, 13, 19]


def test_every_example_is_equally_likely():
    times = Counter(place for seed in range(400) for place in drawn(10, 0.5, seed))
    assert sorted(times) == list(range(10)) and all(150 < count < 250 for count in times.values())
    assert len({tuple(drawn(10, 0.5, seed)) for seed in range(400)}) > 150  # of 252


@given(st.lists(st.booleans(), min_size=2, max_size=200).filter(lambda item: len(set(item)) == 2), SHARES, SEEDS)
def test_two_classes_keep_their_shares(labels, share, seed):
    texts = [str(place) for place in range(len(labels))]
    whole = BinaryClassificationEvaluator(texts, texts, [int(label) for label in labels])
    count = max(1, round(share * len(labels)))
    expected = count * sum(labels) / len(labels)
    if not 1 <= expected <= count - 1:
        return  # a class may be missing, which is refused
    sample = subsample_evaluator(whole, share, seed=seed)
    assert abs(sum(sample.labels) - expected) < 1
    assert sample.sentences1 == sorted(sample.sentences1, key=int)
    assert sample.labels == [int(labels[int(text)]) for text in sample.sentences1]


@st.composite
def retrievals(draw: Any) -> InformationRetrievalEvaluator:
    queries, documents = draw(st.integers(1, 30)), draw(st.integers(1, 60))
    relevant = st.sets(st.integers(0, documents + 3), max_size=4)  # some name a document that is not there
    found = {f"q{i}": {f"d{j}" for j in draw(relevant)} for i in range(queries)}
    found["q0"] = {"d0"}
    return InformationRetrievalEvaluator(
        {f"q{i}": f"query {i}" for i in range(queries)}, {f"d{j}": f"text {j}" for j in range(documents)}, found
    )


@settings(deadline=None)
@given(retrievals(), SHARES, st.none() | SHARES, SEEDS)
def test_every_relevant_document_is_kept_and_the_corpus_has_its_share(whole, share, corpus_share, seed):
    sample = subsample_evaluator(whole, share, seed=seed, corpus_size=corpus_share)
    assert len(sample.queries) == max(1, round(share * len(whole.queries)))
    needed = set().union(*(whole.relevant_docs[query] for query in sample.queries_ids)) & set(whole.corpus_ids)
    assert needed <= set(sample.corpus_ids)
    assert len(sample.corpus) == max(len(needed), round((corpus_share or share) * len(whole.corpus)))
    for ids, texts, of in (
        (sample.queries_ids, sample.queries, dict(zip(whole.queries_ids, whole.queries, strict=True))),
        (sample.corpus_ids, sample.corpus, dict(zip(whole.corpus_ids, whole.corpus, strict=True))),
    ):
        assert [of[name] for name in ids] == texts and ids == [name for name in of if name in set(ids)]
    again = subsample_evaluator(whole, share, seed=seed, corpus_size=corpus_share)
    assert (again.queries_ids, again.corpus_ids) == (sample.queries_ids, sample.corpus_ids)
