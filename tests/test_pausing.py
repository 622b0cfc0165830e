"""Trials that pause and go on from a checkpoint: what they leave, and when they are trained from their beginning."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers import EarlyStoppingCallback, TrainerCallback

import st_hpo.backends.optuna.paused as paused_module
from st_hpo import pausing
from st_hpo.backends.optuna.paused import PausedTrials, best_paused
from st_hpo.backends.optuna.promotion import promotion_of
from st_hpo.backends.optuna.pruners import AshaPruner
from st_hpo.records import COMPLETED, PRUNED

from fast_trainer import METRIC, RATES, fast_arguments, fast_trainer, random_sampler
from scenarios import pairs

STEPS = 8


class First(AshaPruner):
    """Pauses every trial at its first rung, and takes it up again at once."""

    def __init__(self, keep: int = 3) -> None:
        super().__init__(pauses=True, keep=keep)

    def prune(self, study: Any, trial: Any) -> bool:
        return trial.last_step == 50

    def promotable(self, study: Any, last: bool) -> Any:
        trials = study.get_trials(deepcopy=False)
        paused = [trial for trial in trials if trial.state == optuna.trial.TrialState.PRUNED]
        return paused[-1] if paused and trials[-1].number == paused[-1].number else None


def search(trainer: Any, **changes: Any) -> Any:
    options = {"hp_space": RATES, "compute_objective": METRIC, "n_trials": 1, "sampler": random_sampler()}
    return trainer.hyperparameter_search(**{**options, "pruner": First(), "rungs": [0.5], **changes}).run_summary


def trainer_of(folder: Path, **changes: Any) -> Any:
    args = {"max_steps": STEPS, "output_dir": str(folder / "output"), **changes.pop("arguments", {})}
    return fast_trainer(args=fast_arguments(**args), **changes)


def whole(folder: Path, **changes: Any) -> Any:
    """The same trial without a pruner."""
    (trial,) = search(trainer_of(folder, **changes), pruner=None, rungs=None).trials
    return trial


def scores_of(trial: Any) -> list[tuple[int, float, float]]:
    """Its learning curve, without the times."""
    return [(item["step"], item["epoch"], item["metrics"][METRIC]) for item in trial.evaluations]


def check(result: Any, expected: float, continued: bool) -> None:
    before, after = result.trials
    assert (before.state, after.state, after.continues) == (PRUNED, COMPLETED, 0)
    assert after.objective == expected
    assert (before.fraction, after.fraction) == (0.5, 0.5 if continued else 1.0)


def test_a_trial_that_goes_on_trains_the_rest_only_and_has_its_whole_curve(tmp_path):
    arguments = {"eval_strategy": "steps", "eval_steps": 2}
    expected = whole(tmp_path, arguments=arguments)
    result = search(trainer_of(tmp_path, arguments=arguments))
    check(result, expected.objective, continued=True)
    assert scores_of(result.trials[1]) == scores_of(expected)
    assert [item["step"] for item in expected.evaluations] == [2, 4, 6, 8]
    assert result.trials[0].phases["pause"] > 0 and result.trials[0].phases["train"] > 0


def test_nothing_stays_on_disk_and_nothing_is_written_where_none_is_kept(tmp_path, monkeypatch):
    seen: list[list[str]] = []
    tidy = PausedTrials.tidy

    def look(self: PausedTrials) -> None:
        tidy(self)
        seen.append([] if self.folder is None else sorted(path.name for path in Path(self.folder).glob("[0-9]*")))

    expected = whole(tmp_path)
    monkeypatch.setattr(PausedTrials, "tidy", look)
    search(trainer_of(tmp_path))
    assert seen == [["0"], []]
    assert not list((tmp_path / "output").iterdir())
    check(search(trainer_of(tmp_path), pruner=First(keep=0)), expected.objective, continued=False)
    assert seen[2:] == [[], []]


def test_few_checkpoints_are_kept_those_of_the_best(tmp_path):
    study = optuna.create_study(direction="maximize")
    values = (0.3, 0.5, 0.1, 0.4, 0.2)
    for value in values:
        trial = study.ask()
        trial.report(value, 26)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    study.add_trial(optuna.trial.create_trial(value=0.9, user_attrs=promotion_of(study.trials[1])))
    assert sorted(trial.number for trial in best_paused(study, study.trials, 2)) == [0, 3]
    other = study.ask()
    other.report(0.05, 26)
    assert other.number not in [trial.number for trial in best_paused(study, study.trials, 4, other.number)]
    assert other.number in [trial.number for trial in best_paused(study, study.trials, 5, other.number)]
    with PausedTrials(study, 2, str(tmp_path / "a" / "b")).kept() as kept:
        assert kept.folder is not None
        for number in (*range(len(values)), other.number):
            (Path(kept.folder) / str(number)).mkdir()
        kept.tidy()
        assert sorted(os.listdir(kept.folder)) == [paused_module._LOCK, "0", "3", str(other.number)]
    assert not (tmp_path / "a").exists()


def test_what_a_killed_search_has_left_goes_with_the_next_and_that_of_a_running_one_stays(tmp_path):
    study = optuna.create_study()
    left = tmp_path / f"{paused_module._PREFIX}killed"
    (left / "0").mkdir(parents=True)
    with PausedTrials(study, 1, str(tmp_path)).kept() as one:
        assert not left.exists()
        with PausedTrials(study, 1, str(tmp_path)).kept():
            assert one.folder is not None and Path(one.folder).is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_keeps_nobody_from_searching(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with PausedTrials(optuna.create_study(), 1, str(file / "output")).kept() as kept:
        assert kept.folder is None
        kept.tidy()


# ---- Where a checkpoint does not hold everything ----


class Counting(TrainerCallback):
    """Changes the learning rate by what it has counted, which no checkpoint knows."""

    def __init__(self) -> None:
        self.count = 0

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.count += 1
        optimizer.param_groups[0]["weight_decay"] = 0.1 * self.count


class CountingLoss(CoSENTLoss):
    """Weighs every step by what it has counted."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.count = 0

    def forward(self, sentence_features: Any, labels: Any) -> torch.Tensor:
        self.count += 1
        return super().forward(sentence_features, labels) * self.count


class RememberingLoss(CoSENTLoss):
    """As above, with a list."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.seen: list[int] = []

    def forward(self, sentence_features: Any, labels: Any) -> torch.Tensor:
        self.seen.append(len(labels))
        return super().forward(sentence_features, labels) * len(self.seen)


BEST_MODEL = {
    "load_best_model_at_end": True,
    "metric_for_best_model": METRIC,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 4,
}


def unchanged(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize(
    "changes",
    [
        {"callbacks": [Counting()]},
        {"loss_init": CountingLoss},
        {"loss_init": RememberingLoss},
        {"train_dataset": pairs("train", 32).with_transform(unchanged)},
        {"arguments": BEST_MODEL},
        {"arguments": {"ignore_data_skip": True}},
        {"arguments": {"max_steps": -1, "num_train_epochs": 2}},  # the rung is at the end of an epoch
    ],
    ids=["callback", "count", "list", "transform", "best model", "no skipping", "end of epoch"],
)
def test_what_a_checkpoint_does_not_hold_is_trained_from_its_beginning(changes, tmp_path):
    expected = whole(tmp_path, **changes)
    check(search(trainer_of(tmp_path, **changes)), expected.objective, continued=False)


def test_the_best_evaluation_may_lie_before_the_pause(tmp_path):
    changes: dict[str, Any] = {"arguments": {"eval_strategy": "steps", "eval_steps": 2}}
    best: dict[str, Any] = {"objective_from": "best"}
    (expected,) = search(trainer_of(tmp_path, **changes), pruner=None, rungs=None, **best).trials
    check(search(trainer_of(tmp_path, **changes), **best), expected.objective, continued=False)


def test_callbacks_of_upstreams_go_on_with_what_they_have_counted(tmp_path):
    arguments = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": METRIC, "greater_is_better": True}
    changes: dict[str, Any] = {"arguments": arguments, "callbacks": [EarlyStoppingCallback(early_stopping_patience=5)]}
    space = {"hp_space": lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-12, 1e-12)}}
    (expected,) = search(trainer_of(tmp_path, **changes), pruner=None, rungs=None, **space).trials
    assert expected.evaluations[-1]["step"] == 6, "it must be early stopping that ends the training"
    result = search(trainer_of(tmp_path, **changes), **space)
    assert scores_of(result.trials[1]) == scores_of(expected)


# ---- Faults ----


def test_a_checkpoint_that_cannot_be_written_is_none(tmp_path, monkeypatch, caplog):
    expected = whole(tmp_path)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pausing, "save_loss", full)
    check(search(trainer_of(tmp_path)), expected.objective, continued=False)
    assert "could not be written: Disk full: OSError" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(pausing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    check(search(trainer_of(tmp_path)), expected.objective, continued=False)


@pytest.mark.parametrize("damage", ["weights", "missing", "note"])
def test_a_checkpoint_that_is_not_what_was_saved_is_not_used(damage, tmp_path, monkeypatch, caplog):
    expected = whole(tmp_path)
    saved = pausing.PausingCheckpoints.saved

    def saved_and_damaged(self: pausing.PausingCheckpoints, step: int) -> None:
        saved(self, step)
        if damage == "note":
            (self.folder / pausing.NOTE).unlink()
            return
        (file,) = self.folder.glob("checkpoint-*/model.safetensors")
        if damage == "missing":
            file.unlink()
        else:
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(bytes(data))

    monkeypatch.setattr(pausing.PausingCheckpoints, "saved", saved_and_damaged)
    check(search(trainer_of(tmp_path)), expected.objective, continued=False)
    assert ("is trained from its beginning" in caplog.text) == (damage != "note")


def test_keep_is_a_number_of_trials():
    with pytest.raises(ValueError, match="`keep` must be at least 0, but got -1"):
        AshaPruner(pauses=True, keep=-1)
