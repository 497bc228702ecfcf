"""One update of an agent: losses, gradients, slow copies, the optimizer's step."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deflow_vision.agents.base import Agent, detached
from deflow_vision.training.devices import keep_freed_memory
from deflow_vision.training.watch import Seen, Watch
from deflow_vision.types import Batch, UserError

Gradients = tuple[dict[str, Tensor], list[str], Tensor]

WARM_UP = 3
"""Updates of each kind before the one that is recorded: libraries set themselves up in them."""


class Update:
    """An update, kernel by kernel.

    Args:
        agent: the module, unwrapped.
        wrapped: the same as the accelerator prepared it.
        optimizer: its optimizer, unwrapped.
        accelerator: precision and processes.
        watch: looks at what is to be finite.
    """

    def __init__(
        self,
        agent: Agent,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        watch: Watch,
    ) -> None:
        self._agent, self._wrapped = agent, wrapped
        self._optimizer, self._accelerator = optimizer, accelerator
        self._watch = watch

    def __call__(self, batch: Batch, noises: Any, step: int) -> dict[str, Tensor]:
        """Learn from a batch.

        Args:
            batch: on the device.
            noises: what the agent drew for it, on the device.
            step: updates done before.

        Returns:
            The losses and metrics by name, scalars on the device, until the next update.

        Raises:
            DivergedError: a loss or a gradient is not finite, or was in one of the last updates.
        """
        values, names, finite = self.gradients(batch, noises, self._agent.stage(step))
        self._watch(Seen(step, names, finite, batch, noises))
        for group in self._optimizer.param_groups:
            if "clip" in group:
                self._accelerator.clip_grad_norm_(group["params"], group["clip"])
            if "schedule" in group:
                group["lr"] = group["initial_lr"] * group["schedule"](step)
        self._agent.update_targets(step)
        self._optimizer.step()
        return values

    def gradients(self, batch: Batch, noises: Any, stage: Any) -> Gradients:
        """Put the gradients of the summed losses in place.

        Returns:
            The losses and metrics by name; names of what must be finite, and whether each is.
        """
        losses, metrics = self._wrapped(batch, noises, stage)
        self._optimizer.zero_grad(set_to_none=True)
        stacked = torch.stack(list(losses.values()))
        self._accelerator.backward(stacked.sum())
        norms = self._gradient_norms()
        names = [*losses, *(f"the gradient of {network}" for network in norms)]
        values = torch.stack([*stacked.detach(), *norms.values()])
        return detached({**losses, **metrics}), names, values.isfinite()

    def _gradient_norms(self) -> dict[str, Tensor]:
        """The norm of the gradient of each network, by its name in the agent."""
        networks: dict[str, list[Tensor]] = {}
        for name, parameter in self._agent.named_parameters():
            if parameter.grad is not None:
                networks.setdefault(name.partition(".")[0], []).append(parameter.grad)
        return {
            name: torch.nn.utils.get_total_norm(gradients) for name, gradients in networks.items()
        }

    def forget(self) -> None:
        """Take note that the agent's networks were frozen or replaced."""


class GraphedUpdate(Update):
    """An update whose losses and gradients are recorded once and replayed, on one CUDA device.

    From state an update is some hundreds of small kernels, which take longer to launch than to run.
    A CUDA graph launches them all at once; it is the same kernels on the same numbers. Each stage
    of the agent has a graph of its own. What is left outside (clipping, slow copies, the optimizer)
    may depend on the step.
    """

    def __init__(
        self,
        agent: Agent,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        watch: Watch,
    ) -> None:
        super().__init__(agent, wrapped, optimizer, accelerator, watch)
        self._stream = torch.cuda.Stream(accelerator.device)  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Drop what was recorded: the next updates are recorded anew."""
        self._seen: dict[Any, int] = {}
        self._graphs: dict[Any, _Recorded] = {}

    def gradients(self, batch: Batch, noises: Any, stage: Any) -> Gradients:
        """Replay the graph of this stage; record it after its first updates."""
        quantity = isinstance(stage, Tensor)
        kind = "quantity" if quantity else stage
        inputs = [*batch, *noises, stage if quantity else None]
        if kind in self._graphs:
            return self._graphs[kind].replay(inputs)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._seen[kind] <= WARM_UP:
            return self._beside(batch, noises, stage)
        recorded = self._graphs[kind] = self._record(batch, noises, stage, inputs)
        return recorded.replay(inputs)

    def _beside(self, batch: Batch, noises: Any, stage: Any) -> Gradients:
        """Compute on a stream of its own, as is asked before a recording."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            values = super().gradients(batch, noises, stage)
        current.wait_stream(self._stream)
        return values

    def _record(self, batch: Batch, noises: Any, stage: Any, inputs: list[Any]) -> _Recorded:
        device = self._accelerator.device
        held = [None if x is None else x.detach().to(device, copy=True) for x in inputs]
        own_batch, own_noises = held[: len(batch)], held[len(batch) : -1]
        own_stage = stage if held[-1] is None else held[-1]
        self._optimizer.zero_grad(set_to_none=True)  # gradients get memory of the graph
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                values = super().gradients(
                    Batch._make(own_batch), type(noises)(*own_noises), own_stage
                )
        except RuntimeError as error:
            raise UserError(
                f"an update of {type(self._agent).__name__} cannot be recorded as a CUDA graph: "
                f"{error}. Train without one: --cuda-graphs False"
            ) from error
        return _Recorded(graph, held, values, self._optimizer)


class _Recorded:
    """A graph, the memory of its inputs and results, and the gradients that it fills."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        inputs: list[Tensor | None],
        values: Gradients,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._graph, self._values = graph, values
        self._inputs = inputs
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._gradients = [(p, p.grad) for p in parameters]

    def replay(self, inputs: list[Tensor | None]) -> Gradients:
        for held, new in zip(self._inputs, inputs, strict=True):
            if held is not None and new is not None:
                held.copy_(new, non_blocking=True)
        for parameter, gradient in self._gradients:  # another stage may have put its own there
            parameter.grad = gradient
        self._graph.replay()
        return self._values


def make_update(
    agent: Agent,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    watch: Watch,
    *,
    cuda_graphs: bool,
) -> Update:
    """An update as this machine does it fastest.

    Args:
        agent: the module, unwrapped.
        wrapped: the same as the accelerator prepared it.
        optimizer: its optimizer, unwrapped.
        accelerator: device, precision and processes.
        watch: looks at what is to be finite.
        cuda_graphs: whether graphs are recorded where that is possible: on one CUDA device.
    """
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cuda"
    kind = GraphedUpdate if cuda_graphs and alone else Update
    return kind(agent, wrapped, optimizer, accelerator, watch)
