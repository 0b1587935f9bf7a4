"""The worker process: build, train, evaluate, checkpoint and save trials."""
