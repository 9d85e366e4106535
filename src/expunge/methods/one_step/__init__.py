"""Methods that change the weights once, by a gradient or the solution of linear equations: Warnecke et al., NTK."""
