"""Models of other libraries by name: `hf:FOLDER`, `timm:NAME`, `torchvision:NAME`. Nothing is downloaded.

Such a name is data and not code of the user: it chooses a class of the installed library.
"""

from .conversion import convert_names
from .export import COPIED_FILES, save_pretrained
from .hugging_face import embed_config
from .names import PREFIXES, find_named, is_named

__all__ = ["COPIED_FILES", "PREFIXES", "convert_names", "embed_config", "find_named", "is_named", "save_pretrained"]
