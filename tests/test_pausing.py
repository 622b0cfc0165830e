"""Trials that pause and go on from a checkpoint: what they leave, and when they are trained from their beginning."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

import st_hpo.backends.optuna.paused as paused_module
from st_hpo import pausing, scratch
from st_hpo.backends.optuna.paused import PausedTrials, best_paused
from st_hpo.backends.optuna.promotion import promotion_of
from st_hpo.backends.optuna.pruners import AshaPruner
from st_hpo.records import FAILED

from embedded import model_path
from pausing_setup import AtFirst, check, scores_of, search, trainer_of, whole
from scenarios import ScaledCosineLoss, embedding_evaluator, pairs


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
    check(search(trainer_of(tmp_path), pruner=AtFirst(keep=0)), expected.objective, continued=False)
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
    nothing = study.ask()
    nothing.report(math.nan, 26)
    study.tell(nothing, state=optuna.trial.TrialState.PRUNED)
    assert nothing.number not in [trial.number for trial in best_paused(study, study.trials, 9)]
    other = study.ask()
    other.report(0.05, 26)
    assert other.number not in [trial.number for trial in best_paused(study, study.trials, 4, other.number)]
    assert other.number in [trial.number for trial in best_paused(study, study.trials, 5, other.number)]
    with PausedTrials(study, 2, str(tmp_path / "a" / "b")).kept() as kept:
        assert kept.folder is not None
        for number in (*range(len(values)), other.number):
            (Path(kept.folder) / str(number)).mkdir()
        kept.tidy()
        assert sorted(os.listdir(kept.folder)) == [scratch._LOCK, "0", "3", str(other.number)]
    assert not (tmp_path / "a").exists()


def test_what_a_killed_search_has_left_goes_with_the_next_and_that_of_a_running_one_stays(tmp_path):
    study = optuna.create_study()
    left = tmp_path / f"{paused_module._PREFIX}killed"
    (left / "0").mkdir(parents=True)
    (left / scratch._LOCK).touch()
    young = tmp_path / f"{paused_module._PREFIX}young"  # about to be locked
    young.mkdir()
    with PausedTrials(study, 1, str(tmp_path)).kept() as one:
        assert not left.exists()
        with PausedTrials(study, 1, str(tmp_path)).kept():
            assert one.folder is not None and Path(one.folder).is_dir()
    assert list(tmp_path.iterdir()) == [young]


def test_a_folder_that_cannot_be_made_keeps_nobody_from_searching(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with PausedTrials(optuna.create_study(), 1, str(file / "output")).kept() as kept:
        assert kept.folder is None
        kept.tidy()


def adapted_model() -> SentenceTransformer:
    """A model of which only an adapter is trained, and saved."""
    from peft import LoraConfig, TaskType

    model = SentenceTransformer(model_path(), device="cpu")
    model.add_adapter(LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, r=4, lora_dropout=0.1))
    return model


def test_an_adapter_pauses_as_well(tmp_path):
    expected = whole(tmp_path, model_init=adapted_model)
    check(search(trainer_of(tmp_path, model_init=adapted_model)), expected.objective, continued=True)


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


@pytest.mark.parametrize(
    "damage",
    ["model.safetensors", "no model", "optimizer.pt", "rng_state.pth", "loss.pt", "trainer_state.json", "note"],
)
def test_a_checkpoint_that_is_not_what_was_saved_is_not_used(damage, tmp_path, monkeypatch, caplog):
    changes: dict[str, Any] = {"loss_init": ScaledCosineLoss}
    expected = whole(tmp_path, **changes)
    saved = pausing.PausingCheckpoints.saved

    def saved_and_damaged(self: pausing.PausingCheckpoints, step: int) -> None:
        saved(self, step)
        (checkpoint,) = self.folder.glob("checkpoint-*")
        if damage == "note":
            (self.folder / pausing.NOTE).write_text("{")
        elif damage in ("optimizer.pt", "rng_state.pth"):
            (checkpoint / damage).unlink()
        elif damage == "no model":
            (checkpoint / "model.safetensors").unlink()
        elif damage == "model.safetensors":
            data = bytearray((checkpoint / damage).read_bytes())
            data[-1] ^= 1
            (checkpoint / damage).write_bytes(bytes(data))
        else:
            (checkpoint / damage).write_bytes((checkpoint / damage).read_bytes()[:100])

    monkeypatch.setattr(pausing.PausingCheckpoints, "saved", saved_and_damaged)
    check(search(trainer_of(tmp_path, **changes)), expected.objective, continued=False)
    unnoticed = damage in ("note", "rng_state.pth")  # there is no checkpoint then
    assert ("is trained from its beginning" in caplog.text) != unnoticed


def test_what_the_steps_own_evaluation_raises_fails_the_trial(tmp_path):
    """It comes after that of the rung, and is no fault of the checkpoint."""

    class Fails(EmbeddingSimilarityEvaluator):
        def __call__(self, model: Any, output_path: Any = None, epoch: int = -1, steps: int = -1) -> Any:
            if steps == 4:
                raise RuntimeError("not at the fourth step")
            return super().__call__(model, output_path, epoch, steps)

    dev = pairs("dev", 64)
    evaluator = Fails(dev["sentence1"], dev["sentence2"], dev["score"], name="sts-dev")
    trainer = trainer_of(tmp_path, evaluator=evaluator, arguments={"eval_strategy": "steps", "eval_steps": 4})
    with pytest.raises(RuntimeError, match="fourth step"):
        search(trainer, trial_evaluator=embedding_evaluator())
    assert [trial.state for trial in trainer.last_search.trials] == [FAILED]


@pytest.mark.parametrize("keep", [-1, "3", 1.5, True, None])
def test_keep_is_a_number_of_trials(keep):
    with pytest.raises(ValueError, match=f"`keep` must be an integer of at least 0, but got {keep!r}"):
        AshaPruner(pauses=True, keep=keep)
