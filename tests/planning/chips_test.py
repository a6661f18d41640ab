import types

import pytest

from rest_jax.errors import ConfigurationError
from rest_jax.planning import chips


def test_a_topology_is_a_chip_and_a_shape():
  slice_ = chips.parse('v5e:4x8')
  assert slice_.chip is chips.CHIPS['v5e']
  assert slice_.shape == (4, 8) and slice_.num_chips == 32
  assert slice_.name == 'v5e:4x8'
  assert chips.parse('v5p:2x2x4').num_chips == 16


@pytest.mark.parametrize(
  ('topology', 'message'),
  [
    ('', 'is unknown; write a chip of v4, v5e, v5p, v6e'),
    ('v5e', 'is unknown'),
    ('v9x:2x2', 'is unknown'),
    ('v5e:2×2', 'is unknown'),
    ('v5e:2x2x2', 'have 2 dimensions and at most 256 chips'),
    ('v5p:2x2', 'have 3 dimensions'),
    ('v5e:32x16', 'at most 256 chips; write for example v5e:4x4'),
    ('v5e:0x4', 'at most 256 chips'),
  ],
)
def test_what_is_no_slice_is_one_line(topology, message):
  with pytest.raises(ConfigurationError, match=message) as error:
    chips.parse(topology)
  assert '\n' not in str(error.value)


def test_common_slices_are_those_of_every_chip():
  names = {slice_.name for slice_ in chips.common_slices()}
  assert {'v5e:2x2', 'v5e:16x16', 'v6e:4x4', 'v4:2x2x1', 'v5p:4x4x8'} <= names


@pytest.mark.parametrize(
  ('topology', 'host'),
  [
    ('v5e:1x1', 'v5e:1x1'),
    ('v5e:2x4', 'v5e:2x4'),
    ('v5e:4x4', 'v5e:2x2'),
    ('v5p:2x2x1', 'v5p:2x2x1'),
    ('v4:2x2x2', 'v4:2x2x1'),
  ],
)
def test_a_host_has_four_chips_or_the_whole_of_a_slice(topology, host):
  assert chips.parse(topology).host.name == host


def test_a_peak_is_known_of_tpus_alone():
  tpu = types.SimpleNamespace(device_kind='TPU v5 lite')
  other = types.SimpleNamespace(device_kind='cpu')
  assert chips.peak_of([tpu] * 4) == 4 * 197e12
  assert chips.peak_of([tpu, other]) is None
