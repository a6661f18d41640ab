"""Compare: runs and their seeds held against each other, after they are made.

Runs of one configuration, seeds apart, are one group; a policy of a group is
known from all of its seeds. Nothing is written in the runs.
"""

import dataclasses
from collections.abc import Sequence

from etils import epath

from rest_jax import comparison, comparison_tables, storage, terminal
from rest_jax.compared_runs import Run, read_all
from rest_jax.compared_systems import systems
from rest_jax.errors import ConfigurationError
from rest_jax.progress import Progress

OUTPUT = 'comparison'  # Folder, where none is given.


@dataclasses.dataclass(frozen=True)
class Compare:
  """What is asked of a comparison.

  Attributes:
    contrasts: pairs of names of policies that are of interest, named before
      the results are known: their p values stand as they are. A name is one of
      the table of policies, or a policy's alone where one group has it.
    every_two: whether every two other policies are tested too, with Holm's
      correction for their number. It takes seconds a pair and seed.
    num_resamples: of the paired bootstraps.
    num_trials: of paired approximate randomisation.
  """

  contrasts: tuple[tuple[str, str], ...] = ()
  every_two: bool = True
  num_resamples: int = 1000
  num_trials: int = 10000

  def __post_init__(self):
    for name in ('num_resamples', 'num_trials'):
      if getattr(self, name) < 1:
        raise ConfigurationError(
          f'Compare.{name} = {getattr(self, name)} must be at least 1.'
        )


def run(
  paths: Sequence[str], settings: Compare, *, split: str, output: str
) -> None:
  """Reads runs, prints what comparing them shows, and writes a page of it.

  Args:
    paths: run directories.
    settings: what is asked.
    split: the data whose evaluations are compared: report, select or test.
    output: folder to make; '-' is `comparison`.

  Raises:
    ConfigurationError: the runs cannot be compared, a contrast names no policy
      of theirs, or the folder is a part of one.
    CorruptStateError: what a run committed was altered.
    StorageError: the folder cannot be written.
  """
  runs = read_all(paths, split)
  folder = storage.absolute(OUTPUT if output == '-' else output)
  _check_outside(folder, runs)
  found = systems(runs)
  progress = Progress()
  with progress.stage('compare'):
    contrasts = comparison.contrasts(
      found,
      runs[0],
      settings.contrasts,
      every_two=settings.every_two,
      tests=comparison.Tests(settings.num_resamples, settings.num_trials),
      advance=progress.update,
    )
    budgets = {
      cost: comparison.frontier(found, cost) for cost in comparison.COSTS
    }
    tables = comparison_tables.tables(found, contrasts, budgets, split)
    _write(folder, found, contrasts, budgets, tables)
  progress.close()
  for table in tables:
    terminal.show(table.for_terminal())
  progress.note(f'comparison: {folder}/comparison.html')


def _check_outside(folder: epath.Path, runs: Sequence[Run]) -> None:
  for one in runs:
    if one.path in (folder, *folder.parents):
      raise ConfigurationError(
        f'--output={folder} is in the run {one.path}, where nothing is written;'
        ' give another folder.'
      )


def _write(folder, found, contrasts, budgets, tables) -> None:
  from rest_jax import comparison_plots  # Takes a second to import.

  pictures = comparison_plots.pictures(found, contrasts)
  texts = {
    'comparison.csv': comparison_tables.policies_csv(found),
    'contrasts.csv': comparison_tables.contrasts_csv(contrasts),
    'frontiers.csv': comparison_tables.frontiers_csv(budgets),
    'comparison.html': comparison_tables.page(tables, pictures),
  }
  for name, text in texts.items():
    storage.write_atomic(folder / name, text.encode())
