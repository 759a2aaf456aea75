"""See and check who gets a gradient: which parameters are frozen, what is kept for backward, what a step moves.

Importing this costs what importing torch costs. ``helpers.train_head``, and ``helpers.lessons`` with all that only the
lessons need, want the packages of the extra ``lessons`` and are imported by name.
"""

from helpers.auditing import Finding, audit
from helpers.features import cache_features
from helpers.freezing import freeze, unfreeze
from helpers.graphs import draw, graph
from helpers.memory import SavedTensors, saved_tensors
from helpers.report import ParameterRow, ParameterTable, parameters
from helpers.watching import watch

__all__ = [
    "Finding",
    "ParameterRow",
    "ParameterTable",
    "SavedTensors",
    "audit",
    "cache_features",
    "draw",
    "freeze",
    "graph",
    "parameters",
    "saved_tensors",
    "unfreeze",
    "watch",
]
