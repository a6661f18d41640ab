"""The errors a user can cause, each with the exit status it ends in.

Every message says what is wrong, where (file and line, or gin binding) and how
to mend it, in one line.
"""


class RestJaxError(Exception):
  """Base of all errors that end a run with one line instead of a traceback."""

  exit_code = 1


class ConfigurationError(RestJaxError):
  """A gin binding, flag or combination of them that cannot be run."""

  exit_code = 2


class DataError(RestJaxError):
  """Input text or task data that cannot be read as it is."""

  exit_code = 3


class CorruptStateError(RestJaxError):
  """Something that a run wrote and committed has since been altered."""

  exit_code = 4


class RewardError(RestJaxError):
  """A reward model that failed, or that returned what it must not."""

  exit_code = 5


class NonFiniteError(RestJaxError):
  """A loss, gradient or parameter that is NaN or infinite."""

  exit_code = 6


class LockedError(RestJaxError):
  """Another process is working in the run directory."""

  exit_code = 7


class StorageError(RestJaxError):
  """A folder that cannot be written: permissions, a full disk, a lost store."""

  exit_code = 8


class HostsError(RestJaxError):
  """Another process of the job failed, is missing, or is not like this one.

  Attributes:
    exit_code: that of the other process, where it failed and told it; 75 where
      to start again is a mend.
  """

  exit_code = 9

  def __init__(self, text: str, exit_code: int | None = None):
    super().__init__(text)
    if exit_code is not None:
      self.exit_code = exit_code


class PreemptionError(RestJaxError):
  """The machine is about to be taken away; what was made is saved."""

  exit_code = 75  # EX_TEMPFAIL: start again.
