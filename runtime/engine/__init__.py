"""The serving engine: many requests share one model, step by step. `engine.py` is the entry."""

from lineahead.runtime.engine.engine import Engine
from lineahead.runtime.engine.request import Delta, EngineConfig, Request

__all__ = ["Delta", "Engine", "EngineConfig", "Request"]
