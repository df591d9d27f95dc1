//! Recipes, objectives, optimizers, the training loop, checkpoints and logs.
