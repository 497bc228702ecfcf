"""Every algorithm by its name on the command line."""

from __future__ import annotations

from deflow_vision.agents.base import Agent
from deflow_vision.agents.cac import CAC
from deflow_vision.agents.deflow import DeFlow
from deflow_vision.agents.deflow_floq import DeFlowFloq
from deflow_vision.agents.fawac import FAWAC
from deflow_vision.agents.fbrac import FBRAC
from deflow_vision.agents.floq import Floq
from deflow_vision.agents.rebrac import ReBRAC
from deflow_vision.agents.sorl import SORL

AGENTS: dict[str, type[Agent]] = {
    "cac": CAC,
    "deflow": DeFlow,
    "deflow_floq": DeFlowFloq,
    "fawac": FAWAC,
    "fbrac": FBRAC,
    "floq": Floq,
    "rebrac": ReBRAC,
    "sorl": SORL,
}
