"""One file per kind of operator: what it means for scales (units), for time, and for the values of its output."""

from __future__ import annotations

from conversion_ext.operators.base import Activation, NodeContext, Operator, operator_of, operators, register_operator
from conversion_ext.registry import import_siblings

__all__ = ["Activation", "NodeContext", "Operator", "operator_of", "operators", "register_operator"]

import_siblings(__name__, list(__path__))
