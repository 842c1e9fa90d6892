"""The table of everything that is fuzzed. Prompts, once there are any, are one more entry."""

from __future__ import annotations

from tests.fuzz.images import IMAGE_TARGETS
from tests.fuzz.models import MODEL_TARGETS
from tests.fuzz.records import RECORD_TARGETS
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {target.name: target for target in (*RECORD_TARGETS, *MODEL_TARGETS, *IMAGE_TARGETS)}
