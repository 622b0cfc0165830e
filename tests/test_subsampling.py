"""A sample of an evaluator is the evaluator that one would build by hand from the same examples."""

from __future__ import annotations

import copy
import csv
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.cross_encoder.evaluation import CrossEncoderCorrelationEvaluator
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    ParaphraseMiningEvaluator,
    RerankingEvaluator,
    SequentialEvaluator,
    TripletEvaluator,
)

from st_hpo import ConfigurationError, NotSupportedError, subsample_evaluator
from st_hpo.subsampling import _RANK_CACHE

from embedded import sts_benchmark
from evaluator_cases import COUNT, NANO, RETRIEVAL, ROWS, document_id, model, nano_folder, places, retrieval, state


@pytest.fixture(scope="module")
def nano(tmp_path_factory) -> str:
    return nano_folder(tmp_path_factory.mktemp("nano"))


def similarity(**settings: Any) -> EmbeddingSimilarityEvaluator:
    """All of the dev set, as columns of a dataset."""
    dev = sts_benchmark("dev")
    return EmbeddingSimilarityEvaluator(dev["sentence1"], dev["sentence2"], dev["score"], name="dev", **settings)


@pytest.mark.parametrize("name", ROWS)
def test_a_sample_is_the_evaluator_built_from_its_examples(name):
    family, build = ROWS[name]
    whole = build(range(COUNT))
    before = copy.deepcopy(state(whole))
    sample = subsample_evaluator(whole, 0.5, seed=3)
    kept = places(sample)
    assert type(sample) is type(whole) and len(kept) == COUNT // 2 and kept == sorted(set(kept))

    metrics = sample(model(family))
    assert state(whole) == before, "the sample's run changed the given evaluator"
    assert metrics == build(kept)(model(family))
    assert all(value == value for value in metrics.values())  # none is NaN, which would equal nothing
    full = whole(model(family))
    assert list(metrics) == list(full) and sample.primary_metric == whole.primary_metric in metrics
    assert metrics != full

    everything = subsample_evaluator(whole, 1.0)  # of an evaluator that has run
    assert everything(model(family)) == full and everything.primary_metric == whole.primary_metric
    assert everything.csv_headers == whole.csv_headers


@pytest.mark.parametrize("name", RETRIEVAL)
def test_a_sample_of_queries_has_their_documents_and_a_share_of_the_others(name):
    family, kind = RETRIEVAL[name]
    whole = retrieval(kind)
    before = copy.deepcopy(state(whole))
    sample = subsample_evaluator(whole, 0.25, seed=1)
    assert len(sample.queries) == 4 and len(sample.corpus) == 12
    assert set(sample.relevant_docs) == set(sample.queries_ids)
    assert all(found == whole.relevant_docs[query] for query, found in sample.relevant_docs.items())
    assert set().union(*sample.relevant_docs.values()) <= set(sample.corpus_ids)

    metrics = sample(model(family))
    assert state(whole) == before
    ids = [document_id(place) for place in range(3 * COUNT)]
    corpus = [ids.index(document) for document in sample.corpus_ids]
    queries = [int(query[1:]) for query in sample.queries_ids]
    assert corpus == sorted(corpus) and queries == sorted(queries)
    assert metrics == retrieval(kind, queries, corpus)(model(family))
    full = whole(model(family))
    assert list(metrics) == list(full) and sample.primary_metric == whole.primary_metric in metrics
    assert subsample_evaluator(whole, 1.0)(model(family)) == full


def test_ties_of_a_sample_are_broken_by_its_own_documents():
    """Upstream keeps the order of the whole corpus' ids after its first tie."""
    settings = {"mrr_at_k": [2], "ndcg_at_k": [2], "accuracy_at_k": [1], "precision_recall_at_k": [1], "map_at_k": [2]}
    tied = {"corpus_chunk_size": 5, "score_functions": {"same": lambda a, b: torch.zeros(len(a), len(b))}}
    whole = retrieval(InformationRetrievalEvaluator, **settings, **tied)
    whole(model("dense"))
    assert getattr(whole, _RANK_CACHE) is not None
    sample = subsample_evaluator(whole, 0.75, seed=5)
    ids = [document_id(place) for place in range(3 * COUNT)]
    queries = [int(query[1:]) for query in sample.queries_ids]
    corpus = [ids.index(document) for document in sample.corpus_ids]
    by_hand = retrieval(InformationRetrievalEvaluator, queries, corpus, **settings, **tied)
    assert sample(model("dense")) == by_hand(model("dense"))
    assert getattr(sample, _RANK_CACHE).tolist() == by_hand.get_corpus_id_ranks().tolist()


@pytest.mark.parametrize("name", NANO)
def test_nano_evaluators_are_sampled_dataset_by_dataset(name, nano):
    family, kind = NANO[name]
    whole = kind(["msmarco", "nq"], dataset_id=nano, batch_size=8)
    before = copy.deepcopy(state(whole))
    sample = subsample_evaluator(whole, 0.5)
    metrics = sample(model(family))
    assert state(whole) == before
    sizes = [len(item.samples if family == "cross" else item.queries) for item in sample.evaluators]
    assert sizes == [4, 3] and type(sample) is type(whole)
    metric = sample.primary_metric.removeprefix(f"{sample.name}_")
    parts = [subsample_evaluator(item, 0.5)(model(family))[f"{item.name}_{metric}"] for item in whole.evaluators]
    assert metrics[sample.primary_metric] == np.mean(parts)
    full = whole(model(family))
    assert list(metrics) == list(full) and sample.primary_metric == whole.primary_metric in metrics
    assert subsample_evaluator(whole, 1.0)(model(family)) == full


def test_a_sequence_keeps_its_score_and_the_same_examples_in_all():
    wide, narrow = similarity(), similarity(truncate_dim=16)
    narrow.name = "narrow"
    whole = SequentialEvaluator([wide, narrow, retrieval(InformationRetrievalEvaluator)], lambda scores: sum(scores))
    sample = subsample_evaluator(whole, 0.02, seed=2)
    first, second, third = sample.evaluators
    assert first.sentences1 == second.sentences1 and len(first.scores) == 30 and len(third.queries) == 1
    assert whole.evaluators[0] is wide and wide.sentences1[0] == sts_benchmark("dev", 1)["sentence1"][0]
    metrics = sample(model("dense"))
    assert metrics["sequential_score"] == sum(metrics[item.primary_metric] for item in sample.evaluators)
    assert sample.primary_metric == "sequential_score"

    inner = subsample_evaluator(SequentialEvaluator([whole]), 0.02, seed=2).evaluators[0].evaluators
    assert inner[0].sentences1 == first.sentences1
    found = subsample_evaluator([wide, narrow], 0.02, seed=2)
    assert isinstance(found, list) and found[1].sentences1 == first.sentences1


def test_columns_arrays_and_tensors_give_the_same_sample():
    dev = sts_benchmark("dev", 40)
    found = []
    for convert in (lambda column: column, list, tuple, np.array):
        made = [convert(dev[name]) for name in ("sentence1", "sentence2", "score")]
        found.append(subsample_evaluator(EmbeddingSimilarityEvaluator(*made, name="dev"), 10))
    tensor = EmbeddingSimilarityEvaluator(dev["sentence1"], dev["sentence2"], torch.tensor(list(dev["score"])))
    assert isinstance(subsample_evaluator(tensor, 10).scores, torch.Tensor)
    assert isinstance(found[3].scores, np.ndarray)
    assert all(list(item.sentences1) == list(found[0].sentences1) for item in found)
    assert len({item(model("dense"))["dev_spearman_cosine"] for item in found}) == 1


def test_csv_files_hold_the_results_of_one_set_of_data(tmp_path):
    whole = similarity(write_csv=True)
    samples = [subsample_evaluator(whole, 40, seed=seed) for seed in (0, 1)]
    for evaluator in (*samples, subsample_evaluator(whole, 0.02), samples[0]):
        evaluator(model("dense"), output_path=str(tmp_path), epoch=1, steps=2)
    names = {path.name: list(csv.reader(path.open(encoding="utf-8"))) for path in tmp_path.iterdir()}
    stem = "similarity_evaluation_dev_results"
    assert {name: len(rows) for name, rows in names.items()} == {
        f"{stem}_sample-40_seed-0.csv": 3,
        f"{stem}_sample-40_seed-1.csv": 2,
        f"{stem}_sample-0.02_seed-0.csv": 2,
    }
    assert all(rows[0] == ["epoch", "steps", "cosine_pearson", "cosine_spearman"] for rows in names.values())
    assert whole.csv_file == f"{stem}.csv"
    quiet = subsample_evaluator(similarity(write_csv=False), 40)
    quiet(model("dense"), output_path=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_predictions_of_a_sample_do_not_replace_those_of_the_whole(tmp_path):
    whole = retrieval(InformationRetrievalEvaluator, write_predictions=True)
    whole(model("dense"), output_path=str(tmp_path))
    sample = subsample_evaluator(whole, 4, corpus_size=0.5)
    sample(model("dense"), output_path=str(tmp_path))
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in tmp_path.glob("*.jsonl")}
    stem = "Information-Retrieval_evaluation_dev_predictions"
    assert lines == {f"{stem}_cosine.jsonl": COUNT, f"{stem}_sample-4_corpus-0.5_seed-0_cosine.jsonl": 4}


def test_the_global_random_generators_are_neither_read_nor_moved():
    def states() -> list[str]:
        return [str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())]

    found = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = states()
        found.append(subsample_evaluator(similarity(), 0.1).sentences1)
        found.append(subsample_evaluator(retrieval(InformationRetrievalEvaluator), 0.3).corpus_ids)
        assert states() == before
    assert found[:2] == found[2:]


class Halved(EmbeddingSimilarityEvaluator):
    """A subclass with a constructor of its own, and settings of its own."""

    def __init__(self, data: Any, factor: float, weights: Any = None) -> None:
        super().__init__(data["sentence1"], data["sentence2"], data["score"], name="dev")
        self.factor = factor
        self.weights = weights

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {key: value * self.factor for key, value in super().__call__(model, *args, **kwargs).items()}


def test_subclasses_keep_what_is_their_own():
    dev = sts_benchmark("dev", 40)
    whole = Halved(dev, 0.5, weights={sentence: 1.0 for sentence in dev["sentence1"]})
    sample = subsample_evaluator(whole, 0.5)
    plain = EmbeddingSimilarityEvaluator(sample.sentences1, sample.sentences2, sample.scores, name="dev")
    assert {key: value * 0.5 for key, value in plain(model("dense")).items()} == sample(model("dense"))
    assert type(sample) is Halved and sample.weights == whole.weights and sample.weights is not whole.weights


@pytest.mark.parametrize("weights", [[1.0] * 40, np.ones(40), torch.ones(40, 2)], ids=["list", "array", "tensor"])
def test_lists_that_may_belong_to_the_data_are_refused(weights):
    with pytest.raises(NotSupportedError, match=r"Halved 'dev' has 'weights', as long as its data \(40\)"):
        subsample_evaluator(Halved(sts_benchmark("dev", 40), 0.5, weights), 0.5)
    assert subsample_evaluator(Halved(sts_benchmark("dev", 41), 0.5, weights), 0.5).weights is not None


class OwnEvaluator(BaseEvaluator):
    def __call__(self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("evaluator", "name"),
    [
        (OwnEvaluator(), "OwnEvaluator"),
        (lambda model: 0.0, "function"),
        (ParaphraseMiningEvaluator({"a": "x", "b": "y"}, [("a", "b")]), "ParaphraseMiningEvaluator"),
        (SequentialEvaluator([OwnEvaluator()]), "OwnEvaluator"),
        (None, "NoneType"),
    ],
)
def test_other_evaluators_are_refused_with_the_ones_that_are_known(evaluator, name):
    with pytest.raises(NotSupportedError, match=name) as caught:
        subsample_evaluator(evaluator, 0.5)
    assert "EmbeddingSimilarityEvaluator, InformationRetrievalEvaluator" in str(caught.value)
    assert "Build a smaller evaluator of your own" in str(caught.value)


@pytest.mark.parametrize("size", [0, -1, 0.0, -0.5, 1.5, 2.0, float("nan"), float("inf"), True, False, "half", None])
def test_sizes_that_make_no_sense_are_refused(size):
    with pytest.raises(ConfigurationError, match=r"^size=.*int of 1 or greater .* or a float in \(0, 1\]"):
        subsample_evaluator(similarity(), size)
    if size is not None:
        with pytest.raises(ConfigurationError, match=r"^corpus_size="):
            subsample_evaluator(retrieval(InformationRetrievalEvaluator), 0.5, corpus_size=size)


@pytest.mark.parametrize("seed", [-1, 1.0, True, None, "0"])
def test_seeds_that_make_no_sense_are_refused(seed):
    with pytest.raises(ConfigurationError, match=r"^seed="):
        subsample_evaluator(similarity(), 0.5, seed=seed)


def test_more_than_there_is_is_refused():
    with pytest.raises(ConfigurationError, match=r"size=1501 is more than the 1500 examples .* 'dev'"):
        subsample_evaluator(similarity(), 1501)
    whole = retrieval(InformationRetrievalEvaluator)
    with pytest.raises(ConfigurationError, match="size=17 is more than the 16"):
        subsample_evaluator(whole, 17)
    with pytest.raises(ConfigurationError, match=r"must be from 24, the relevant documents .* to 48"):
        subsample_evaluator(whole, 1.0, corpus_size=23)
    with pytest.raises(ConfigurationError, match="must be from"):
        subsample_evaluator(whole, 1, corpus_size=49)
    assert len(subsample_evaluator(whole, 1.0, corpus_size=24).corpus) == 24
    assert len(subsample_evaluator(whole, 1.0, corpus_size=0.1).corpus) == 24
    with pytest.raises(ConfigurationError, match="has none"):
        subsample_evaluator(SequentialEvaluator([similarity()]), 0.5, corpus_size=10)
    with pytest.raises(ConfigurationError, match="no examples"):
        subsample_evaluator(RerankingEvaluator([]), 0.5)


def test_a_sample_without_a_score_is_refused():
    with pytest.raises(ConfigurationError, match="single value of 'scores'"):
        subsample_evaluator(similarity(), 1)
    texts = [("a", "b")] * 4
    rare = [CrossEncoderCorrelationEvaluator(texts, [1.0 * (i == place) for i in range(4)]) for place in range(4)]
    refused = 0
    for evaluator in rare:
        try:
            subsample_evaluator(evaluator, 2)
        except ConfigurationError as error:
            refused += "2 of the 4 examples" in str(error) and "single value of 'scores', 0.0" in str(error)
    assert refused == 2  # those whose 1.0 is not among the two that seed 0 draws
    same = CrossEncoderCorrelationEvaluator(texts, [1.0] * 4)  # it has no score either
    assert len(subsample_evaluator(same, 2).scores) == 2
    assert len(subsample_evaluator(TripletEvaluator(["a"], ["b"], ["c"]), 0.1).anchors) == 1


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parents[1] / "docs" / "cheap-evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(block, scope)  # they assert what they promise
    assert blocks and "0." in capsys.readouterr().out
