"""The rows of runs that are compared, in one file."""

import csv
import json
import pathlib


def value_agreement(run: pathlib.Path) -> dict[str, str]:
  """How a run's value model orders samples, as columns; see `values.judge`."""
  path = run / 'grow_1' / 'value' / 'stage.json'
  if not path.exists():
    return {}
  counts = json.loads(path.read_text())['counts']
  return {
    f'value_{name}': f'{figure:.4f}'
    for name, figure in counts.items()
    if name.endswith(('_kendall', '_kendall_untied', '_spearman'))
  }


def gather(files: dict[str, pathlib.Path], path: pathlib.Path) -> None:
  """Writes the rows of some runs into one file.

  Args:
    files: name → results.csv or best_of_n.csv in the run's directory.
    path: the file to write.
  """
  rows, names = [], ['run']
  for name, file in files.items():
    with open(file, newline='') as read:
      told = value_agreement(file.parent)
      for row in csv.DictReader(read):
        own = told if row['policy'] != 'BC' else {}
        rows.append({'run': name} | row | own)
        names += [name for name in rows[-1] if name not in names]
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'w', newline='') as written:
    writer = csv.DictWriter(written, names, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
