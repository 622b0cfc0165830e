"""``st-hpo trials``: a table for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import struct
import termios
from fcntl import ioctl
from typing import Any

import pytest

from st_hpo import TrialRecord
from st_hpo.records import STATES

from cli_setup import METRIC, complaint, front_result, printed, process, records, small_result, st_hpo


@pytest.fixture(autouse=True)
def _saved(_in_a_folder_of_its_own):
    small_result().save("result.json")


def numbers(*options: Any) -> list[int]:
    return [trial["number"] for trial in json.loads(printed("trials", "result.json", "-f", "json", *options))]


def test_without_a_terminal_the_table_is_plain_text_in_columns():
    assert printed("trials", "result.json").splitlines() == [
        f"trial  state      {METRIC}          learning_rate  warmup_steps  loss.scale  seconds  error",
        "1 *    completed            0.7354870734037782  0.0018263643594521016             3         5.5     10.0",
        "0      completed                           0.5                  1e-05           0.1        20.0     12.3",
        "2      failed                                -                   0.01             -           -      3.0  "
        r"ValueError: too\n\x1b[31mlarge",
        "3      pruned                                -                  0.001             -         7.0      2.0",
    ]


def test_a_table_is_not_cut_off_however_narrow_the_terminal_and_however_long_the_values():
    small_result(trials=[TrialRecord(0, "completed", 0.5, {"prompts": {"anchor": "x" * 500}})]).save("wide.json")
    done = st_hpo("trials", "wide.json", env={"COLUMNS": "20"})
    assert "x" * 500 in done.stdout and len(done.stdout.splitlines()) == 2


def test_all_of_the_pareto_front_is_marked_and_every_objective_has_a_column():
    front_result().save("front.json")
    lines = printed("trials", "front.json", "--sort", "number").splitlines()
    assert lines[0].split() == ["trial", "state", "eval_x", "eval_seconds", "learning_rate", "seconds"]
    assert [line.split()[1] == "*" for line in lines[1:]] == [True, True, False]


def test_csv_has_the_columns_of_the_rows_and_every_digit():
    rows = list(csv.DictReader(io.StringIO(printed("trials", "result.json", "--format", "csv", "--sort", "number"))))
    expected = small_result().to_rows()
    assert list(rows[0]) == list(expected[0])
    assert [row["number"] for row in rows] == ["0", "1", "2", "3"]
    for row, wanted in zip(rows, expected, strict=True):
        for name, value in wanted.items():
            assert row[name] == ("" if value is None else str(value))
    assert float(rows[1]["hyperparameters.learning_rate"]) == 0.0018263643594521016


def test_a_list_in_csv_is_json():
    small_result(trials=[TrialRecord(0, "completed", 0.5, {"prompts": {"b": 1, "a": [None, 0.1]}})]).save("x.json")
    row = next(csv.DictReader(io.StringIO(printed("trials", "x.json", "-f", "csv"))))
    assert json.loads(row["hyperparameters.prompts"]) == {"a": [None, 0.1], "b": 1}


def test_json_has_whole_records():
    text = printed("trials", "result.json", "--format", "json", "--sort", "number")
    assert [TrialRecord.from_dict(item) for item in json.loads(text)] == records()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), [1, 0, 2, 3]),
        (("--sort", "objective"), [1, 0, 2, 3]),
        (("--sort", "objective", "--reverse"), [0, 1, 2, 3]),
        (("--sort", METRIC), [1, 0, 2, 3]),
        (("--sort", "number"), [0, 1, 2, 3]),
        (("--sort", "number", "--reverse"), [3, 2, 1, 0]),
        (("--sort", "seconds"), [3, 2, 1, 0]),
        (("--sort", "learning_rate"), [0, 3, 1, 2]),
        (("--sort", "loss.scale"), [1, 3, 0, 2]),
        (("--sort", "loss.scale", "--reverse"), [0, 3, 1, 2]),
        (("--sort", "epoch"), [0, 1, 2, 3]),
        (("--limit", 2), [1, 0]),
        (("--limit", 9), [1, 0, 2, 3]),
        (("--state", "failed"), [2]),
        (("--state", "failed", "--state", "pruned", "--sort", "number"), [2, 3]),
        (("--state", "failed", "--sort", "warmup_steps"), [2]),
        (("--state", "running"), []),
    ],
)
def test_trials_are_chosen_and_sorted(options, expected):
    assert numbers(*options) == expected


def test_the_best_of_a_minimized_objective_comes_first():
    small_result(directions=["minimize"]).save("result.json")
    assert numbers() == [0, 1, 2, 3]


def test_of_several_objectives_the_first_one_sorts_unless_another_is_named():
    front_result().save("result.json")
    assert numbers() == [1, 0, 2] and numbers("--sort", "eval_seconds") == [0, 1, 2]


def test_values_of_several_types_are_sorted_by_type_and_the_missing_come_last():
    values = ["b", 2, None, [1], "a", True, 1.5, float("nan")]
    small_result(trials=[TrialRecord(k, "completed", 0.5, {"x": v}) for k, v in enumerate(values)]).save("result.json")
    assert numbers("--sort", "x") == [5, 6, 1, 4, 0, 3, 2, 7]


def test_a_name_that_does_not_exist_is_a_usage_error_with_the_nearest_one():
    said = complaint("trials", "result.json", "--sort", "learning_rat", code=2)
    assert said.startswith("st-hpo: --sort: there is no 'learning_rat'. Did you mean 'learning_rate'? Choose one of")


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--limit", 0), "--limit"), (("--state", "done"), "completed"), (("--format", "html"), "csv")],
)
def test_a_wrong_option_says_what_is_right(option, message):
    assert message in complaint("trials", "result.json", *option, code=2)


def test_no_trial_to_show_is_said_on_stderr_and_leaves_stdout_empty():
    done = st_hpo("trials", "result.json", "--state", "running")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith("No trial to show; the search has 4 trials")
    small_result(trials=[]).save("none.json")
    assert printed("trials", "none.json", "-f", "json").strip() == "[]"
    assert printed("trials", "none.json", "-f", "csv").strip() == "number,state"


def test_every_state_can_be_asked_for():
    for state in STATES:
        assert st_hpo("trials", "result.json", "--state", state).exit_code == 0


def in_a_terminal(*arguments: Any, columns: int = 200, **env: str) -> str:
    """The output of a command whose stdout is a terminal."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {"TERM": "xterm-256color", "COLUMNS": "", **env}
    with process(arguments, stdout=theirs, env=environment) as running:
        os.close(theirs)
        output = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # what Linux says at the end of a terminal
                break
            if not piece:
                break
            output += piece
        assert running.wait(timeout=300) == 0, running.stderr.read()
    os.close(ours)
    return output.decode()


def test_in_a_terminal_the_best_trial_stands_out_and_no_value_can_colour_anything():
    shown = in_a_terminal("trials", "result.json")
    codes = set(re.findall(r"\x1b\[[0-9;]*m", shown))
    assert "\x1b[1m" in codes and "\x1b[31m" not in codes
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert r"too\n\x1b[31mlarge" in plain and "0.0018263643594521016" in plain and "1 *" in plain
