"""Readers of file formats: arrays, images, lists of ids."""

from expunge.core.lazy import import_on_use

import_on_use(__name__)
