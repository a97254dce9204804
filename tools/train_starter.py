"""Trains the weights that ship: one body on all sets that may, a head per task, and drawn pictures between them.

A training is a number of steps and a seed. It goes in rounds, after each of which its state is written, so that it can
be stopped at any time and goes on where it was when called again::

    python tools/train_starter.py --steps 20000 --seconds 3600
    python tools/train_starter.py --steps 8000 --leave-out cardiac_cine_mr

At the end of every sitting the models are cut from what there is: the averaged weights.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from starter_models import Origin, scored, starter, task_model
from starter_tasks import Task, Taught, View, all_tasks, drawn_examples, examples_of, read_set, settings_of
from torch import nn

from napari_unet.compute.device import resolve
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import ComputeSettings, TrainingSettings
from napari_unet.networks.factory import build
from napari_unet.networks.unet import UNet
from napari_unet.patches.sampling import Batch, Example, PatchSampler
from napari_unet.session.models import STARTER, WEIGHTS
from napari_unet.storage.checkpoint_file import write_checkpoint
from napari_unet.training.averaging import MovingAverage
from napari_unet.training.losses import SupervisedLoss
from napari_unet.training.optimisation import LearningRate, make_optimiser
from napari_unet.training.parts import gradients

_ROOT = Path(__file__).resolve().parents[1]
_ROUND = 250
_DRAWN_PER_ROUND, _DRAWN_EDGE = 16, 192
#: Share of patches shown dark for bright: what a task looks like elsewhere is not known.
_INVERTED = 0.3
_TRAINING = TrainingSettings(learning_rate=3e-3, schedule="cosine", warmup_steps=200, ema_decay=0.999)
_KEY = tuple[str, int]


@dataclass(frozen=True)
class Shown:
    """A task in one of its views."""

    task: Task
    view: View

    @property
    def key(self) -> _KEY:
        """Which network it goes through."""
        return self.task.name, self.view.levels


class Body(nn.ModuleDict):
    """One network per task and depth, all with the same body, and each task with one head.

    Parameters
    ----------
    shown : sequence of Shown
        Tasks and depths.
    seed : int
        Of the weights.
    """

    def __init__(self, shown: Sequence[Shown], seed: int) -> None:
        super().__init__()
        deepest = max(shown, key=lambda one: one.view.levels)
        self.whole = build(settings_of(deepest.task, deepest.view).network, seed=seed)
        heads: dict[str, nn.Module] = {}
        for number, one in enumerate(shown):
            name = _name(one.key)
            if name in self:
                continue
            network = build(settings_of(one.task, one.view).network, seed=seed + number)
            levels = one.view.levels
            network.encoder = self.whole.encoder[: levels + 1]
            network.up, network.decoder = self.whole.up[:levels], self.whole.decoder[:levels]
            network.head = heads.setdefault(one.task.name, network.head)
            self[name] = network

    def of(self, key: _KEY) -> UNet:
        """Return the network of a task at a depth."""
        network = self[_name(key)]
        assert isinstance(network, UNet)
        return network


def _name(key: _KEY) -> str:
    return f"{key[0]}-{key[1]}"


class Trainer:
    """The body, its optimiser and its average, in rounds.

    Parameters
    ----------
    tasks : sequence of Task
        What there is to learn.
    taught : mapping of str to Taught
        The real sets, by name.
    steps : int
        Of the whole training, over which the rate falls.
    seed : int
        Of everything random.
    compute : ResolvedCompute
        Device, precision, threads.
    """

    def __init__(
        self, tasks: Sequence[Task], taught: dict[str, Taught], steps: int, seed: int, compute: ResolvedCompute
    ) -> None:
        self._tasks, self._steps, self._seed, self._compute = tasks, steps, seed, compute
        self._shown = [Shown(task, view) for task in tasks for view in task.views]
        self._pool = {
            one: examples_of(one.task, one.view, taught[one.task.name].teaching)
            for one in self._shown
            if one.task.real is not None
        }
        self.body = Body(self._shown, seed).to(compute.device)
        self._optimiser = make_optimiser(self.body, _TRAINING)
        self._rate = LearningRate(self._optimiser, _TRAINING)
        self._average = MovingAverage(self.body, _TRAINING.ema_decay)
        self._losses = {
            one.key: SupervisedLoss(settings_of(one.task, one.view).network, _TRAINING) for one in self._shown
        }
        self.step = 0

    @property
    def is_over(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self._steps

    def averaged(self) -> Body:
        """Return a copy with the averaged weights, on the CPU."""
        body = copy.deepcopy(self.body)
        self._average.copy_to(body)
        return body.cpu().eval()

    def save(self, path: Path) -> None:
        """Write everything that the next round depends on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        state = {
            "step": self.step,
            "described": self._described(),
            "body": self.body.state_dict(),
            "average": self.averaged().state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }
        torch.save(state, fresh)
        fresh.replace(path)

    def load(self, path: Path) -> None:
        """Go on where a state was written; refuses that of another training."""
        state = torch.load(path, weights_only=True, map_location=self._compute.device)
        if state["described"] != self._described():
            raise SystemExit(f"{path} is of another training: give another --state, or remove it.")
        self.body.load_state_dict(state["average"])
        self._average = MovingAverage(self.body, _TRAINING.ema_decay)
        self.body.load_state_dict(state["body"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    def round(self, length: int = _ROUND) -> dict[str, float]:
        """Do some steps and return each task's mean loss. A round depends on nothing but its number and the state."""
        rng = np.random.default_rng((self._seed, self.step))
        shares = np.array([one.task.share / len(one.task.views) for one in self._shown])
        order = rng.choice(len(self._shown), min(length, self._steps - self.step), p=shares / shares.sum())
        draws = self._draws(set(order.tolist()))
        losses: dict[str, list[float]] = {}
        self.body.train()
        with self._differentiating() as differentiate, _one_ahead(draws[int(i)] for i in order) as batches:
            for index, batch in zip(order, batches, strict=True):
                one = self._shown[int(index)]
                self._rate.set(self.step, self.step / self._steps)
                # A step moves only what it has a gradient for: the body as deep as it was used, and one head.
                self._optimiser.zero_grad(set_to_none=True)
                loss = partial(self._losses[one.key], labels=batch.labels, reviewed=batch.reviewed)
                value = differentiate[one.key](batch.image, loss, lambda scalar: scalar)
                nn.utils.clip_grad_norm_(self.body.of(one.key).parameters(), _TRAINING.gradient_clip)
                self._optimiser.step()
                self.step += 1
                self._average.update(self.step)
                losses.setdefault(one.task.name, []).append(float(value))
        return {name: float(np.mean(values)) for name, values in losses.items()}

    def _described(self) -> dict[str, Any]:
        return {"tasks": {t.name: repr(t.views) for t in self._tasks}, "steps": self._steps, "seed": self._seed}

    def _draws(self, wanted: set[int]) -> dict[int, Any]:
        """Return what draws the next batch of each view, for one round."""
        drawn: dict[str, list[Example]] = {}
        found = {}
        for index in sorted(wanted):
            one = self._shown[index]
            if one.task.real is None and one.task.name not in drawn:
                seed = (self._seed, self.step, self._tasks.index(one.task))
                drawn[one.task.name] = list(drawn_examples(one.task, _DRAWN_PER_ROUND, _DRAWN_EDGE, seed))
            settings = settings_of(one.task, one.view)
            own = int(np.random.default_rng((self._seed, self.step, index)).integers(2**31))
            sampler = PatchSampler(
                self._pool[one] if one.task.real is not None else drawn[one.task.name],
                (one.view.patch, one.view.patch),
                settings.training,
                settings.augmentation,
                own,
            )
            found[index] = partial(self._draw, sampler, torch.Generator().manual_seed(own))
        return found

    def _draw(self, sampler: PatchSampler, chance: torch.Generator) -> Batch:
        batch = sampler.draw()
        inverted = torch.rand(len(batch.labels), generator=chance) < _INVERTED
        image = torch.where(inverted[:, None, None, None], -batch.image, batch.image)
        return Batch(image, batch.labels, batch.reviewed).to(self._compute.device)

    @contextmanager
    def _differentiating(self) -> Iterator[dict[_KEY, Any]]:
        with ExitStack() as stack:
            batches = {one.key: max(o.view.batch for o in self._shown if o.key == one.key) for one in self._shown}
            yield {
                key: stack.enter_context(gradients(self.body.of(key), self._compute, size))
                for key, size in batches.items()
            }


@contextmanager
def _one_ahead(draws: Iterator[Any]) -> Iterator[Iterator[Batch]]:
    """Give batches in their order, the next one drawn while this one is learnt from."""

    def ahead(pool: ThreadPoolExecutor) -> Iterator[Batch]:
        upcoming: Future[Batch] | None = None
        for draw in draws:
            last, upcoming = upcoming, pool.submit(draw)
            if last is not None:
                yield last.result()
        if upcoming is not None:
            yield upcoming.result()

    with ThreadPoolExecutor(1, "batches", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield ahead(pool)


def export(trainer: Trainer, tasks: Sequence[Task], taught: dict[str, Taught], args: argparse.Namespace) -> None:
    """Write the models that the training has made so far; with a set left out, only the body."""
    body, origin = trainer.averaged(), Origin.of(tasks, taught, trainer.step, args.seed, args.compute)
    name = _run_name(args.leave_out)
    write_checkpoint(starter(body.whole, origin), args.out / f"{name}.safetensors")
    for task in tasks if not args.leave_out else ():
        if task.real is not None:
            model = task_model(body.of((task.name, task.views[0].levels)), task, origin)
            model, dice = scored(model, taught[task.name].judging, args.compute)
            print(f"{model.card.name}: Dice {dice:.3f} on those held out", flush=True)
            write_checkpoint(model, args.out / f"{task.real.model}.safetensors")
    print(f"wrote {name} after {trainer.step} steps to {args.out}", flush=True)


def _run_name(left_out: Sequence[str]) -> str:
    return "-without-".join([STARTER, *sorted(left_out)])


# -- the program ------------------------------------------------------------------------------------------------------


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=_ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, help="napari_unet/weights, or build/starters with a set left out")
    parser.add_argument("--state", type=Path, help="where the training is kept between sittings")
    parser.add_argument("--steps", type=int, default=20_000, help="of the whole training")
    parser.add_argument("--seconds", type=float, help="of this sitting")
    parser.add_argument("--leave-out", action="append", default=[], metavar="SET", help="for the benchmark")
    parser.add_argument("--most", type=int, help="read so many pairs of each set only, to try it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(words)
    args.out = args.out or (_ROOT / "build" / "starters" if args.leave_out else WEIGHTS)
    args.state = args.state or _ROOT / "build" / "starters" / f"{_run_name(args.leave_out)}.state"
    return args


def main(words: Sequence[str]) -> None:
    """Train for a sitting, then write the models."""
    args, started = _arguments(words), time.perf_counter()
    args.compute = resolve(ComputeSettings(device=args.device, threads=args.threads))
    if args.compute.precision == "float16":
        # Gradients of half precision would have to be scaled.
        args.compute = replace(args.compute, precision="float32")
    torch.set_num_threads(args.compute.threads)
    tasks = all_tasks(tuple(args.leave_out))
    taught = {task.name: read_set(task, args.data, args.most) for task in tasks if task.real is not None}
    trainer = Trainer(tasks, taught, args.steps, args.seed, args.compute)
    if args.state.exists():
        trainer.load(args.state)
    print(f"at step {trainer.step} of {args.steps} after {time.perf_counter() - started:.0f} s", flush=True)
    while not trainer.is_over and (args.seconds is None or time.perf_counter() - started < args.seconds):
        before, began = trainer.step, time.perf_counter()
        losses = trainer.round()
        trainer.save(args.state)
        rate = (trainer.step - before) / (time.perf_counter() - began)
        left = (args.steps - trainer.step) / rate / 60
        each = ", ".join(f"{name} {loss:.2f}" for name, loss in losses.items())
        print(f"step {trainer.step}: {rate:.2f} steps/s, {left:.0f} min left; {each}", flush=True)
    export(trainer, tasks, taught, args)


if __name__ == "__main__":
    main(sys.argv[1:])
