"""The score of SharedLetters as a program that fails where a file says so.

Its argument names the file: 'die', 'hang', 'garbage', 'few' or 'many' and the
text of a candidate at which that happens; without the file, all is well.
"""

import json
import os
import sys
import time

wrong, at = None, None
if os.path.exists(sys.argv[1]):
  with open(sys.argv[1]) as file:
    wrong, at = file.read().split('\n')
for line in sys.stdin:
  row = json.loads(line)
  x, y = set(row['source']), set(row['candidate'])
  print('scoring', file=sys.stderr)
  if wrong and row['candidate'] == at:
    if wrong == 'die':
      sys.exit(3)
    if wrong == 'hang':
      time.sleep(60)
    if wrong == 'few':
      continue
    print({'garbage': 'good', 'many': '0.5\n0.5'}[wrong])
    continue
  print(len(x & y) / len(x | y))
