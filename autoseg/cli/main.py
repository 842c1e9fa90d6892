"""The command line: verbs are loaded when they are used, so that `autoseg --help` starts at once."""

from __future__ import annotations

import importlib
import sys

import click

from autoseg import __version__
from autoseg.core.errors import AutoSegError, UsageError

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


def _show_usage(error: click.ClickException) -> None:
    """A wrong option as the same box that every other error gets."""
    from autoseg.cli.output import show_error

    context = getattr(error, "ctx", None)
    verb = context.command_path if context else "autoseg"
    show_error(UsageError(error.format_message(), do=f"{verb} --help"))


def main() -> None:
    """Entry point of the `autoseg` command: every error meant for users becomes one box and an exit code."""
    try:
        status = cli.main(prog_name="autoseg", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _show_usage(error)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted before anything was worth keeping", err=True)
        sys.exit(130)
    except AutoSegError as error:
        from autoseg.cli.output import show_error

        show_error(error)
        sys.exit(error.exit_code)
    except MemoryError:
        click.echo("error E0701: not enough memory; close other programs or lower --jobs / --max-ram", err=True)
        sys.exit(5)
    sys.exit(status if isinstance(status, int) else 0)
