"""The benchmark of rungs: replayed policies decide as Optuna's pruners do, and recording leaves no trace."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import curves
import numpy as np
import optuna
import pytest
from policies import ASHA, HYPERBAND, MEDIAN, PAUSE, PAUSE_AGAIN, SCREEN, SCREEN_AGAIN, Curves, Policy, run
from replay import Recording, ranks, replay, show, spearman
from rungs import parse
from scipy.stats import rankdata, spearmanr

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
KEPT, ALSO_KEPT = (BENCHMARKS / "data" / f"curves-{task}.json" for task in ("triplets", "sts"))


def random_curves(rungs, orders=30, trials=20, seed=0):
    """Returns curves whose every second counts one: a trial takes 10, a rung 1 + 1."""
    rng = np.random.default_rng(seed)
    scores = rng.random((orders, trials, rungs)).round(2)  # with ties
    ones = np.ones((orders, trials))
    trained = np.broadcast_to(np.arange(1.0, rungs + 1), scores.shape)
    return Curves(scores, trained, np.ones_like(scores), rng.random((orders, trials)), ones * 10, ones)


def decided_by_optuna(scores, pruner, steps):
    """Returns which trials of one order complete under a pruner of Optuna's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    completed = []
    for trial_scores in scores:
        trial = study.ask()
        for step, score in zip(steps, trial_scores, strict=True):
            trial.report(float(score), step)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                completed.append(False)
                break
        else:
            study.tell(trial, 1.0)
            completed.append(True)
    return completed


@pytest.mark.parametrize("rungs", [1, 2, 3])
@pytest.mark.parametrize("eta", [2, 3, 4])
def test_successive_halving_is_optunas(rungs, eta):
    drawn = random_curves(rungs, orders=10)
    outcome = run(drawn, Policy((0.1,) * rungs, ASHA, 1 / eta), np.random.default_rng(0))
    for scores, completed in zip(drawn.scores, outcome.completed, strict=True):
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=eta)
        assert decided_by_optuna(scores, pruner, [eta**rung for rung in range(rungs)]) == completed.tolist()
    assert 0 < outcome.completed.mean() < 1


@pytest.mark.parametrize("rungs", [1, 3])
def test_the_median_is_optunas(rungs):
    drawn = random_curves(rungs, orders=10)
    outcome = run(drawn, Policy((0.1,) * rungs, MEDIAN, startup=5), np.random.default_rng(0))
    for scores, completed in zip(drawn.scores, outcome.completed, strict=True):
        assert decided_by_optuna(scores, optuna.pruners.MedianPruner(), range(rungs)) == completed.tolist()
    assert 0 < outcome.completed[:, 5:].mean() < 1


def test_no_pruning_trains_all():
    drawn = random_curves(0)
    outcome = run(drawn, Policy(), np.random.default_rng(0))
    assert outcome.completed.all()
    assert (outcome.ended == np.arange(10, 201, 10)).all()


def test_a_pruned_trial_costs_its_training_so_far_and_its_evaluations():
    drawn = random_curves(2)
    outcome = run(drawn, Policy((0.1, 0.2), ASHA, 1 / 3), np.random.default_rng(0))
    costs = np.diff(outcome.ended, axis=1, prepend=0)
    assert (costs[outcome.completed] == 12).all()
    assert set(costs[~outcome.completed]) == {2, 4}


def test_first_trials_and_near_misses_go_on():
    drawn = random_curves(1)
    rng = np.random.default_rng(0)
    plain, first, near = (
        run(drawn, Policy((0.1,), keep=1 / 4, **more), rng).completed for more in ({}, {"startup": 6}, {"margin": 0.1})
    )
    assert first[:, :6].all() and (first[:, 6:] == plain[:, 6:]).all()
    assert (near >= plain).all() and near.sum() > plain.sum()
    assert run(drawn, Policy((0.1,), keep=1 / 4, margin=1.0), rng).completed.all()


def test_a_screen_trains_the_best_first():
    drawn = random_curves(1)
    for rule, rest in ((SCREEN, 9), (SCREEN_AGAIN, 10)):
        outcome = run(drawn, Policy((0.1,), rule, 1 / 4), np.random.default_rng(0))
        assert (outcome.completed.sum(axis=1) == 5).all()
        best = drawn.scores[:, :, 0].argmax(axis=1)
        assert (outcome.ended[np.arange(len(best)), best] == 40 + rest).all()
        assert (outcome.total == 40 + 5 * rest).all()


def test_a_paused_trial_goes_on_when_it_is_among_the_best():
    scores = np.array([[[0.5], [0.1], [0.9], [0.2], [0.3], [0.0]]])
    drawn = random_curves(1, orders=1, trials=6)
    drawn.scores = scores
    for rule, rest in ((PAUSE, 9), (PAUSE_AGAIN, 10)):
        outcome = run(drawn, Policy((0.1,), rule, 1 / 3), np.random.default_rng(0))
        assert outcome.completed[0].tolist() == [True, False, True, False, False, False]
        # The best of three after the third; the best two of six only after the sixth
        assert outcome.ended[0, 2] == 6 + rest and outcome.ended[0, 0] == 12 + 2 * rest == outcome.total[0]


def test_a_trial_is_paused_at_every_rung():
    drawn = random_curves(2, orders=1, trials=6)
    drawn.scores = np.array([[[0.5, 0.1], [0.1, 0.9], [0.9, 0.5], [0.2, 0.9], [0.8, 0.6], [0.0, 0.0]]])
    for rule, rest in ((PAUSE, (2, 8)), (PAUSE_AGAIN, (3, 10))):
        outcome = run(drawn, Policy((0.1, 0.2), rule, 1 / 2), np.random.default_rng(0))
        # The first one goes on as the better of two, the third as the best of three, the fifth as second best of five
        assert outcome.completed[0].tolist() == [False, False, True, False, True, False]
        assert outcome.ended[0, 2] == 3 * 2 + 2 * rest[0] + rest[1]
        assert outcome.ended[0, 4] == 5 * 2 + 3 * rest[0] + 2 * rest[1]


def test_hyperband_spares_the_trials_of_later_brackets():
    drawn = random_curves(2, orders=200)
    rng = np.random.default_rng(0)
    share = run(drawn, Policy((0.1, 0.3), HYPERBAND, 1 / 3), rng).completed.mean()
    assert run(drawn, Policy((0.1, 0.3), ASHA, 1 / 3), rng).completed.mean() < share < 1


def test_hyperband_has_the_brackets_of_optunas():
    """As many as rungs; a trial is in the first of two, which prunes at both, with a probability of 3 in 5."""
    pruner = optuna.pruners.HyperbandPruner(26, 100, 3)
    study = optuna.create_study(pruner=pruner)
    study.ask().should_prune()
    assert pruner._n_brackets == 2 and pruner._trial_allocation_budgets == [3, 2]
    drawn = random_curves(2, orders=400)
    drawn.scores[:] = -np.arange(20.0)[None, :, None]  # each is worse than all before: it goes on where none stops it
    found = run(drawn, Policy((0.26, 0.7), HYPERBAND, 1 / 3), np.random.default_rng(0))
    assert found.completed[:, 10:].mean() < 0.01  # the first ones in a bracket have nothing to be compared with


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    one, other = rng.integers(5, size=(2, 7, 30)).astype(float)
    assert np.allclose(ranks(one) + 1, rankdata(one, axis=-1))
    assert np.allclose(spearman(one, other), [spearmanr(a, b)[0] for a, b in zip(one, other, strict=True)])
    assert spearman(np.ones(4), np.arange(4.0)) == 0


def options_of(*words):
    return parse([str(word) for word in words])


@pytest.mark.parametrize("kept", [KEPT, ALSO_KEPT])
def test_a_recording_in_the_repository_is_replayed(capsys, kept):
    found = replay(options_of("replay", kept, "--orders", 50))
    show(found)
    assert "| no pruning | 0.0% | 0.0% |" in capsys.readouterr().out
    plain, *others = found["policies"]
    assert plain["total"] == plain["held_of_first"] == [1, 1, 1] and plain["regret_mean"] == 0
    for item in others:
        assert 0 <= item["winner_pruned"] <= 1 and 0 <= item["regret_mean"] < 0.1 and 0 < item["total"][0] < 2
        assert item["none_good"] <= item["winner_pruned"] + 1e-9
    assert all(-1 <= item["rho"] <= 1 for item in found["correlations"])


def test_every_policy_that_is_shown_can_be_replayed():
    found = replay(options_of("replay", KEPT, "--orders", 5, "--all"))
    names = [(item["policy"], item["share"]) for item in found["policies"]]
    assert len(set(names)) == len(names) > 300


def test_too_small_a_recording_is_said():
    with pytest.raises(SystemExit, match="record more"):
        replay(options_of("replay", KEPT, "--trials", 10_000))


def test_recording_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "import_trainer", lambda *_: None)  # it silences the libraries for good
    rows = [{"anchor": f"a man number {i}", "positive": f"man {i}", "negative": f"a dog {i * i}"} for i in range(80)]
    (tmp_path / "triplets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [
        "record",
        "--triplets",
        tmp_path / "triplets.jsonl",
        "--dev-size",
        20,
        "--output",
        tmp_path / "curves.json",
    ]
    for count in (1, 2):  # the second time it is continued
        curves.record(options_of(*words, "--configurations", count), {})
    data = json.loads((tmp_path / "curves.json").read_text())
    recording = Recording(data)
    assert recording.size == 2 and np.isfinite(recording.whole).all()
    for number, item in enumerate(data["configurations"]):
        assert curves.record_one(options_of(*words), number, watched=False)["final"] == item["final"]
        steps = [point["step"] for point in item["points"]]
        total = math.ceil(80 / item["values"]["per_device_train_batch_size"]) * item["values"]["num_train_epochs"]
        assert steps == sorted(set(steps)) and steps[-1] == total
        assert item["points"][-1]["full"] == item["final"]
    with pytest.raises(SystemExit, match="other options"):
        curves.record(options_of(*words, "--seed", 4), {})


@pytest.mark.slow
def test_the_parts_of_a_trial_are_measured():
    words = ["--run", "st_hpo", "--trials", "3", "--train-size", "16", "--dev-size", "8", "--max-steps", "1"]
    command = [sys.executable, str(KEPT.parent.parent / "overhead.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["steps"] == [1, 1, 1]
    assert set(found["parts_s"]) == {"model", "loss", "tokenise", "train", "evaluate", "machinery"}
    assert all(seconds >= 0 for seconds in found["parts_s"].values())
    assert sum(found["parts_s"].values()) * 3 < found["search_s"] * 2
