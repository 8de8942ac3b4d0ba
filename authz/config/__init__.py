"""The operator's file: from text to a compiled, frozen Policy, or to every problem with file, line and path.

Nothing else in the program reads the environment, and nothing reads a file of the operator's after this but to notice
that it changed.
"""

from authz.config.compile import Configuration, load, load_text
from authz.config.schema import json_schema

__all__ = ["Configuration", "json_schema", "load", "load_text"]
