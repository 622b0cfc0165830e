"""The best trial's model on disk, the training with the user's own arguments, and training the winner again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

import st_hpo
from st_hpo import ConfigurationError, Float, SearchResult, SearchSpace
from st_hpo.best_model import BEST_MODEL, NOTE, BestModelKeeper, BestModelNote, _exchange
from st_hpo.records import COMPLETED, FAILED, PRUNED

from fast_trainer import METRIC, RATES, FailIn, fast_arguments, fast_trainer, random_sampler
from scenarios import SCENARIOS, SMALL_MODEL, Scenario, arguments, embedding_evaluator, pairs
from small_model import build_small_model


def search(trainer: Any, **changes: Any) -> Any:
    options = {"hp_space": RATES, "compute_objective": METRIC, "n_trials": 4, "sampler": random_sampler()}
    return trainer.hyperparameter_search(**{**options, **changes})


def saving(folder: Path, **values: Any) -> Any:
    return fast_trainer(args=fast_arguments(output_dir=str(folder), **values))


def score(folder: Path) -> float:
    model = SentenceTransformer(str(folder / BEST_MODEL), device="cpu")
    return embedding_evaluator()(model)["sts-dev_spearman_cosine"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- all four trainers, from the search to the model in a fresh process

FRESH = """
import json, sys
import torch
torch.set_num_threads(1)
from scenarios import SCENARIOS
scenario = SCENARIOS[sys.argv[1]]
kind = type(scenario.model_init())
model = kind(sys.argv[2], device="cpu")
print("METRICS", json.dumps(scenario.evaluator()(model)))
"""
FAMILIES = ["sentence_transformer", "cross_encoder", "sparse_encoder", "multi_vector_encoder"]


def family(name: str, folder: Path) -> tuple[Scenario, Any]:
    scenario = SCENARIOS[name]
    trainer = getattr(st_hpo, scenario.trainer)(
        args=arguments(scenario.arguments, **{**(scenario.fixed or {}), "output_dir": str(folder)}),
        train_dataset=scenario.train(),
        eval_dataset=scenario.eval_data() if scenario.eval_data else None,
        evaluator=scenario.evaluator(),
        model_init=scenario.model_init,
        loss_init=scenario.loss_init,
    )
    return scenario, trainer


@pytest.fixture(scope="module", autouse=True)
def small_model(tmp_path_factory):
    texts = [text for name in ("sentence1", "sentence2") for text in pairs("train", 64)[name]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SMALL_MODEL, build_small_model(tmp_path_factory.mktemp("small"), texts))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_retraining_and_the_saved_model_give_the_best_objective_bit_for_bit(name, tmp_path):
    scenario, trainer = family(name, tmp_path / "out")
    evaluator = scenario.evaluator()
    # Of the evaluator, so that a fresh process can measure it without a trainer
    metric = None if scenario.metric == "eval_loss" else scenario.metric
    key = metric or f"eval_{evaluator(scenario.model_init()) and evaluator.primary_metric}"

    def hp_space(trial: optuna.Trial) -> dict[str, Any]:
        return scenario.trials[trial.suggest_categorical(f"values of {trial.number}", [trial.number])]

    best = trainer.hyperparameter_search(
        hp_space, key, n_trials=2, direction="maximize", backend="optuna", save_best_model=True
    )
    assert names(tmp_path / "out") == [BEST_MODEL]
    note = BestModelNote.read(tmp_path / "out" / BEST_MODEL)
    assert note is not None and note.values == [best.objective] and str(note.trial) == best.run_id
    assert note.hyperparameters == best.hyperparameters
    assert trainer.retrain_best(best).metrics[key] == best.objective
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, name, str(tmp_path / "out" / BEST_MODEL)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert fresh.returncode == 0, fresh.stderr[-3000:]
    (line,) = [line for line in fresh.stdout.splitlines() if line.startswith("METRICS ")]
    assert json.loads(line.removeprefix("METRICS "))[key.removeprefix("eval_")] == best.objective


# -- one folder, at any time


def test_one_whole_model_is_there_at_any_time_and_it_is_the_best_so_far(tmp_path):
    seen: list[tuple[float, float]] = []
    broken: list[str] = []
    done = threading.Event()

    def watch() -> None:
        begun = False
        while not done.is_set():
            present = [name for name in names(tmp_path) if not name.startswith(".")]
            if begun and not (tmp_path / BEST_MODEL / "model.safetensors").is_file():
                broken.append("no model")
            begun = begun or BEST_MODEL in present
            time.sleep(0.0005)

    completed: list[float] = []

    class Note(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if completed:
                seen.append((max(completed), score(tmp_path)))
            assert len(list(tmp_path.rglob("model.safetensors"))) == bool(completed)

    def remember(study: optuna.Study, trial: Any) -> None:
        completed.append(trial.value)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        trainer = fast_trainer(args=fast_arguments(output_dir=str(tmp_path)), callbacks=[Note])
        best = search(trainer, n_trials=6, save_best_model=True, callbacks=[remember])
    finally:
        done.set()
        thread.join()
    assert len(seen) == 5 and all(best_so_far == saved for best_so_far, saved in seen)
    assert score(tmp_path) == best.objective and broken == []
    assert names(tmp_path) == [BEST_MODEL]


def test_saving_the_best_model_changes_no_objective(tmp_path):
    values = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    for objective_from in ("end", "best"):
        plain, kept = saving(tmp_path / "a", **values), saving(tmp_path / objective_from, **values)
        search(plain, objective_from=objective_from)
        search(kept, objective_from=objective_from, save_best_model=True)
        objectives = [[r.objective for r in trainer.last_search.trials] for trainer in (plain, kept)]
        assert objectives[0] == objectives[1]
        assert score(tmp_path / objective_from) == max(objectives[0])


def test_of_the_best_evaluation_the_weights_of_that_step_are_kept(tmp_path):
    """The score is minimized, while the training makes it grow: the first evaluation is the best."""
    trainer = saving(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=3)
    best = search(trainer, n_trials=2, direction="minimize", objective_from="best", save_best_model=True)
    curve = [item["metrics"][METRIC] for item in best.run_summary.best_trials[0].evaluations]
    assert curve.index(min(curve)) < len(curve) - 1
    assert score(tmp_path) == best.objective == min(curve)


def test_failed_and_pruned_trials_leave_no_model(tmp_path):
    class Prune(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return trial.number == 2

    trainer = saving(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer.add_callback(FailIn({0, 1}, ValueError("no")))
    best = search(trainer, save_best_model=True, on_error="continue", pruner=Prune())
    assert [record.state for record in best.run_summary.trials] == [FAILED, FAILED, PRUNED, COMPLETED]
    assert names(tmp_path) == [BEST_MODEL] and score(tmp_path) == best.objective


def test_a_search_replaces_the_model_of_an_earlier_one_and_a_resumed_study_goes_on_from_it(tmp_path):
    study = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "mine", "load_if_exists": True}
    out = tmp_path / "out"
    first = search(saving(out), save_best_model=True, **study)
    worse = {"hp_space": SearchSpace({"learning_rate": Float(1e-9, 1e-8, log=True)})}
    again = search(saving(out), save_best_model=True, n_trials=1, **study, **worse)
    assert len(again.run_summary.trials) == 5 and score(out) == first.objective  # the study's best is still there
    other = search(saving(out), save_best_model=True, n_trials=1, **worse)
    assert other.objective < first.objective and score(out) == other.objective


def test_a_folder_that_no_search_has_made_is_not_touched(tmp_path):
    (tmp_path / BEST_MODEL).mkdir()
    (tmp_path / BEST_MODEL / "mine.txt").write_text("mine")
    trainer = saving(tmp_path)
    with pytest.raises(ConfigurationError, match=r"something is there that no search has made\. Move it away"):
        search(trainer, save_best_model=True)
    assert names(tmp_path / BEST_MODEL) == ["mine.txt"]


def test_of_several_objectives_none_is_the_best(tmp_path):
    with pytest.raises(ConfigurationError, match="`save_best_model` needs a single objective"):
        search(
            saving(tmp_path), save_best_model=True, compute_objective=[METRIC, "eval_sts-dev_pearson_cosine"],
            direction=["maximize", "maximize"],
        )  # fmt: skip


class Saved:
    """What is staged: a model of one file."""

    def __init__(self, text: str) -> None:
        self.text = text

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "model").write_text(self.text)


def test_several_processes_keep_the_best_of_all(tmp_path):
    a, b, other = (BestModelKeeper(str(tmp_path), search) for search in ("s", "s", "t"))
    a.stage(Saved("a"), 0)
    b.stage(Saved("b"), 1)
    assert b.publish(BestModelNote("s", 1, ["m"], [0.5]), "maximize")
    assert not a.publish(BestModelNote("s", 0, ["m"], [0.4]), "maximize")
    assert (tmp_path / BEST_MODEL / "model").read_text() == "b" and names(tmp_path) == [BEST_MODEL]
    assert a.beats(0.4, "minimize") and not a.beats(0.5, "maximize") and other.beats(-1.0, "maximize")


def test_what_a_killed_process_had_staged_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    killed, living, third = (BestModelKeeper(str(tmp_path), "s") for _ in range(3))
    killed.stage(Saved("killed"), 0)
    living.stage(Saved("living"), 1)
    killed._let_go()  # as the system does
    third.stage(Saved("third"), 2)
    staged = sorted(path.read_text() for path in tmp_path.glob(".best_model-*/model"))
    assert staged == ["living", "third"]
    for number, keeper in enumerate((living, third)):
        assert keeper.publish(BestModelNote("s", number, ["m"], [float(number)]), "maximize")
    assert names(tmp_path) == [BEST_MODEL] and names(tmp_path / BEST_MODEL) == ["model", NOTE]


def test_without_the_systems_exchange_the_folder_is_replaced_in_two_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("st_hpo.best_model._exchange", lambda a, b: False)
    keeper = BestModelKeeper(str(tmp_path), "s")
    for number, text in enumerate(("first", "second")):
        keeper.stage(Saved(text), number)
        assert keeper.publish(BestModelNote("s", number, ["m"], [float(number)]), "maximize")
    assert (tmp_path / BEST_MODEL / "model").read_text() == "second" and names(tmp_path) == [BEST_MODEL]


def test_two_folders_are_exchanged_in_one_step(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert _exchange(tmp_path / "a", tmp_path / "b") == sys.platform.startswith("linux")
    if sys.platform.startswith("linux"):
        assert names(tmp_path / "a") == ["b"] and names(tmp_path / "b") == ["a"]
    assert not _exchange(tmp_path / "a", tmp_path / "nothing")


def test_a_note_that_cannot_be_read_is_none(tmp_path):
    assert BestModelNote.read(tmp_path) is None
    (tmp_path / NOTE).write_text('{"what": 1}')
    assert BestModelNote.read(tmp_path) is None


# -- the card


def test_the_best_models_card_is_complete_and_tells_of_the_search(tmp_path):
    best = search(saving(tmp_path), save_best_model=True, default_trial=True, n_trials=5)
    card = (tmp_path / BEST_MODEL / "README.md").read_text(encoding="utf-8")
    # Upstream's own fields, which a model from its `model_init` lacks
    for text in ("generated_from_trainer", "dataset_size:32", "loss:CoSENTLoss", "### Training Dataset"):
        assert text in card
    assert f"- `learning_rate`: {best.hyperparameters['learning_rate']}" in card
    assert "### Hyperparameter Search" in card and card.count("### Hyperparameter Search") == 1
    result = best.run_summary
    for value in (result.baseline.objective, result.default.objective, best.objective):
        assert f"| {value:.6g} |" in card
    assert "Float(low=1e-05, high=0.001, log=True, step=None)" in card
    assert ("5 trials, 5 completed" in card and "| learning\\_rate | 1 |" in card) or "| learning_rate | 1 |" in card


# -- the user's own arguments


def test_the_default_trial_is_the_training_with_the_users_own_arguments(tmp_path):
    trainer = saving(tmp_path, learning_rate=3e-4)
    best = search(trainer, n_trials=2, default_trial=True)
    default = best.run_summary.default
    assert default.state == COMPLETED and default.hyperparameters == {} and len(best.run_summary.trials) == 2
    by_hand = saving(tmp_path, learning_rate=3e-4)
    by_hand.train()
    assert default.objective == by_hand.evaluate()[METRIC]
    assert SearchResult.from_json(best.run_summary.to_json()) == best.run_summary
    assert f"{default.objective:.4f}" in str(best.run_summary)


def test_a_default_trial_that_fails_is_an_error_or_recorded(tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.trial_name == "default":
                raise ValueError("these arguments do not work")

    trainer = fast_trainer(callbacks=[Fail])
    with pytest.raises(ValueError, match="do not work"):
        search(trainer, default_trial=True)
    assert trainer.last_search.default.state == FAILED and trainer.last_search.trials == []
    best = search(trainer, default_trial=True, on_error="continue", n_trials=1)
    assert best.run_summary.default.error == "ValueError: these arguments do not work"


def test_functions_that_read_their_trial_get_none_for_the_default_trial():
    got = []

    def loss_init(model: Any, trial: Any) -> Any:
        from sentence_transformers.sentence_transformer.losses import CoSENTLoss

        got.append(None if trial is None else dict(trial))
        return CoSENTLoss(model, scale=20.0 if trial is None else trial.suggest_float("scale", 1.0, 30.0))

    trainer = fast_trainer(loss_init=loss_init)
    search(trainer, n_trials=1, default_trial=True, hp_space=lambda trial: {})
    # The trainer's own model, the baseline, the default trial, the trial
    assert got[:3] == [None, None, None] and len(got) == 4


# -- training the winner again


def test_retraining_takes_other_data_and_a_test_set():
    trainer = fast_trainer()
    best = search(trainer)
    same = trainer.retrain_best()
    assert same.metrics[METRIC] == best.objective and same.model is trainer.model
    more = trainer.retrain_best(best, train_dataset=pairs("train", 64), test_evaluator=embedding_evaluator())
    assert trainer.train_dataset.num_rows == 64
    assert more.metrics["test_sts-dev_spearman_cosine"] == more.metrics[METRIC] != best.objective
    by_hand = fast_trainer(train_dataset=pairs("train", 64), args=fast_arguments(**best.hyperparameters))
    by_hand.train()
    assert by_hand.evaluate()[METRIC] == more.metrics[METRIC]
    record = trainer.last_search.ranked()[1]
    assert trainer.retrain_best(record, train_dataset=pairs("train", 32)).metrics[METRIC] == record.objective


def test_retraining_needs_one_run():
    trainer = fast_trainer()
    with pytest.raises(ConfigurationError, match="there is no finished trial of a last search"):
        trainer.retrain_best()
    both = [METRIC, "eval_sts-dev_pearson_cosine"]
    front = search(trainer, compute_objective=both, direction=["minimize", "maximize"])
    if len(front) > 1:
        with pytest.raises(ConfigurationError, match=rf"the Pareto front has {len(front)}: choose one"):
            trainer.retrain_best()
    with pytest.raises(ConfigurationError, match="choose one of the Pareto front"):
        trainer.retrain_best(front)
    assert METRIC in trainer.retrain_best(front[0]).metrics
