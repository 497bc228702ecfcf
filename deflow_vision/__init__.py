"""deflow-vision: offline and offline-to-online RL with flow policies, from pixels and from state."""

__version__ = "0.1.0"
