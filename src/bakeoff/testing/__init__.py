"""Contract tests that every method must pass, for the catalog and for your own methods.

Run ``methods.CHECKS``, functions of a ``methods.Subject``, in a parametrised test. ``tiny`` has
models and rows on which they train in seconds.
"""
