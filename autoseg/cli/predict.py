"""`autoseg predict`: segment new images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoseg.cli.options import device_option, dry_run_option, output_options
from autoseg.cli.output import Output

if TYPE_CHECKING:
    from autoseg.inference.manifest import PredictionManifest, PredictionOptions

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
    type=click.IntRange(min=0),
    help="Fold, repeatable.  [default: those selected, else all]",
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.5,
    show_default=True,
    help="Share of a tile that neighbors have in common.",
)
@click.option("--no-mirroring", is_flag=True, help="Do not average over mirrored images: up to 8 times faster.")
@click.option("--probabilities", is_flag=True, help="Also write the probability of every class (<case>.npz, float16).")
@click.option(
    "--max-ram",
    "max_ram_gib",
    type=click.FloatRange(min=0, min_open=True),
    help="GiB; what does not fit is kept in a file.  [default: most of what is free]",
)
@click.option("--no-report", is_flag=True, help="Do not write report.html: pictures, volumes, unusual cases.")
@device_option
@dry_run_option
@output_options
def predict(
    model: Path,
    inputs: tuple[Path, ...],
    folder: Path,
    output: Output,
    dry_run: bool,
    **options: object,
) -> int:
    """Segment new images with MODEL: a dataset's folder or work folder, one run, a bundle, or an nnU-Net v2 model.

    What was selected predicts: configurations, cascades and postprocessing, with no further flags. Label maps have the
    grid and the values of the dataset's label files; a case that fails does not stop the others.
    """
    from autoseg.api.predict import predict_files
    from autoseg.core.machine import peak_memory_bytes

    chosen = _options(options)
    if dry_run:
        return _show_forecast(model, inputs, chosen, output)
    with output.progress("Predicting") as progress:
        manifest = predict_files(model, inputs, folder, chosen, progress)
    _show(manifest, folder, output)
    output.emit(_document(manifest, folder, peak_memory_bytes()))
    return SOME_FAILED if manifest.has_failures else 0


def _options(options: dict[str, object]) -> PredictionOptions:
    from autoseg.inference.manifest import PredictionOptions, PredictorOptions

    configuration, folds, max_ram_gib = options["configuration"], options["folds"], options["max_ram_gib"]
    return PredictionOptions(
        configuration=None if configuration is None else str(configuration),
        folds=tuple(map(int, folds)) if isinstance(folds, tuple) else (),
        predictor=PredictorOptions(
            device=str(options["device"]),
            overlap=float(str(options["overlap"])),
            mirroring=not options["no_mirroring"],
        ),
        max_ram_gib=None if max_ram_gib is None else float(str(max_ram_gib)),
        probabilities=bool(options["probabilities"]),
        report=not options["no_report"],
    )


def _show(manifest: PredictionManifest, folder: Path, output: Output) -> None:
    failed = {name: case for name, case in manifest.cases.items() if case.status == "failed"}
    output.table(("case", "why it failed"), [(name, case.error) for name, case in failed.items()])
    done = len(manifest.cases) - len(failed)
    seconds = sum(case.seconds for case in manifest.cases.values())
    output.say(f"{done} of {len(manifest.cases)} cases done in {folder} ({seconds:.1f} s of work on {manifest.device})")


def _document(manifest: PredictionManifest, folder: Path, peak_ram_bytes: int | None) -> dict[str, object]:
    cases = {
        name: {
            "status": case.status,
            "output": None if case.output is None else str(folder / case.output),
            "seconds": case.seconds,
            "error": case.error,
        }
        for name, case in manifest.cases.items()
    }
    return {
        "cases": cases,
        "device": manifest.device,
        "peak_ram_bytes": peak_ram_bytes,
        "model": manifest.model,
    }


def _show_forecast(model: Path, inputs: tuple[Path, ...], chosen: PredictionOptions, output: Output) -> int:
    from autoseg.api.predict import Forecast, forecast_files
    from autoseg.core.records import to_data

    files, forecasts = forecast_files(model, inputs, chosen)
    rows = [
        (name, _edges(own.shape), _edges(own.prepared_shape), own.windows, f"{own.memory_gib:.2f}", own.output)
        if isinstance(own, Forecast)
        else (name, "-", "-", "-", "-", own)
        for name, own in forecasts.items()
    ]
    output.say(f"model: {files.record.name} ({files.record.because})")
    output.table(("case", "voxels", "prepared", "tiles", "memory GiB", "output"), rows)
    output.say("memory beyond the program itself; nothing was written (--dry-run)")
    good = {name: to_data(own) for name, own in forecasts.items() if isinstance(own, Forecast)}
    bad = {name: {"error": own} for name, own in forecasts.items() if not isinstance(own, Forecast)}
    output.emit({"cases": {**good, **bad}, "model": files.record.name})
    return SOME_FAILED if bad else 0


def _edges(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
