"""The password in a storage's URL reaches nothing that a search leaves: results, reports, models, checkpoints."""

from __future__ import annotations

import urllib.parse

import pytest

from fast_trainer import METRIC, RATES, FailIn, fast_arguments, fast_trainer, random_sampler
from postgres import PASSWORD, QUOTED_PASSWORD

pytest_plugins = ["shared_fixtures"]
pytestmark = pytest.mark.usefixtures("quiet_optuna")
FORMS = {PASSWORD, QUOTED_PASSWORD, urllib.parse.quote(PASSWORD), urllib.parse.quote_plus(PASSWORD)}


def test_no_file_of_a_search_has_the_password(postgres, tmp_path):
    url = postgres.new_database("study")
    assert QUOTED_PASSWORD in url
    folder = tmp_path / "output"
    args = fast_arguments(output_dir=str(folder), save_strategy="steps", save_steps=2, save_only_model=True)
    trainer = fast_trainer(args=args, callbacks=[FailIn({1}, ValueError("now and then"))])
    options = {"sampler": random_sampler(), "storage": url, "study_name": "s", "resume": True}
    trainer.hyperparameter_search(RATES, METRIC, 3, save_best_model=True, on_error="continue", **options)
    result = trainer.last_search
    assert [trial.state for trial in result.trials] == ["completed", "failed", "completed"]
    result.save(folder / "result.json")
    result.report(folder / "report.html")
    model = folder / "best_model"
    expected = [folder / "result.json", folder / "report.html", model / "README.md", model / "st_hpo.json"]
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert set(expected) <= set(found) and list(folder.glob("run-*/checkpoint-2"))
    for path in found:
        content = path.read_bytes()
        assert not [form for form in FORMS if form.encode() in content], path.relative_to(tmp_path)
    assert not [form for form in FORMS if form in result.to_json() + repr(result) + str(result)]
