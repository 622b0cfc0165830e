"""What trials leave on disk: nothing unless asked, within a limit over the search, and what a full disk does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from st_hpo.folders import LOCK, MARKER, Saving, keep_best
from st_hpo.objective import Objective
from st_hpo.records import COMPLETED, FAILED, TrialRecord

from fast_trainer import METRIC, RATES, Ballast, FailIn, fast_arguments, fast_trainer, random_sampler

pytest_plugins = ["small_disk"]

MAXIMIZE, MINIMIZE = (Objective(["m"], [direction]) for direction in ("maximize", "minimize"))


def search(trainer: Any, **changes: Any) -> Any:
    options = {"hp_space": RATES, "compute_objective": METRIC, "n_trials": 3, "sampler": random_sampler()}
    return trainer.hyperparameter_search(**{**options, **changes})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def checkpoints(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/checkpoint-*"))


def objectives(trainer: Any) -> list[Any]:
    return [record.objective for record in trainer.last_search.trials]


# -- nothing unless asked


def test_a_search_leaves_no_file_behind(tmp_path):
    trainer = fast_trainer(args=fast_arguments(output_dir=str(tmp_path / "out")))
    search(trainer, catch=ValueError)
    assert files(tmp_path) == [] and list(tmp_path.rglob("*")) in ([], [tmp_path / "out"])


def test_nor_do_failed_trials(tmp_path):
    failing = FailIn({1}, ValueError("no"))
    trainer = fast_trainer(args=fast_arguments(output_dir=str(tmp_path)), callbacks=[failing])
    search(trainer, on_error="continue")
    assert trainer.last_search.trials[1].state == FAILED and files(tmp_path) == []


def test_upstreams_default_of_a_checkpoint_every_500_steps_is_no_request(tmp_path):
    saved = []

    class Saved(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved.append(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            state.save_steps = 1  # so that "every 500" is "every", and the training is short

    args = fast_arguments(output_dir=str(tmp_path), save_strategy="steps")
    assert args.save_steps == 500
    trainer = fast_trainer(args=args, callbacks=[Saved])
    search(trainer)
    assert saved == [] and files(tmp_path) == []
    trainer.train()
    assert saved  # outside of a search it saves as ever


def test_saving_or_not_gives_the_same_objectives(tmp_path):
    without, saving = (
        fast_trainer(args=fast_arguments(output_dir=str(tmp_path / name), **values))
        for name, values in {"a": {}, "b": {"save_strategy": "steps", "save_steps": 1}}.items()
    )
    search(without)
    search(saving)
    assert objectives(without) == objectives(saving)


def test_the_best_checkpoint_is_loaded_at_the_end_though_none_is_kept(tmp_path):
    values = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    best = {**values, "metric_for_best_model": METRIC, "max_steps": 3}

    def run(name: str, **more: Any) -> Any:
        trainer = fast_trainer(args=fast_arguments(output_dir=str(tmp_path / name), **best, **more))
        search(trainer)
        return objectives(trainer)

    # With an evaluation at every step the checkpoints must be as frequent; both are asked for in the second search
    assert run("kept", save_strategy="steps", save_steps=1) == run("limit", save_steps=1, save_strategy="steps")
    assert len(checkpoints(tmp_path / "kept")) == 9
    saving = Saving.of(fast_arguments(**best, save_strategy="steps", save_steps=1), {"load_best_model_at_end": True})
    args = fast_arguments(**best, save_strategy="steps", save_steps=1)
    saving.prepare(args)
    assert not saving.keeps and args.save_strategy == "steps"


def test_what_lay_in_the_folder_before_stays(tmp_path):
    mine = tmp_path / "run-1" / "checkpoint-7" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (tmp_path / "run-2").mkdir()
    (tmp_path / "run-2" / "notes.txt").write_text("notes")
    search(fast_trainer(args=fast_arguments(output_dir=str(tmp_path))))
    assert files(tmp_path) == ["run-1/checkpoint-7/mine.txt", "run-2/notes.txt"]


# -- a limit over the whole search


@pytest.mark.parametrize("limit", [1, 2])
def test_the_limit_counts_over_the_whole_search_and_keeps_the_best(tmp_path, limit):
    args = fast_arguments(
        output_dir=str(tmp_path), save_strategy="steps", save_steps=2, save_total_limit=limit, save_only_model=True
    )
    trainer = fast_trainer(args=args, callbacks=[FailIn({3}, ValueError("no"))])
    search(trainer, n_trials=5, on_error="continue")
    ranked = sorted(trainer.last_search.completed, key=lambda record: -record.objective)
    assert checkpoints(tmp_path) == sorted(f"run-{record.number}/checkpoint-2" for record in ranked[:limit])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"run-{r.number}" for r in ranked[:limit])
    assert not list(tmp_path.rglob(LOCK))


def test_without_a_limit_every_trial_keeps_its_own(tmp_path):
    args = fast_arguments(output_dir=str(tmp_path), save_strategy="steps", save_steps=1, save_only_model=True)
    search(fast_trainer(args=args), n_trials=2)
    assert checkpoints(tmp_path) == [f"run-{n}/checkpoint-{step}" for n in (0, 1) for step in (1, 2)]


def test_trials_of_one_name_get_folders_of_their_own(tmp_path):
    args = fast_arguments(output_dir=str(tmp_path), save_strategy="steps", save_steps=2, save_only_model=True)
    search(fast_trainer(args=args), n_trials=2, hp_name=lambda trial: "same")
    assert checkpoints(tmp_path) == ["same-1/checkpoint-2", "same/checkpoint-2"]


def left(folder: Path, number: int, values: list[float], names: list[str], objective: Objective) -> None:
    for name in names:
        (folder / f"run-{number}" / name).mkdir(parents=True)
    aims = dict(zip(objective.names, objective.directions, strict=True))
    state = COMPLETED if values else FAILED
    mark = {"number": number, "state": state, "values": values, "checkpoints": names, "aims": aims}
    (folder / f"run-{number}" / MARKER).write_text(json.dumps(mark))


def test_the_best_trials_best_checkpoint_is_kept_first(tmp_path):
    left(tmp_path, 0, [0.3], ["checkpoint-4", "checkpoint-2"], MINIMIZE)
    left(tmp_path, 1, [0.2], ["checkpoint-2", "checkpoint-4"], MINIMIZE)
    left(tmp_path, 2, [], ["checkpoint-4"], MINIMIZE)
    keep_best(tmp_path, 3, MINIMIZE)
    assert checkpoints(tmp_path) == ["run-0/checkpoint-4", "run-1/checkpoint-2", "run-1/checkpoint-4"]
    keep_best(tmp_path, 1, MINIMIZE)
    assert checkpoints(tmp_path) == ["run-1/checkpoint-2"]
    assert not (tmp_path / "run-0").exists() and not (tmp_path / "run-2").exists()


def test_of_several_objectives_the_front_is_kept(tmp_path):
    both = Objective(["a", "b"], ["maximize", "minimize"])
    for number, values in enumerate([[0.1, 5.0], [0.2, 9.0], [0.3, 2.0], [0.0, 1.0]]):
        left(tmp_path, number, values, ["checkpoint-1"], both)
    keep_best(tmp_path, 2, both)
    assert checkpoints(tmp_path) == ["run-2/checkpoint-1", "run-3/checkpoint-1"]


KILLED = """
import os, sys
from pathlib import Path
from st_hpo.folders import Saving
from st_hpo.objective import Objective
from st_hpo.records import TrialRecord

class Args: pass

args = Args()
saving = Saving(sys.argv[1], True, 1)
with saving.folder(args, "run-0", TrialRecord(0), Objective(["m"], ["maximize"])):
    Path(args.output_dir, "checkpoint-1").mkdir()
    print("here", flush=True)
    sys.stdin.readline()
    os._exit(9)
"""


def test_what_a_killed_trial_has_left_goes_with_the_next_one_and_a_running_trial_is_left_alone(tmp_path):
    script = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "here\n"
        saving = Saving(str(tmp_path), True, 1)
        record = TrialRecord(1, COMPLETED, 0.5)
        with saving.folder(fast_arguments(), "run-1", record, MAXIMIZE):
            (tmp_path / "run-1" / "checkpoint-1").mkdir()
        assert checkpoints(tmp_path) == ["run-0/checkpoint-1", "run-1/checkpoint-1"]
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.wait(30) == 9
    with saving.folder(fast_arguments(), "run-2", TrialRecord(2), MAXIMIZE):
        assert not (tmp_path / "run-0").exists()
    assert checkpoints(tmp_path) == ["run-1/checkpoint-1"]


# -- what is somebody else's


def trial(folder: Path, number: int, value: float, objective: Objective = MAXIMIZE, limit: int | None = 1) -> None:
    """A trial that leaves a checkpoint."""
    args, record = fast_arguments(), TrialRecord(number, COMPLETED, value)
    with Saving(str(folder), True, limit).folder(args, f"run-{number}", record, objective):
        Path(args.output_dir, "checkpoint-2").mkdir()


def foreign(folder: Path) -> Path:
    """A checkpoint in the folder of the first trial that no trial has left there."""
    mine = folder / "run-0" / "checkpoint-7" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    return mine


def test_the_limit_does_not_count_checkpoints_of_somebody_else(tmp_path):
    foreign(tmp_path)
    for number in range(2):
        trial(tmp_path, number, number)
    assert checkpoints(tmp_path) == ["run-0/checkpoint-7", "run-1/checkpoint-2"]
    trial(tmp_path, 0, 2.0)
    assert checkpoints(tmp_path) == ["run-0-0/checkpoint-2", "run-0/checkpoint-7"]
    assert not list(tmp_path.rglob(LOCK))


def test_what_a_killed_trial_found_in_its_folder_stays(tmp_path):
    mine = foreign(tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], input="\n", capture_output=True, text=True)
    assert killed.returncode == 9 and len(checkpoints(tmp_path)) == 2
    trial(tmp_path, 1, 0.5)
    assert mine.is_file() and checkpoints(tmp_path) == ["run-0/checkpoint-7", "run-1/checkpoint-2"]


def test_a_trial_of_another_search_at_the_same_time_has_a_folder_of_its_own(tmp_path):
    args = fast_arguments()
    with Saving(str(tmp_path), True, None).folder(args, "run-0", TrialRecord(0, COMPLETED, 0.1), MAXIMIZE):
        Path(args.output_dir, "checkpoint-1").mkdir()
        trial(tmp_path, 0, 0.2, limit=None)
        assert checkpoints(tmp_path) == ["run-0-0/checkpoint-2", "run-0/checkpoint-1"]
    assert checkpoints(tmp_path) == ["run-0-0/checkpoint-2", "run-0/checkpoint-1"]


def test_an_earlier_search_of_another_objective_is_not_compared_with(tmp_path):
    trial(tmp_path, 5, 2.3, MINIMIZE)
    trial(tmp_path, 6, 2.4, Objective(["other"], ["maximize"]))
    for number, value in enumerate([0.7, 0.8]):
        trial(tmp_path, number, value)
    assert checkpoints(tmp_path) == [f"run-{number}/checkpoint-2" for number in (1, 5, 6)]


def test_a_trial_whose_end_cannot_be_written_down_leaves_no_checkpoint(tmp_path, monkeypatch):
    def full(record: TrialRecord, folder: Path, objective: Objective) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("st_hpo.folders._Mark.of", full)
    with pytest.raises(OSError, match="No space left"):
        trial(tmp_path, 0, 0.5)
    assert list(tmp_path.iterdir()) == []


# -- a full disk


@pytest.mark.parametrize(("only_model", "left"), [(True, 2**20), (False, 26 * 2**20)])
def test_a_full_disk_fails_its_trial_and_the_search_goes_on(small_disk, only_model, left):
    """With the model alone (17 MB) safetensors finds the disk full, else torch, with the optimizer's 34 MB."""
    values = {"save_total_limit": 1, "save_only_model": only_model}
    args = fast_arguments(output_dir=str(small_disk), save_strategy="steps", save_steps=2, **values)
    trainer = fast_trainer(args=args, callbacks=[Ballast("run-1", left)])
    best = search(trainer)
    assert [record.state for record in trainer.last_search.trials] == [COMPLETED, FAILED, COMPLETED]
    assert trainer.last_search.trials[1].error.startswith("Disk full: ")
    assert checkpoints(small_disk) == [f"run-{best.run_id}/checkpoint-2"]
