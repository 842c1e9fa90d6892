"""The report of a prediction as a page: pictures, volumes, and cases unlike the training data."""

from __future__ import annotations

from autoseg.report.charts import strip_chart
from autoseg.report.content import PredictionReport
from autoseg.report.dataset_page import MOST_CLASSES
from autoseg.report.page import render


def prediction_page(report: PredictionReport) -> str:
    """The page, complete in itself."""
    names = report.labels.foreground
    shown = names[:MOST_CLASSES]
    strips = {
        name: {case.identifier: case.volumes[name][0] for case in report.cases if name in case.volumes}
        for name in shown
    }
    unit = report.cases[0].unit if report.cases else "ml"
    return render(
        "prediction.html",
        report=report,
        version=report.version,
        written=report.written,
        classes=names,
        table_classes=shown,
        left_out_classes=names[MOST_CLASSES:],
        unit=unit,
        odd=sum(bool(case.unlike) for case in report.cases),
        pictured=sum(case.picture is not None for case in report.cases),
        volume_strips=strip_chart(strips, unit, "Predicted volumes per class"),
    )
