"""Analysis: tables in, verdict out. Pure functions; nothing here trains, stores or draws."""
