"""What a search leaves behind survives a file, and tells which trial was best."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from st_hpo import Baseline, ConfigurationError, SearchResult, TrialRecord
from st_hpo.jsonable import from_jsonable, to_jsonable
from st_hpo.records import STATES

# "$float" marks NaN and the infinities in JSON, so a dict with this very key must survive too
texts = st.text(max_size=6) | st.sampled_from(["$float", "nan", "inf", "é\u2028", "\ud800", "\x00"])
scalars = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
dicts = st.dictionaries(texts, values, max_size=3)
objectives = st.floats() | st.lists(st.floats(), min_size=2, max_size=3)
seconds = st.floats(0, 1e6)
records = st.builds(
    TrialRecord,
    number=st.integers(0, 10**6),
    state=st.sampled_from(STATES),
    objective=st.none() | objectives,
    hyperparameters=dicts,
    metrics=dicts,
    seconds=st.none() | seconds,
    phases=st.dictionaries(texts, seconds, max_size=2),
    error=st.none() | texts,
)
results = st.builds(
    SearchResult,
    trials=st.lists(records, max_size=3),
    objective_names=st.lists(texts, min_size=1, max_size=3),
    directions=st.lists(st.sampled_from(["minimize", "maximize"]), min_size=1, max_size=3),
    backend=texts,
    baseline=st.none() | st.builds(Baseline, objective=objectives, metrics=dicts, seconds=seconds),
    interrupted=st.booleans(),
    st_hpo_version=texts,
)


def trial(number: int, objective: Any = None, state: str | None = None, **fields: Any) -> TrialRecord:
    return TrialRecord(number, state or ("failed" if objective is None else "completed"), objective, **fields)


def result_of(*trials: TrialRecord, directions: tuple[str, ...] = ("maximize",), **fields: Any) -> SearchResult:
    names = [f"eval_{index}" for index in range(len(directions))]
    return SearchResult(list(trials), names, list(directions), **fields)


def no_constants(token: str) -> Any:
    raise AssertionError(f"{token} is no JSON")


# -- without loss


@given(values)
@settings(max_examples=400)
@example({"$float": "nan"})
@example({"$float": {"$float": math.inf}, "a": math.nan})
@example([{"$float": [math.nan, {"$float": None}]}])
def test_every_value_survives_json(value):
    """By its repr, which tells 1 from 1.0 and True, -0.0 from 0.0, and finds NaN equal to NaN."""
    text = json.dumps(to_jsonable(value), allow_nan=False)
    assert repr(from_jsonable(json.loads(text, parse_constant=no_constants))) == repr(value)


@given(results)
@settings(max_examples=100, deadline=None)
def test_every_result_survives_json(result):
    text = result.to_json()
    json.loads(text, parse_constant=no_constants)
    assert repr(SearchResult.from_json(text)) == repr(result)


@given(result=results)
@settings(max_examples=50, deadline=None)
def test_every_result_survives_a_file(result):
    result.save("folder/result.json")
    assert repr(SearchResult.load(Path("folder", "result.json"))) == repr(result)
    assert [item.name for item in Path("folder").iterdir()] == ["result.json"]


@given(records)
@settings(max_examples=50, deadline=None)
def test_every_record_survives_its_dict(record):
    assert repr(TrialRecord.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False)))) == repr(record)


def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known():
    data = {**trial(3, 0.5).to_dict(), "learnt_later": {"a": 1}}
    assert TrialRecord.from_dict(data) == trial(3, 0.5)


def test_the_backends_own_object_is_not_saved_and_does_not_count_in_a_comparison():
    result = result_of(trial(0, 0.5), native=object())
    loaded = SearchResult.from_json(result.to_json())
    assert loaded.native is None and loaded == result


# -- files


def test_saving_makes_the_folders_and_replaces_an_older_file(tmp_path):
    path = tmp_path / "a" / "b" / "result.json"
    result_of(trial(0, 0.5)).save(str(path))
    result_of(trial(0, 0.75)).save(path)
    assert SearchResult.load(path).best_trials[0].objective == 0.75
    assert [item.name for item in path.parent.iterdir()] == ["result.json"]


def test_a_metric_that_is_no_value_is_saved_as_its_text(tmp_path):
    path = tmp_path / "result.json"
    result_of(trial(0, 0.75, metrics={"eval_x": Path("a/b")})).save(path)
    assert SearchResult.load(path).trials[0].metrics == {"eval_x": "a/b"}


def test_a_write_that_fails_leaves_the_older_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    result_of(trial(0, 0.5)).save(path)
    before = path.read_bytes()

    def half(self: Path, text: str, **kwargs: Any) -> None:
        self.write_bytes(text[: len(text) // 2].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        result_of(trial(0, 0.75)).save(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"This is no saved SearchResult: it is no JSON \("),
        ('{"format_version": 1, ', r"This is no saved SearchResult: it is no JSON \("),
        ("[]", r"its format_version is None, expected 1"),
        ("{}", r"its format_version is None, expected 1"),
        ('{"format_version": 2}', r"its format_version is 2, expected 1. A later one needs `pip install -U st-hpo`"),
    ],
)
def test_what_is_no_result_is_refused(text, message, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    for read in (lambda: SearchResult.from_json(text), lambda: SearchResult.load(path)):
        with pytest.raises(ConfigurationError, match=message):
            read()


def test_a_file_that_does_not_exist_is_said_to_be_missing():
    with pytest.raises(FileNotFoundError):
        SearchResult.load("nowhere.json")


# -- the best


@given(
    objectives=st.lists(st.integers(-3, 3).map(float) | st.none(), max_size=6),
    direction=st.sampled_from(["minimize", "maximize"]),
)
def test_the_best_of_one_objective_is_the_first_of_those_that_no_other_exceeds(objectives, direction):
    result = result_of(*(trial(k, value) for k, value in enumerate(objectives)), directions=(direction,))
    completed = [value for value in objectives if value is not None]
    if not completed:
        assert result.best_trials == []
    else:
        extreme = max(completed) if direction == "maximize" else min(completed)
        assert [best.number for best in result.best_trials] == [objectives.index(extreme)]


def better_or_equal(a: float, b: float, direction: str) -> bool:
    return a >= b if direction == "maximize" else a <= b


@st.composite
def several_objectives(draw: st.DrawFn) -> SearchResult:
    directions = draw(st.lists(st.sampled_from(["minimize", "maximize"]), min_size=2, max_size=3))
    points = st.lists(
        st.integers(-2, 2).map(float) | st.sampled_from([math.inf, -math.inf]),
        min_size=len(directions),
        max_size=len(directions),
    )
    found = draw(st.lists(points | st.none(), max_size=8))
    return result_of(*(trial(k, point) for k, point in enumerate(found)), directions=tuple(directions))


@given(several_objectives())
@settings(max_examples=300, deadline=None)
def test_the_best_of_several_objectives_are_those_that_none_beats(result):
    """Word by word: another one beats a trial if it is as good everywhere, and better somewhere."""
    front = []
    for a in result.completed:
        beaten = False
        for b in result.completed:
            as_good = [better_or_equal(y, x, d) for x, y, d in zip(a.values, b.values, result.directions, strict=True)]
            better = [
                not better_or_equal(x, y, d) for x, y, d in zip(a.values, b.values, result.directions, strict=True)
            ]
            beaten = beaten or (all(as_good) and any(better))
        if not beaten:
            front.append(a.number)
    assert [best.number for best in result.best_trials] == front
    assert bool(front) is bool(result.completed)


@pytest.mark.parametrize("state", [state for state in STATES if state != "completed"])
def test_only_completed_trials_are_among_the_best(state):
    """A pruned trial of a shared study may have a value: its last report."""
    other = trial(0, 9.0, state)
    result = result_of(other, trial(1, 0.5), trial(2, 0.5))
    assert [best.number for best in result.best_trials] == [1]
    assert result_of(other).best_trials == [] and result_of(other).completed == []


def test_the_first_of_equals_is_the_best_in_whatever_order_they_are_listed():
    assert result_of(trial(7, 0.5), trial(3, 0.5), trial(5, 0.5)).best_trials[0].number == 3


# -- tables

MIXED = result_of(
    trial(
        0,
        0.5,
        hyperparameters={"learning_rate": 1e-4, "warmup_steps": 10, "prompts": {"anchor": "q: "}, "bf16": True},
        metrics={"eval_0": 0.5, "epoch": 1},
        seconds=2.5,
    ),
    trial(
        1,
        0.25,
        hyperparameters={"learning_rate": 1e-5, "warmup_steps": 0.1, "prompts": None, "loss.scale": "auto"},
        metrics={"eval_0": 0.25, "epoch": 2},
        seconds=3.5,
    ),
    trial(2, hyperparameters={"loss.scale": 20.0, "layers": [1, 2]}, error="ValueError: too large"),
)


def test_every_row_has_the_same_columns_in_the_same_order():
    rows = MIXED.to_rows()
    columns = [
        "number",
        "state",
        "objective",
        *(f"hyperparameters.{name}" for name in MIXED.trials[0].hyperparameters),
        "hyperparameters.loss.scale",
        "hyperparameters.layers",
        "metrics.eval_0",
        "metrics.epoch",
        "seconds",
        "error",
    ]
    assert [list(row) for row in rows] == [columns] * 3
    assert [row["objective"] for row in rows] == [0.5, 0.25, None]
    assert [row["hyperparameters.warmup_steps"] for row in rows] == [10, 0.1, None]
    assert [row["error"] for row in rows] == [None, None, "ValueError: too large"]


def test_several_objectives_have_a_column_each():
    result = result_of(trial(0, [0.5, 3.0]), trial(1), directions=("maximize", "minimize"))
    assert [(row["objective.eval_0"], row["objective.eval_1"]) for row in result.to_rows()] == [
        (0.5, 3.0),
        (None, None),
    ]
    assert "objective" not in result.to_rows()[0]


def test_no_trials_make_an_empty_table():
    empty = result_of()
    assert empty.to_rows() == [] and len(empty.to_pandas()) == 0 and len(empty.to_dataset()) == 0
    assert empty.best_trials == []


def test_a_data_frame_has_the_rows():
    frame = MIXED.to_pandas()
    assert list(frame.columns) == list(MIXED.to_rows()[0])
    assert frame["objective"].dtype == float and frame["number"].tolist() == [0, 1, 2]
    assert frame["objective"].idxmax() == 0
    assert frame["hyperparameters.prompts"][0] == {"anchor": "q: "}


def test_a_dataset_has_one_type_a_column_and_json_where_the_types_are_mixed():
    dataset = MIXED.to_dataset()
    types = {name: feature.dtype for name, feature in dataset.features.items()}
    assert types["number"] == "int64" and types["state"] == "string" and types["objective"] == "float64"
    assert types["hyperparameters.bf16"] == "bool" and types["metrics.epoch"] == "int64"
    assert types["hyperparameters.warmup_steps"] == "float64"
    assert dataset["hyperparameters.warmup_steps"][:] == [10.0, 0.1, None]
    assert dataset["hyperparameters.prompts"][:] == ['{"anchor": "q: "}', None, None]
    assert dataset["hyperparameters.loss.scale"][:] == [None, '"auto"', "20.0"]
    assert dataset["hyperparameters.layers"][:] == [None, None, "[1, 2]"]


columns = st.lists(st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(), max_size=4)


@given(columns)
@settings(max_examples=100, deadline=None)
@example([2**53 + 1, 0.5])
def test_a_column_of_a_dataset_loses_nothing_whatever_is_in_it(column):
    """Either the values themselves, or the JSON of each."""
    result = result_of(*(trial(k, 0.5, hyperparameters={"x": value}) for k, value in enumerate(column)))
    found = result.to_dataset()["hyperparameters.x"][:] if column else []
    kinds = {type(value) for value in column if value is not None}
    for value, stored in zip(column, found, strict=True):
        if value is None:
            assert stored is None
        elif len(kinds) > 1 and isinstance(stored, str):
            assert repr(from_jsonable(json.loads(stored))) == repr(value)
        else:
            assert stored == value or math.isnan(value)


# -- in short


def test_a_result_shows_its_counts_the_untrained_model_and_the_best():
    result = dataclasses.replace(
        MIXED, trials=[*MIXED.trials, trial(3, state="pruned")], baseline=Baseline(0.125, {"eval_0": 0.125}, 1.0)
    )
    assert str(result).splitlines() == [
        "4 trials (2 completed, 1 pruned, 1 failed) of eval_0",
        "untrained  0.125",
        'best       0.5    trial 0  learning_rate=0.0001, warmup_steps=10, prompts={"anchor": "q: "}, bf16=True',
        "",
        "best 2 of 2 completed:",
        "trial  objective  time   learning_rate  warmup_steps  prompts            bf16  loss.scale",
        '0      0.5        2.5 s  0.0001         10            {"anchor": "q: "}  True  \N{EN DASH}',
        "1      0.25       3.5 s  1e-05          0.1           None               \N{EN DASH}     auto",
        "",
        "failed:",
        "  trial 2: ValueError: too large",
        "",
        "time: 6 s in trials",
    ]


def test_a_result_without_trials_shows_that_there_are_none():
    assert str(result_of(directions=("maximize", "minimize"))) == (
        "0 trials (none) of eval_0, eval_1\nbest  none: no trial was completed"
    )


def test_the_whole_front_is_shown():
    result = result_of(trial(0, [1.0, 2.0]), trial(1, [2.0, 1.0]), directions=("maximize", "maximize"))
    assert str(result).splitlines()[1:3] == ["best  1.0, 2.0  trial 0", "best  2.0, 1.0  trial 1"]
