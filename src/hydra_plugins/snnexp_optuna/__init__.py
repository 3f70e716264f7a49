"""A sweeper for Hydra's multirun: grids, and Optuna studies that prune, resume and run in parallel."""
