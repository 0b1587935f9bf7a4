"""One TOML file a method; a new file is a new method. Read by ``methods.registry``."""
