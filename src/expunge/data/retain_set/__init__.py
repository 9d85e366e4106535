"""A retain set whose records are gone, and a stand-in for it."""

from expunge.core.lazy import import_on_use

import_on_use(__name__)
