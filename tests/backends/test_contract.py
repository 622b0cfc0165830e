"""The contract of ``st_hpo.testing`` over every backend, each on the real thing, and over the documented template."""

from __future__ import annotations

import pytest
import ray

from st_hpo.testing import BackendContract

from own_backend import RandomBackend
from sigopt_server import running_server as sigopt_server
from wandb_server import running_server as wandb_server


def ray_hp_space(trial):
    from ray import tune

    return {
        "learning_rate": tune.loguniform(1e-6, 1e-4),
        "per_device_train_batch_size": tune.choice([16, 32, 64, 128]),
    }


def wandb_hp_space(trial):
    return {
        "method": "random",
        "metric": {"name": "objective", "goal": "minimize"},
        "parameters": {
            "learning_rate": {"distribution": "uniform", "min": 1e-6, "max": 1e-4},
            "per_device_train_batch_size": {"values": [16, 32, 64, 128]},
        },
    }


def sigopt_hp_space(trial):
    return [
        {"bounds": {"min": 1e-6, "max": 1e-4}, "name": "learning_rate", "type": "double"},
        {
            "categorical_values": ["16", "32", "64", "128"],
            "name": "per_device_train_batch_size",
            "type": "categorical",
        },
    ]


def optuna_hp_space(trial):
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [16, 32, 64, 128]),
    }


class TestOptuna(BackendContract):
    backend = "optuna"
    native_space = staticmethod(optuna_hp_space)


@pytest.mark.slow
class TestRay(BackendContract):
    backend = "ray"
    native_space = staticmethod(ray_hp_space)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _cluster(cls):
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


class TestWandb(BackendContract):
    backend = "wandb"
    enqueues = False
    native_space = staticmethod(wandb_hp_space)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, tmp_path_factory):
        with wandb_server() as server, pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_DIR", str(tmp_path_factory.mktemp("wandb")))
            for name, value in server.env().items():
                patch.setenv(name, value)
            yield


class TestSigOptLocal(BackendContract):
    backend = "sigopt"
    native_space = staticmethod(sigopt_hp_space)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _no_server(cls):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("SIGOPT_API_URL", "SIGOPT_API_TOKEN", "SIGOPT_PROJECT"):
                patch.delenv(name, raising=False)
            yield


class TestSigOptServer(BackendContract):
    backend = "sigopt"
    enqueues = False
    native_space = staticmethod(sigopt_hp_space)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls):
        with sigopt_server() as server, pytest.MonkeyPatch.context() as patch:
            for name, value in server.env().items():
                patch.setenv(name, value)
            yield
        assert server.unknown == []


class TestTemplate(BackendContract):
    backend = RandomBackend
