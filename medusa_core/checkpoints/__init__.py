"""Read, write, convert and describe draft heads in every layout that is in use.

files.py finds tensors, layouts.py names what they are, reading.py makes heads of them, writing.py the way back.
"""

from medusa_core.checkpoints.reading import find_heads, heads_location, load_heads, locate_heads
from medusa_core.checkpoints.writing import save_heads

__all__ = ["find_heads", "heads_location", "load_heads", "locate_heads", "save_heads"]
