"""The study folder on disk: database, lock, frozen data, repair."""
