"""Errors a user can act on. Each carries one message: what is wrong, where (file, row, key), and what to do."""


class SparringError(Exception):
    """Base of all expected errors; the command line prints its message alone and exits with 2."""


class ConfigError(SparringError):
    """A configuration key or value is wrong."""


class DataError(SparringError):
    """An input file, a model folder or a stored artifact is wrong."""


class HubSilent(DataError):
    """The hub does not answer, or is not to be asked."""


class RuleFired(SparringError):
    """A rule of diagnostics.stop_on stopped an arm; what was made is as good as ever."""


class EngineFault(SparringError):
    """An engine failed on a shard; it is ended, and the shard is done again by a new one."""


class TrainingFault(SparringError):
    """Training cannot go on: a loss or a gradient is not finite, or too few optimizer steps are left."""
