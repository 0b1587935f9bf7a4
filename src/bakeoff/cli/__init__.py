"""The command line: one file a verb; results on stdout, everything else on stderr.

Each verb is a thin call into ``api``, imported when the verb runs, so that ``--help`` is instant.
"""

from __future__ import annotations

import signal
import sys
import traceback
from typing import NoReturn

import typer

from bakeoff import __version__
from bakeoff.cli import (
    assets,
    compare,
    demo,
    doctor,
    import_hf,
    init,
    methods,
    plan,
    report,
    run,
    schema,
    status,
)
from bakeoff.cli.output import show_error
from bakeoff.errors import BakeoffError, Interrupted

INTERRUPTED = 130
TERMINATED = 143

app = typer.Typer(
    name="bakeoff",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Is LoRA best for your model, your data and your budget? Compare, and read the verdict.",
)
VERBS = (
    init, methods, doctor, plan, run, status, report, compare, import_hf, schema, assets, demo,
)  # fmt: skip
for verb in VERBS:
    verb.register(app)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"bakeoff {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Is LoRA best for your model, your data and your budget? Compare, and read the verdict."""


def _terminated(*_: object) -> NoReturn:
    sys.exit(TERMINATED)


def main() -> None:
    """Run the command line; every error a user can meet ends in one paragraph and a code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except Interrupted as error:
        typer.echo(f"\n{error.cause} The same command goes on.", err=True)
        sys.exit(error.exit_code)
    except BakeoffError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. The same command goes on where it stopped.", err=True)
        sys.exit(INTERRUPTED)
    except Exception:
        traceback.print_exc()
        typer.echo("This is a fault of bakeoff's: please report it with the lines above.", err=True)
        sys.exit(1)
