"""The command line: one file for each command; results on stdout, everything else on stderr.

Each command is a thin call into ``api``, which is imported when the command runs: ``--help`` loads
none of it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import typer

from bakeoff import __version__
from bakeoff.cli import (
    assets,
    compare,
    demo,
    doctor,
    export,
    export_curves,
    import_hf,
    init,
    methods,
    plan,
    report,
    run,
    schema,
    status,
    view,
)
from bakeoff.cli.display.encoding import make_total
from bakeoff.cli.display.output import show_error, show_internal_error
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, Interrupted
from bakeoff.core.worker_log import quiet_command_line

INTERRUPTED = 130
TERMINATED = 143
OTHERS_WRITE = 0o002

app = typer.Typer(
    name="bakeoff",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compare LoRA with other fine-tuning methods on your model, your data and your budget.",
)
COMMANDS = (
    init, methods, doctor, plan, run, status, report, view, compare, export,
    export_curves, import_hf, schema, assets, demo,
)  # fmt: skip
for module in COMMANDS:
    module.register(app)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"bakeoff {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version and exit.",
    ),
) -> None:
    """Compare LoRA with other fine-tuning methods on your model, your data and your budget."""


def _exit_on_sigterm(*_: object) -> NoReturn:
    sys.exit(TERMINATED)


def _as_environment_error(error: OSError | MemoryError) -> EnvironmentProblem:
    """Return the error to show for a full disk, a lost mount or too little memory."""
    if isinstance(error, MemoryError):
        return EnvironmentProblem(
            "out-of-memory", "This machine ran out of memory.", "fewer or smaller rows."
        )
    return EnvironmentProblem(
        "file-trouble",
        f"{error.filename or 'A file'}: {error.strerror or error}.",
        "check disk, permissions and mounts, then run the same command to resume.",
    )


def main() -> None:
    """Run the command line; print each expected error in one paragraph and exit with its code."""
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    quiet_command_line()
    os.umask(os.umask(OTHERS_WRITE) | OTHERS_WRITE)  # other accounts may not change study files
    make_total(sys.stdout)
    make_total(sys.stderr)
    try:
        app()
    except Interrupted as error:
        typer.echo(f"\n{error.cause} Run the same command to resume.", err=True)
        sys.exit(error.exit_code)
    except BakeoffError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. Run the same command to resume.", err=True)
        sys.exit(INTERRUPTED)
    except (OSError, MemoryError) as error:
        show_error(_as_environment_error(error))
        sys.exit(EnvironmentProblem.exit_code)
    except Exception:
        show_internal_error()
        sys.exit(1)
