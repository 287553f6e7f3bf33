"""Run the cells of an experiment: here, in several processes, or as tasks on a Ray cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]

from steper.build import build
from steper.cluster import start_ray
from steper.errors import SteperError
from steper.evaluate import evaluate
from steper.index import build_index
from steper.plan import Cell
from steper.rollout import rollout
from steper.store import is_finished, require_finished
from steper.train import train
from steper.world.files import make_world


@dataclass(frozen=True)
class Ran:
    """What a cell took: seconds, and the most memory its process held, in bytes."""

    seconds: float
    peak_bytes: int


def run_cell(cell: Cell, *, say: Callable[[str], None] = print) -> Ran:
    """Run or resume one cell in this process.

    Raises:
        SteperError: as its stage does.
    """
    begin = time.monotonic()
    config: Any = cell.config() if cell.stage != "world" else None
    match cell.stage:
        case "world":
            make_world(cell.folder, **cell.options)
        case "index":
            build_index(config)
        case "rollout":
            rollout(config, say=say)
        case "build":
            build(config, say=say)
        case "train":
            if cell.equal_tokens:
                plain, other = (_tokens(folder) for folder in cell.equal_tokens)
                config = cell.config(epochs=round(config.epochs * other / plain, 2))
            train(config, say=say)
        case "evaluate":
            evaluate(config, say=say)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Ran(time.monotonic() - begin, peak)


def _tokens(folder: Path) -> int:
    return int(require_finished(folder, stage="train")["counts"]["tokens"])


class Pool:
    """Runs cells side by side.

    On this machine, a cell begins once as much memory is free as the largest cell of its stage
    took; of a stage not seen yet, one runs alone first. With GPUs, each process has one to itself.
    On a Ray cluster, Ray sees to both.

    Attributes:
        size: most cells at once.
    """

    def __init__(
        self, size: int, *, engine: Literal["local", "ray"], gpus: float, logs: Path
    ) -> None:
        self._engine, self._gpus, self._logs = engine, gpus, logs
        self._devices = _gpus() if engine == "local" else []
        self.size = min(size, len(self._devices) or size)
        self._peaks: dict[str, int] = defaultdict(int)

    def run(
        self, cells: Sequence[Cell], *, on_begin: Callable[[Cell], None]
    ) -> Iterator[tuple[Cell, Ran]]:
        """Yield each cell with what it took, as soon as it has ended.

        Raises:
            SteperError: naming the cell, if one fails; those under way are waited for.
        """
        waiting, done = list(cells), set[Path]()
        running: dict[Any, tuple[Cell, str]] = {}
        failed: SteperError | None = None
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._workers() as (submit, some, result):
            while running or (waiting and not failed):
                for cell in list(waiting):
                    if failed or len(running) >= self.size:
                        break
                    if not done.issuperset(cell.needs):
                        continue
                    if is_finished(cell.folder):
                        # Whether it is this very run is a matter of moments: not worth a process.
                        waiting.remove(cell)
                        done.add(cell.folder)
                        yield cell, run_cell(cell)
                    elif self._fits(cell, bool(running)):
                        waiting.remove(cell)
                        on_begin(cell)
                        device = self._devices.pop() if self._devices else ""
                        running[submit(cell, self._log(cell), device)] = cell, device
                for future in some(list(running)) if running else ():
                    cell, device = running.pop(future)
                    self._devices += [device] if device else []
                    try:
                        ran = result(future)
                    except (SteperError, BrokenProcessPool) as error:
                        failed = failed or self._failure(cell, error)
                        continue
                    self._peaks[cell.stage] = max(self._peaks[cell.stage], ran.peak_bytes)
                    done.add(cell.folder)
                    yield cell, ran
        if failed:
            raise failed

    def _fits(self, cell: Cell, others: bool) -> bool:
        """Whether there is room for one more."""
        if self._engine == "ray" or not others:
            return True
        peak = self._peaks[cell.stage]
        return bool(0 < peak < psutil.virtual_memory().available)

    def _log(self, cell: Cell) -> Path:
        name = re.sub(r"[^\w.=+-]+", "_", str(cell.folder).strip("/"))
        return self._logs / f"{name[-120:]}.log"

    def _failure(self, cell: Cell, error: Exception) -> SteperError:
        told = str(error) if isinstance(error, SteperError) else "its process was killed."
        return SteperError(
            f"{cell.stage} failed: {told}",
            where=str(cell.folder),
            fix=f"Its output is in {self._log(cell)}. Mend the cause and run the same command: "
            "finished cells are kept.",
        )

    @contextlib.contextmanager
    def _workers(
        self,
    ) -> Iterator[tuple[Callable[..., Any], Callable[..., Any], Callable[..., Ran]]]:
        """How a cell is begun, how some of those running are waited for, and what came of one."""
        if self._engine == "ray":
            ray, started = start_ray(self.size)
            task = ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=0)(_logged)
            try:
                yield task.remote, lambda running: ray.wait(running)[0], _ray_result
            finally:
                if started:
                    ray.shutdown()
            return
        # A process of its own for each cell: its peak of memory is its own, and nothing stays.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.size, mp_context=spawn, max_tasks_per_child=1) as pool:
            yield (
                lambda *arguments: pool.submit(_logged, *arguments),
                lambda running: wait(running, return_when=FIRST_COMPLETED).done,
                lambda future: future.result(),
            )


def _gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


def _ray_result(reference: Any) -> Ran:
    import ray

    try:
        ran: Ran = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SteperError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise SteperError(f"its worker died: {error}") from None
    return ran


def _logged(cell: Cell, log: Path, device: str) -> Ran:
    """Run a cell with its output in a file; what a child process prints would mix with others'."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return run_cell(cell)
