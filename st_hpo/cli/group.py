"""How the command line fails: one line on stderr, no traceback, no password, and an exit code that says what it was.

0: done. 1: something is wrong with the data. 2: something is wrong with the command line. 130: Ctrl-C. 141: whoever
read the output has stopped reading.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from st_hpo.errors import HPOError, did_you_mean

DATA_ERROR, USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
_DEBUG = "ST_HPO_DEBUG"


class UsageProblem(Exception):
    """An option does not fit to the data, such as a column that does not exist."""


class ReportingGroup(TyperGroup):
    """The group of all commands: what they raise ends here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keeps the arguments: their passwords must not appear in a message."""
        ctx.meta[__name__] = list(args)
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Says which command may have been meant."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            commands = list(self.list_commands(ctx))
            if "://" in name or Path(name).exists():
                shown = _without_passwords(name, [name])
                ctx.fail(f"A command is missing before {shown}: one of {', '.join(commands)}.")
            ctx.fail(
                f"There is no command {name!r}.{did_you_mean(name, commands)} Choose one of {', '.join(commands)}."
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command, and turns what it raises into a message and an exit code."""
        try:
            with warnings.catch_warnings():
                if not _debugging(ctx):
                    warnings.simplefilter("ignore")
                returned = super().invoke(ctx)
            sys.stdout.flush()
            return returned
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _discard_output()
            raise typer.Exit(BROKEN_PIPE) from None
        except Exception as exc:
            code = _shown(exc, ctx)
            if code is None:
                raise
            raise typer.Exit(code) from None


def _debugging(ctx: Any) -> bool:
    return bool(ctx.params.get("debug") or os.environ.get(_DEBUG, "") not in ("", "0"))


def _shown(exc: Exception, ctx: Any) -> int | None:
    """Shows an error, and returns its exit code; None for what the command line's own library shows."""
    if isinstance(exc, typer.Exit | typer.Abort):
        return None
    given = ctx.meta.get(__name__, [])
    if hasattr(exc, "format_message"):  # a usage error
        if hasattr(exc, "message"):
            exc.message = _without_passwords(str(exc.message), given)
        return None
    if _debugging(ctx):
        typer.echo(_without_passwords(traceback.format_exc(), given), err=True)
    if isinstance(exc, UsageProblem | HPOError | ImportError):
        text = str(exc)
    elif isinstance(exc, OSError):
        text = f"{exc.filename}: {exc.strerror}" if exc.filename and exc.strerror else str(exc)
    else:
        text = f"This is a mistake of st-hpo itself, or of the data: {type(exc).__name__}: {exc}. `st-hpo --debug ...`"
        text += " shows where it is."
    typer.echo(f"st-hpo: {' '.join(_without_passwords(text, given).split())}", err=True)
    return USAGE_ERROR if isinstance(exc, UsageProblem) else DATA_ERROR


def _without_passwords(text: str, given: list[str]) -> str:
    for argument in given:
        if "://" in argument:
            from st_hpo.backends.optuna.urls import redacted  # the package of the backends imports torch

            text = redacted(text, argument)
    return text


def _discard_output() -> None:
    """What is left in the buffer would fail once more when Python ends, with a message."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
