"""Offline reinforcement learning with flow policies, from pixels and from state."""

__version__ = "0.1.0"
