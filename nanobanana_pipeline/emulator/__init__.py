"""A stand-in for the provider: a real HTTP server to develop, test and rehearse against.

It speaks the provider's side of the contract and shares no code with the pipeline's client, so that
a mistake in one cannot hide in the other. `docs/architecture.md` has its place in the house.
"""

from nanobanana_pipeline.emulator.config import EmulatorConfig
from nanobanana_pipeline.emulator.server import EmulatorThread, running, serve

__all__ = ["EmulatorConfig", "EmulatorThread", "running", "serve"]
