"""Every algorithm by its name on the command line."""

from __future__ import annotations

from deflow_vision.agents.base import Agent
from deflow_vision.agents.deflow import DeFlow
from deflow_vision.agents.deflow_floq import DeFlowFloq
from deflow_vision.agents.floq import Floq

AGENTS: dict[str, type[Agent]] = {
    "deflow": DeFlow,
    "deflow_floq": DeFlowFloq,
    "floq": Floq,
}
