"""Progress, status, time estimates and signals of a study."""
