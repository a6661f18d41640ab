import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from rest_jax import sharding
from rest_jax.errors import ConfigurationError
from rest_jax.sharding import LOGICAL_AXES, AxisRules, Layout, Placement


def test_the_default_rules_split_batches_and_layers():
  rules = AxisRules()
  assert rules.spec('batch', 'length', 'vocab') == PartitionSpec(
    'data', None, 'model'
  )
  assert rules.spec('embed', 'joined_kv') == PartitionSpec(None, 'model')
  assert rules.spec('batch', None) == PartitionSpec('data', None)
  assert LOGICAL_AXES == (
    'batch',
    'length',
    'act_embed',
    'embed',
    'heads',
    'kv',
    'joined_kv',
    'mlp',
    'vocab',
    'relpos_buckets',
  )


def test_an_axis_may_be_split_over_both_mesh_axes():
  rules = AxisRules(batch=['data', 'model'], heads=None)
  assert rules.batch == ('data', 'model')
  assert rules.spec('batch', 'heads') == PartitionSpec(('data', 'model'), None)
  assert hash(rules) == hash(AxisRules(batch=('data', 'model'), heads=None))


@pytest.mark.parametrize(
  'rules', [AxisRules(embed='data'), Layout(fsdp=True).axis_rules]
)
def test_fsdp_splits_parameters_and_not_activations(rules):
  assert rules.spec('embed', 'mlp') == PartitionSpec('data', 'model')
  assert rules.spec('batch', 'length', 'act_embed') == PartitionSpec(
    'data', None, None
  )


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: AxisRules().spec('head'), "Unknown logical axis 'head'"),
    (lambda: AxisRules(mlp='modle'), "AxisRules.mlp = 'modle'"),
    (
      lambda: AxisRules(embed='data').spec('batch', 'embed'),
      "twice over the mesh axis 'data'",
    ),
    (
      lambda: AxisRules(batch=('data', 'data')).spec('batch'),
      "twice over the mesh axis 'data'",
    ),
    (lambda: Layout(model=3).mesh(), 'does not divide 8 devices'),
    (lambda: Layout(data=3, model=3).mesh(), 'needs 9 devices, there are 8'),
    (lambda: Layout(data=0), 'Layout.data = 0'),
    (lambda: Layout(model=0), 'Layout.model = 0'),
    (
      lambda: Layout(fsdp=True, rules=AxisRules(embed='model', mlp=None)),
      "AxisRules.embed = 'model' over something else",
    ),
  ],
)
def test_what_cannot_be_is_one_line(make, message):
  with pytest.raises(ConfigurationError, match=message) as error:
    make()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('layout', 'shape'),
  [
    (Layout(), (8, 1)),
    (Layout(model=2), (4, 2)),
    (Layout(data=2, model=4), (2, 4)),
    (Layout(data=1), (1, 1)),
    (Layout(data=3, model=2), (3, 2)),
  ],
)
def test_layouts_shape_the_mesh(layout, shape):
  mesh = layout.mesh()
  assert mesh.devices.shape == shape
  assert mesh.axis_names == ('data', 'model')
  assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


def test_a_constraint_places_an_array():
  placement = Placement(Layout(model=2).mesh(), AxisRules())
  place = jax.jit(lambda x: placement.constrain(x, 'batch', 'mlp'))
  placed = place(jnp.zeros((4, 6)))
  assert placed.sharding == placement.sharding('batch', 'mlp')
  assert {shard.data.shape for shard in placed.addressable_shards} == {(1, 3)}
  assert placement.num_shards('batch') == 4
  assert placement.num_shards('heads') == 2
  assert placement.num_shards('kv') == 1


def test_a_mesh_keeps_the_devices_of_a_process_together(monkeypatch):
  monkeypatch.setattr(sharding, '_process_of', lambda device: device.id % 2)
  mesh = Layout(model=2).mesh()
  assert [[one.id for one in row] for row in mesh.devices] == [
    [0, 2],
    [4, 6],
    [1, 3],
    [5, 7],
  ]


@pytest.mark.parametrize(
  ('model', 'rules', 'shares'),
  [
    (1, AxisRules(), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (2, AxisRules(), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    # Two processes split a model between them, and feed the same rows.
    (4, AxisRules(), [(0, 2), (0, 2), (1, 2), (1, 2)]),
    (8, AxisRules(), [(0, 1)] * 4),
    (
      2,
      AxisRules(batch=('data', 'model'), heads=None),
      [(0, 4), (1, 4), (2, 4), (3, 4)],
    ),
  ],
)
def test_each_process_feeds_its_part_of_a_batch(
  model, rules, shares, monkeypatch
):
  mesh = Layout(model=model).mesh()
  owners = {device: device.id // 2 for device in jax.devices()}
  monkeypatch.setattr(sharding, '_process_of', owners.get)
  found = []
  for process in range(4):
    monkeypatch.setattr(jax, 'process_index', lambda p=process: p)
    found.append(Placement(mesh, rules).batch_share)
  assert found == shares


def test_a_model_that_processes_share_unevenly(monkeypatch):
  placement = Placement(Layout(data=2, model=3).mesh(), AxisRules())
  monkeypatch.setattr(sharding, '_process_of', lambda device: device.id // 2)
  with pytest.raises(ConfigurationError, match=r'Layout\.model = 3'):
    assert placement.batch_share
