"""Shared foundations: errors, trials and results, files, plug-in lookup, redaction."""
