"""Recipe, loop, optimiser groups, EMA, checkpoints, devices."""
