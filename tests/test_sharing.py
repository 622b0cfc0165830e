"""Work that trials share: the same tensors, the same numbers, in bounded memory, and nothing of it stays."""

from __future__ import annotations

import copy
import filecmp
import pickle
import random
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import optuna
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.multi_vector_encoder import MultiVectorEncoder
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.sparse_encoder import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from tokenizers import Tokenizer, normalizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import st_hpo
from st_hpo import sharing
from st_hpo.sharing import SharedWork
from st_hpo.token_cache import CHECK_EVERY, TokenCache

from embedded import model_path
from fast_trainer import fast_arguments, fast_trainer, random_sampler
from scenarios import SCENARIOS, arguments, pairs
from small_model import build_small_model

PATCHED = [
    (Transformer, "preprocess"),
    (SparseStaticEmbedding, "preprocess"),
    (StaticEmbedding, "preprocess"),
    (PreTrainedTokenizerFast, "__call__"),
]
TEXTS = [*pairs("train", 48)["sentence1"], "", " ", "word " * 700, "[MASK] [SEP] ÄÖ 你好 \u200b 🤗", "Ä", "a\0b"]
SHORT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TEXT = SHORT | st.sampled_from(TEXTS)
QUICK = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def static_embedding() -> SentenceTransformer:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")


def left_padded() -> SentenceTransformer:
    model = SentenceTransformer(model_path(), device="cpu")
    model.tokenizer.padding_side = "left"
    model.max_seq_length = 9
    return model


def with_processing_kwargs() -> SentenceTransformer:
    model = SentenceTransformer(model_path(), device="cpu")
    model[0].processing_kwargs = {"text": {"pad_to_multiple_of": 8, "max_length": 16}}
    return model


def sparse_static() -> SparseEncoder:
    module = SparseStaticEmbedding(AutoTokenizer.from_pretrained(model_path()))
    return SparseEncoder(modules=[module], device="cpu")


MODELS = {
    "embedding": lambda: SentenceTransformer(model_path(), device="cpu"),
    "left": left_padded,
    "kwargs": with_processing_kwargs,
    "static": static_embedding,
    "sparse": lambda: SparseEncoder(model_path(), device="cpu"),
    "sparse static": sparse_static,
    "multi vector": lambda: MultiVectorEncoder(model_path(), device="cpu"),
    "cross": lambda: CrossEncoder(model_path(), num_labels=1, device="cpu"),
}


@cache
def model_of(name: str) -> Any:
    return MODELS[name]()


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert list(found) == list(expected)
    for key in expected:
        if isinstance(expected[key], torch.Tensor):
            assert found[key].dtype == expected[key].dtype and found[key].shape == expected[key].shape
            assert torch.equal(found[key], expected[key]), key
        else:
            assert found[key] == expected[key]


def check(model: Any, texts: Any, work: SharedWork, **kwargs: Any) -> None:
    expected = model.preprocess(texts, **kwargs)
    with work.trial():
        assert_equal(model.preprocess(texts, **kwargs), expected)


def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every text that a tokenizer of transformers is given from now on."""
    given: list[str] = []
    original = PreTrainedTokenizerFast.__call__

    def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        given.extend(text)
        return original(self, text, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", call)
    return given


# -- the same tensors


@pytest.mark.parametrize("name", [name for name in MODELS if name != "cross"])
def test_texts_give_the_same_tensors(name):
    """Batches that overlap, in any order, with prompts and tasks: some texts are known, some are not."""
    work, model = SharedWork(), model_of(name)

    @QUICK
    @given(st.lists(TEXT, min_size=1, max_size=8), st.sampled_from([None, "", "query: "]))
    def run(texts, prompt):
        check(model, texts, work, prompt=prompt)
        check(model, texts[::-1], work, prompt=prompt, task="query")
        check(model, [*texts, *TEXTS[:3]], work, prompt=prompt, task="document")

    run()
    assert work.tokens.size > 0
    check(model, TEXTS, work)
    check(model, TEXTS[::-1], work)


def test_pairs_give_the_same_tensors():
    work, model = SharedWork(), model_of("cross")

    @QUICK
    @given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8), st.sampled_from([None, "query: "]))
    def run(batch, prompt):
        check(model, batch, work, prompt=prompt)
        check(model, [list(pair) for pair in batch[::-1]], work, prompt=prompt)
        check(model, [pair[0] for pair in batch], work)  # a text is not a pair of it and nothing

    run()
    assert work.tokens.size > 0
    check(model, [("a", "bc"), ("ab", "c"), ("a", "bc")], work)


def test_a_known_text_is_not_tokenised_again(monkeypatch):
    given, work = tokenised(monkeypatch), SharedWork()
    for _ in range(2):
        model = MODELS["embedding"]()  # a new tokenizer with the same words, as every trial has
        with work.trial():
            model.preprocess(TEXTS[:2])  # leaves its truncation and padding in the tokenizer
            given.clear()
            model.preprocess(TEXTS)
    assert given == []
    with work.trial():
        for _ in range(CHECK_EVERY):
            model.preprocess(TEXTS)
    assert given == [max(TEXTS, key=len)]


def test_an_error_of_the_tokenizer_is_the_tokenizers():
    model, work = model_of("embedding"), SharedWork()
    with pytest.raises(TypeError, match="TextEncodeInput"):
        model.preprocess(["lone \ud800", "b"])
    with work.trial(), pytest.raises(TypeError, match="TextEncodeInput"):
        model.preprocess(["lone \ud800", "b"])


# -- what changes the ids of a text


def other_words(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(build_small_model(folder, TEXTS[:20]), device="cpu")


def test_what_changes_ids_is_not_taken_from_another_setting(tmp_path):
    work = SharedWork()
    changes = {
        "length": lambda model: setattr(model, "max_seq_length", 6),
        "longer": lambda model: setattr(model, "max_seq_length", 7),
        "side": lambda model: setattr(model.tokenizer, "truncation_side", "left"),
        "padding": lambda model: setattr(model.tokenizer, "padding_side", "left"),
        "pad token": lambda model: setattr(model.tokenizer, "pad_token", "[MASK]"),
        "tokens": lambda model: model.tokenizer.add_tokens(["girl"]),
        "special": lambda model: model.tokenizer.add_special_tokens({"additional_special_tokens": ["<plane>"]}),
        "split": lambda model: setattr(model.tokenizer, "split_special_tokens", True),
        "case": lambda model: setattr(
            model.tokenizer.backend_tokenizer, "normalizer", normalizers.Replace("plane", "car")
        ),
        "keys": lambda model: setattr(model.tokenizer, "model_input_names", ["input_ids", "attention_mask"]),
    }
    model = MODELS["embedding"]()
    check(model, TEXTS, work)
    for change in changes.values():  # on a tokenizer that was used before, one after the other
        change(model)
        check(model, TEXTS, work)
        check(model, TEXTS[::-1], work)
    check(other_words(tmp_path), TEXTS, work)
    check(MODELS["embedding"](), TEXTS, work)


def test_token_types_are_not_lost_where_another_model_has_none():
    work, batch = SharedWork(), [("a", "b c"), ("d e", "f")]
    model = MODELS["cross"]()
    model.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    check(model, batch, work)
    check(model_of("cross"), batch, work)
    check(model_of("cross"), batch, work)


def test_a_tokenizer_that_draws_at_random_is_left_alone():
    backend = Tokenizer(BPE({"a": 0, "b": 1, "ab": 2, "[PAD]": 3}, [("a", "b")], dropout=0.5))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    work = SharedWork()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    with work.trial():
        found = {tuple(model.preprocess(["ab" * 20, "ab"])["input_ids"].tolist()) for _ in range(20)}
    assert len(found) > 1 and work.tokens.size == 0


def test_a_tokenizer_that_has_changed_unseen_is_found_out(monkeypatch):
    """Its longest text is tokenised anew in every batch, and must be what is stored."""
    work, model = SharedWork(), MODELS["embedding"]()
    check(model, TEXTS[:8], work)
    original = model.tokenizer.backend_tokenizer.to_str()
    model.tokenizer.backend_tokenizer.model = Tokenizer.from_str(original.replace('"a":1037', '"a":1038')).model
    monkeypatch.setattr(TokenCache, "_fingerprint", lambda *args: b"always the same")
    work = SharedWork()
    with work.trial():
        MODELS["embedding"]().preprocess(TEXTS[:8])
    check(model, TEXTS[:8], work)
    assert work.tokens.size == 0
    check(model, TEXTS[:8], work)


def test_a_module_of_ones_own_is_left_alone():
    class Own(Transformer):
        def preprocess(self, inputs, **kwargs):
            encoding = super().preprocess(inputs, **kwargs)
            assert encoding.word_ids(0)  # only the tokenizer's own output has them
            return encoding

    work, model = SharedWork(), SentenceTransformer(modules=[Own(model_path())], device="cpu")
    with work.trial():
        for _ in range(2):
            model.preprocess(TEXTS[:4])
            assert model_of("embedding").tokenizer(TEXTS[:4], padding=True, return_tensors="pt").word_ids(0)
    assert work.tokens.size == 0


# -- memory


def test_memory_is_bounded_and_what_does_not_fit_is_tokenised_again():
    work, model = SharedWork(max_bytes=5000), model_of("embedding")
    for start in (0, 10, 0, 20):
        check(model, TEXTS[start : start + 24], work)
        assert 0 < work.tokens.size <= 5000


def test_what_earlier_trials_have_used_makes_room():
    work, model = SharedWork(max_bytes=8000), MODELS["embedding"]()
    check(model, TEXTS[:24], work)
    with work.trial():
        model.max_seq_length = 8
        model.preprocess(TEXTS[:24])
        before = work.tokens.size
        model.max_seq_length = 9
        model.preprocess(TEXTS[:24])
        assert before <= work.tokens.size <= 8000  # the setting of this trial has stayed
    assert len(work.tokens._spaces) == 2


def test_the_size_is_what_is_taken():
    texts = [f"text number {number}" for number in range(5000)]
    model, work = model_of("embedding"), SharedWork()
    model.preprocess(texts[:2])
    tracemalloc.start()
    try:
        with work.trial():
            for start in range(0, len(texts), 100):
                model.preprocess(texts[start : start + 100])
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.7 < work.tokens.size / taken < 1.7


# -- nothing stays


def test_the_classes_are_as_before_whatever_ends_a_trial():
    before = [vars(owner).get(name) for owner, name in PATCHED]
    with pytest.raises(RuntimeError), SharedWork().trial():
        with SharedWork().trial():
            pass
        assert all(vars(owner).get(name) is not old for (owner, name), old in zip(PATCHED, before, strict=True))
        raise RuntimeError("a trial fails")
    assert [vars(owner).get(name) for owner, name in PATCHED] == before
    with SharedWork(0).trial():
        assert [vars(owner).get(name) for owner, name in PATCHED] == before


def test_a_wrapper_around_ours_survives_and_ours_is_silent(monkeypatch):
    work, model = SharedWork(), model_of("embedding")
    with work.trial():
        given = tokenised(monkeypatch)
        model.preprocess(TEXTS[:4])
    model.preprocess(TEXTS[:4])
    assert given == [*TEXTS[:4], *TEXTS[:4]]


def test_pickles_copies_and_files_of_a_model_are_those_of_a_model_alone(tmp_path):
    alone, work = MODELS["embedding"](), SharedWork()
    shared = copy.deepcopy(alone)  # loading draws the weights of the pooler, which the checkpoint lacks
    alone.preprocess(TEXTS)
    with work.trial():
        MODELS["embedding"]().preprocess(TEXTS)
        shared.preprocess(TEXTS)
        pickled, copied = pickle.dumps(shared), copy.deepcopy(shared)
        shared.save(str(tmp_path / "shared"))
    alone.save(str(tmp_path / "alone"))
    assert b"st_hpo" not in pickled and not set(vars(shared[0])) ^ set(vars(alone[0]))
    assert set(vars(shared.tokenizer)) == set(vars(alone.tokenizer))
    assert_equal(copied.preprocess(TEXTS), alone.preprocess(TEXTS))
    assert_equal(pickle.loads(pickled).preprocess(TEXTS), alone.preprocess(TEXTS))
    assert_same_files(tmp_path / "shared", tmp_path / "alone")


def assert_same_files(first: Path, second: Path, but: tuple[str, ...] = ()) -> None:
    files = {path.relative_to(first) for path in first.rglob("*") if path.is_file() and path.name not in but}
    assert files == {path.relative_to(second) for path in second.rglob("*") if path.is_file() and path.name not in but}
    assert files and not [file for file in files if not filecmp.cmp(first / file, second / file, shallow=False)]


def test_in_another_process_it_is_empty():
    work = SharedWork(max_bytes=12345)
    check(model_of("embedding"), TEXTS, work)
    for other in (pickle.loads(pickle.dumps(work)), copy.deepcopy(work)):
        assert other.max_bytes == 12345 and other.tokens.size == 0
        check(model_of("embedding"), TEXTS, other)


# -- searches


def random_states() -> list[Any]:
    return [random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("name", ["sentence_transformer", "cross_encoder", "sparse_encoder", "multi_vector_encoder"])
def test_a_search_gives_the_same_numbers_and_random_states(name, monkeypatch):
    """With one base model; test_sentence.py compares searches that share with training by hand, also over several."""
    scenario = SCENARIOS[name]
    given, found = tokenised(monkeypatch), []
    for share in (False, True):
        trainer = getattr(st_hpo, scenario.trainer)(
            args=arguments(scenario.arguments, **(scenario.fixed or {})),
            train_dataset=scenario.train(),
            eval_dataset=scenario.eval_data() if scenario.eval_data else None,
            evaluator=scenario.evaluator(),
            model_init=scenario.model_init,
            loss_init=scenario.loss_init,
        )
        given.clear()
        best = trainer.hyperparameter_search(
            lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
            scenario.metric,
            n_trials=2,
            baseline=False,
            direction="minimize" if scenario.metric == "eval_loss" else "maximize",
            share_work=share,
            sampler=random_sampler(),
        )
        found.append(([trial.metrics for trial in best.run_summary.trials], random_states(), len(given)))
    (alone, states, many), (shared, same_states, few) = found
    times = ("runtime", "per_second")
    for one, other in zip(alone, shared, strict=True):
        assert {k: v for k, v in one.items() if not k.endswith(times)} == {
            k: v for k, v in other.items() if not k.endswith(times)
        }
    assert states == same_states
    assert few < 0.75 * many


@pytest.fixture
def shared_works(monkeypatch):
    """Every SharedWork of the searches in a test, with the most that it has held when a trial ended."""
    made: list[SharedWork] = []

    class Watched(SharedWork):
        held = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

        def __exit__(self, *exception: object) -> None:
            self.held = self.tokens.size
            super().__exit__(*exception)

    monkeypatch.setattr(sharing, "SharedWork", Watched)
    return made


def test_lengths_base_models_and_prompts_that_are_searched(tmp_path, shared_works):
    """Each trial again alone: its objective is the same."""
    small = build_small_model(tmp_path / "small", TEXTS[:20])

    def model_init(length: int = 0, small_base: bool = False) -> SentenceTransformer:
        model = SentenceTransformer(small if small_base else model_path(), device="cpu")
        model.max_seq_length = length or model.max_seq_length
        return model

    values = [
        {"model.length": 0, "prompts": ""},
        {"model.length": 5, "prompts": ""},
        {"model.length": 5, "prompts": "a prompt: "},
        {"model.small_base": True, "prompts": ""},
        {"model.length": 0, "prompts": ""},
    ]

    def search(share: bool, *which: int) -> list[float]:
        def hp_space(trial: optuna.Trial) -> dict[str, Any]:
            trial.suggest_float("learning_rate", 1e-4, 1e-4)
            return {**values[which[trial.number]], "learning_rate": 1e-4}

        trainer = fast_trainer(model_init=model_init)
        best = trainer.hyperparameter_search(hp_space, n_trials=len(which), share_work=share, baseline=False)
        return [trial.objective for trial in best.run_summary.trials]

    together = search(True, 0, 1, 2, 3, 4)
    assert together == search(False, 0, 1, 2, 3, 4)
    assert len(set(together)) == 4
    assert [work.held > 0 for work in shared_works] == [True, False]


def test_a_search_releases_what_it_has_shared_also_when_it_fails(shared_works):
    def loss_init(model: Any) -> Any:
        raise RuntimeError("no loss")

    before = [vars(owner).get(name) for owner, name in PATCHED]
    fast_trainer().hyperparameter_search(n_trials=1)
    trainer = fast_trainer()
    trainer._given["loss"] = loss_init
    with pytest.raises(RuntimeError, match="no loss"):
        trainer.hyperparameter_search(n_trials=1, baseline=False)
    assert [work.tokens.size for work in shared_works] == [0, 0]
    assert shared_works[0].held > 0
    assert [vars(owner).get(name) for owner, name in PATCHED] == before


def test_the_best_model_on_disk_is_that_of_a_search_alone(tmp_path):
    for share in (False, True):
        args = fast_arguments(output_dir=str(tmp_path / str(share)))
        fast_trainer(args=args).hyperparameter_search(
            lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
            n_trials=2,
            baseline=False,
            share_work=share,
            save_best_model=True,
            sampler=random_sampler(),
        )
    best = [tmp_path / name / "best_model" for name in ("True", "False")]
    # The card and the mark of the search have times in them
    assert_same_files(*best, but=("README.md", "st_hpo.json"))
    assert {"model.safetensors", "tokenizer.json", "modules.json"} <= {path.name for path in best[0].rglob("*")}
    check(SentenceTransformer(str(best[0]), device="cpu"), TEXTS, SharedWork())
