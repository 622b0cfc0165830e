"""What Optuna itself would unpickle from a study, kept from running code.

Imports optuna: for the use of the backend's own functions only.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pickle
from collections.abc import Iterator
from typing import Any

from optuna.storages.journal import JournalRedisBackend

from st_hpo.errors import NotSupportedError

# All that the state of the CMA-ES sampler is made of
_OF_CMA = {
    ("cmaes._cma", "CMA"),
    ("cmaes._sepcma", "SepCMA"),
    ("cmaes._cmawm", "CMAwM"),
    *(("numpy", name) for name in ("dtype", "ndarray")),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _OF_CMA:
            raise NotSupportedError(
                f"The study has a state of the CMA-ES sampler with `{module}.{name}` in it. That is none of its own "
                "parts, so it is not unpickled: whoever has written it to the study could run code here."
            )
        return super().find_class(module, name)


class _CarefulPickle:
    """Stands for the module pickle where Optuna's CMA-ES sampler reads its state back from a study."""

    dumps = staticmethod(pickle.dumps)

    @staticmethod
    def loads(data: bytes) -> Any:
        return _Unpickler(io.BytesIO(data)).load()


@contextlib.contextmanager
def careful_sampling() -> Iterator[None]:
    """Has the CMA-ES sampler, which keeps its state as a pickle in the study, read its own classes only."""
    module: Any = importlib.import_module("optuna.samplers._cmaes")
    before = module.pickle
    module.pickle = _CarefulPickle
    try:
        yield
    finally:
        module.pickle = before


class RedisWithoutSnapshots(JournalRedisBackend):
    """A journal on Redis without the snapshots that Optuna unpickles: it is read from its beginning."""

    def load_snapshot(self) -> bytes | None:
        return None

    def save_snapshot(self, snapshot: bytes) -> None:
        pass
