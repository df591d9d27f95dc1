"""The benchmark's own side: plans, processes, results. Standard library alone, so that this process
stays small: a child's peak memory begins at what its parent had when it was started."""
