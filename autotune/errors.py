"""The exceptions that autotune raises on purpose."""


class AutotuneError(Exception):
    """Base of every expected error; its message can be shown to a user as it is."""


class BadInputError(AutotuneError):
    """An option, a value, a file or a program that cannot be used (exit code 2)."""


class ConfigError(BadInputError):
    """Settings that break a rule, in code or in a file."""


class CommandError(AutotuneError):
    """The user's command failed, or never called autotune (exit code 1)."""


class NothingWorkedError(AutotuneError):
    """No configuration could be measured (exit code 1)."""


class BusyMachineError(AutotuneError):
    """Other processes use so much of the machine that nothing can be measured (exit code 1)."""


class MachineChangedError(AutotuneError):
    """The machine offers another number of cores than when the run began (exit code 1)."""


class StorageError(AutotuneError):
    """A storage failed while it was used: full, locked, gone, damaged (exit code 1)."""


class InterruptedRunError(AutotuneError):
    """The user or the system ended a run; what was measured is kept (exit code 130)."""


class StaleSettingsWarning(UserWarning):
    """The settings in use were tuned under other conditions: they may not be the fastest here."""
