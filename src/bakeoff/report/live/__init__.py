"""The live view: the sections of the report from the database, in a browser on this machine.

Stands above ``api`` and below the command line: it reads study folders and writes nothing.
``guard`` lets only the person who started it in, ``studies`` knows the folders by opaque ids,
``reading`` asks the database, ``feed`` sees a study change, ``items`` pages through test items,
``app`` has the routes and ``server`` runs them. The browser's side is plain scripts in ``static``.
"""
