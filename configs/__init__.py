"""Every experiment's configs: `configs/<area>/<name>_<data>.py`, each a `get_config()`."""
