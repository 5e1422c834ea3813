"""Base models whose weights take few bits: how they come about, and whether trees pay with them.

Only the base is quantised. Draft heads keep the compute dtype: they propose, and cannot change the text.
"""

from medusa_core.quantization.judgement import default_nodes, dense_weight, judge, judge_model
from medusa_core.quantization.options import OPTIONS, quantization_arguments, quantize_in_place

__all__ = [
    "OPTIONS",
    "default_nodes",
    "dense_weight",
    "judge",
    "judge_model",
    "quantization_arguments",
    "quantize_in_place",
]
