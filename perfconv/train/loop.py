"""train: the stages of a recipe one after another, with checkpoints from which it goes on.

Every random number of a step (noise of gates, dropout, crops, order) follows from the recipe's seed
and the step, so weights, optimiser and position are the whole state of a run.
"""

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from perfconv.data import Batch
from perfconv.models import load_weights
from perfconv.nn import force_gates, gates, record_gates, set_temperature
from perfconv.nn.batch_norm import freeze_statistics
from perfconv.nn.gate_record import scale_gates
from perfconv.train.checkpoint import (
    FINAL,
    LAST,
    CheckpointError,
    read_checkpoint,
    replace_file,
    write_checkpoint,
)
from perfconv.train.config import Recipe, Stage
from perfconv.train.datasets import (
    Order,
    make_augmentation,
    mixed,
    open_split,
    training_batches,
)
from perfconv.train.distributed import Process
from perfconv.train.evaluation import draw_samples, evaluate
from perfconv.train.log import Log
from perfconv.train.networks import (
    Network,
    build_network,
    check_network,
    transfer_weights,
)
from perfconv.train.objective import outputs_of, scheduled_density_loss, task_losses
from perfconv.train.optimizer import choose_trained, make_optimizer, set_rates

RESULTS = "results.json"


class TrainingStopped(RuntimeError):
    """A run cannot go on; its last good checkpoint is kept."""


@dataclass
class Finished:
    """What :func:`train` returns."""

    model: Network  # in eval mode, averaged weights if there are any
    path: Path  # of the model's file
    results: dict  # of the evaluation at the end


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    process: Process,
    root: str | Path | None = None,
    weights: str | Path | None = None,
    workers: int = 0,
    shows_bar: bool = True,
) -> Finished:
    """Trains every stage of ``recipe``, or goes on where a stopped run of it stood.

    ``output`` gets ``last.pt`` (checkpoint), ``log.jsonl``, pictures, and at the end ``model.pt``.
    A process that is killed at any moment goes on from ``last.pt``, and ends at the same bits on a
    CPU (on CUDA as far as torch's own kernels are deterministic).

    Args:
        recipe: what to train.
        output: the run's folder; of one recipe only.
        process: of ``process_of()``.
        root: the folder of the data set's files.
        weights: of the pretrained trunk, a file for ``load_weights``.
        workers: processes that read samples; 0 reads in this one.
        shows_bar: whether there is a progress bar.

    Returns:
        A :class:`Finished`.

    Raises:
        TrainingStopped: the loss or gradient is not finite, or a file cannot be written.
        ValueError: the folder holds another recipe's run, or the recipe does not fit its data.
    """
    devices = [process.device] if process.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        run = _Run(recipe, Path(output), process, root, weights, workers, shows_bar)
        try:
            return run.run()
        except (CheckpointError, OSError) as error:
            raise TrainingStopped(f"training stopped: {error} {run.kept()}") from error
        finally:
            run.log.close()


def is_open(name: str, stage: Stage) -> bool:
    """Whether the gate of that layer is held open for the whole stage."""
    return any(fnmatchcase(name, pattern) for pattern in stage.open_gates)


class _Run:
    """The state of a run: a network, its optimiser, and the position."""

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        process: Process,
        root: str | Path | None,
        weights: str | Path | None,
        workers: int,
        shows_bar: bool,
    ) -> None:
        self.recipe, self.output, self.process, self.workers = recipe, output, process, workers
        self.weights = weights
        for stage in recipe.stages:
            check_network(stage.model.name, stage.model.arguments, recipe.tasks)
        self.augmentation = make_augmentation(recipe.data)
        self.samples = open_split(recipe.data, root, is_training=True)
        self.tests = open_split(recipe.data, root, is_training=False)
        self.lengths = [
            recipe.stage_steps(number, len(self.samples)) for number in range(len(recipe.stages))
        ]
        self.number = self.step = 0  # of the stage, and within it
        self.ema: dict[str, Tensor] | None = None
        self.wrappers: list[nn.Module] = []
        saved = self._saved()
        if saved is not None:
            self.number, self.step = saved["training"]["stage"], saved["training"]["step"]
        self.log = Log(
            output if process.is_first else None,
            start=self.total_step,
            steps=sum(self.lengths),
            shows_bar=shows_bar,
        )
        self._enter_stage(None)
        if saved is not None:
            self._load(saved)

    @property
    def stage(self) -> Stage:
        return self.recipe.stages[self.number]

    @property
    def total_step(self) -> int:
        return sum(self.lengths[: self.number]) + self.step

    def run(self) -> Finished:
        while True:
            self._run_stage()
            if self.number + 1 == len(self.recipe.stages):
                break
            before = self.network
            self.number, self.step = self.number + 1, 0
            self._enter_stage(before)
        return self._finish()

    # ---- stages ----------------------------------------------------------------------------------

    def _enter_stage(self, before: Network | None) -> None:
        """Builds the network of the stage, from the weights of the one before."""
        stage, device = self.stage, self.process.device
        torch.manual_seed(mixed(self.recipe.seed, "network", self.number))
        network = build_network(stage.model.name, stage.model.arguments)
        if before is not None:
            transfer_weights(before.cpu(), network)
        elif self.number == 0 and self.weights is not None:
            load_weights(network.trunk, self.weights, new=("res6.",))
        self.network = network.to(device)
        for name, gate in gates(self.network).items():
            if is_open(name, stage):
                force_gates(gate, 1.0)
        choose_trained(self.network, stage)
        self.optimizer = make_optimizer(self.network, stage)
        if self.recipe.ema_decay is not None:
            self.ema = {n: p.detach().clone() for n, p in self.network.named_parameters()}
        self.wrapped: nn.Module = self.network
        if self.process.ranks > 1:
            # A loss may leave parameters out: the base classifier of a recurrent network.
            self.wrapped = DistributedDataParallel(self.network, find_unused_parameters=True)
            # Kept to the end: its destructor may wait for gloo's thread, which may wait for it.
            self.wrappers.append(self.wrapped)

    def _run_stage(self) -> None:
        stage, steps = self.stage, self.lengths[self.number]
        order = Order(
            len(self.samples),
            stage.batch_size,
            seed=(self.recipe.seed, self.number),
            start=self.step,
            steps=steps,
            rank=self.process.rank,
            ranks=self.process.ranks,
            accumulate=stage.accumulate,
        )
        batches = training_batches(
            self.samples,
            self.augmentation,
            order,
            workers=self.workers,
            is_pinned=self.process.device.type == "cuda",
        )
        self._set_training()
        while self.step < steps:
            self._train_step(batches, steps)
            self.step += 1
            is_last = self.step == steps
            if is_last or self.step % self.recipe.checkpoint_every == 0:
                self._save()
            if self.recipe.evaluate_every and self.step % self.recipe.evaluate_every == 0:
                self._evaluate()
                self._set_training()

    def _set_training(self) -> None:
        self.network.train()
        if self.stage.frozen_statistics:
            freeze_statistics(self.network)

    def _train_step(self, batches: Iterator[Batch], steps: int) -> None:
        began = time.perf_counter()
        stage, process = self.stage, self.process
        factor = set_rates(self.optimizer, stage, self.step, steps)
        temperature = stage.temperature.at(self.step, steps)
        if gates(self.network) or scale_gates(self.network):
            set_temperature(self.network, temperature)
        torch.manual_seed(mixed(self.recipe.seed, "step", self.number, self.step, process.rank))
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        densities: dict[str, float] = {}
        for part in range(stage.accumulate):
            is_last = part + 1 == stage.accumulate
            waits = isinstance(self.wrapped, DistributedDataParallel) and not is_last
            with self.wrapped.no_sync() if waits else nullcontext():  # type: ignore[operator]
                losses, densities = self._backward(next(batches), steps)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() / stage.accumulate
        self._check_finite(sums)
        self.optimizer.step()
        if self.ema is not None:
            self._average()
        total = float(torch.stack(list(sums.values())).sum())
        self.log.advance(f"{stage.name}, loss {total:.4f}")
        if self.step % self.recipe.log_every == 0 or self.step + 1 == steps:
            line = {
                "stage": stage.name,
                "step": self.step,
                "total_step": self.total_step,
                "loss": total,
                "losses": {name: float(loss) for name, loss in sums.items()},
                "learning_rate": stage.learning_rate * factor,
                "seconds": round(time.perf_counter() - began, 4),
            }
            if densities:
                line |= {"temperature": temperature, "density": densities}
            self.log.add(line)

    def _backward(self, batch: Batch, steps: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Losses of a micro-batch, and the densities of its masks; gradients are added up."""
        stage, device = self.stage, self.process.device
        batch = batch.to(device, non_blocking=True)
        with (
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.recipe.bf16),
            record_gates(self.network) as record,
        ):
            outputs = outputs_of(self.wrapped, self.network, batch)
        losses = task_losses(outputs, self.network, batch, stage, self.recipe.tasks)
        calls = [call for call in record if not is_open(call.name, stage)]
        if stage.target_density is not None and stage.density_weight and calls:
            losses["density"] = scheduled_density_loss(calls, stage, self.step, steps)
        (torch.stack(list(losses.values())).sum() / stage.accumulate).backward()
        is_logged = self.step % self.recipe.log_every == 0 or self.step + 1 == steps
        found = record.densities() if is_logged else {}
        return losses, {name: float(values.mean()) for name, values in found.items()}

    def _check_finite(self, sums: dict[str, Tensor]) -> None:
        """Stops before the optimiser sees a loss or gradient that is not finite, on every rank."""
        limit = float("inf") if self.stage.clip_norm is None else self.stage.clip_norm
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        values = self.process.mean(torch.stack([*sums.values(), norm.to(self.process.device)]))
        for (name, _), mean in zip(list(sums.items()), values[:-1], strict=True):
            sums[name] = mean  # of all processes, for the log
        if not bool(torch.isfinite(values).all()):
            shown = ", ".join(f"{name} {float(loss):g}" for name, loss in sums.items())
            raise TrainingStopped(
                f"training stopped: step {self.step} of stage {self.stage.name!r} must have finite "
                f"losses and gradients, got {shown}, gradient {float(values[-1]):g}. Lower the "
                f"learning rate or set clip_norm. {self.kept()}"
            )

    def _average(self) -> None:
        assert self.ema is not None
        assert self.recipe.ema_decay is not None
        for name, parameter in self.network.named_parameters():
            self.ema[name].lerp_(parameter.detach(), 1 - self.recipe.ema_decay)

    # ---- files -----------------------------------------------------------------------------------

    def _config(self) -> dict:
        stage = self.stage
        return {
            "model": {"name": stage.model.name, "arguments": stage.model.arguments},
            "tasks": list(self.recipe.tasks),
            "classes": list(self.samples.classes),
            "recipe": self.recipe.to_dict(),
        }

    def _save(self) -> None:
        if not self.process.is_first:
            return
        position = {"stage": self.number, "step": self.step}
        write_checkpoint(
            self.output / LAST,
            config=self._config(),
            model=self.network.state_dict(),
            ema=self.ema,
            training={**position, "optimizer": self.optimizer.state_dict()},
        )

    def _saved(self) -> dict | None:
        """The checkpoint of a run that was stopped."""
        path = self.output / LAST
        if not path.exists():
            return None
        try:
            saved = read_checkpoint(path)
        except CheckpointError as error:
            raise ValueError(f"{error} Or remove it, and the run begins anew.") from error
        theirs, ours = saved["config"]["recipe"], self.recipe.to_dict()
        if theirs != ours:
            differing = sorted(key for key in ours if theirs.get(key) != ours[key])
            raise ValueError(
                f"train: {self.output} must be empty or hold a run of the same recipe, got one "
                f"with other {', '.join(differing)}. Name another folder, or remove this one."
            )
        return saved

    def _load(self, saved: dict) -> None:
        self.network.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["training"]["optimizer"])
        if self.ema is not None:
            for name, value in self.ema.items():
                value.copy_(saved["ema"][name])

    def kept(self) -> str:
        path = self.output / LAST
        if not path.exists():
            return "No checkpoint was written before it."
        training = read_checkpoint(path)["training"]
        return (
            f"The last good checkpoint is {path}, step {training['step']} of stage "
            f"{self.recipe.stages[training['stage']].name!r}."
        )

    # ---- the end ---------------------------------------------------------------------------------

    def _evaluate(self) -> dict:
        learned: dict[str, Tensor] = {}
        if self.ema is not None:
            learned = {n: p.detach().clone() for n, p in self.network.named_parameters()}
            self.network.load_state_dict(self.ema, strict=False)
        results = evaluate(
            self.network,
            self.tests,
            self.recipe.tasks,
            process=self.process,
            thresholds=self.recipe.thresholds,
        )
        if self.process.is_first and self.recipe.pictures:
            draw_samples(
                self.network, self.tests, self.recipe.tasks, self.output, count=self.recipe.pictures
            )
        if learned:
            self.network.load_state_dict(learned, strict=False)
        position = {"stage": self.stage.name, "step": self.step, "total_step": self.total_step - 1}
        self.log.add({**position, "results": results})
        return results

    def _finish(self) -> Finished:
        path, of_results = self.output / FINAL, self.output / RESULTS
        is_done = path.exists() and of_results.exists()  # this call had nothing left to train
        self.process.wait()
        results = json.loads(of_results.read_text()) if is_done else self._evaluate()
        if self.process.is_first and not is_done:
            state = self.network.state_dict()
            write_checkpoint(path, config=self._config(), model={**state, **(self.ema or {})})
            replace_file(of_results, (json.dumps(results, indent=1) + "\n").encode())
        self.process.wait()
        if self.ema is not None:
            self.network.load_state_dict(self.ema, strict=False)
        return Finished(self.network.eval(), path, results)
