"""`autoseg model`: export, import and show models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoseg.cli.options import output_options, overwrite_option, whole
from autoseg.cli.output import Output, command_line
from autoseg.core.limits import FOLD

if TYPE_CHECKING:
    from autoseg.models.record import Member, ModelFiles, ModelRecord
    from autoseg.planning.plan import Plan


@click.group()
def model() -> None:
    """Models to share: one safetensors file of weights, hashes and a JSON record; no code."""


@model.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File.  [default: models/<name>.autoseg in the work folder]",
)
@click.option("--configuration", help="This one alone.  [default: what was selected]")
@click.option("--fold", "folds", multiple=True, type=whole(FOLD), help="Fold, repeatable.  [default: all]")
@click.option("--no-report", is_flag=True, help="Leave out report.html, which shows training cases.")
@overwrite_option
@output_options
def export(dataset: Path, out: Path | None, no_report: bool, overwrite: bool, output: Output, **chosen: Any) -> int:
    """Write what was selected or trained into one file.

    DATASET is a dataset's folder, its work folder, or one run.
    """
    from autoseg.api.model import export_model, show_model

    path = export_model(dataset, out, **chosen, has_report=not no_report, overwrite=overwrite)
    files = show_model(path)
    if files.report is not None:
        output.say(f"{files.report.name} lies beside it; it names and shows training cases (--no-report leaves it out)")
    output.say(f"{path} ({_mebibytes(path)} MiB, content {files.content})")
    output.emit({"file": str(path), "bytes": path.stat().st_size, "content": files.content, "model": files.record.name})
    return 0


@model.command(name="import")
@click.argument("source", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    show_default="this folder",
    help="Folder that the model is put into; nothing there is replaced.",
)
@output_options
def import_model(source: Path, folder: Path, output: Output) -> int:
    """Verify a bundle, or convert an nnU-Net v2 model.

    A bundle is copied; a results folder or zip of nnU-Net v2 becomes one file.
    """
    from autoseg.api.model import import_model

    path = import_model(source, folder)
    output.say(f"{path} ({_mebibytes(path)} MiB): {command_line('predict', path)} -i IMAGES -o OUT")
    output.emit({"file": str(path), "bytes": path.stat().st_size})
    return 0


@model.command()
@click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
@output_options
def show(path: Path, output: Output) -> int:
    """What a model segments and how good it is.

    Also what it was trained on; a bundle is verified on the way.
    """
    from autoseg.api.model import show_model

    files = show_model(path)
    model, plan = files.record, files.record.plan
    output.emit(_document(files))
    _show_origin(files, output)
    output.table(("class", "value in files"), list(_class_values(plan).items()), title="Classes")
    output.table(("channel", "normalization", "mean", "0.5 % to 99.5 %"), _channel_rows(model), title="Channels")
    columns = ("configuration", "folds", "share", "network", "patch (z, y, x)", "spacing mm", "precision")
    rows = [_member_row(member) for member in model.members]
    rows += [(*_member_row(stage)[:2], "first stage", *_member_row(stage)[3:]) for stage in model.stages]
    output.table(columns, rows, title="Configurations")
    _show_scores(model, output)
    _show_typical(model, output)
    if output.verbose:
        reasons = [(one.configuration, one.name, one.because) for one in plan.decisions]
        output.table(("configuration", "decision", "because"), reasons, title="Reasons")
    return 0


def _show_origin(files: ModelFiles, output: Output) -> None:
    model = files.record
    origin = model.provenance
    cases = "" if origin.training_cases is None else f" of {origin.training_cases} cases"
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    output.say(model.name)
    output.say(model.because)
    output.say(f"dataset {origin.dataset}{cases}, trained by {origin.origin}, preset {model.plan.preset}")
    output.say(f"written by autoseg {origin.autoseg}, {versions}")
    if files.content is not None:
        output.say(f"content {files.content}, verified; {'with' if files.report else 'without'} a report beside it")
    for step in model.postprocessing:
        output.say(f"postprocessing: {step.title}")


def _show_scores(model: ModelRecord, output: Output) -> None:
    if model.scores is None:
        output.say("no comparison by cross-validation (autoseg select)")
        return
    rows = [
        (one.name, _rounded(one.dice), _range(one.interval), _rounded(one.seconds_per_case, 1))
        for one in model.scores.candidates
    ]
    output.table(("candidate", "Dice", "95 % interval", "seconds per case"), rows, title="Cross-validation")
    nested = model.scores.nested
    if nested is not None:
        output.say(
            f"{model.scores.chosen}: Dice {nested.dice:.4f} {_range(nested.interval)}, chosen without the cases scored"
        )


def _show_typical(model: ModelRecord, output: Output) -> None:
    rows = [
        (name, f"{one.lowest:.4g}", f"{one.quartiles[1]:.4g}", f"{one.highest:.4g}", one.unit)
        for name, one in model.typical.items()
    ]
    output.table(("property", "lowest", "median", "highest", "unit"), rows, title="Cases trained on")


def _class_values(plan: Plan) -> dict[str, str]:
    labels = plan.labels
    values = labels.file_values or tuple(range(labels.largest_value + 1))
    named = {name: ", ".join(str(values[value]) for value in own) for name, own in labels.classes.items()}
    return named if labels.ignore is None else {**named, "(not annotated)": str(values[labels.ignore])}


def _channel_rows(model: ModelRecord) -> list[tuple[str, ...]]:
    plan, first = model.plan, model.members[0].configuration
    entries = zip(plan.channels, first.normalization, plan.intensities, strict=True)
    return [
        (name, how, f"{own.mean:.4g}", f"{own.percentile_00_5:.4g} to {own.percentile_99_5:.4g}")
        for name, how, own in entries
    ]


def _member_row(member: Member) -> tuple[str, ...]:
    own = member.configuration
    folds = ", ".join(map(str, member.folds))
    patch, spacing = " x ".join(map(str, own.patch_size)), " x ".join(f"{length:.4g}" for length in own.spacing_mm)
    return own.name, folds, f"{member.share:.3g}", own.network.description, patch, spacing, member.precision


def _document(files: ModelFiles) -> dict[str, Any]:
    from autoseg.core.records import to_data

    model, plan = files.record, files.record.plan
    return {
        **to_data(model),
        "labels": to_data(plan.labels),
        "channels": list(plan.channels),
        "intensities": [to_data(own) for own in plan.intensities],
        "members": [_member_document(member) for member in model.members],
        "stages": {stage.configuration.name: _member_document(stage) for stage in model.stages},
        "decisions": [to_data(one) for one in plan.decisions],
        "content": files.content,
        "has_report": files.report is not None,
    }


def _member_document(member: Member) -> dict[str, Any]:
    from autoseg.core.records import to_data

    own = {"folds": list(member.folds), "share": member.share, "precision": member.precision}
    return {"configuration": to_data(member.configuration), **own}


def _mebibytes(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.1f}"


def _rounded(value: float | None, digits: int = 4) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"
