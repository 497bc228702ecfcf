"""Trained policies as folders that others can load, act with, and look into."""

from deflow_vision.sharing.policy import Policy

__all__ = ["Policy"]
