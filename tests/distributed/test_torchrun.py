"""A search under torchrun, two ranks on gloo: every decision is rank 0's, and all ranks act on it alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from st_hpo.testing import METRIC, build_tiny_model

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tiny_model, tmp_path):
    (tmp_path / "model.txt").write_text(tiny_model)
    return tmp_path


def launch(script: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    path = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "examples"), *sys.path]
    return subprocess.Popen(
        [*LAUNCHER, str(HERE / script), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float) -> str:
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the ranks hang: {process.communicate()[0][-3000:]}")
    return output


def ranks(case: str, folder: Path) -> list[dict[str, Any]]:
    """Runs a case on two ranks, with a hard timeout, and requires the return code 0."""
    process = launch("rank_script.py", case, str(folder), cwd=folder)
    output = finish(process, 240)
    assert process.returncode == 0, output[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def trials(found: dict[str, Any]) -> list[dict[str, Any]]:
    return found["result"]["trials"]


def states(found: dict[str, Any]) -> list[str]:
    return [trial["state"] for trial in trials(found)]


def alike(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Requires that both ranks have got the same; the study itself is rank 0's."""
    first, second = ({key: value for key, value in item.items() if key != "native"} for item in found)
    assert first == second
    return found[0]


def by_hand(folder: Path, found: dict[str, Any], **order: Any) -> list[dict[str, float]]:
    """What plain training under torchrun gives with the values of the completed trials."""
    values = [trial["hyperparameters"] for trial in trials(found) if trial["state"] == "completed"]
    (folder / "trials.json").write_text(json.dumps({"trials": values, **order}))
    process = launch("hand_script.py", str(folder), cwd=folder)
    output = finish(process, 240)
    assert process.returncode == 0, output[-4000:]
    return json.loads((folder / "hand.json").read_text())


def objectives(found: dict[str, Any]) -> list[Any]:
    return [trial["objective"] for trial in trials(found) if trial["state"] == "completed"]


def test_the_best_model_the_default_trial_and_a_confirmation(folder):
    found = alike(ranks("best model", folder))
    notes = [json.loads(path.read_text()) for path in folder.rglob("best_model/st_hpo.json")]
    assert [note["values"] for note in notes] == [found["objectives"]]
    (model,) = folder.rglob("model.safetensors")  # of rank 0, and no other
    assert model.parent.name == "best_model"
    result = found["result"]
    assert result["default"]["state"] == "completed" and len(result["trials"]) == len(objectives(found))
    (confirmed,) = result["confirmation"]["trials"]
    assert confirmed["seeds"] == [3, 4] and None not in confirmed["values"] and confirmed["errors"] == [None, None]
    assert confirmed["values"][0] != confirmed["values"][1]
    assert len(list(folder.rglob("confirmation.json"))) == 1


def test_objectives_are_those_of_plain_training_by_hand(folder):
    found = alike(ranks("plain", folder))
    assert states(found) == ["completed"] * 3
    assert objectives(found) == [metrics[METRIC] for metrics in by_hand(folder, found)]
    assert len(set(objectives(found))) == 3
    assert found["native"] == "Study"
    assert found["again"] == found["objectives"][0]
    assert found["result"]["baseline"]["objective"] not in objectives(found)


@pytest.mark.parametrize("name", ["cross_encoder", "sparse_encoder", "multi_vector_encoder", "several_datasets"])
def test_the_other_trainers(name, folder):
    from scenarios import SCENARIOS

    found = alike(ranks(f"family:{name}", folder))
    assert states(found) == ["completed"] * 2
    metric = SCENARIOS[name].metric.replace("eval_loss", "eval_dev_maxsim_accuracy")
    assert objectives(found) == [metrics[metric] for metrics in by_hand(folder, found, scenario=name)]


def test_without_a_baseline_the_first_evaluation_tells_the_metric(folder):
    found = alike(ranks("no baseline", folder))
    assert states(found) == ["completed"] * 3
    assert found["result"]["objective_names"] == [METRIC]
    assert found["result"]["baseline"] is None


def test_a_trial_is_pruned_on_all_ranks_at_the_same_step(folder):
    found = alike(ranks("pruning", folder))
    assert states(found) == ["completed", "pruned", "completed"]
    assert trials(found)[1]["error"] == "pruned at step 2"
    fixed = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2}
    assert objectives(found) == [metrics[METRIC] for metrics in by_hand(folder, found, fixed=fixed)]


def test_rungs_are_reached_by_all_ranks_at_once_and_disturb_none(folder):
    found = alike(ranks("rungs", folder))
    assert states(found) == ["completed", "pruned", "completed"]
    assert trials(found)[1]["error"] == "pruned at step 2, 30 % of its training"
    assert [rung["at"] for rung in trials(found)[0]["rungs"]] == [30, 60]
    assert objectives(found) == [metrics[METRIC] for metrics in by_hand(folder, found, fixed={"max_steps": 6})]


def test_a_timeout_ends_all_ranks_between_the_same_steps(folder):
    found = alike(ranks("timeout", folder))
    assert states(found) == ["completed", "failed"]
    assert trials(found)[1]["error"] == "stopped: timeout of 15 s"


def test_a_budget_and_a_repeated_proposal_are_the_same_on_all_ranks(folder):
    found = alike(ranks("enough", folder))
    assert states(found) == ["completed"] * 3
    assert [trial["copied_from"] for trial in trials(found)] == [None, 0, None]
    assert objectives(found)[0] == objectives(found)[1] != objectives(found)[2]


def test_several_objectives_give_every_rank_the_same_front(folder):
    found = alike(ranks("several objectives", folder))
    assert states(found) == ["completed"] * 3
    hand = [[metrics[METRIC], metrics["eval_probe_size"]] for metrics in by_hand(folder, found)]
    assert objectives(found) == hand
    assert found["ids"]


def test_what_is_suggested_inside_loss_init_is_rank_0s_on_all_ranks(folder):
    found = alike(ranks("suggestion", folder))
    assert states(found) == ["completed"] * 3
    values = [
        {"learning_rate": trial["hyperparameters"]["learning_rate"], "loss.scale": trial["hyperparameters"]["scale"]}
        for trial in trials(found)
    ]
    for trial, renamed in zip(trials(found), values, strict=True):
        trial["hyperparameters"] = renamed
    assert objectives(found) == [metrics[METRIC] for metrics in by_hand(folder, found)]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_on_one_rank_fails_the_trial_on_all_and_the_search_goes_on(rank, folder):
    found = alike(ranks(f"fails on {rank}", folder))
    assert states(found) == ["completed", "failed", "completed"]
    assert f"ValueError: of rank {rank}" in trials(found)[1]["error"]
    assert objectives(found) == [metrics[METRIC] for metrics in by_hand(folder, found)]


@pytest.mark.parametrize("rank", [0, 1])
def test_without_catch_it_ends_the_search_on_all_ranks(rank, folder):
    found = ranks(f"raises on {rank}", folder)
    assert found[rank] == {"error": "ValueError", "message": f"of rank {rank}"}
    assert found[1 - rank]["error"] == "RankError"
    assert f"ValueError: of rank {rank}" in found[1 - rank]["message"]


def test_an_exception_in_loss_init_of_one_rank_does_not_strand_the_other(folder):
    found = alike(ranks("init fails on 1", folder))
    assert states(found).count("failed") == 1 and states(found).count("completed") == 2
    assert any("ValueError: in loss_init" in str(trial["error"]) for trial in trials(found))


def test_a_nan_fails_its_trial_on_all_ranks(folder):
    found = alike(ranks("nan", folder))
    assert states(found) == ["completed", "failed", "completed"]
    assert "NaN" in trials(found)[1]["error"]


def test_ray_is_refused_with_what_to_do_instead(folder):
    found = ranks("ray", folder)
    assert {item["error"] for item in found} <= {"NotSupportedError", "RankError"}
    assert all("Start it with `python`" in item["message"] for item in found)


def test_a_rank_that_dies_ends_the_job_and_names_the_trial(folder):
    import optuna

    process = launch("rank_script.py", "dies", str(folder), cwd=folder)
    output = finish(process, 120)
    assert process.returncode != 0
    assert "trial 1" in output
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/study.db")
    assert [trial.state.name for trial in study.trials][:1] == ["COMPLETE"]
    assert "RUNNING" not in [trial.state.name for trial in study.trials]


def test_a_rank_that_hangs_ends_the_job_within_the_timeout(folder):
    started = time.monotonic()
    process = launch("rank_script.py", "hangs", str(folder), cwd=folder)
    output = finish(process, 300)
    assert process.returncode != 0
    assert time.monotonic() - started < 240
    assert "In trial 1, rank(s) [1] have died or hang" in output


def test_sigterm_ends_the_job_in_good_order(folder):
    process = launch("rank_script.py", "timeout", str(folder), cwd=folder)
    time.sleep(25)
    process.send_signal(signal.SIGTERM)
    finish(process, 60)
    assert process.returncode != 0
