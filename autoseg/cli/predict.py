"""`autoseg predict`: segment new images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoseg.cli.options import Real, device_option, dry_run_option, output_options, overwrite_option, whole
from autoseg.cli.output import Output
from autoseg.core.limits import FOLD, OVERLAP, RAM_GIB

if TYPE_CHECKING:
    from autoseg.api.predict import CaseForecast
    from autoseg.inference.manifest import PredictionManifest
    from autoseg.models.record import ModelFiles

SOME_FAILED = 4


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Images or a folder of them: <case>_0000.ext per channel, or one file per case. Repeatable.",
)
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="Output folder."
)
@click.option("--configuration", help="This one alone.  [default: what was selected, else 3d_fullres, else the best]")
@click.option(
    "--fold",
    "folds",
    multiple=True,
    type=whole(FOLD),
    help="Fold, repeatable.  [default: those selected, else all]",
)
@click.option(
    "--overlap",
    type=Real(OVERLAP),
    default=0.5,
    show_default=True,
    help="Share of a tile that neighbors have in common.",
)
@click.option(
    "--no-mirroring",
    "mirroring",
    flag_value=False,
    default=True,
    help="Do not average over mirrored images: up to 8 times faster.",
)
@click.option("--probabilities", is_flag=True, help="Also write the probability of every class (<case>.npz, float16).")
@click.option(
    "--max-ram",
    "max_ram_gib",
    type=Real(RAM_GIB),
    help="GiB; what does not fit is kept in a file.  [default: most of what is free]",
)
@click.option(
    "--no-report",
    "report",
    flag_value=False,
    default=True,
    help="Do not write report.html: pictures, volumes, unusual cases.",
)
@device_option
@overwrite_option
@dry_run_option
@output_options
def predict(model: Path, inputs: tuple[Path, ...], folder: Path, output: Output, dry_run: bool, **options: Any) -> int:
    """Segment new images with MODEL: a dataset's folder or work folder, one run, a bundle, or an nnU-Net v2 model.

    What was selected predicts: configurations, cascades and postprocessing, with no further flags. Label maps have the
    image's grid, the values of the dataset's label files, and the image's own format; of a NIfTI model, NIfTI
    has the model's ending (.nii or .nii.gz). A case that fails does not stop the others.
    """
    from autoseg.api import predict as api
    from autoseg.core.machine import peak_memory_bytes

    if dry_run:
        kept = {name: options[name] for name in ("configuration", "folds", "overlap", "device")}
        return _show_forecast(*api.forecast(model, inputs, **kept), output)
    with output.progress("Predicting") as progress:
        manifest = api.predict(model, inputs, folder, progress=progress, **options)
    _show(manifest, folder, output)
    output.emit(_document(manifest, folder, peak_memory_bytes()))
    return SOME_FAILED if manifest.failures else 0


def _show(manifest: PredictionManifest, folder: Path, output: Output) -> None:
    output.table(("case", "why it failed"), list(manifest.failures.items()))
    done = len(manifest.cases) - len(manifest.failures)
    seconds = sum(case.seconds for case in manifest.cases.values())
    output.say(f"{done} of {len(manifest.cases)} cases done in {folder} ({seconds:.1f} s of work on {manifest.device})")


def _document(manifest: PredictionManifest, folder: Path, peak_ram_bytes: int | None) -> dict[str, object]:
    cases = {
        name: {
            "status": case.status,
            "output": None if case.output is None else str(folder / case.output),
            "seconds": case.seconds,
            "error": case.error,
            "notes": list(case.notes),
        }
        for name, case in manifest.cases.items()
    }
    return {
        "cases": cases,
        "device": manifest.device,
        "peak_ram_bytes": peak_ram_bytes,
        "model": manifest.model,
        "notes": list(manifest.notes),
    }


def _show_forecast(files: ModelFiles, forecasts: dict[str, CaseForecast | str], output: Output) -> int:
    from autoseg.core.records import to_data

    good = {name: own for name, own in forecasts.items() if not isinstance(own, str)}
    bad = {name: own for name, own in forecasts.items() if isinstance(own, str)}
    rows = [
        (name, _edges(own.shape), _edges(own.prepared_shape), str(own.windows), f"{own.memory_gib:.2f}", own.output)
        for name, own in good.items()
    ]
    rows = sorted([*rows, *((name, "-", "-", "-", "-", reason) for name, reason in bad.items())])
    output.say(f"model: {files.record.name} ({files.record.because})")
    output.table(("case", "voxels", "prepared", "tiles", "memory GiB", "output"), rows)
    output.say("memory beyond the program itself; nothing was written (--dry-run)")
    cases = {name: to_data(own) for name, own in good.items()}
    output.emit({"cases": cases | {name: {"error": own} for name, own in bad.items()}, "model": files.record.name})
    return SOME_FAILED if bad else 0


def _edges(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
