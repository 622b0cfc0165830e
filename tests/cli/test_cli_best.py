"""``st-hpo best``: what is printed, read again, has the values of the trial to the last bit."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from st_hpo import SearchResult, TrialRecord
from st_hpo.cli import best
from st_hpo.jsonable import from_jsonable

from cli_setup import METRIC, complaint, front_result, printed, records, small_result, st_hpo

AWKWARD = {
    "learning_rate": 1e-05,
    "a": 1e16,
    "b": 5e-324,
    "c": -0.0,
    "d": 0.1 + 0.2,
    "e": 1,
    "f": 2**70,
    "g": True,
    "h": None,
    "i": "1e-05",
    "j": "1e5",
    "k": "true",
    "l": "no",
    "m": "null",
    "n": "",
    "o": "012",
    "p": "0o17",
    "q": "1_000",
    "r": "2026-11-21",
    "s": "12:30:45",
    "t": [1, 1.0, "1", None, [True, {"x": 1e-7}]],
    "u": {"anchor": "query: ", "1": "a \"quoted\" 'text'\nof: two # lines\\"},
    "v": "été \u4f60 \U0001f600 \u2028 \x7f",
    "w": math.inf,
    "x": -math.inf,
    "y": "~",
    "z": "x" * 300 + " y" * 300,
    "with space: and # such": [],
    "loss.scale": 1e-3,
    "loss.inner.margin": 2.0,
    "model.dropout": 1e-05,
}
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def result_of(hyperparameters: dict[str, Any]) -> SearchResult:
    return SearchResult([TrialRecord(0, "completed", 0.5, hyperparameters)], ["eval_x"], ["maximize"])


def run(code: str) -> dict[str, Any]:
    """What the printed code makes: its variables, and the hyperparameters that these hold."""
    made: dict[str, Any] = {}
    exec(code, made)
    return made


@given(st.dictionaries(texts, values, max_size=4))
@settings(max_examples=200, deadline=None)
@example(AWKWARD)
@example({"x": "1e-5", "y": [float("1e22"), "0x1F", "1_0", "+1.5", ".5", "0b1", "nan", ".nan", "-.inf"]})
def test_every_value_survives_yaml(hyperparameters):
    result = result_of(hyperparameters)
    assert repr(yaml.safe_load(best.as_yaml(result.trials, result)) or {}) == repr(hyperparameters)


@given(values)
@settings(max_examples=200, deadline=None)
@example(AWKWARD)
def test_every_value_survives_python(value):
    assert repr(eval(best.literal(value))) == repr(value)
    assert repr(eval(best.literal(value, spread=True))) == repr(value)


def test_nan_survives_yaml_and_python():
    result = result_of({"x": math.nan})
    assert math.isnan(yaml.safe_load(best.as_yaml(result.trials, result))["x"])
    assert math.isnan(eval(best.literal(math.nan)))


def test_a_text_that_is_a_number_for_any_parser_of_yaml_is_quoted():
    """PyYAML reads 1e-5 as a text (YAML 1.1), others as a number (YAML 1.2)."""
    result = result_of({"a": "1e-5", "b": "0o17", "c": 1e-5, "d": "abc"})
    assert best.as_yaml(result.trials, result).splitlines()[1:] == ['a: "1e-5"', 'b: "0o17"', "c: 1.0e-05", "d: abc"]


def test_yaml_is_the_default_and_says_which_trial_it_is():
    small_result().save("result.json")
    text = printed("best", "result.json")
    assert text.splitlines()[0] == f"# Trial 1 (completed): {METRIC} = 0.7354870734037782"
    assert yaml.safe_load(text) == records()[1].hyperparameters
    assert printed("best", "result.json", "--format", "yaml") == text


def test_the_awkward_values_survive_the_command_itself():
    result_of(AWKWARD).save("result.json")
    assert repr(yaml.safe_load(printed("best", "result.json"))) == repr(AWKWARD)
    made = run(printed("best", "result.json", "--format", "python"))
    rest = {key: AWKWARD[key] for key in AWKWARD if key != "learning_rate" and not key.startswith(("loss.", "model."))}
    assert repr(made["trial_values"]) == repr(rest)
    assert made["loss_values"] == {"scale": 1e-3, "inner.margin": 2.0} and made["model_values"] == {"dropout": 1e-05}
    assert made["args"].learning_rate == 1e-05
    entry = from_jsonable(json.loads(printed("best", "result.json", "--format", "json")))
    assert repr(entry["hyperparameters"]) == repr(AWKWARD)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_that_knows_only_ascii_gets_escapes(encoding, monkeypatch):
    class Stdout:
        pass

    stdout = Stdout()
    stdout.encoding = encoding
    monkeypatch.setattr(best.sys, "stdout", stdout)
    result = result_of({"x": "été 你"})
    for text in (best.as_yaml(result.trials, result), best.literal("été 你")):
        assert text.isascii() is (encoding == "ascii")
        assert ("é" in text) is (encoding == "utf-8")
    assert yaml.safe_load(best.as_yaml(result.trials, result)) == {"x": "été 你"}
    assert eval(best.literal("été 你")) == "été 你"


@pytest.mark.parametrize("trainer", list(best.ARGUMENTS))
def test_the_python_code_builds_the_arguments_of_each_trainer(trainer):
    small_result().save("result.json")
    code = printed("best", "result.json", "--format", "python", "--trainer", trainer)
    made = run(code)
    module, name = best.ARGUMENTS[trainer]
    assert type(made["args"]).__name__ == name and type(made["args"]).__module__.startswith("sentence_transformers")
    assert f"from {module} import {name}" in code
    assert made["args"].learning_rate == 0.0018263643594521016 and made["args"].warmup_steps == 3
    assert made["loss_values"] == {"scale": 5.5}
    assert "model_values" not in made and "trial_values" not in made


def test_a_trial_is_chosen_by_its_number_also_a_failed_one():
    small_result().save("result.json")
    assert yaml.safe_load(printed("best", "result.json", "--trial", 0)) == records()[0].hyperparameters
    text = printed("best", "result.json", "--trial", 2)
    assert text.splitlines()[0] == "# Trial 2 (failed): no objective"
    assert yaml.safe_load(text) == {"learning_rate": 0.01}


def test_json_has_the_objective_and_the_values():
    small_result().save("result.json")
    assert json.loads(printed("best", "result.json", "--format", "json")) == {
        "trial": 1,
        "state": "completed",
        "objectives": {METRIC: 0.7354870734037782},
        "hyperparameters": records()[1].hyperparameters,
    }


def test_of_several_objectives_the_front_is_listed_and_a_trial_is_chosen():
    front_result().save("result.json")
    entries = yaml.safe_load(printed("best", "result.json"))
    assert [entry["trial"] for entry in entries] == [0, 1]
    assert entries[1] == {
        "trial": 1,
        "state": "completed",
        "objectives": {"eval_x": 0.75, "eval_seconds": 2.0},
        "hyperparameters": {"learning_rate": 1e-05},
    }
    assert json.loads(printed("best", "result.json", "--format", "json")) == entries
    assert yaml.safe_load(printed("best", "result.json", "--trial", 1)) == {"learning_rate": 1e-05}
    assert run(printed("best", "result.json", "--trial", 1, "-f", "python"))["args"].learning_rate == 1e-05
    assert complaint("best", "result.json", "--format", "python", code=2) == (
        "st-hpo: The Pareto front has 2 trials: choose one with --trial (0, 1)."
    )


def test_without_a_completed_trial_there_is_no_best_one():
    small_result(trials=records()[2:]).save("result.json")
    said = complaint("best", "result.json")
    assert said.startswith("st-hpo: No trial was completed, so none is the best: 2 trials (1 pruned, 1 failed)")
    small_result(trials=[]).save("result.json")
    assert "0 trials" in complaint("best", "result.json")
    assert complaint("best", "result.json", "--trial", 0) == "st-hpo: The search has no trial 0: it has no trials."


@pytest.mark.parametrize("number", [4, 99])
def test_a_trial_that_does_not_exist_is_an_error_that_says_which_do(number):
    small_result().save("result.json")
    said = complaint("best", "result.json", "--trial", number)
    assert said == f"st-hpo: The search has no trial {number}: its trials are 0 to 3."


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--format", "xml"), "yaml"),
        (("--trial", "-1"), "--trial"),
        (("--trial", "two"), "--trial"),
        (("--trainer", "reranker"), "cross-encoder"),
        (("--fromat", "yaml"), "--fromat"),
    ],
)
def test_a_wrong_option_is_a_usage_error(option, message):
    small_result().save("result.json")
    assert message in complaint("best", "result.json", *option, code=2)
    assert "best -h" in st_hpo("best", "result.json", *option).stderr
