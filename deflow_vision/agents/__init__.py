"""Every algorithm by its name on the command line."""

from __future__ import annotations

from deflow_vision.agents.base import Agent
from deflow_vision.agents.deflow import DeFlow

AGENTS: dict[str, type[Agent]] = {
    "deflow": DeFlow,
}
