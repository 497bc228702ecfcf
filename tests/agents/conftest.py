"""Small agents and batches. All sizes differ, so that a transposed axis fails."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch

from deflow_vision.agents import AGENTS
from deflow_vision.networks.encoders import EncoderConfig
from deflow_vision.types import Batch, Spec

B, A, D, E = 7, 3, 5, 2
SPECS = {
    "state": Spec((D,), "float32", A, (-1.0, 0.0)),
    "pixels": Spec((16, 18, 6), "uint8", A, (-1.0, 0.0)),
}


def make_batch(kind: str, seed: int = 0, size: int = B) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def observations():
        shape = (size, *SPECS[kind].observation_shape)
        if kind == "pixels":
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return torch.randn(shape, generator=generator)

    return Batch(
        observations=observations(),
        actions=torch.rand(size, A, generator=generator) * 2 - 1,
        rewards=-torch.rand(size, generator=generator),
        masks=(torch.rand(size, generator=generator) > 0.3).float(),
        next_observations=observations(),
        next_actions=torch.rand(size, A, generator=generator) * 2 - 1,
        mc_returns=-torch.rand(size, generator=generator),
    )


def traits(algo: str):
    """What an algorithm's own test module says of it.

    `ROUTES` always; where the defaults do not do, `SMALL` (settings that make it small and quick),
    `STEPS` (steps that between them show each of its stages once) and `RATES` (how fast slow copies
    move, by the beginning of their names, where that is not `tau`), and `prepare`, which moves an
    agent away from weights of zero.
    """
    return importlib.import_module(f"tests.agents.test_{algo}")


def small_settings(algo: str):
    # Drawing, tracing and differentiating take as long as a flow has steps.
    fields = {field.name for field in dataclasses.fields(AGENTS[algo].Config)}
    few_steps = dict.fromkeys(fields & {"flow_steps"}, 3)
    return {"hidden_dims": (11, 13), **few_steps, **getattr(traits(algo), "SMALL", {})}


def stages(agent, algo: str):
    return [agent.stage(step) for step in getattr(traits(algo), "STEPS", (0,))]


def make_agent(kind: str, sharing: str = "shared", algo: str = "deflow", encoder=None, **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(AGENTS[algo].Config(), **small_settings(algo) | changes)
    name = "impala_debug" if kind == "pixels" else "identity"
    encoder = encoder or {}
    agent = AGENTS[algo](SPECS[kind], config, EncoderConfig(name=name, sharing=sharing, **encoder))
    getattr(traits(algo), "prepare", lambda agent: None)(agent)
    return agent


def make_noises(agent, seed: int = 1, size: int = B):
    return agent.sample_noises(size, torch.Generator().manual_seed(seed))


@pytest.fixture(params=["state", "pixels"])
def kind(request):
    return request.param


@pytest.fixture(params=["shared", "separate"])
def sharing(request):
    return request.param
