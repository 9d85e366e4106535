"""Methods that ascend on the forget set."""
