"""Loaded before pytest's other plugins (pyproject.toml names it): what nbval would import and nothing here needs."""

import sys

# By jsonschema, to check international addresses: it takes longer than pytest and the rest of nbval together.
sys.modules.setdefault("rfc3987_syntax", None)
