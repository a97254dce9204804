"""Floor 4: the engine that runs jobs on a Dask worker: progress, cancel, failures."""
