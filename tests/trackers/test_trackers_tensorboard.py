"""TensorBoard: every trial is a folder of event files, read back with its own reader."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.util import tensor_util

from st_hpo.records import TrialRecord
from st_hpo.trackers.tensorboard import TensorBoardTrialRun
from st_hpo.trackers.trial_run import TrialFacts

PAGE = Path(__file__).parents[2] / "docs" / "trackers.md"
SCALAR = "eval/sts-dev_spearman_cosine"


def read(folder: Path) -> dict[str, Any]:
    """All that the event files of a folder say."""
    found: dict[str, Any] = {"scalars": {}, "texts": {}, "hparams": None}
    for file in sorted(folder.glob("events*")):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            found["scalars"].setdefault(name, []).extend(event.value for event in events.Scalars(name))
        for name in events.Tags()["tensors"]:
            tensor = events.Tensors(name)[0].tensor_proto
            found["texts"][name.removesuffix("/text_summary")] = tensor_util.make_ndarray(tensor).item().decode()
        try:
            content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        except KeyError:
            continue
        start: plugin_data_pb2.SessionStartInfo = metadata.parse_session_start_info_plugin_data(content)
        found["hparams"] = {name: value.number_value for name, value in start.hparams.items()}
    return found


def check(result, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["run-0", "run-1", "run-2"]
    for trial in result.trials:
        run = read(folder / f"run-{trial.number}")
        assert run["hparams"] == pytest.approx(trial.hyperparameters, rel=1e-12)
        assert (run["texts"]["trial_state"], run["texts"].get("trial_error")) == (trial.state, trial.error)
        expected = None if trial.objective is None else [pytest.approx(trial.objective, rel=1e-6)]
        assert run["scalars"].get("objective") == expected
        assert len(run["scalars"].get(SCALAR, [])) == {"completed": 2, "pruned": 1, "failed": 0}[trial.state]
        assert '"max_steps": 2' in run["texts"]["args"]


def test_every_trial_is_a_folder_below_that_of_the_search(three_trials):
    threads = set(threading.enumerate())
    result = three_trials("tensorboard")
    check(result, Path("output/runs/a study"))
    assert not Path("runs").exists(), "the baseline is no run"
    assert not [path for path in Path().rglob("events*") if "a study" not in path.parts]
    assert {thread.name for thread in set(threading.enumerate()) - threads} <= {"tqdm_monitor"}, "writers are closed"


def test_the_folder_of_the_environment_is_taken(three_trials, monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "boards"))
    result = three_trials("tensorboard", eval_strategy="steps", save_strategy="no")
    check(result, tmp_path / "boards" / "a study")
    assert not list(Path("output").rglob("events*"))


@pytest.mark.parametrize(
    ("study_name", "folder"),
    [("..", "__"), (".", "_"), ("../../other", ".._.._other"), ("/etc", "_etc"), ("a.b", "a.b")],
)
def test_no_name_of_a_study_leads_out_of_the_folder(study_name, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "boards"))
    facts = TrialFacts("run-0", study_name, "0", {}, "output", [], False)
    run = TensorBoardTrialRun(SimpleNamespace(tb_writer=None), facts)
    run.open(None, None)
    run.close(TrialRecord(0, "completed", 0.5))
    assert {path.parent for path in tmp_path.rglob("events*")} == {tmp_path / "boards" / folder / "run-0"}


def test_the_example_of_the_documentation_runs():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(block, scope)
    for trial in scope["trainer"].last_search.trials:
        run = read(Path("checkpoints/runs/scales") / f"run-{trial.number}")
        assert run["scalars"]["objective"] == [pytest.approx(trial.objective, rel=1e-6)]
