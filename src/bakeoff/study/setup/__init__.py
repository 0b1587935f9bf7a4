"""Open a study: resolve and check everything that it names."""
