"""Agents that begin with networks of an earlier run."""

from __future__ import annotations

import logging

from deflow_vision.agents.base import Agent
from deflow_vision.config import TrainConfig
from deflow_vision.networks.encoders import encoder_name
from deflow_vision.training.restore import load_policy
from deflow_vision.types import UserError

log = logging.getLogger(__name__)


def begin_from(agent: Agent, config: TrainConfig) -> None:
    """Put the flow of the run that `agent.bc_flow_from` names into a new agent.

    Args:
        agent: the agent, before its first update.
        config: its run.

    Raises:
        UserError: that run has no checkpoint or no flow, or one of other networks or observations;
            or the flow is to stay as it is, and no run is named.
    """
    source = getattr(config.agent, "bc_flow_from", None)
    if source is None:
        if getattr(config.agent, "freeze_bc_flow", False):
            raise UserError(
                "agent.freeze_bc_flow keeps the base flow as it is at the start, which would be "
                "random: name the run to take it from with --agent.bc-flow-from RUN."
            )
        return
    other, other_config, step = load_policy(source)
    if not hasattr(other, "bc_flow"):
        raise UserError(
            f"{source} is a run of {other_config.algo}, which has no flow of the data's actions: "
            "agent.bc_flow_from takes a run of bc_flow, deflow, deflow_floq, fql, floq or ifql."
        )
    theirs, ours = (
        (a.spec.observation_shape, a.spec.action_dim, encoder_name(a.spec, c.encoder))
        for a, c in ((other, other_config), (agent, config))
    )
    if theirs != ours:
        raise UserError(
            f"{source} has observations, action dimensions and encoder {theirs}, this run {ours}: "
            "they must be the same."
        )
    if other.config.hidden_dims != agent.config.hidden_dims:
        raise UserError(
            f"{source} has networks of {list(other.config.hidden_dims)}, this run of "
            f"{list(agent.config.hidden_dims)}: pass --agent.hidden-dims as it has them."
        )
    agent.load_bc_flow(other.state_dict())  # type: ignore[operator]
    log.info("base flow: of %s after %s updates", source, f"{step:,}")
