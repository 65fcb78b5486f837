"""The LightningDataModules: prepared data, and the synthetic world."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from data.interruption import outlive_first_signal, signals_held_back
from data.order import BatchOrder
from data.reader import PreparedSplit, Split
from data.synthetic import SyntheticWorld
from data.synthetic_config import PARTS
from data.synthetic_oracle import summarise
from data.synthetic_presets import PRESETS, altered
from kunlun.configuration import ConfigError
from kunlun.features import Batch, FeatureSchema


def _as_is(batch: Batch) -> Batch:
    return batch


class _Loader(StatefulDataLoader):
    """Whose workers a signal to the whole process group does not end, from their first moment on."""

    def _get_iterator(self) -> Any:
        with signals_held_back():
            return super()._get_iterator()


class DataModule(L.LightningDataModule):
    """What both share: batches of a split, in an order that resumes exactly.

    ``schema`` is available before any trainer exists, so that a model can be built from it.
    """

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int,
        max_length: int,
        num_workers: int,
        seed: int | None,
        predict_split: Split,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"data.{name} must be ≥ 1, got {value}")
        if max_length < 1:
            raise ValueError(f"data.max_length must be ≥ 1, got {max_length}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers must be ≥ 0, got {num_workers}")
        self.batch_size, self.eval_batch_size, self.max_length = batch_size, eval_batch_size, max_length
        self.num_workers, self.seed, self.predict_split = num_workers, seed or 0, predict_split

    @property
    @abstractmethod
    def schema(self) -> FeatureSchema:
        """With L_max set."""

    @abstractmethod
    def split(self, name: Split, share_histories: bool = False) -> Dataset[Batch]:
        """A map-style data set whose ``__getitems__(rows)`` is a Batch."""

    def train_dataloader(self) -> StatefulDataLoader:
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> StatefulDataLoader:
        return self._loader("valid", self.eval_batch_size)

    def test_dataloader(self) -> StatefulDataLoader:
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> StatefulDataLoader:
        return self._loader(self.predict_split, self.eval_batch_size)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        # Lightning waits for the copy of what is not a tensor; from pinned memory there is no need to.
        return batch.to(device, non_blocking=True)

    def _loader(self, name: Split, batch_size: int, shuffle: bool = False) -> StatefulDataLoader:
        # Rows of one request lie side by side unless shuffled: only then is a shared history worth looking for.
        dataset = self.split(name, share_histories=not shuffle)
        trainer = self.trainer
        world = trainer.world_size if trainer else 1
        rows = len(dataset)  # type: ignore[arg-type]
        if rows < world * batch_size and world > 1:
            if shuffle or rows < world:
                raise ConfigError(
                    f"data.batch_size: {rows} {name} rows are less than one batch of {batch_size} for each of {world} "
                    "devices; lower it, or trainer.devices"
                )
            batch_size = rows // world  # a rank without a batch would skip an evaluation that the others wait in
        order = BatchOrder(
            rows,
            batch_size,
            shuffle=shuffle,
            seed=self.seed,
            drop_last=shuffle and rows > batch_size,
            rank=trainer.global_rank if trainer else 0,
            world=world,
        )
        if shuffle and trainer:
            # Lightning restores where a loader was only in the middle of an epoch, not at its end.
            progress: Any = trainer.fit_loop.epoch_progress.current
            order.set_epoch(progress.processed)
        return _Loader(
            dataset,
            batch_sampler=order,
            collate_fn=_as_is,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
            worker_init_fn=outlive_first_signal,
            # A generator of its own: validation must not move the training's random numbers.
            generator=torch.Generator().manual_seed(self.seed),
        )


class PreparedData(DataModule):
    """A data set made by ``python cli.py prepare``.

    Args:
        path: its directory.
        batch_size: rows of a training batch, per device.
        eval_batch_size: rows of a batch of validate, test and predict.
        max_length: L_max, the newest events of each type that a row sees; may change without preparing again.
        num_workers: reader processes; 0 reads in the training process.
        seed: of the order of training rows; null: the run's ``seed_everything``.
        predict_split: the split that ``predict`` scores.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 1024,
        eval_batch_size: int = 4096,
        max_length: int = 200,
        num_workers: int = 0,
        seed: int | None = None,
        predict_split: Split = "test",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, max_length, num_workers, seed, predict_split)
        self.path = path
        self._schema: FeatureSchema | None = None

    @property
    def schema(self) -> FeatureSchema:
        if self._schema is None:
            self._schema = FeatureSchema.load(self.path).with_max_length(self.max_length)
        return self._schema

    def split(self, name: Split, share_histories: bool = False) -> PreparedSplit:
        return PreparedSplit(self.path, self.schema, name, share_histories)

    def state_dict(self) -> dict[str, Any]:
        return {"schema": self.schema.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = FeatureSchema.from_json(state_dict["schema"])
        if saved.tables != self.schema.tables:
            raise ValueError(
                f"the checkpoint was trained on other id spaces than {self.path} has: "
                f"tables {saved.tables} against {self.schema.tables}. Use the data set it was trained on."
            )


class SyntheticSplit(Dataset[Batch]):
    """One split of a synthetic world; row i of the split is sample ``first + i`` of the world."""

    def __init__(self, world: SyntheticWorld, name: Split, max_length: int) -> None:
        self.world, self.indices, self.max_length = world, world.split(name), max_length

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, rows: np.ndarray) -> Batch:
        batch = self.world.batch(torch.from_numpy(rows) + self.indices.start, self.max_length)
        return replace(batch, row=torch.from_numpy(rows))


class SyntheticData(DataModule):
    """The synthetic world, generated as it is read (``docs/synthetic.md``).

    What is null is as in the preset. A world that differs from its preset in more than its rows is calibrated anew,
    which takes seconds.

    Args:
        preset: which world; ``tiny`` trains in two minutes on two cores, ``small`` in some more, ``large`` is for a
            GPU and ``massive`` for many.
        strengths: part → how much it moves the log-odds; parts that are left out are as in the preset.
        ctr: mean click probability.
        label_noise: share of the click labels drawn at the rate ``ctr``, whatever the sample.
        tasks: ``[click]`` or ``[click, conversion]``.
        conversion_rate: mean probability of click and conversion, with two tasks.
        world_seed: another world of the same kind.
        train_rows: size of the training split; valid and test stay the same rows.
        batch_size, eval_batch_size, num_workers, predict_split: as for PreparedData.
        max_length: L_max, the newest events of each type that a row shows; null: all that its label depends on.
        seed: of the order of training rows; null: the run's ``seed_everything``.
    """

    def __init__(
        self,
        preset: Literal["tiny", "small", "small_5pct", "large", "massive"] = "tiny",
        strengths: dict[str, float] | None = None,
        ctr: float | None = None,
        label_noise: float | None = None,
        tasks: list[Literal["click", "conversion"]] | None = None,
        conversion_rate: float | None = None,
        world_seed: int | None = None,
        train_rows: int | None = None,
        batch_size: int = 512,
        eval_batch_size: int = 4096,
        max_length: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        predict_split: Split = "test",
    ) -> None:
        self.config = altered(
            PRESETS[preset],
            strengths=strengths,
            ctr=ctr,
            label_noise=label_noise,
            tasks=None if tasks is None else tuple(tasks),
            conversion_rate=conversion_rate,
            seed=world_seed,
            train_rows=train_rows,
        )
        shown = self.config.max_events if max_length is None else max_length
        super().__init__(batch_size, eval_batch_size, shown, num_workers, seed, predict_split)
        self._world: SyntheticWorld | None = None

    @property
    def world(self) -> SyntheticWorld:
        if self._world is None:
            self._world = SyntheticWorld(self.config)
        return self._world

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the click probability that have a strength."""
        return tuple(part for part, strength in self.config.strengths.by_part().items() if strength)

    def truth(self, split: Split, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is known of ``rows`` (B,) of ``split``.

        Returns:
            (B, tasks) float64, the probabilities that their labels were drawn with; and (B, len(parts)) float64, what
            each part says of them, of mean 0 and deviation 1.
        """
        chosen = [PARTS.index(part) for part in self.parts]
        parts = self.world.parts(rows + self.world.split(split).start)
        return self.world.probability(parts), parts[:, chosen]

    def oracle(self) -> tuple[str, dict[str, float]]:
        """What the best model can expect on valid: a line to read, and the figures by name."""
        found = summarise(self.world)
        return found.line(), found.figures()

    @property
    def shown_events(self) -> int:
        """L_max: what was asked, at most what the world shows."""
        return min(self.max_length, self.world.config.max_events)

    @property
    def schema(self) -> FeatureSchema:
        return self.world.schema.with_max_length(self.shown_events)

    def split(self, name: Split, share_histories: bool = False) -> SyntheticSplit:
        # Two samples never share a request here, so there is no history to share.
        return SyntheticSplit(self.world, name, self.shown_events)
