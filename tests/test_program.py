"""Programs of torch.export answer as their models do, whatever the rows and the lengths of the histories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kunlun import models
from kunlun.configuration import RunError
from kunlun.features import FeatureSchema
from kunlun.program import tensors_of, to_program, write_package
from tests.support import toy_batch, toy_schema

FOLLOWED = ["DCNv2", "DIN", "DLRM", "InterFormer", "Kunlun", "LogisticRegression", "Wukong"]
NOT_FOLLOWED = ["DIEN", "HSTU"]


@pytest.fixture(scope="module")
def schema() -> FeatureSchema:
    return toy_schema()


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_program_answers_as_its_model_for_other_sizes(name: str, schema: FeatureSchema) -> None:
    generator = torch.Generator().manual_seed(0)
    model = getattr(models, name)(schema).eval()
    program = to_program(model, toy_batch(schema, 9, generator)).module()
    for rows, lengths in ((2, [5, 0]), (40, None), (4, [0, 0, 0, 0]), (4, [0, 1, 0, 0])):
        batch = toy_batch(schema, rows, generator, None if lengths is None else torch.tensor(lengths))
        with torch.inference_mode():
            assert torch.equal(program(tensors_of(batch)), model(batch))


def test_a_saved_program_answers_as_before(schema: FeatureSchema, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    model = models.Kunlun(schema).eval()
    torch.export.save(to_program(model, toy_batch(schema, 9, generator)), tmp_path / "kunlun.pt2")
    batch = toy_batch(schema, 5, generator)
    program = torch.export.load(tmp_path / "kunlun.pt2").module()
    with torch.inference_mode():
        assert torch.equal(program(tensors_of(batch)), model(batch))


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_a_model_that_cannot_be_followed_says_so(name: str, schema: FeatureSchema) -> None:
    batch = toy_batch(schema, 9, torch.Generator().manual_seed(0))
    with pytest.raises(RunError, match=f"no program of {name}"):
        to_program(getattr(models, name)(schema), batch)


def test_every_model_is_in_one_of_the_lists() -> None:
    assert sorted([*FOLLOWED, *NOT_FOLLOWED]) == sorted(models.__all__)


def test_shared_histories_are_refused(schema: FeatureSchema) -> None:
    batch = toy_batch(schema, 3, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="history per row"):
        to_program(models.Kunlun(schema), replace(batch, history=torch.arange(3)))


def test_without_a_compiler_nothing_is_compiled_and_the_reason_is_told(
    schema: FeatureSchema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a package answers as its model is tested with docs/serving.md."""
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/compiler"))
    model = models.LogisticRegression(schema).eval()
    program = to_program(model, toy_batch(schema, 9, torch.Generator().manual_seed(0)))
    with pytest.raises(RunError, match=r"compiled nothing to .*pt2 \(it needs a C\+\+ compiler\): .*/no/compiler"):
        write_package(program, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
