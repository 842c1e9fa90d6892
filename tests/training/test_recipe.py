from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autoseg.core.configs import shipped
from autoseg.core.errors import AutoSegError, MissingInput, RecordFault, UsageError
from autoseg.core.records import load, save, to_data
from autoseg.networks.kinds.unet import PlainUNet
from autoseg.planning.plan import Configuration
from autoseg.training.optimization import (
    ITERATIONS,
    MOMENTS,
    NEWTON_SCHULZ,
    OPTIMIZERS,
    RMS,
    SCHEDULES,
    Muon,
    ScheduleSegment,
    mean_cost,
    orthogonalized,
    stage_at,
    warmup,
)
from autoseg.training.recipe import Recipe, load_recipe, relative_costs, stage_configurations, usual_recipes
from autoseg.training.step import Compute, learning_rate, start_state
from tests.training.tiny_training import RECIPE, fresh_state


def test_the_default_recipe_is_the_dataclass() -> None:
    assert load_recipe("default") == Recipe()


@pytest.mark.parametrize("name", sorted(shipped("recipes")))
def test_every_shipped_recipe_is_usable(name: str) -> None:
    assert isinstance(load_recipe(name), Recipe)


@pytest.mark.parametrize(
    ("preset", "has_budget", "expected"),
    [
        ("cpu", True, ("fast", "cpu")),
        ("cpu", False, ("cpu", "fast")),
        ("reference", True, ("default",)),
        ("resenc-m", False, ("default",)),
    ],
)
def test_a_short_budget_on_a_cpu_trains_with_the_fast_recipe(
    preset: str, has_budget: bool, expected: tuple[str, ...]
) -> None:
    assert usual_recipes(preset, has_budget=has_budget) == expected


def test_the_command_line_overrides_epochs_and_steps() -> None:
    recipe = load_recipe("default", epochs=5, steps=7)
    assert (recipe.epochs, recipe.steps_per_epoch) == (5, 7)


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "lr: 1e-3\nweight_decay: 1E-05\noptimizer: adamw\naugmentation: [{name: mirror, probability: 5e-1}]\n"
    )
    assert load_recipe(str(path)) == replace(
        Recipe(), lr=1e-3, weight_decay=1e-5, optimizer="adamw", augmentation=({"name": "mirror", "probability": 0.5},)
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("momentums: 0.9", UsageError),
        ("lr: fast", RecordFault),
        ("lr: -1", RecordFault),
        ("epochs: 0", RecordFault),
        ("epochs: 2026-11-27", RecordFault),
        ("ema_decay: 1.5", RecordFault),
        ("patch_growth: [0.5, 0.5]", RecordFault),
        ("patch_growth: [0.5, 1.0]", RecordFault),
        ("patch_growth: [-0.5]", RecordFault),
        ("batch_scale: 0", RecordFault),
        ("optimizer: adam", UsageError),
        ("schedule: linear", UsageError),
        ("loss: no_such_loss", UsageError),
        ("augmentation: defalut", UsageError),
        ("augmentation: [{name: nois}]", UsageError),
        ("augmentation: [{name: noise, probability: 2}]", RecordFault),
        ("callbacks: [tensorbored]", UsageError),
        ("momentum: .nan", RecordFault),
        ("lr: .inf", RecordFault),
        ("precision: fp8", RecordFault),
        ("- a list", RecordFault),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, text: str, error: type[AutoSegError]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(error):
        load_recipe(str(path))


@pytest.mark.parametrize("wrong", ["5", "[5]", "{a: 1}", "[{}]", "[{gamma: 3}]", "[{name: 3}]"])
def test_an_augmentation_of_another_shape_is_answered_with_an_example(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"augmentation: {wrong}")
    with pytest.raises(RecordFault, match=r"augmentation: must be a name, or a list such as \[\{name: noise"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "adam"}, "did you mean adamw"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"loss": "dice_cee"}, "did you mean dice_ce"),
        ({"augmentation": "defalt"}, "did you mean default"),
        ({"callbacks": ("curve",)}, "did you mean curves"),
    ],
)
def test_a_name_is_resolved_when_a_recipe_is_made(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as found:
        Recipe(**settings)  # type: ignore[arg-type]
    assert words in str(found.value.do)


def test_recipes_of_older_versions_still_read(tmp_path: Path) -> None:
    old = to_data(Recipe(epochs=7))
    for later in ("callbacks", "patch_growth", "batch_scale"):
        del old[later]
    (tmp_path / "recipe.json").write_text(json.dumps(old))
    assert load(Recipe, tmp_path / "recipe.json") == Recipe(epochs=7)
    listed = Recipe(augmentation=({"name": "noise", "deviations": [0.0, 0.2]},))
    save(listed, tmp_path / "recipe.json")
    assert load(Recipe, tmp_path / "recipe.json") == listed


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="unknown recipe"):
        load_recipe("defalut")


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_reduces_a_quadratic(name: str) -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = OPTIMIZERS[name]([weight], replace(Recipe(), momentum=0.5, lr=0.05))
    for _ in range(50):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert abs(float(weight.detach())) < 1.5


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_what_an_optimizer_keeps_is_what_forecasts_count(name: str) -> None:
    kernel = nn.Parameter(torch.ones(4, 2, 3, 3))
    optimizer = OPTIMIZERS[name]([kernel], Recipe())
    kernel.grad = torch.ones_like(kernel)
    optimizer.step()
    kept = [value for value in optimizer.state[kernel].values() if isinstance(value, torch.Tensor)]
    assert sum(value.shape == kernel.shape for value in kept) == MOMENTS[name]


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_falls_from_one_to_zero(name: str) -> None:
    values = [SCHEDULES[name](i / 10) for i in range(11)]
    assert math.isclose(values[0], 1.0)
    assert math.isclose(values[-1], 0.0, abs_tol=1e-12)
    assert values == sorted(values, reverse=True)


@given(end=st.integers(1, 1000), step=st.integers(0, 999), new_end=st.integers(0, 2000))
def test_moving_the_end_keeps_the_progress(end: int, step: int, new_end: int) -> None:
    step = min(step, end)
    moved = ScheduleSegment(0, 0.0, end).moved(step, max(step, new_end))
    if moved.end > step:
        assert math.isclose(moved.at(step), step / end)
    assert math.isclose(moved.at(moved.end), 1.0)


def test_the_learning_rate_of_an_epoch_is_the_references() -> None:
    recipe = replace(RECIPE, lr_update="epoch", epochs=10, steps_per_epoch=4)
    state = fresh_state(recipe)
    state.step, state.epoch, state.epoch_begin = 14, 3, 12
    assert math.isclose(learning_rate(state, recipe), 0.01 * (1 - 3 / 10) ** 0.9)
    by_step = replace(recipe, lr_update="step", warmup_steps=20)
    assert math.isclose(learning_rate(state, by_step), 0.01 * (1 - 14 / 40) ** 0.9 * 15 / 20)


def test_a_warmup_of_no_steps_changes_nothing() -> None:
    assert warmup(0, 0) == 1.0


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12), (1, 27)])
def test_an_orthogonalized_matrix_keeps_its_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonalized(matrix) @ right.T
    expected = values / (values**8).sum() ** 0.125
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        expected = a * expected + b * expected**3 + c * expected**5
    assert torch.allclose(found, torch.diag(expected), atol=1e-9)
    assert float(expected.min()) > 0.6
    assert float(expected.max()) < 1.3


@pytest.mark.parametrize("kind", ["one direction", "falling as 1 / k", "as large as each other", "nothing"])
def test_singular_values_end_near_one_whatever_they_were(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(64, 288, generator=generator), full_matrices=False)
    numbers = torch.arange(1.0, 65.0)
    values = {
        "one direction": (numbers == 1).float(),
        "falling as 1 / k": 1 / numbers,
        "as large as each other": torch.ones(64),
        "nothing": torch.zeros(64),
    }[kind]
    for size in (1e-12, 1e-8, 1e-4, 1.0, 1e4, 1e8):
        found = torch.linalg.svdvals(orthogonalized(size * (left * values) @ right))
        assert torch.all(found < 1.25)
        assert torch.all(found[: int((values > 0).sum())] > 0.6)


@pytest.mark.parametrize("product_type", [None, torch.bfloat16])
def test_the_size_of_a_matrix_changes_nothing_until_it_counts_as_none(product_type: torch.dtype | None) -> None:
    matrix = torch.randn(256, 1152, generator=torch.Generator().manual_seed(5))
    matrix *= torch.logspace(0, -3, 256)[:, None] / matrix.norm()  # rows as different as in a training
    usual = orthogonalized(matrix, product_type).float()
    for exponent in (-46, -33, -17, 17, 33):  # powers of two round nothing
        other = orthogonalized(matrix * 2.0**exponent, product_type).float()
        assert float((other - usual).abs().max()) < 1e-3 * float(usual.abs().max())
    for size in (0.0, 1e-20, 1e-30, 1e-38):
        assert not orthogonalized(size * matrix, product_type).any()


def test_only_the_rounding_of_a_product_in_half_precision_differs() -> None:
    matrix = torch.randn(32, 432, generator=torch.Generator().manual_seed(4))
    exact, rounded = orthogonalized(matrix.double()), orthogonalized(matrix, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.double() - exact).norm() / exact.norm()) < 2**-8


def test_an_update_of_muon_does_not_depend_on_the_number_of_threads() -> None:
    def updated(threads: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(8)
        kernels = [nn.Parameter(torch.randn(64, edge, 3, 3, generator=generator)) for edge in (64, 3, 32, 96)]
        optimizer = OPTIMIZERS["muon"](kernels, Recipe(lr=0.1, momentum=0.9))
        for _ in range(2):
            for kernel in kernels:
                kernel.grad = torch.randn(kernel.shape, generator=generator)
            torch.set_num_threads(threads)
            optimizer.step()
        return [kernel.detach() for kernel in kernels]

    before = torch.get_num_threads()
    try:
        assert all(torch.equal(one, two) for one, two in zip(updated(1), updated(2), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", None)])
def test_muon_multiplies_in_bfloat16_where_the_network_does(precision: str, expected: torch.dtype | None) -> None:
    compute = Compute(torch.device("cpu"), precision)
    optimizer = start_state(nn.Conv2d(1, 2, 3), Recipe(optimizer="muon"), compute, 2).optimizer
    assert isinstance(optimizer, Muon)
    assert optimizer.product_type == expected


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_an_update_of_muon_does_not_depend_on_the_order_of_memory(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(6)
    first, gradient = (torch.randn(8, 4, 1, 3, 2, generator=generator) for _ in range(2))
    kernel, expected = (nn.Parameter(own) for own in (first.clone().to(memory_format=layout), first.clone()))
    for parameter in (kernel, expected):
        parameter.grad = gradient.clone()  # in the usual order, whatever that of the kernel is
        OPTIMIZERS["muon"]([parameter], Recipe(lr=0.1, momentum=0.9)).step()
    assert not torch.allclose(kernel, first)
    assert torch.allclose(kernel, expected, atol=1e-6)


def test_muon_moves_convolutions_alike_whatever_their_gradient_and_the_rest_as_adamw_does() -> None:
    generator = torch.Generator().manual_seed(2)
    kernel, bias = (nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((8, 4, 3, 3), (8,)))
    twin = nn.Parameter(bias.detach().clone())
    recipe = Recipe(optimizer="muon", momentum=0.9, lr=0.01, weight_decay=0.1)
    optimizer, reference = OPTIMIZERS["muon"]([kernel, bias], recipe), OPTIMIZERS["adamw"]([twin], recipe)
    before = kernel.detach().clone()
    for _ in range(3):
        kernel.grad = 1e-3 * torch.randn(kernel.shape, generator=generator)
        bias.grad = torch.randn(bias.shape, generator=generator)
        twin.grad = bias.grad.clone()
        before = kernel.detach() * (1 - 0.01 * 0.1)
        optimizer.step()
        reference.step()
    assert torch.equal(bias, twin)
    assert 0.7 < float((kernel - before).detach().square().mean().sqrt()) / (0.01 * RMS) < 1.2


@given(edges=st.tuples(*[st.integers(1, 40)] * 3), growth=st.lists(st.floats(0.05, 0.95), max_size=4, unique=True))
def test_patches_grow_to_the_planned_one_in_steps_that_the_network_can_divide(
    edges: tuple[int, int, int], growth: list[float]
) -> None:
    network = PlainUNet(3, (4, 8), ((3,) * 3,) * 2, ((1,) * 3, (1, 2, 2)), (1, 1), (1,))
    patch = tuple(edge * step for edge, step in zip(edges, network.total_stride, strict=True))
    planned = Configuration(
        "3d_fullres", 3, (1.0,) * 3, patch, 2, patch, ("zscore",), (False,), network, False, None, 1, ()
    )
    stages = stage_configurations(planned, Recipe(patch_growth=tuple(sorted(growth)), batch_scale=1.5))
    assert len(stages) == len(growth) + 1
    assert stages[-1] == replace(planned, batch_size=3)
    for former, stage in pairwise(stages):  # a Configuration refuses what its network cannot divide
        assert all(a <= b for a, b in zip(former.patch_size, stage.patch_size, strict=True))
    costs = relative_costs(stages)
    assert costs[-1] == 1.0
    assert list(costs) == sorted(costs)


@given(progress=st.floats(0, 1), costs=st.lists(st.floats(0.1, 1), min_size=1, max_size=5))
def test_the_mean_cost_is_that_of_the_steps_to_come(progress: float, costs: list[float]) -> None:
    steps = [progress + (1 - progress) * (i + 0.5) / 2000 for i in range(2000)]
    expected = sum(costs[stage_at(step, len(costs))] for step in steps) / 2000
    assert math.isclose(mean_cost(progress, costs), expected, abs_tol=2e-3)
