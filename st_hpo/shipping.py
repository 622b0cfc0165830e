"""Taking the trials of a search to other processes, and what they raise back: functions by value, datasets whole."""

from __future__ import annotations

import io
import os
import pickle
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import cloudpickle
import numpy
from datasets.table import InMemoryTable, MemoryMappedTable

from st_hpo.errors import ConfigurationError


@dataclass
class Parcel:
    """An object, pickled.

    Attributes:
        data: The pickle.
        buffers: The large arrays beside it, as bytes in NumPy arrays: a store of shared memory hands them on without
            a copy.
        writable: Whether each of them may be changed by its owner, as a dataset's data may not.
        path: Where the sender finds modules: what is pickled by reference must be importable for the receiver.
        folder: The sender's working directory, for relative paths.
    """

    data: bytes
    buffers: list[Any] = field(default_factory=list)
    writable: list[bool] = field(default_factory=list)
    path: list[str] = field(default_factory=lambda: [folder or os.getcwd() for folder in sys.path])
    folder: str = field(default_factory=os.getcwd)

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return len(self.data) + sum(int(buffer.nbytes) for buffer in self.buffers)

    def unpack(self) -> Any:
        """Returns the object. Folders of :attr:`path` that exist here become places to find modules."""
        sys.path.extend(folder for folder in self.path if folder not in sys.path and os.path.exists(folder))
        # The store's memory cannot be written to, but the sender's array could
        buffers = [b.copy() if own else b for b, own in zip(self.buffers, self.writable, strict=True)]
        return pickle.loads(self.data, buffers=buffers)


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    def __init__(self, file: Any, whole_datasets: bool, buffers: list[Any], writable: list[bool]) -> None:
        def keep(buffer: pickle.PickleBuffer) -> None:
            raw = buffer.raw()
            buffers.append(numpy.frombuffer(raw, dtype=numpy.uint8))
            writable.append(not raw.readonly)

        super().__init__(file, protocol=5, buffer_callback=keep)
        self._whole_datasets = whole_datasets

    def reducer_override(self, obj: Any) -> Any:
        if self._whole_datasets and isinstance(obj, MemoryMappedTable):
            return InMemoryTable, (obj.table,)
        return super().reducer_override(obj)


def pack(obj: Any, whole_datasets: bool) -> Parcel:
    """Pickles an object for another process: lambdas, local functions and what scripts define included.

    Args:
        obj: The object.
        whole_datasets: Whether to send the data of memory-mapped datasets. ``datasets`` pickles the paths of their
            files instead, which is right on the same machine, but another one has no such files.

    Raises:
        ConfigurationError: Something in it cannot be pickled.
    """
    file = io.BytesIO()
    buffers: list[Any] = []
    writable: list[bool] = []
    try:
        _Pickler(file, whole_datasets, buffers, writable).dump(obj)
    except Exception as exc:  # whatever the `__reduce__` or `__getstate__` of a user's object raises
        raise ConfigurationError(
            f"The trainer cannot be sent to other processes ({type(exc).__name__}: {exc}). Everything that it was "
            "given is sent, functions with what they refer to included; make what cannot be pickled (locks, files, "
            "connections) inside of `model_init`, `loss_init` or the callback that uses it."
        ) from exc
    return Parcel(file.getvalue(), buffers, writable)


class RemoteTraceback(Exception):
    """Where another process has raised an exception: the cause of that exception in this one."""

    def __str__(self) -> str:
        return f"in another process:\n\n{self.args[0]}"


def pack_exception(exc: BaseException) -> bytes | None:
    """Pickles an exception for another process, as it is: pickle itself calls the constructor, with the message.

    Attributes that cannot be pickled are left out.

    Args:
        exc: The exception.

    Returns:
        What :func:`unpack_exception` takes; None where even its class or its message cannot be pickled.
    """
    where = "".join(traceback.format_exception(exc))
    kind, reduced = type(exc), exc.__reduce__()
    if isinstance(reduced, str) or _is_python(kind.__reduce__) or _is_python(kind.__reduce_ex__):
        return _dumped((exc, where))
    arguments: tuple[Any, ...] = reduced[1]
    state = {name: value for name, value in dict(reduced[2] if len(reduced) > 2 else {}).items() if _dumped(value)}
    return _dumped((_rebuilt, (kind, arguments, state), where))


def unpack_exception(data: bytes) -> BaseException:
    """Returns the exception that :func:`pack_exception` has pickled, with its traceback there as its cause."""
    *made, where = cloudpickle.loads(data)
    exc: BaseException = made[0] if len(made) == 1 else made[0](*made[1])
    exc.__cause__ = RemoteTraceback(where)
    return exc


def _rebuilt(kind: type[BaseException], arguments: tuple[Any, ...], state: Mapping[str, Any]) -> BaseException:
    exc = kind.__new__(kind, *arguments)
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    builtin.__init__(exc, *arguments)
    exc.__setstate__(dict(state))
    return exc


def _is_python(function: Any) -> bool:
    return isinstance(function, FunctionType)


def _dumped(value: Any) -> bytes | None:
    """The pickle of a value that can also be read back."""
    try:
        data: bytes = cloudpickle.dumps(value)
        cloudpickle.loads(data)
    except Exception:
        return None
    return data
