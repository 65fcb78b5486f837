"""fit, validate, test, predict, export, benchmark: a LightningCLI of the tree ``data, model, training, trainer, run``.

``model`` is any nn.Module that takes ``schema``; it is filled in from the data, and the model goes into CTRModule,
whose other arguments are ``training``. A wrong configuration ends in a ConfigError before anything starts.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from kunlun.checkpoints import disk_error
from kunlun.command_line import Request
from kunlun.config_check import ConfigChecker, is_users_fault
from kunlun.configuration import CONFIG_ROOT, ConfigError, shown
from kunlun.exported import write_exported
from kunlun.features import FeatureSchema
from kunlun.training import out_of_memory, runs
from kunlun.training.checkpoint_io import SealedCheckpointIO
from kunlun.training.checkpointing import BestCheckpoint, LastCheckpoints
from kunlun.training.data_parallel import SparseDDPStrategy
from kunlun.training.efficiency import EfficiencyMonitor
from kunlun.training.fully_sharded import SparseFSDP2Strategy
from kunlun.training.module import CTRModule
from kunlun.training.nonfinite import NonFiniteGuard
from kunlun.training.oracle import known_answer
from kunlun.training.prediction import InOrder, PredictionWriter
from kunlun.training.preemption import Preemption
from kunlun.training.progress import progress_bar
from kunlun.training.random_state import RandomState
from kunlun.training.resumed_options import Patience, ResumedOptions
from kunlun.training.runs import RunOptions
from kunlun.training.score_monitor import ScoreMonitor
from kunlun.training.sharded_checkpoint import plain_state
from kunlun.training.sharded_strategy import ShardedTablesStrategy, wants_sharding
from kunlun.training.summary import FitSummary, next_commands

# A schema comes from the data, never from a config: without this jsonargparse wants its fields as options.
set_parsing_settings(subclasses_enabled=[FeatureSchema])

_NOISE = (
    "does not have many workers",  # small data sets are read fast enough by one process
    "exists and is not empty",  # the run directory: it holds config.yaml already
    "is smaller than the logging interval",
    "callbacks used to create the checkpoint need to be provided",  # evaluation needs none of them
    "have no `val_dataloader`",  # a benchmark only trains
    "It is recommended to use `self.log(",  # CTRModule's metrics are exact over processes without it
    "isinstance(treespec, LeafSpec)",  # between Lightning and torch
    "'set_vital' is deprecated",  # between torchdata and torch
    "deprecating ShardedTensor",  # between TorchRec and torch
)


def main(request: Request, checker: ConfigChecker, command_line: type[KunlunCLI] | None = None) -> int:
    """Run one command; ConfigError if the configuration is wrong. Returns the exit code.

    ``checker`` has been through the parts of the configuration that need no Lightning; ``command_line`` has the command
    as a method, None: KunlunCLI.
    """
    for text in _NOISE:
        warnings.filterwarnings("ignore", message=f".*{re.escape(text)}")
    if not runs.is_first_process():
        warnings.simplefilter("ignore")  # the first one says the same
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for name in ("torchrec", "torch.fx._symbolic_trace"):  # TorchRec warns of its own defaults
        logging.getLogger(name).setLevel(logging.ERROR)
    cli = (command_line or KunlunCLI)(request, checker)
    try:
        getattr(cli, request.command)()
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit code 1
            raise KeyboardInterrupt from None
        raise
    return 0


def check_lightning(checker: ConfigChecker, values: dict[str, Any]) -> None:
    """What precheck leaves out; ConfigError if it is wrong."""
    checker.arguments("trainer", values.get("trainer", {}), Trainer)
    precision = str((values.get("trainer") or {}).get("precision"))
    if precision in WHOLE_PRECISIONS:
        problem = f"{precision}: rows of tables, labels and metrics stay float32; write bf16-mixed, 16-mixed or 32-true"
        checker.fail("trainer.precision", problem)
    checker.arguments("training", values.get("training", {}), CTRModule, linked={"model"})
    checker.component("data", values.get("data"), (LightningDataModule,))


class KunlunCLI(LightningCLI):
    """Parses, checks and builds everything; the methods named like the commands then run it."""

    def __init__(self, request: Request, checker: ConfigChecker) -> None:
        self.request = request
        self.tree = request.tree
        self.checker = checker
        self._refusal: Exception | None = None
        self.preemption = Preemption()
        self.batch_sizes = out_of_memory.BatchSizes()
        # Reading them takes a while, and only help shows them.
        set_parsing_settings(docstring_parse_attribute_docstrings=request.asks_help)
        super().__init__(
            datamodule_class=LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=1,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "prog": f"cli.py {request.command}",
                "description": DESCRIPTIONS[request.command],
                "exit_on_error": False,
                "allow_abbrev": False,
                "dump_header": None,
            },
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_subclass_arguments(LightningDataModule, "data", required=True)
        parser.add_subclass_arguments(nn.Module, "model", required=True)
        parser.add_class_arguments(CTRModule, "training")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        # The data modules give every process its own rows themselves.
        parser.set_defaults({"trainer.use_distributed_sampler": False})
        parser.add_class_arguments(RunOptions, "run")
        parser.link_arguments("data.schema", "model.init_args.schema", apply_on="instantiate")
        parser.link_arguments("model", "training.model", apply_on="instantiate")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        text = "Checkpoint file or run directory; without --config, the configuration saved with it is used."
        if self.request.command == "fit":
            auto = (
                "What to go on from: auto, the newest intact checkpoint of the runs of this name, if there is any; or a"
            )
            parser.add_argument("--resume", type=str | None, help=f"{auto} c{text[1:]}")
            text = "The same as --resume."
        parser.add_argument("--ckpt_path", type=str | None, help=text)
        if self.request.command == "predict":
            parser.add_argument("--output", type=str | None, help="Parquet file; default: predictions-SPLIT.parquet.")
        if self.request.command == "export":
            parser.add_argument("--out", type=str | None, help="The folder to write; it must not exist, or be empty.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        if not self.request.asks_help:
            check_lightning(self.checker, self.tree.values)
        self.tree.values = self.checker.settle(self.tree.values)
        if self.request.command in ("export", "benchmark"):
            _unshard(self.tree.values)
        rest = [token for override in self.request.overrides for token in override.tokens]
        try:
            self.config = parser.parse_args(["--config", self.tree.dump(), *rest])
        except (ArgumentError, TypeError, ValueError) as error:
            raise ConfigError(self._rephrased(str(error))) from error
        self.config.pop("config", None)

    def _rephrased(self, message: str) -> str:
        """jsonargparse's message in a line: the innermost key, and the first thing that is said of it."""
        keys = re.findall(r'[Kk]ey "([\w.]+)"', message)
        lines = [line.strip(" -") for line in message.splitlines()]
        told = re.compile(r"Expected|Option|Group|No module|Not a|Unable|required|unrecognized|does not|expected")
        reason = next(
            (line for line in lines if told.match(line) and not line.startswith("Does not validate")), lines[0]
        )
        key = ".".join(keys)
        return f"{self.tree.where(key)}: {key + ': ' if key else ''}{reason}"

    def _parse_ckpt_path(self) -> None:
        """Nothing: what a checkpoint remembers must not win over the command line."""

    def before_instantiate_classes(self) -> None:
        """Another seed is also another order of the rows, unless the data were given a seed of their own."""
        data, seed = self.config["data"].get("init_args") or {}, self.config.get("seed_everything")
        if "seed" in data and data["seed"] is None and not isinstance(seed, bool):
            data["seed"] = seed

    def instantiate_classes(self) -> None:
        try:
            self.config_init = self.parser.instantiate(self.config, instantiators=[(self._construct, object, True)])
        except Exception as error:
            cause = self._refusal or error
            if out_of_memory.is_out_of_memory(cause):
                raise out_of_memory.explained(cause, None, None, "") from cause
            raise self._explained(cause) from cause
        self.datamodule = self.config_init["data"]
        self.model = self.config_init["training"]
        self.options: RunOptions = self.config_init["run"]

    def _construct(self, cls: type, *args: Any, **kwargs: Any) -> Any:
        """Remembers what a constructor raises: jsonargparse would wrap it in a long message about types."""
        try:
            return cls(*args, **kwargs)
        except Exception as error:
            self._refusal = error
            raise

    def _explained(self, error: Exception) -> Exception:
        """A ConfigError if a value of the configuration is at fault, else ``error`` itself."""
        if not (is_users_fault(error) or isinstance(error, MisconfigurationException)):
            return error
        key = self.checker.blame(error)
        where = f"{self.tree.where(key)}: {key}: " if key else ""
        return ConfigError(f"{where}{error}")

    def make_trainer(self, callbacks: list[Callback], **arguments: Any) -> Trainer:
        """The Trainer of the configuration, with ``callbacks`` after the configured ones."""
        config = {**self.config_init["trainer"].as_dict(), **arguments}
        own = config["callbacks"] or []
        own = own if isinstance(own, list) else [own]
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in own):
            callbacks = [*callbacks, progress_bar()]
        given = tuple(type(c) for c in own)
        callbacks = own + [c for c in callbacks if not isinstance(c, given)]
        if config["enable_checkpointing"] is False:
            callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
        config["callbacks"] = callbacks
        plugins = config["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, SealedCheckpointIO()]
        if config["enable_model_summary"] is None:
            config["enable_model_summary"] = False
        SparseDDPStrategy.register_strategies(StrategyRegistry)
        SparseFSDP2Strategy.register_strategies(StrategyRegistry)
        if config["strategy"] == "auto" and wants_sharding(self.model):
            config["strategy"] = ShardedTablesStrategy()
        try:
            return self.trainer_class(**config)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            key = self.checker.locate("trainer", str(error))
            raise ConfigError(f"{self.tree.where(key)}: {key}: {error}") from error

    def fit(self) -> None:
        """Train in a run directory of its own, and say how it went."""
        options = self.options
        summary = FitSummary(options.monitor, options.mode)
        dry = bool(self.config.trainer.fast_dev_run) or self.config.trainer.logger is False
        run = None if dry or not runs.is_first_process() else self._create_run()
        mode = runs.wandb_mode(options) if run is not None else "disabled"
        try:
            if dry:
                trainer = self.make_trainer([summary, *known_answer(self.datamodule)], logger=False)
            else:
                trainer = self.make_trainer(self._callbacks(run, summary), **self._loggers(run))
        except BaseException:
            if run is not None:
                runs.remove_if_unused(run)
            raise
        failed = True
        try:
            with self.preemption.handled():
                if run is not None:
                    self._record(run, mode, trainer)
                self._introduce(run, mode)
                self._call(trainer, "fit")
            self._write_summary(run, summary)
            if options.test:
                self._test_best(trainer)
                self._write_summary(run, summary)
            failed = False
        finally:
            _finish_wandb(failed)
        if runs.is_first_process():
            commands = self._next_commands(run, mode) if run is not None else []
            print(summary.text(options.name, run, commands), flush=True)

    def _test_best(self, trainer: Trainer) -> None:
        """With the weights of the best checkpoint; with those at hand where none was written."""
        kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]
        best = kept[0].best_model_path if kept else ""
        self._call(trainer, "test", ckpt_path=best or None, verbose=False)

    def _write_summary(self, run: Path | None, summary: FitSummary) -> None:
        if run is not None:
            text = json.dumps(summary.record(self.model.model, self._schema), indent=2)
            (run / runs.SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")

    def _record(self, run: Path, mode: str, trainer: Trainer) -> None:
        """Save what the run is, and tell W&B."""
        options, request = self.options, self.request
        config = self._resolved()
        checkpoint = shown(request.checkpoint) if request.checkpoint else None
        group = runs.wandb_group(run, options, request.run)
        runs.save_run(run, config, [request.command, *request.argv], self._schema, checkpoint, group)
        if mode != "disabled" and self.config.trainer.logger in (None, True):
            trainer.loggers = [*trainer.loggers, _wandb_logger(run, mode, options, group, runs.redact(config))]

    def _introduce(self, run: Path | None, mode: str) -> None:
        if not runs.is_first_process():
            return
        parameters = sum(p.numel() for p in self.model.parameters())
        rows = self._schema.rows.get("train")
        size = f", {rows:,} training rows" if rows else ""
        print(f"{self.options.name}: {parameters:,} parameters · {self._schema.name}{size}", flush=True)
        if run is not None:
            print(f"run: {shown(run)} · W&B {mode}", flush=True)
        for warning in self.request.warnings:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        if self.request.checkpoint is not None:
            print(f"going on from {shown(self.request.checkpoint)}", flush=True)
            if self.request.run is not None:
                for change in runs.changes(self.request.run, self._resolved()):
                    print(f"  changed: {change}", flush=True)
        elif self.request.asks_to_resume:
            print("no checkpoint to go on from: starting afresh", flush=True)

    def _next_commands(self, run: Path, mode: str) -> list[str]:
        configs = self.request.configs
        done = {Path(name).stem for name in configs}
        others = [p.name for p in sorted((CONFIG_ROOT / "ablations").glob("no_*.yaml")) if p.stem not in done]
        ablation = f"ablations/{others[0] if others else 'kunlun.yaml'}"
        return next_commands(run, configs, str(self.config.data.class_path), mode == "offline", ablation)

    def validate(self) -> None:
        self._evaluate("validate")

    def test(self) -> None:
        self._evaluate("test")

    def _evaluate(self, command: str) -> None:
        trainer = self.make_trainer(known_answer(self.datamodule), logger=False, enable_checkpointing=False)
        results = self._call(trainer, command, verbose=False)
        if not runs.is_first_process():
            return
        metrics = {name: value for result in results for name, value in result.items()}
        width = max(map(len, metrics), default=0)
        print("\n".join(f"{name:<{width}}  {value:.6f}" for name, value in metrics.items()), flush=True)
        if self.request.run is not None:
            path = self.request.run / f"{command}.json"
            path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
            print(f"written: {shown(path)}", flush=True)

    def predict(self) -> None:
        """Score a split, every row once and in order, into a Parquet file."""
        split = self.config.data.get("init_args.predict_split", "test")
        default = (self.request.run or Path()) / f"predictions-{split}.parquet"
        path = Path(self.config.output).expanduser() if self.config.output else default
        writer = PredictionWriter(path, [task.name for task in self._schema.tasks])
        trainer = self.make_trainer([writer], logger=False, enable_checkpointing=False)
        if trainer.world_size > 1:
            raise ConfigError("predict keeps the order of the rows, so it runs on one device: --trainer.devices=1")
        loader = InOrder(self.datamodule.predict_dataloader())
        self._call(trainer, "predict", datamodule=None, dataloaders=loader, return_predictions=False)
        print(f"written: {shown(path)} ({writer.rows:,} rows)", flush=True)

    def export(self) -> None:
        """Write the model with the weights of the checkpoint to a folder of plain data."""
        checkpoint, path = self.request.checkpoint, Path(self.config.out).expanduser()
        assert checkpoint is not None
        loaded = SealedCheckpointIO().load_checkpoint(checkpoint)
        try:
            self.model.load_state_dict(plain_state(self.model, loaded, checkpoint))
        except (KeyError, TypeError, RuntimeError) as error:
            raise _misfit(checkpoint, error) from error
        schema = replace(self._schema, provenance=runs.redact(self._schema.provenance))
        parameters = sum(p.numel() for p in self.model.parameters())
        record = {
            "checkpoint": shown(checkpoint),
            "run": self.request.run.name if self.request.run else None,
            "step": loaded.get("global_step"),
            "parameters": parameters,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": runs.versions(),
            "git": runs.git_state(),
        }
        write_exported(path, self.model.model, runs.redact(self._resolved()["model"]), schema, record)
        print(f"written: {shown(path)} ({parameters:,} parameters)", flush=True)

    @property
    def _schema(self) -> FeatureSchema:
        return self.datamodule.schema

    def _call(self, trainer: Trainer, command: str, **arguments: Any) -> Any:
        checkpoint = self.request.checkpoint
        path = str(checkpoint) if checkpoint else None
        try:
            arguments = {"datamodule": self.datamodule, "ckpt_path": path, "weights_only": True, **arguments}
            return getattr(trainer, command)(self.model, **arguments)
        except MisconfigurationException as error:
            raise ConfigError(str(error)) from error
        except OSError as error:
            told = disk_error(error)
            if told is None:
                raise
            raise told from error
        except (RuntimeError, MemoryError) as error:
            if out_of_memory.is_out_of_memory(error):
                raise out_of_memory.explained(error, self._schema, self.model, self.batch_sizes.text) from error
            if "loading state_dict" not in str(error):
                raise
            raise _misfit(path, error) from error

    def _create_run(self) -> Path:
        try:
            return runs.create_run_directory(self.options)
        except OSError as error:
            where = self.tree.where("run.root")
            raise ConfigError(f"{where}: run.root: {error.filename}: cannot be made: {error.strerror}") from error

    def _callbacks(self, run: Path | None, summary: FitSummary) -> list[Callback]:
        """The summary, early stopping where it is wanted, and what keeps a run safe."""
        options = self.options
        # Other processes than the first are told the folder by ModelCheckpoint itself.
        folder = run / runs.CHECKPOINTS if run is not None else None
        callbacks: list[Callback] = [
            summary,
            self.batch_sizes,
            RandomState(),
            ResumedOptions(),
            NonFiniteGuard(run, options.nonfinite, options.nonfinite_limit),
            BestCheckpoint(folder, options.monitor, options.mode),
            LastCheckpoints(
                folder, options.checkpoint_every, options.keep_last, self.preemption, self.request.checkpoint
            ),
            LearningRateMonitor(),
            ScoreMonitor(),
            EfficiencyMonitor(),
            *known_answer(self.datamodule),
        ]
        if options.patience is not None:
            callbacks.append(Patience(options.monitor, options.mode, options.patience))
        return callbacks

    def _loggers(self, run: Path | None) -> dict[str, Any]:
        """CSV in the run directory, unless other loggers are configured. W&B joins when the run starts."""
        folder = str(run or Path(self.options.root) / self.options.name)  # without one, nothing is written to it
        arguments: dict[str, Any] = {"default_root_dir": folder}
        if self.config.trainer.logger in (None, True):
            arguments["logger"] = [CSVLogger(folder, name="", version="")]
        return arguments

    def _resolved(self) -> dict[str, Any]:
        """The whole configuration as plain values, without what belongs to this command line alone."""
        config = yaml.safe_load(self.parser.dump(self.config))
        return {key: value for key, value in config.items() if key not in ("ckpt_path", "resume", "output", "out")}


def _unshard(values: dict[str, Any]) -> None:
    """Plain tables, whatever the run had: an exported model stands alone, and a measured one on one device."""
    embedding = (values["model"].get("init_args") or {}).get("embedding")
    if embedding:
        embedding.pop("sharded", None)


def _misfit(path: Path | str | None, error: Exception) -> ConfigError:
    first = "\n".join(str(error).splitlines()[1:4]) or f"it holds no state of a model ({error!r})"
    return ConfigError(f"{path} does not fit the model of this configuration:\n{first}")


def _wandb_logger(run: Path, mode: str, options: RunOptions, group: str, config: dict[str, Any]) -> Logger:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    name = f"{options.name}-{run.name}"
    experiment = wandb.init(
        name=name,
        id=re.sub(r"[^\w-]", "-", name),
        dir=str(run),
        mode="offline" if mode == "offline" else "online",
        project=options.project,
        group=group,
        config=config,
        settings=wandb.Settings(silent=mode == "offline", quiet=True, console="off"),
    )
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=experiment, save_dir=str(run), project=options.project)


def _finish_wandb(failed: bool) -> None:
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))


# Lightning would cast every floating tensor of a batch, the labels too.
WHOLE_PRECISIONS = ("16-true", "bf16-true", "64-true", "64")
DESCRIPTIONS = {
    "fit": "Train a model. The configuration is configs/base.yaml, then each --config, then the other options.",
    "validate": "Metrics of a checkpoint on the valid split.",
    "test": "Metrics of a checkpoint on the test split.",
    "benchmark": "How fast the model of a configuration trains and answers, on fixed batches, with one device.",
    "export": "The model of a checkpoint as a folder: weights, configuration and schema. It loads without Lightning.",
    "predict": "Probabilities of a checkpoint for every row, as Parquet. --split valid scores another split than test.",
}
