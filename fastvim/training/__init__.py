"""Recipe, loop, optimiser groups, EMA, checkpoints, devices.

`fastvim.training.run.train_run` makes one run; `fastvim.training.evaluation.evaluate_run` measures
its checkpoint again. `fastvim.training.recipe` needs no torch.
"""
