"""Methods that change the weights once, by curvature: FF (noise) and IU (influence). See docs/curvature.md."""
