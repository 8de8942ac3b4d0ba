"""The operator's file: from text to a compiled, frozen Policy, or to every problem with file, line and path.

Nothing else in the program reads the environment. Read again later are only files that others renew: certificates, a
provider's ``ca_file``, a projected token.
"""

from authz.config.compile import Configuration, load, load_text
from authz.config.schema import json_schema

__all__ = ["Configuration", "json_schema", "load", "load_text"]
