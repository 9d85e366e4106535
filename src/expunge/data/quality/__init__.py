"""What can be seen in records before anything is trained: cautions, items that cannot be read, copies of D_f."""

from .cautions import find_cautions
from .copies import Copies, PartCopies, count_copies, describe_copies
from .streams import MOST_ITEMS, check_items

__all__ = ["MOST_ITEMS", "Copies", "PartCopies", "check_items", "count_copies", "describe_copies", "find_cautions"]
