"""The weights of a loss, which are in no checkpoint of upstream's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

LOSS_FILE = "loss.pt"  # inside of a checkpoint


def _modules(loss: Any) -> dict[str, nn.Module]:
    if isinstance(loss, Mapping):
        return {f"{name}.": item for name, item in loss.items() if isinstance(item, nn.Module)}
    return {"": loss} if isinstance(loss, nn.Module) else {}


def own_state(loss: Any, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Gives the tensors of a loss, or of a dict of them, that are not the model's, by name."""
    models = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    for prefix, module in _modules(loss).items():
        for name, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor) and id(tensor) not in models:
                yield prefix + name, tensor.detach()


def save_loss(loss: Any, model: nn.Module, file: Path) -> None:
    """Writes the tensors of a loss that are not the model's, if it has any."""
    if own := dict(own_state(loss, model)):
        torch.save(own, file)


def load_loss(loss: Any, model: nn.Module, file: Path) -> None:
    """Gives a loss the tensors that :func:`save_loss` has written; where it wrote none, nothing changes."""
    if not file.is_file():
        return
    stored = torch.load(file, map_location="cpu", weights_only=True)
    for name, tensor in own_state(loss, model):
        if name in stored:
            tensor.copy_(stored[name])
