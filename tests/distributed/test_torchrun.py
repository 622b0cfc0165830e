"""A search under torchrun, two ranks on gloo: every decision is rank 0's, and all ranks act on it alike."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from transformers import TrainerCallback

from st_hpo import Float, SearchSpace
from st_hpo.testing import METRIC, make_trainer

from launching import alike, by_hand, finish, launch, left, objectives, ranks, states, stored, trials
from wandb_server import running_server

case = pytest.mark.case
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000)]  # the first test runs the cases of all
pytest_plugins = ["rank_fixtures"]


@case("best model")
def test_the_best_model_the_default_trial_and_a_confirmation(ran):
    found = alike(ran.ranks)
    notes = [json.loads(path.read_text()) for path in ran.folder.rglob("best_model/st_hpo.json")]
    assert [note["values"] for note in notes] == [found["objectives"]]
    (model,) = ran.folder.rglob("model.safetensors")  # of rank 0, and no other
    assert model.parent.name == "best_model"
    result = found["result"]
    assert result["default"]["state"] == "completed" and len(result["trials"]) == len(objectives(found))
    (confirmed,) = result["confirmation"]["trials"]
    assert confirmed["seeds"] == [3, 4] and None not in confirmed["values"] and confirmed["errors"] == [None, None]
    assert confirmed["values"][0] != confirmed["values"][1]
    assert len(list(ran.folder.rglob("confirmation.json"))) == 1


@case("plain", hand={})
def test_objectives_are_those_of_plain_training_by_hand(ran):
    found = alike(ran.ranks)
    assert states(found) == ["completed"] * 3
    assert objectives(found) == [metrics[METRIC] for metrics in ran.hand]
    assert len(set(objectives(found))) == 3
    assert found["native"] == "Study"
    assert found["again"] == found["objectives"][0]
    assert found["result"]["baseline"]["objective"] not in objectives(found)
    (tokens,) = set(found["tokens"])  # in all trials, and on both ranks
    assert tokens is not None and not Path(tokens).exists()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=case(f"family:{name}", hand={"scenario": name}))
        for name in ("cross_encoder", "sparse_encoder", "multi_vector_encoder", "several_datasets")
    ],
)
def test_the_other_trainers(name, ran):
    from scenarios import SCENARIOS

    found = alike(ran.ranks)
    assert states(found) == ["completed"] * 2
    metric = SCENARIOS[name].metric.replace("eval_loss", "eval_dev_maxsim_accuracy")
    assert objectives(found) == [metrics[metric] for metrics in ran.hand]


@case("no baseline")
def test_without_a_baseline_the_first_evaluation_tells_the_metric(ran):
    found = alike(ran.ranks)
    assert states(found) == ["completed"] * 3
    assert found["result"]["objective_names"] == [METRIC]
    assert found["result"]["baseline"] is None


@case("pruning", hand={"fixed": {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2}})
def test_a_trial_is_pruned_on_all_ranks_at_the_same_step(ran):
    found = alike(ran.ranks)
    assert states(found) == ["completed", "pruned", "completed"]
    assert trials(found)[1]["error"] == "pruned at step 2"
    assert objectives(found) == [metrics[METRIC] for metrics in ran.hand]


@case("rungs", hand={"fixed": {"max_steps": 6}})
def test_rungs_are_reached_by_all_ranks_at_once_and_disturb_none(ran):
    found = alike(ran.ranks)
    assert states(found) == ["completed", "pruned", "completed"]
    assert trials(found)[1]["error"] == "pruned at step 2, 30 % of its training"
    assert [rung["at"] for rung in trials(found)[0]["rungs"]] == [30, 60]
    assert objectives(found) == [metrics[METRIC] for metrics in ran.hand]


@case("timeout")
def test_a_timeout_ends_all_ranks_between_the_same_steps(ran):
    found = alike(ran.ranks)
    assert states(found) == ["completed", "failed"]
    assert trials(found)[1]["error"] == "stopped: timeout of 30 s"


@case("enough")
def test_a_budget_and_a_repeated_proposal_are_the_same_on_all_ranks(ran):
    found = alike(ran.ranks)
    assert states(found) == ["completed"] * 3
    assert [trial["copied_from"] for trial in trials(found)] == [None, 0, None]
    assert objectives(found)[0] == objectives(found)[1] != objectives(found)[2]


@case("several objectives", hand={})
def test_several_objectives_give_every_rank_the_same_front(ran):
    found = alike(ran.ranks)
    assert states(found) == ["completed"] * 3
    hand = [[metrics[METRIC], metrics["eval_probe_size"]] for metrics in ran.hand]
    assert objectives(found) == hand
    assert found["ids"]


@case("suggestion", hand={})
def test_what_is_suggested_inside_loss_init_is_rank_0s_on_all_ranks(ran):
    """Also after a trial that one rank has left before the suggestion; and what is noted there, rank 0 notes."""
    found = alike(ran.ranks)
    assert states(found) == ["completed", "failed", "completed", "completed"]
    assert "ValueError: of rank 1" in trials(found)[1]["error"]
    assert [trial.user_attrs["process"] for trial in stored(ran.folder)] == [0] * 4
    assert objectives(found) == [metrics[METRIC] for metrics in ran.hand]


@case("pruners", hand={"fixed": {"max_steps": 6}})
def test_trials_pause_and_are_taken_up_again_and_rungs_count_the_examples_of_all_ranks(ran):
    found = alike(ran.ranks)
    assert states(found) == ["pruned", "pruned", "pruned", "completed"]
    assert trials(found)[3]["continues"] in (0, 1, 2)
    assert objectives(found) == [metrics[METRIC] for metrics in ran.hand]
    steps = [[(rung["at"], rung["step"]) for rung in trial["rungs"]] for trial in found["examples"]["trials"]]
    assert steps == [[(16, 2), (40, 5)]] * 2  # 4 pairs on each of 2 ranks


def test_sigopt_and_wandb(folder):
    with running_server() as server:
        found = alike(ranks("other backends", folder, server.env()))
        assert (server.unknown, server.errors) == ([], [])
    both = [*trials(found), *found["wandb"]["trials"]]
    assert [trial["state"] for trial in both] == ["completed"] * 5
    names = [[number, str(number)] for number in range(3)] + [[None, None]] * 2
    values = [trial["hyperparameters"] for trial in both]
    read = [[item["learning_rate"], item["loss.scale"], item["loss.scale"]] for item in values]
    assert found["seen"] == [[*name, *numbers] for name, numbers in zip(names, read, strict=True)]
    found["result"]["trials"] = both
    assert objectives(found) == [metrics[METRIC] for metrics in by_hand(folder, found)]


@case("same name")
def test_trials_of_one_name_have_the_same_folder_on_all_ranks(ran):
    """Or else a rank would load the best checkpoint of another trial."""
    found = alike(ran.ranks)
    assert found["folders"][:2] == [str(ran.folder / "out" / name) for name in ("same", "same-1")]
    assert states(found) == ["completed"] * 2 and found["again"] in objectives(found)


class Meanwhile(TrainerCallback):
    """In the middle of a trial, has a job on the same study run another one, and then wait for this one."""

    def __init__(self, folder, seconds):
        self.folder, self.seconds, self.job = folder, seconds, None

    def __deepcopy__(self, memo):
        return self

    def on_step_end(self, args, state, control, **kwargs):
        if self.job is None:
            self.job = launch("rank_script.py", "waits", str(self.folder), cwd=self.folder)
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and "COMPLETE" not in [item.state.name for item in stored(self.folder)]:
                time.sleep(0.2)
            time.sleep(self.seconds)


def test_ranks_wait_for_a_trial_of_another_job_for_longer_than_their_timeout(folder):
    meanwhile = Meanwhile(folder, seconds=35.0)  # the job's `ddp_timeout` is 20 seconds
    trainer = make_trainer((folder / "model.txt").read_text(), folder / "own", callbacks=[meanwhile])
    space = SearchSpace({"learning_rate": Float(1e-4, 1e-2, log=True), "loss.scale": Float(5.0, 50.0)})
    store = {"storage": f"sqlite:///{folder}/study.db", "study_name": "s", "resume": True}
    trainer.hyperparameter_search(space, METRIC, n_trials=2, **store)
    output = finish(meanwhile.job, 120)
    assert meanwhile.job.returncode == 0, output[-4000:]
    assert states(alike(left(folder))) == ["completed"] * 2
