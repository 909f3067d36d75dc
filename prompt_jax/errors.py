"""The one family of errors that are the user's to mend: the command line prints them without a traceback."""


class UserError(Exception):
    """Something asked for cannot be done; the message says what was wrong, where, and what would be right."""

    exit_status = 1


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the field."""


class CheckpointError(UserError, ValueError):
    """A model that cannot be loaded: what is wrong, where, and what would be right."""


class DataError(UserError, ValueError):
    """Data that cannot be read or used: what is wrong, where, and what would be right."""


class SaveError(UserError, RuntimeError):
    """A file of a run could not be written. Of several processes only the one that writes has this error."""


class MissingPackage(UserError, ImportError):
    """An optional package is needed; the message says how to install it."""
