"""Under torchrun, two ranks on gloo: what fails on one rank, and what ends the job."""

from __future__ import annotations

import json
import signal
import time

import pytest

from st_hpo.testing import METRIC

from launching import alike, ends, finish, launch, left, objectives, ranks, states, stored, trials

case = pytest.mark.case
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000)]  # the first test runs the cases of all
pytest_plugins = ["rank_fixtures"]


@pytest.mark.parametrize("rank", [pytest.param(rank, marks=case(f"fails on {rank}", hand={})) for rank in range(2)])
def test_an_exception_on_one_rank_fails_the_trial_on_all_and_the_search_goes_on(rank, ran):
    found = alike(ran.ranks)
    assert states(found) == ["completed", "failed", "completed"]
    assert f"ValueError: of rank {rank}" in trials(found)[1]["error"]
    assert objectives(found) == [metrics[METRIC] for metrics in ran.hand]


@pytest.mark.parametrize("rank", [pytest.param(rank, marks=case(f"raises on {rank}")) for rank in range(2)])
def test_without_catch_it_ends_the_search_on_all_ranks(rank, ran):
    found = ran.ranks
    assert found[rank] == {"error": "ValueError", "message": f"of rank {rank}"}
    assert found[1 - rank]["error"] == "RankError"
    assert f"ValueError: of rank {rank}" in found[1 - rank]["message"]


@case("init fails on 1")
def test_an_exception_in_loss_init_of_one_rank_does_not_strand_the_other(ran):
    found = alike(ran.ranks)
    assert states(found).count("failed") == 1 and states(found).count("completed") == 2
    assert any("ValueError: in loss_init" in str(trial["error"]) for trial in trials(found))


@case("nan")
def test_a_nan_fails_its_trial_on_all_ranks(ran):
    found = alike(ran.ranks)
    assert states(found) == ["completed", "failed", "completed"]
    assert "NaN" in trials(found)[1]["error"]


@case("forward and evaluator", hand={})
def test_an_exception_in_the_loss_of_one_rank_and_one_in_the_evaluator_fail_their_trials(ran):
    found = alike(ran.ranks)
    assert states(found) == ["completed", "failed", "failed", "completed"]
    assert "ValueError: of rank 1" in trials(found)[1]["error"]
    assert trials(found)[2]["error"] == "ValueError: in the evaluator"
    assert objectives(found) == [metrics[METRIC] for metrics in ran.hand]


@case("refused")
def test_ray_and_workers_are_refused_with_what_to_do_instead(ran):
    for found in ran.ranks:
        assert found["error"] == "NotSupportedError"
        ray, workers, unclear = found["message"].splitlines()
        assert "eval_probe_size" in unclear and "direction" in unclear
        assert "backend='ray' runs trials in processes of its own" in ray and "Start it with `python`" in ray
        assert "n_jobs=2 runs trials in processes of its own" in workers and "Start it with `python`" in workers


def test_a_rank_that_dies_ends_the_job_and_its_trial_is_run_again_on_resume(folder):
    found = ends("dies", folder)[0]
    assert found["error"] == "RankError" and "In trial 1, rank(s) [1] have died or hang" in found["message"]
    assert [trial.state.name for trial in stored(folder)] == ["COMPLETE", "FAIL", "WAITING"]
    found = alike(ranks("resumes", folder))
    assert states(found) == ["completed", "failed", "completed", "completed"]
    assert trials(found)[2]["hyperparameters"] == trials(found)[1]["hyperparameters"]


def test_when_rank_0_dies_the_others_say_in_which_trial(folder):
    found = ends("leader dies", folder)[1]
    assert (found["error"], found["message"]) == (
        "RankError",
        "In trial 1, rank 0 has died. The search has ended; with a storage, it can be continued.",
    )


def test_a_rank_that_hangs_ends_the_job_when_the_timeout_is_over(folder):
    found = ends("hangs in backward", folder)[0]
    assert found["error"] == "RankError" and "In trial 1, rank(s) [1] have died or hang" in found["message"]


def test_out_of_memory_in_a_backward_pass_ends_the_search(folder):
    for found in ends("out of memory in backward", folder):
        assert found["error"] == "RankError" and "In trial 1, the ranks have lost each other" in found["message"]
        assert "rank 1 says: Out of memory: OutOfMemoryError: Tried to allocate 20.00 GiB" in found["message"]
    assert [trial.state.name for trial in stored(folder)] == ["COMPLETE", "FAIL"]  # it is not run again


def test_sigterm_ends_the_job_in_good_order(folder):
    process = launch("rank_script.py", "terminated", str(folder), cwd=folder)
    deadline = time.monotonic() + 300
    while not (folder / "begun").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 120)
    assert left(folder) == [{"error": "SystemExit", "message": "143"}] * 2, output[-4000:]
    assert [trial.state.name for trial in stored(folder)] == ["COMPLETE", "FAIL", "WAITING"]
    record = json.loads(stored(folder)[1].user_attrs["st_hpo:record"])
    assert record["error"] == "stopped: SIGTERM"
