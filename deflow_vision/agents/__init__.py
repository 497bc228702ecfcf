"""Every algorithm by its name on the command line."""

from __future__ import annotations

from deflow_vision.agents.base import Agent
from deflow_vision.agents.bc import BC
from deflow_vision.agents.bc_flow import BCFlow
from deflow_vision.agents.cac import CAC
from deflow_vision.agents.calql import CalQL
from deflow_vision.agents.deflow import DeFlow
from deflow_vision.agents.deflow_floq import DeFlowFloq
from deflow_vision.agents.fawac import FAWAC
from deflow_vision.agents.fbrac import FBRAC
from deflow_vision.agents.floq import Floq
from deflow_vision.agents.fql import FQL
from deflow_vision.agents.idql import IDQL
from deflow_vision.agents.ifql import IFQL
from deflow_vision.agents.iql import IQL
from deflow_vision.agents.meanflow_ql import MeanFlowQL
from deflow_vision.agents.rebrac import ReBRAC
from deflow_vision.agents.rlpd import RLPD
from deflow_vision.agents.sac_flow import SACFlow
from deflow_vision.agents.sorl import SORL
from deflow_vision.agents.srpo import SRPO

AGENTS: dict[str, type[Agent]] = {
    "bc": BC,
    "bc_flow": BCFlow,
    "cac": CAC,
    "calql": CalQL,
    "deflow": DeFlow,
    "deflow_floq": DeFlowFloq,
    "fawac": FAWAC,
    "fbrac": FBRAC,
    "floq": Floq,
    "fql": FQL,
    "idql": IDQL,
    "ifql": IFQL,
    "iql": IQL,
    "meanflow_ql": MeanFlowQL,
    "rebrac": ReBRAC,
    "rlpd": RLPD,
    "sac_flow": SACFlow,
    "sorl": SORL,
    "srpo": SRPO,
}
