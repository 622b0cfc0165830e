"""The benchmarks of what a search could learn: models of learning curves, and searches of a surrogate."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import learning_curves
import numpy as np
import optuna
import pytest
import surrogate
from learning_curves import MODEL, NOISE, SCORE, features, order_of_finals, predicted, search
from optuna.trial import TrialState
from policies import PAUSE, Policy, run
from replay import WHOLE, Recording
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from surrogate import COMPLETED, PAUSED, Surrogate, pausing, upstreams
from time_to_best import search_space

pytestmark = pytest.mark.usefixtures("quiet_optuna")
DATA = Path(__file__).parent.parent / "benchmarks" / "data"


@pytest.fixture(scope="module", params=["triplets", "sts"])
def kept(request):
    return json.loads((DATA / f"curves-{request.param}.json").read_text())


@pytest.fixture
def trainings(kept):
    return Surrogate(kept, 0.26, luck=0.0)


def test_predictions_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    known, values, wanted = rng.normal(size=(9, 3)), rng.random(9), rng.normal(size=(5, 3))
    process = GaussianProcessRegressor(RBF(2.0), alpha=NOISE, optimizer=None).fit(known, values - values.mean())
    assert predicted(known, values, wanted) == pytest.approx(values.mean() + process.predict(wanted))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_search_by_scores_is_the_replayed_one(kept, factor):
    recording, inputs = Recording(kept), features(kept["configurations"])
    rng = np.random.default_rng(1)
    orders = np.array([rng.permutation(recording.size)[:20] for _ in range(5)])
    curves = recording.curves(orders, Policy((0.26,)), WHOLE, rng)
    expected = run(curves, Policy((0.26,), PAUSE, 1 / factor), rng)
    for index, order in enumerate(orders):
        costs = (
            curves.scores[index, :, 0],
            curves.final[index],
            curves.trained[index, :, 0] + curves.evaluated[index, :, 0],
            curves.whole[index] - curves.trained[index, :, 0],
        )
        ended, clock = search(costs, inputs[order], factor, SCORE)
        assert ended == pytest.approx(expected.ended[index]) and clock == pytest.approx(expected.total[index])


def test_a_model_sees_what_the_score_at_the_rung_hides():
    """What a trial gains after the rung depends on its hyperparameter alone, and hardly shows before."""
    best = {SCORE: [], MODEL: []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        slow = rng.random(20)
        score = 0.5 + 0.05 * rng.random(20)
        final = score + 0.2 * slow
        costs = (score, final, np.ones(20), np.ones(20))
        inputs = learning_curves.standardized(slow[:, None])
        for by, found in best.items():
            ended, _ = search(costs, inputs, 4, by)
            found.append(final.max() - final[np.isfinite(ended)].max())
    assert np.mean(best[MODEL]) < np.mean(best[SCORE]) / 3


def test_predicted_orders_are_correlations(kept):
    found = order_of_finals(Recording(kept), features(kept["configurations"]))
    assert [item["rung"] for item in found] == list(learning_curves.RUNGS)
    assert all(-1 <= item[name] <= 1 for item in found for name in ("score", "line", "model", "hyperparameters"))
    assert found[-1]["score"] > found[0]["score"]
    assert len({item["hyperparameters"] for item in found}) == 1


def test_a_surrogate_trains_as_was_recorded(kept, trainings):
    recording = Recording(kept)
    draws = [trainings.train(item["values"], np.random.default_rng(0)) for item in kept["configurations"]]
    for name, values in (("final", recording.final), ("score", recording.scores(0.26)[:, 0])):
        errors = np.array([getattr(draw, name) for draw in draws]) - values
        assert np.sqrt((errors**2).mean()) < values.std() / 3
    plain = np.array([draw.plain for draw in draws])
    assert np.corrcoef(plain, recording.whole)[0, 1] > 0.9
    evaluation = np.array([draw.early + draw.late - draw.plain for draw in draws])
    assert evaluation.mean() == pytest.approx(recording.seconds(0.26)[1].mean(), rel=0.01)


def test_luck_is_shared_between_the_rung_and_the_end(kept):
    lucky, values = Surrogate(kept, 0.26, luck=0.01), kept["configurations"][0]["values"]
    rng = np.random.default_rng(0)
    draws = np.array([(draw.score, draw.final) for draw in (lucky.train(values, rng) for _ in range(4000))])
    assert draws.std(axis=0) == pytest.approx([0.01, 0.01], rel=0.05)
    assert np.corrcoef(draws.T)[0, 1] == pytest.approx(surrogate.SHARED, abs=0.05)


def test_upstreams_search_is_optunas(trainings):
    scores = []

    def objective(trial):
        scores.append(trainings.train(search_space(trial), np.random.default_rng(0)).final)
        return scores[-1]

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=3))
    study.optimize(objective, n_trials=15)
    found = upstreams(trainings, 3, 15)
    assert [score for _, score in found] == pytest.approx(scores)
    times = [at for at, _ in found]
    assert times == sorted(times) and times[0] > 0


class Watching(optuna.samplers.RandomSampler):
    """A random sampler that keeps which states it has seen."""

    def infer_relative_search_space(self, study, trial):
        self.seen = [other.state for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        return {}


@pytest.mark.parametrize(("told", "unfinished"), [(PAUSED, TrialState.PRUNED), (COMPLETED, TrialState.FAIL)])
def test_what_a_sampler_gets_to_know(trainings, told, unfinished):
    sampler = Watching(seed=0)
    early = trainings.train(kept_values(), np.random.default_rng(0)).early
    assert pausing(trainings, sampler, 3, told, (0, math.inf, 30 * early)) == math.inf
    waiting, completed = (sampler.seen.count(state) for state in (unfinished, TrialState.COMPLETE))
    assert len(sampler.seen) == waiting + completed and waiting // 3 <= completed + 1 <= waiting


def kept_values():
    return {"learning_rate": 1e-4, "per_device_train_batch_size": 64, "num_train_epochs": 1, "warmup_steps": 0.1}


def test_a_search_ends_with_its_first_good_trial(trainings):
    def held(factor, target=-math.inf, limit=math.inf):
        return pausing(trainings, optuna.samplers.RandomSampler(seed=0), factor, PAUSED, (0, target, limit))

    first, later = held(2), held(6)
    assert 0 < first < later, "the first one is completed when so many have been at the rung"
    assert held(2, limit=first) == math.inf, "too late"


@pytest.mark.parametrize("script", ["learning_curves.py", "surrogate.py"])
def test_the_command_line(script):
    small = {"learning_curves.py": ["--orders", "5"], "surrogate.py": ["--seeds", "2", "--factors", "4", "6"]}
    command = [sys.executable, str(DATA.parent / script)]
    done = subprocess.run(
        [*command, str(DATA / "curves-sts.json"), *small[script]], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert (
        "| " + {"learning_curves.py": "pause at 0.26, keep 1/4", "surrogate.py": "TPE, knows"}[script] in done.stdout
    )
    failed = subprocess.run([*command, "nothing.json"], capture_output=True, text=True, timeout=250)
    assert failed.returncode == 2 and "there is no recording 'nothing.json'" in failed.stderr
