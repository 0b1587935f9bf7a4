"""Which trials run: settings, successive halving, time budget. Pure functions."""
