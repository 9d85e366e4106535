"""Unlearning methods, one file each. See docs/methods.md and docs/adding-a-method.md."""

from .base import Context, Method, get_method, method_names, method_table, register

__all__ = ["Context", "Method", "get_method", "method_names", "method_table", "register"]
