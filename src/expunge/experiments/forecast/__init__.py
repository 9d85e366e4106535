"""How long stages take and how much memory they need, from finished stages. Does not import torch."""
