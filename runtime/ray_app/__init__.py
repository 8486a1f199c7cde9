"""Ray Serve around the engine: replicas, autoscaling, prompts that go where their beginning is known.

``serve run lineahead.runtime.ray_app:build artifact=DIR precision=int4 replicas=2``
"""

from lineahead.runtime.ray_app.application import build
from lineahead.runtime.ray_app.arguments import RayArguments

__all__ = ["RayArguments", "build"]
