"""The examples of single tasks run as they are, with small sizes, and the values that they search reach the models."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx
import optuna
import pytest
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from st_hpo import SearchResult

from embedded import documentation, model_path, sts_benchmark

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(name: str, monkeypatch: pytest.MonkeyPatch, *options: object) -> tuple[SearchResult, dict[str, Any]]:
    """Runs an example in this process, in the test's folder; returns its result, and its functions by their names."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options), "--output", "result.json"])
    functions = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return SearchResult.load("result.json"), functions


def retrained(output: str) -> float | list[float]:
    """Reads the objective of the model that the example has trained after its search."""
    (value,) = re.findall(r"^Retrained: (.+), (?:NOT )?the same\.$", output, flags=re.MULTILINE)
    return ast.literal_eval(value)


def is_front(result: SearchResult, signs: tuple[int, int]) -> set[int]:
    """Finds the trials that no other one beats, from the metrics; ``signs`` is 1 where more is better, else -1."""
    points = {
        trial.number: [sign * trial.metrics[name] for sign, name in zip(signs, result.objective_names, strict=True)]
        for trial in result.completed
    }
    return {
        number
        for number, point in points.items()
        if not any(
            other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points.values()
        )
    }


def marked(output: str) -> set[int]:
    """Reads the trials that the example's table marks as the front."""
    return {int(number) for number in re.findall(r"^ +(\d+) .* front$", output, flags=re.MULTILINE)}


def dev_score(model: SentenceTransformer) -> float:
    """Scores a model as the examples do, without any trainer."""
    dev = sts_benchmark("dev")
    scores = EmbeddingSimilarityEvaluator(dev["sentence1"], dev["sentence2"], dev["score"], write_csv=False)(model)
    return scores["spearman_cosine"]


def test_the_corpus_is_the_documentation_of_networkx():
    pairs = documentation("networkx")
    assert len(pairs) > 900
    assert len(set(pairs["query"])) == len(pairs)
    found = dict(zip(pairs["query"], pairs["document"], strict=True))
    for function in (networkx.pagerank, networkx.maximum_flow, networkx.is_bipartite):
        query, _, document = function.__doc__.strip().partition("\n\n")
        assert found[" ".join(query.split())] == " ".join(document.split()), function
    assert documentation("networkx", limit=7).to_dict() == pairs.select(range(7)).to_dict()


@pytest.mark.slow
def test_the_reranker_learns_from_the_first_stages_candidates(monkeypatch, capsys):
    result, functions = run_example("reranker", monkeypatch, "--trials", 2, "--queries", 40)
    (best,) = result.best_trials
    assert [trial.state for trial in result.trials] == ["completed"] * 2
    assert retrained(capsys.readouterr().out) == best.objective > result.baseline.objective

    samples = functions["first_stage"]("train", candidates=6, limit=40)
    assert len(samples) == 40
    assert all(len(sample["documents"]) >= 6 and sample["query"] not in sample["documents"] for sample in samples)
    pairs = functions["labelled"](samples)
    relevant = {(sample["query"], text) for sample in samples for text in sample["positive"]}
    labelled = {(row["query"], row["document"]): row["label"] for row in pairs}
    assert {pair for pair, label in labelled.items() if label == 1.0} == relevant
    scores = {(row["sentence1"], row["sentence2"]): row["score"] for row in sts_benchmark("train")}
    assert min(scores[pair] for pair in relevant) >= 0.8

    loss = functions["loss_init"](
        CrossEncoder(model_path(), num_labels=1), pos_weight=best.hyperparameters["loss.pos_weight"]
    )
    assert loss.bce_with_logits_loss.pos_weight.item() == pytest.approx(best.hyperparameters["loss.pos_weight"])


@pytest.mark.slow
def test_splade_finds_the_front_of_quality_and_sparsity(monkeypatch, capsys):
    result, functions = run_example("splade", monkeypatch, "--trials", 3, "--pairs", 32, "--documents", 64)
    output = capsys.readouterr().out
    assert [trial.state for trial in result.trials] == ["completed"] * 3
    assert result.directions == ["maximize", "minimize"]
    front = is_front(result, (1, -1))
    assert {trial.number for trial in result.best_trials} == front == marked(output)
    chosen = max(result.best_trials, key=lambda trial: trial.objective[0])
    assert retrained(output) == chosen.objective
    assert min(trial.objective[1] for trial in result.completed) < result.baseline.objective[1]

    evaluator = functions["retrieval"](documentation("networkx", limit=64))
    assert len(evaluator.corpus) == 64 and len(evaluator.queries) == 8
    loss = functions["loss_init"](functions["model_init"](), document_weight=0.25, query_weight=0.5)
    assert (loss.document_regularizer_weight, loss.query_regularizer_weight) == (0.25, 0.5)


@pytest.mark.slow
def test_matryoshka_scores_whole_and_short_embeddings(monkeypatch, capsys):
    result, functions = run_example("matryoshka", monkeypatch, "--trials", 3, "--pairs", 96)
    output = capsys.readouterr().out
    assert [trial.state for trial in result.trials] == ["completed"] * 3
    assert {trial.number for trial in result.best_trials} == is_front(result, (1, 1)) == marked(output)
    assert retrained(output) == max(result.best_trials, key=lambda trial: trial.objective[1]).objective
    assert all(trial.objective[0] != trial.objective[1] for trial in result.completed)

    loss = functions["loss_init"](
        SentenceTransformer(model_path()), dimensions="both ends", weights="short first", scale=7.0
    )
    assert dict(zip(loss.matryoshka_dims, loss.matryoshka_weights, strict=True)) == {128: 1.0, 16: 8.0**0.5}
    assert loss.loss.scale == 7.0


@pytest.mark.slow
def test_the_saved_adapter_has_the_rank_that_was_found(monkeypatch, capsys):
    result, functions = run_example("lora", monkeypatch, "--trials", 2, "--pairs", 96)
    (best,) = result.best_trials
    values = best.hyperparameters
    assert retrained(capsys.readouterr().out) == best.objective

    saved = json.loads(Path("result.json.model/adapter_config.json").read_text())
    assert saved["r"] == values["model.rank"]
    assert saved["lora_alpha"] == values["model.rank"] * values["model.scaling"]
    assert saved["lora_dropout"] == values["model.dropout"]
    assert set(saved["target_modules"]) == set(functions["TARGETS"][values["model.targets"]])
    with safe_open("result.json.model/adapter_model.safetensors", "pt") as weights:
        assert all("lora_" in name for name in weights.keys())  # noqa: SIM118 - it is no dict
        stored = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert stored == functions["trained_parameters"](rank=values["model.rank"], targets=values["model.targets"])
    assert dev_score(SentenceTransformer("result.json.model")) == pytest.approx(best.objective, abs=1e-12)


@pytest.mark.slow
def test_the_saved_model_is_of_the_base_and_the_pooling_that_were_found(monkeypatch, capsys):
    result, functions = run_example("base_model", monkeypatch, "--trials", 3, "--pairs", 96)
    (best,) = result.best_trials
    assert retrained(capsys.readouterr().out) == best.objective
    assert len({trial.hyperparameters["model.base"] for trial in result.completed}) > 1
    for trial in result.completed:
        has_layers = trial.hyperparameters["model.base"] in functions["LAYERS"]
        assert ("model.pooling" in trial.hyperparameters) == has_layers

    model = SentenceTransformer("result.json.model")
    base = best.hyperparameters["model.base"]
    if base in functions["LAYERS"]:
        assert len(model[0].model.encoder.layer) == functions["LAYERS"][base]
        assert model[1].pooling_mode == best.hyperparameters["model.pooling"]
    else:
        assert type(model[0]).__name__ == "StaticEmbedding"
    assert dev_score(model) == best.objective


@pytest.mark.slow
def test_a_resumed_search_with_workers_adds_the_trials_that_are_missing(tmp_path):
    def run(total: int) -> tuple[str, SearchResult]:
        output = tmp_path / f"{total}.json"
        options = ["--folder", tmp_path / "search", "--trials", total, "--pairs", 96, "--output", output]
        done = subprocess.run(
            [sys.executable, EXAMPLES / "resume.py", *map(str, options)],
            capture_output=True,
            text=True,
            timeout=580,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, SearchResult.load(output)

    first_output, first = run(2)
    second_output, second = run(4)
    assert [trial.state for trial in second.trials] == ["completed"] * 4
    assert second.trials[:2] == first.trials
    assert retrained(first_output) == first.best_trials[0].objective
    assert retrained(second_output) == second.best_trials[0].objective >= first.best_trials[0].objective

    study = optuna.load_study(study_name="sts", storage=f"sqlite:///{tmp_path / 'search' / 'study.db'}")
    ran = [trial.user_attrs["process"] for trial in study.trials]
    scripts = {int(re.search(r"this script: process (\d+)", text)[1]) for text in (first_output, second_output)}
    assert not scripts & set(ran)
    assert len(set(ran[:2])) == 2 and not set(ran[:2]) & set(ran[2:])
