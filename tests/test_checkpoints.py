"""A trial that is paused and continued: to the last bit the trial that was not, or with new values in force."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from transformers import TrainerCallback

from st_hpo.checkpoints import TrialCheckpoints
from st_hpo.errors import ConfigurationError
from st_hpo.loss_weights import LOSS_FILE
from st_hpo.records import COMPLETED, TrialRecord
from st_hpo.testing import METRIC, build_tiny_model, make_trainer, sentence_pairs

from runners import runner_of


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


def softmax_loss(model):
    """A loss with weights of its own."""
    return SoftmaxLoss(model, model.get_embedding_dimension(), num_labels=2)


def labelled_pairs(count):
    pairs = sentence_pairs(count)
    labels = [int(score > 0.3) for score in pairs["score"]]
    return pairs.remove_columns("score").add_column("label", labels)


class Stop(Exception):
    pass


class Rates(TrainerCallback):
    """Notes the learning rate and the weight decay of every step."""

    seen: list[tuple[float, float]]

    def __init__(self) -> None:
        self.seen = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Rates:
        return self

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        group = optimizer.param_groups[0]
        self.seen.append((group["lr"], group["weight_decay"]))


def trainer_of(path, folder, **arguments):
    trainer = make_trainer(path, folder, loss_init=softmax_loss, train_dataset=labelled_pairs(32), callbacks=[Rates()])
    for name, value in {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 6, **arguments}.items():
        setattr(trainer.args, name, value)
    return trainer


def run(trainer, values, checkpoints=None, reports=None):
    record = TrialRecord(0)
    trials = runner_of(trainer, compute_objective=METRIC)

    def report(value, step):
        if reports is not None:
            reports.append((step, value))
        return False

    trials.run(record, lambda: values, dict(values), report, checkpoints)
    return record


def rates_of(trainer):
    return next(item for item in trainer.callback_handler.callbacks if isinstance(item, Rates))


def stopped_at(step: int, kept: Path):
    """Keeps the checkpoint of a step and ends the trial there."""

    def on_save(folder: str) -> None:
        if folder.endswith(f"-{step}"):
            shutil.copytree(folder, kept)
            raise Stop

    return on_save


def interrupted(trainer, values, folder, step=4):
    kept = folder / "kept"
    with pytest.raises(Stop):
        run(trainer, values, TrialCheckpoints(stopped_at(step, kept), folder=str(folder / "saved")))
    return kept


def test_a_continued_trial_is_to_the_last_bit_the_one_that_was_not_interrupted(tiny_model, tmp_path):
    values = {"learning_rate": 1e-3, "warmup_steps": 2}
    whole = run(trainer_of(tiny_model, tmp_path), values, reports=(reports := []))
    kept = interrupted(trainer_of(tiny_model, tmp_path), values, tmp_path)
    assert (kept / LOSS_FILE).is_file()
    resumed = run(
        trainer_of(tiny_model, tmp_path),
        values,
        TrialCheckpoints(lambda folder: None, resume_from=str(kept)),
        reports=(later := []),
    )
    assert whole.state == resumed.state == COMPLETED
    assert resumed.objective == whole.objective
    assert [step for step, _ in reports] == [2, 4, 6]
    assert later == [reports[2]]


def test_without_the_weights_of_the_loss_it_would_be_another_training(tiny_model, tmp_path):
    values = {"learning_rate": 1e-3}
    whole = run(trainer_of(tiny_model, tmp_path), values)
    kept = interrupted(trainer_of(tiny_model, tmp_path), values, tmp_path)
    loss = torch.load(kept / LOSS_FILE, weights_only=True)
    assert {name.rpartition(".")[2] for name in loss} == {"weight", "bias"}
    torch.save({name: torch.zeros_like(tensor) for name, tensor in loss.items()}, kept / LOSS_FILE)
    resumed = run(
        trainer_of(tiny_model, tmp_path), values, TrialCheckpoints(lambda folder: None, resume_from=str(kept))
    )
    assert resumed.objective != whole.objective


def test_new_values_are_in_force_from_the_checkpoint_on(tiny_model, tmp_path):
    trainer = trainer_of(tiny_model, tmp_path, lr_scheduler_type="constant")
    kept = interrupted(trainer, {"learning_rate": 1e-3, "weight_decay": 0.0}, tmp_path)
    rates = rates_of(trainer)
    assert rates.seen == [(1e-3, 0.0)] * 4
    rates.seen.clear()
    changed = {"learning_rate": 5e-4, "weight_decay": 0.1}
    run(trainer, changed, TrialCheckpoints(lambda folder: None, resume_from=str(kept)))
    assert rates.seen == [(5e-4, 0.1)] * 2


def test_the_schedule_goes_on_where_it_was_with_the_new_rate(tiny_model, tmp_path):
    trainer = trainer_of(tiny_model, tmp_path)
    rates = rates_of(trainer)
    kept = interrupted(trainer, {"learning_rate": 6e-3}, tmp_path)
    rates.seen.clear()
    run(trainer, {"learning_rate": 6e-4}, TrialCheckpoints(lambda folder: None, resume_from=str(kept)))
    assert [rate for rate, _ in rates.seen] == pytest.approx([2e-4, 1e-4])


def test_the_best_evaluation_may_lie_before_the_checkpoint(tiny_model, tmp_path):
    values = {"learning_rate": 1e-3}
    kept = interrupted(trainer_of(tiny_model, tmp_path), values, tmp_path)
    record = TrialRecord(0)
    trainer = trainer_of(tiny_model, tmp_path)
    trials = runner_of(trainer, compute_objective=METRIC, direction="maximize", objective_from="best")
    reports = []
    run(trainer_of(tiny_model, tmp_path), values, reports=reports)
    trials.run(record, lambda: values, {}, None, TrialCheckpoints(lambda folder: None, resume_from=str(kept)))
    assert record.objective == max(value for _, value in reports)


def test_no_checkpoint_is_written_that_nobody_asked_for(tiny_model, tmp_path):
    folder = tmp_path / "out"
    saved = []
    run(trainer_of(tiny_model, folder), {"learning_rate": 1e-3}, TrialCheckpoints(saved.append))
    assert saved == []
    assert not list(folder.rglob("checkpoint-*"))


def test_the_last_checkpoint_alone_is_kept(tiny_model, tmp_path):
    seen = []
    run(
        trainer_of(tiny_model, tmp_path),
        {"learning_rate": 1e-3},
        TrialCheckpoints(lambda one: seen.append(len(list(Path(one).parent.glob("checkpoint-*")))), str(tmp_path)),
    )
    assert seen == [1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"eval_on_start": True}, "eval_on_start=True"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True"),
        ({"optim": "schedule_free_adamw"}, "optim='schedule_free_adamw'"),
        ({"use_seedable_sampler": False}, "use_seedable_sampler=False"),
        ({"dispatch_batches": True}, "dispatch_batches=True"),
    ],
)
def test_what_cannot_go_on_as_it_was_is_refused_or_begun_anew(arguments, name, tiny_model, tmp_path):
    args = trainer_of(tiny_model, tmp_path).args
    for key, value in arguments.items():
        setattr(args.accelerator_config if hasattr(args.accelerator_config, key) else args, key, value)
    with pytest.raises(ConfigurationError, match=f"with {name}"):
        TrialCheckpoints(lambda folder: None, folder=str(tmp_path)).prepare(args)
    begun_anew = TrialCheckpoints(lambda folder: None, resume_from=str(tmp_path))
    begun_anew.prepare(args)
    assert begun_anew._resume_from is None
