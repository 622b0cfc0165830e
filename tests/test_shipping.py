"""What is sent to other processes, and what comes back: no model, whole datasets, exceptions as they were."""

from __future__ import annotations

import errno
import json
import pickle
import subprocess
import sys
import threading

import numpy
import pytest
from datasets import concatenate_datasets, load_from_disk
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from st_hpo import ConfigurationError
from st_hpo.search import Search
from st_hpo.shipping import RemoteTraceback, pack, pack_exception, unpack_exception
from st_hpo.testing import METRIC, SPACE, build_tiny_model, make_trainer, sentence_pairs

OPEN = """
import gc, json, pickle, sys
from pathlib import Path
from torch import nn
runner = pickle.loads(Path(sys.argv[1]).read_bytes()).unpack()
gc.collect()
modules = [item for item in gc.get_objects() if isinstance(item, nn.Module)]
modules = sum(any(True for _ in item.parameters()) for item in modules)  # libraries have some without weights
rows = runner.recipe.parts["train_dataset"].to_list()
Path(sys.argv[2]).write_text(json.dumps([modules, rows, runner.baseline().metrics]))
"""


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def sent(monkeypatch):
    """Returns a function that packs what a search of a trainer would send."""
    runners = []
    monkeypatch.setattr(Search, "run", lambda search: runners.append(search.portable))

    def packed(trainer, whole_datasets=True):
        trainer.hyperparameter_search(SPACE, METRIC, direction="maximize")
        return pack(runners[-1], whole_datasets)

    return packed


def opened_elsewhere(parcel, tmp_path):
    """Unpacks a parcel in a fresh process: how many modules came out, the dataset's rows, and the baseline."""
    (tmp_path / "parcel").write_bytes(pickle.dumps(parcel, protocol=5))
    command = [sys.executable, "-c", OPEN, str(tmp_path / "parcel"), str(tmp_path / "found")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "found").read_text())


class LargeModel:
    """Makes a model that is larger than all else that is sent."""

    def __init__(self, path):
        self.path = path

    def __call__(self):
        model = SentenceTransformer(self.path, device="cpu")
        model[0].model.resize_token_embeddings(50_000)
        return model


class KnowsItsTrainer(TrainerCallback):
    trainer = None


@pytest.mark.parametrize("trained", [False, True])
def test_a_parcel_holds_no_model(tiny_model, tmp_path, sent, trained):
    callback = KnowsItsTrainer()
    trainer = make_trainer(tiny_model, tmp_path, model_init=LargeModel(tiny_model), callbacks=[callback])
    callback.trainer = trainer
    if trained:
        trainer.train()
    size = sum(weight.numel() * weight.element_size() for weight in trainer.model.parameters())
    parcel = sent(trainer)
    assert parcel.size < size / 10
    modules, _, metrics = opened_elsewhere(parcel, tmp_path)
    assert modules == 0 and METRIC in metrics


def test_a_dataset_in_files_arrives_whole(tiny_model, tmp_path, sent):
    for name in ("one", "two"):
        sentence_pairs(16).save_to_disk(tmp_path / name)
    one, two = (load_from_disk(tmp_path / name) for name in ("one", "two"))
    dataset = concatenate_datasets([one.shuffle(seed=1), two.select(range(3, 9))])
    assert dataset.cache_files
    rows = dataset.to_list()
    parcel = sent(make_trainer(tiny_model, tmp_path, train_dataset=dataset))
    for name in ("one", "two"):
        for file in (tmp_path / name).iterdir():
            file.unlink()
    assert opened_elsewhere(parcel, tmp_path)[1] == rows


def test_on_one_machine_a_dataset_in_files_stays_there(tmp_path):
    sentence_pairs(2000).save_to_disk(tmp_path / "stored")
    dataset = load_from_disk(tmp_path / "stored")
    assert pack(dataset, whole_datasets=False).size < pack(dataset, whole_datasets=True).size / 4


def test_arrays_can_be_written_to_as_where_they_came_from():
    mine, fixed = numpy.zeros(50_000), numpy.ones(50_000)
    fixed.flags.writeable = False
    parcel = pack([mine, fixed], whole_datasets=False)
    for buffer in parcel.buffers:
        buffer.flags.writeable = False  # as in Ray's object store
    theirs, still_fixed = parcel.unpack()
    theirs[:] = 2.0
    assert not mine.any() and not still_fixed.flags.writeable and still_fixed.all()


class Awkward:
    def __reduce__(self):
        raise RuntimeError("only by inheritance")


@pytest.mark.parametrize("thing", [threading.Lock(), Awkward()])
def test_what_cannot_be_sent_is_said(thing):
    with pytest.raises(ConfigurationError, match="cannot be sent"):
        pack({"thing": thing}, whole_datasets=False)


# ---- Exceptions ----


class NeedsTwo(ValueError):
    def __init__(self, one, two):
        super().__init__(f"{one} of {two}")
        self.one, self.two = one, two


class SaysMore(ValueError):
    def __init__(self, message):
        super().__init__(f"more: {message}")


class HoldsALock(ValueError):
    def __init__(self, message):
        super().__init__(message)
        self.lock, self.kept = threading.Lock(), 1


def back(exc):
    try:
        raise exc
    except BaseException as raised:
        return unpack_exception(pack_exception(raised))


@pytest.mark.parametrize(
    "exc",
    [
        NeedsTwo(1, two=2),
        SaysMore("this"),
        SystemExit(3),
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, "full", "a file"),
        KeyError("key"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        ImportError("no", name="module"),
    ],
)
def test_an_exception_arrives_as_it_was(exc):
    found = back(exc)
    assert type(found) is type(exc)
    assert (str(found), found.args, vars(found)) == (str(exc), exc.args, vars(exc))
    for name in ("code", "errno", "filename", "reason", "name"):
        assert getattr(found, name, None) == getattr(exc, name, None)
    assert isinstance(found.__cause__, RemoteTraceback) and "in back" in str(found.__cause__)


def test_what_cannot_be_sent_of_an_exception_is_left_out():
    found = back(HoldsALock("message"))
    assert type(found) is HoldsALock and str(found) == "message" and vars(found) == {"kept": 1}


def test_a_local_exception_is_the_same_class_again():
    class Local(ValueError):
        pass

    assert type(back(Local("message"))) is Local


def test_an_exception_that_cannot_be_sent_at_all():
    assert pack_exception(ValueError(threading.Lock())) is None
