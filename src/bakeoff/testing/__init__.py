"""Contract tests that ship: what every method must pass, the project's own and yours.

``methods.CHECKS`` are functions of a ``methods.Subject``; run them over your entry in a
parametrised test of your own. ``tiny`` has the models and rows that they train on in seconds.
"""
