"""The parent process: run a study from its configuration to its results."""
