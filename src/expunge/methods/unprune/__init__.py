"""Un-pruning [Xiao2025]: a method around a method that derives the mask from D_r."""
