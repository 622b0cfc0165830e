"""Whether a training can go on from a checkpoint as if it had not been interrupted, to the last bit.

A checkpoint of upstream's (``Trainer._save_checkpoint``) holds the model, the optimizer, the schedule, the random
states of the CPU and of one GPU, and the state of some of upstream's own callbacks. What else a training depends on is
looked for here; where there is anything, it cannot.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import cloudpickle
import sentence_transformers
import torch
import transformers
from datasets import Dataset, DatasetDict
from packaging.version import Version
from torch import nn
from transformers.trainer_callback import ExportableState

from st_hpo.loss_weights import MODULES_OWN, own_state

_KNOWN = ("transformers.", "sentence_transformers.", "st_hpo.")
_KNOWN_VALUES = (*_KNOWN, "torch.", "peft.", "tokenizers.", "builtins.", "collections.", "functools.", "accelerate.")
# They set something anew whenever a training begins
_BEGIN_ANEW = {"SpladeRegularizerWeightSchedulerCallback"}
# Optimizers that keep a part of their state elsewhere
_HIDDEN_STATE = ("schedule_free", "layerwise", "lomo")
# Before, a training that goes on takes the first epoch's order in later ones, and drops gradients that upstream keeps
_SINCE = {
    "transformers": (Version("5.17"), Version(transformers.__version__)),
    "sentence-transformers": (Version("6.2"), Version(sentence_transformers.__version__)),
}
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))


def left_out(args: Any) -> str | None:
    """Returns what in training arguments keeps any checkpoint of upstream's from being enough, None for nothing.

    Args:
        args: The training arguments of a trial.
    """
    for package, (least, version) in _SINCE.items():
        if version < least:
            return f"{package} {version}, older than {least},"
    if args.dataloader_persistent_workers and args.dataloader_num_workers > 0:  # they draw once, when they begin
        return "dataloader_persistent_workers=True"
    if args.eval_on_start:  # once more at every beginning
        return "eval_on_start=True"
    if args.auto_find_batch_size:
        return "auto_find_batch_size=True"
    if not args.accelerator_config.use_seedable_sampler:  # the order of the first epoch, whichever it goes on with
        return "use_seedable_sampler=False in accelerator_config"
    if args.accelerator_config.dispatch_batches:
        return "dispatch_batches=True in accelerator_config"
    if any(name in str(args.optim) for name in _HIDDEN_STATE):
        return f"optim={str(getattr(args.optim, 'value', args.optim))!r}"
    return None


def arguments_allow(args: Any) -> bool:
    """Whether training arguments leave nothing out of a checkpoint, and change nothing in a training that goes on.

    Args:
        args: The training arguments of a trial.
    """
    return left_out(args) is None and not (
        args.load_best_model_at_end  # the best weights so far
        or args.ignore_data_skip
        or args.torch_compile  # what is compiled depends on the shapes that have come before
        or args.deepspeed
        or args.fsdp
        or args.device.type not in ("cpu", "cuda")
        or args.n_gpu > 1
    )


def trainer_allows(trainer: Any) -> bool:
    """Whether a trainer is made of parts whose state is in a checkpoint, or which have none.

    Args:
        trainer: The trainer of a trial, not trained yet.
    """
    args, collator, model = trainer.args, trainer.data_collator, trainer.model
    owner = getattr(getattr(collator, "preprocess_fn", None), "__self__", None)
    callbacks = [type(item) for item in trainer.callback_handler.callbacks]
    # Of several of one class, upstream restores what they had at first
    exported = Counter(kind for kind in callbacks if issubclass(kind, ExportableState))
    dataset = trainer._of_trial.parts["train_dataset"]
    datasets = list(dataset.values()) if isinstance(dataset, dict) else [dataset]
    return (
        all(_is_known(kind) and kind.__name__ not in _BEGIN_ANEW for kind in (type(trainer), *callbacks))
        and all(count == 1 for count in exported.values())
        and _is_known(type(collator))
        and id(owner) == id(model)
        and all(_is_known(type(module)) for module in model.modules() if _tokenises(module))
        and isinstance(dataset, Dataset | DatasetDict | dict)
        and all(type(item) is Dataset and not _is_transformed(item) for item in datasets)
        and isinstance(args.batch_sampler, str)
        and isinstance(args.multi_dataset_batch_sampler, str)
        and trainer.optimizer is None
        and trainer.lr_scheduler is None
        and getattr(trainer, "optimizer_cls_and_kwargs", None) is None
        and all(isinstance(value, torch.Tensor) for value in model.state_dict().values())
        and all(weight.device == torch.device(args.device) for weight in _weights(trainer))
        and not any(_is_compiled(module) for root in _modules(trainer).values() for module in root.modules())
    )


def _tokenises(module: nn.Module) -> bool:
    return hasattr(module, "preprocess") or hasattr(module, "tokenize")


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None  # by its method `compile`


def _weights(trainer: Any) -> Iterator[torch.Tensor]:
    for module in _modules(trainer).values():
        yield from module.parameters()


def _is_known(kind: Any, known: tuple[str, ...] = _KNOWN) -> bool:
    return f"{getattr(kind, '__module__', None)}.".startswith(known)


def _is_transformed(dataset: Dataset) -> bool:
    """Whether a function of the user's makes the rows, which may draw at random, or count."""
    transform = dataset.format["format_kwargs"].get("transform")
    if isinstance(transform, partial):  # upstream's, which adds the dataset's name, and calls the one that was there
        return not _is_known(transform.func) or transform.keywords.get("transform") is not None
    return transform is not None


def _modules(trainer: Any) -> dict[str, nn.Module]:
    """The model and its losses."""
    losses = trainer.loss if isinstance(trainer.loss, Mapping) else {"": trainer.loss}
    found = {"model": trainer.model, **{f"loss {name}": loss for name, loss in losses.items()}}
    return {name: item for name, item in found.items() if isinstance(item, nn.Module)}


def beside_weights(trainer: Any, of_losses: bool = False) -> str | None:
    """Returns a digest of what a model and its losses hold beside what a checkpoint has of them.

    Of classes of the libraries', whose caches would be in the way, that is numbers and words; of others it is
    everything.

    Args:
        trainer: The trainer.
        of_losses: Leave out what is the model's.

    Returns:
        The digest; None where it cannot be told, as with functions of the user's, which may hold anything.
    """
    found = hashlib.blake2b(digest_size=16)
    others = {id(module) for module in trainer.model.modules()} if of_losses else set()
    try:
        for root, item in _modules(trainer).items():
            for name, module in item.named_modules():
                if id(module) in others:
                    continue
                own = {key: value for key, value in vars(module).items() if key not in MODULES_OWN}
                hooks = [hook for kind in _HOOKS for hook in (getattr(module, kind, None) or {}).values()]
                if any(_is_foreign(value) for value in (*own.values(), *hooks)):
                    return None
                if _is_known(type(module), _KNOWN_VALUES):
                    own = {key: value for key, value in own.items() if isinstance(value, bool | int | float | str)}
                found.update(f"{root}.{name} ".encode() + cloudpickle.dumps(own))
                for key in sorted(module._non_persistent_buffers_set):
                    _add(found, key, getattr(module, key))
    except Exception:  # whatever it is, it cannot be told
        return None
    return found.hexdigest()


def _is_foreign(value: Any) -> bool:
    """Whether a value is a function of the user's, or can be called like one."""
    return callable(value) and not (_is_known(value, _KNOWN_VALUES) or _is_known(type(value), _KNOWN))


def weights(trainer: Any) -> str:
    """Returns a digest of all weights, and of what the optimizer and the schedule have of them."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in [*trainer.model.state_dict().items(), *own_state(trainer.loss, trainer.model)]:
        _add(found, name, tensor)
    _add(found, "optimizer", trainer.optimizer.state_dict())
    _add(found, "schedule", trainer.lr_scheduler.state_dict())
    return found.hexdigest()


def _add(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _add(digest, f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _add(digest, f"{name}.{index}", item)
    else:
        digest.update(f"{name} {value!r}".encode())


def step_allows(trainer: Any) -> bool:
    """Whether a training can be interrupted after the step that it has just made.

    Not at the end of an epoch, after which upstream does more than a checkpoint remembers; not where the training is
    about to end; and not where upstream would find another place in the data again: it takes all epochs to be equally
    long (``Trainer._init_training_state``), which a sampler need not do.

    Args:
        trainer: The trainer, in training.
    """
    state, control = trainer.state, trainer.control
    if state.epoch is None or control.should_training_stop or control.should_epoch_stop:
        return False
    batches, accumulated = len(trainer.callback_handler.train_dataloader), trainer.args.gradient_accumulation_steps
    epochs = int(state.epoch + 1e-9)
    done = round((state.epoch - epochs) * batches)
    steps = epochs * math.ceil(batches / accumulated) + math.ceil(done / accumulated)
    return 0 < done < batches and bool(steps == state.global_step)
