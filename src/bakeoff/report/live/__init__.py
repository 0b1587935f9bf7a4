"""The live view: the report's sections from the database, in a browser on this machine.

It reads study folders and writes nothing. ``access`` authenticates requests, ``studies`` maps
opaque ids to folders, ``queries`` reads the database, ``study_feed`` follows a study, ``items``
pages through test items, ``app`` has the routes and ``server`` runs them.
"""
