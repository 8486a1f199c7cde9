"""lineahead: linearize pretrained transformers, export them, and decode them with exact speculation.

This file is inert (standard library only): pytest loads it a second time under the checkout's folder name.
"""

__version__ = "0.1.0"
