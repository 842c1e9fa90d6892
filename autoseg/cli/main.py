"""The command line: verbs are loaded when they are used, so that `autoseg --help` starts at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from autoseg import __version__
from autoseg.core.errors import AutoSegError, InterruptedEarly, UsageError, error_for

VERBS = {
    "doctor": "What this machine can do, and what it cannot.",
    "demo": "Synthetic dataset -> plan -> train -> select -> predict -> evaluate -> report.",
    "plan": "Check the data, fingerprint it, apply the rules, print the plan and its reasons.",
    "preprocess": "Fill the store of preprocessed cases (train does it by itself when needed).",
    "train": "Train what the plan holds; the same command again resumes.",
    "select": "Choose configuration or ensemble, and postprocessing, from cross-validation.",
    "predict": "Segment new images with a trained model.",
    "evaluate": "Score predictions against references, per case and class.",
    "report": "One HTML file about a dataset: data, plan, curves, candidates, every case.",
    "model": "Export a model into one file, import one, show what is in it.",
    "explain": "Why the plan is as it is, or what an error code means.",
}
"""Verb and one-line help. Each verb lives in `autoseg.cli.<verb>` as a click command of the same name."""


class LazyVerbs(click.Group):
    """A group that imports a verb's module only when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All verbs, in the order a user meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The verb's command, or None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(f"autoseg.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Lists the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb asked for; an unknown one is answered with the nearest."""
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Verbs: {', '.join(VERBS)}."
            ctx.fail(f"There is no verb {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyVerbs, context_settings={"auto_envvar_prefix": "AUTOSEG", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autoseg")
def cli() -> None:
    """AutoSeg plans, trains, selects and runs U-Nets for your images by itself.

    \b
    autoseg plan DATASET                          look at the data, decide, say why
    autoseg train DATASET                         train; the same command resumes
    autoseg select DATASET                        choose configuration or ensemble
    autoseg predict DATASET -i IMAGES -o OUT      segment new images
    """  # noqa: D301 - click knows a paragraph to be left as it is by a backspace


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""What tells OpenMP's threads how to wait for each other."""


def main() -> None:
    """Entry point of the `autoseg` command."""
    wait_passively()
    sys.exit(run(sys.argv[1:]))


def wait_passively() -> None:
    """Lets threads that wait for each other sleep, in this process and those it starts, unless the user decided it.

    By default they spin. Where another program takes one of the cores, all the others then spin until it gives it back:
    a step of the planned hippocampus network in 3D, on two cores with three busy programs, took 4.0 s of wall time and
    1.8 s of CPU time, and with sleeping ones 1.0 and 0.5 s. On free cores sleeping costs a tenth of a step, which
    `launch.side_by_side` more than wins back. The library reads this when it is loaded, so it has to be said before
    torch is imported.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def run(arguments: Sequence[str]) -> int:
    """Runs a command; whatever goes wrong becomes one box and an exit code, never a traceback.

    Args:
        arguments: words behind `autoseg`.
    """
    from autoseg.cli import output

    output.prepare_streams()
    as_json = "--json" in arguments or bool(os.environ.get("AUTOSEG_JSON"))
    try:
        status = cli.main(args=list(arguments), prog_name="autoseg", standalone_mode=False)
        code = status if isinstance(status, int) else 0
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except (Exception, KeyboardInterrupt) as error:
        code = output.show_last_error(_meaning(error), as_json=as_json)
    if (fault := output.output_fault()) is not None:
        output.show_error(fault)
        code = code or fault.exit_code
    return code


def _meaning(error: Exception | KeyboardInterrupt) -> AutoSegError:
    """What an exception means to a user."""
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        usage = UsageError(error.format_message(), do=f"{context.command_path if context else 'autoseg'} --help")
        usage.exit_code = error.exit_code  # type: ignore[misc]  # click's own, of errors in reading a file
        return usage
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return InterruptedEarly("interrupted before anything was worth keeping", do="run the same command again")
    return error_for(error)
