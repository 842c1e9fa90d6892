"""Small fingerprints and facts for planning tests."""

from autoseg.data.fingerprint import CaseStatistics, Fingerprint, IntensityStatistics
from autoseg.data.model import Dataset, LabelSet
from autoseg.planning.plan import Plan
from autoseg.planning.planner import PlanOptions, make_plan


def fingerprint_of(spacings, shapes, channels=1, relative_size=1.0) -> Fingerprint:
    cases = tuple(
        CaseStatistics(f"case_{index}", tuple(shape), tuple(shape), tuple(map(float, spacing)), relative_size)
        for index, (spacing, shape) in enumerate(zip(spacings, shapes, strict=True))
    )
    statistics = IntensityStatistics(10.0, 9.0, 3.0, 0.0, 100.0, 1.0, 90.0)
    return Fingerprint(1, cases, (statistics,) * channels, relative_size)


def dataset_of(channels=("MRI",), labels=None, file_ending=".nii.gz") -> Dataset:
    labels = labels or LabelSet({"background": (0,), "organ": (1,)}, file_values=(0, 1))
    return Dataset("test", "", "nnunet", "", channels, labels, (), file_ending)


def plan_of(fingerprint, preset="reference", memory_gib=8.0, pins=None, channels=("MRI",), training_cases=None) -> Plan:
    options = PlanOptions(preset, memory_gib, pins=pins)
    return make_plan(dataset_of(channels), fingerprint, options, training_cases)
