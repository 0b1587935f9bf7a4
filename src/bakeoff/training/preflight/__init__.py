"""Checks, probes and measurements on the real base model before any trial is trained.

``machine`` describes the machine, ``checks`` refuses bad data, bases and arguments, ``cost_probe``
measures each method with the accelerators that ``parity`` found to work.
"""
