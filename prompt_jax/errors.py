"""Errors that the user can fix. The command line prints their message without a traceback."""


class UserError(Exception):
    """Base class. The message says what is wrong, where, and what would be right."""

    exit_status = 1


class ConfigError(UserError, ValueError):
    """A configuration is invalid. The message names the field."""


class CheckpointError(UserError, ValueError):
    """A model cannot be loaded or saved."""


class DataError(UserError, ValueError):
    """Data that cannot be read or used: what is wrong, where, and what would be right."""


class SaveError(UserError, RuntimeError):
    """A file of a run could not be written. With several processes, only the writing one raises this."""


class MissingPackage(UserError, ImportError):
    """An optional package is missing. The message says how to install it."""
