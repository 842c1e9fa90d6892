"""Small fingerprints and facts for planning tests."""

from autoseg.core.configs import find_config, read_yaml
from autoseg.core.records import from_data
from autoseg.data.fingerprint import CaseStatistics, Fingerprint, IntensityStatistics
from autoseg.data.model import LabelSet
from autoseg.planning.pins import Pins
from autoseg.planning.plan import Plan
from autoseg.planning.planner import DatasetFacts, Request, make_plan
from autoseg.planning.presets import Preset


def fingerprint_of(spacings, shapes, channels=1, relative_size=1.0) -> Fingerprint:
    cases = tuple(
        CaseStatistics(f"case_{index}", tuple(shape), tuple(shape), tuple(map(float, spacing)), relative_size)
        for index, (spacing, shape) in enumerate(zip(spacings, shapes, strict=True))
    )
    statistics = IntensityStatistics(10.0, 9.0, 3.0, 0.0, 100.0, 1.0, 90.0)
    return Fingerprint(1, cases, (statistics,) * channels, relative_size)


def preset_called(name: str) -> Preset:
    return from_data(Preset, read_yaml(find_config(name, "presets")), name)


def plan_of(fingerprint, preset="reference", memory_gib=8.0, pins=None, channels=("MRI",), training_cases=None) -> Plan:
    labels = LabelSet({"background": (0,), "organ": (1,)}, file_values=(0, 1))
    facts = DatasetFacts("test", channels, labels, ".nii.gz", training_cases or len(fingerprint.cases))
    return make_plan(fingerprint, facts, Request(preset, preset_called(preset), memory_gib, pins or Pins()))
