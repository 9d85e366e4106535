"""Infer a configuration from the files that a user has. Importing this does not import torch."""

from .write import Draft, Question, draft_configuration, write_configuration

__all__ = ["Draft", "Question", "draft_configuration", "write_configuration"]
