import pytest

from rest_jax.planning import costs
from rest_jax.planning.costs import Collective, Costs

TEXT = """
HloModule jit_step, is_scheduled=true

%all-reduce-scatter.1 (input: f32[16,8]) -> f32[4,8] {
  %input = f32[16,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[16,8]{1,0:T(8,128)} all-reduce(%input), channel_id=4, \
replica_groups=[2,4]<=[8], use_global_device_ids=true, to_apply=%add
  ROOT %dynamic-slice.1 = f32[4,8]{1,0} dynamic-slice(%all-reduce.9, %c)
}

%async_collective_fusion.2 (p: f32[4,4]) -> f32[4,4] {
  ROOT %ag.1 = f32[4,4]{1,0} all-gather(%p), channel_id=6, \
replica_groups=[2,4]<=[8], dimensions={0}
}

%async_collective_fusion.3 (p: f32[4,4]) -> f32[4,4] {
  ROOT %ag.2 = f32[4,4]{1,0} all-gather(%p), channel_id=6, \
replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main.7 (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[8,128]{1,0:T(8,128)(2,1)} all-reduce(%p), \
channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %ag = (f32[2,10]{1,0}, f32[8,10]{1,0}) all-gather-start(%x), \
channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %agd = f32[8,10]{1,0} all-gather-done(%ag)
  %rs = (f32[6]{0}, bf16[4]{0}) reduce-scatter(%a, %b), \
replica_groups={{0,1}}, to_apply=%add
  %cp = (f32[5]{0}, f32[5]{0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  %of_mesh = f32[6]{0} all-reduce(%a), channel_id=3, \
replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=1] {'axis_0','axis_1'}
  %of_axis = f32[6]{0} all-reduce(%a), channel_id=5, \
replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], \
device_ids=([2,4]T(1,0)) {'axis_0'}, use_global_device_ids=true
  %alone = f32[5]{0} all-reduce(%a), replica_groups={{0},{1}}, to_apply=%add
  ROOT %done = bf16[8,128]{1,0} copy(%all-reduce.1)
}
"""


def test_collectives_are_read_from_the_compiled_text():
  assert costs.collectives_in(TEXT) == [
    Collective('reduce-scatter', 16 * 8 * 4, 4),
    Collective('all-gather', 4 * 4 * 4, 4),
    Collective('all-reduce', 8 * 128 * 2, 4),
    Collective('all-gather', 8 * 10 * 4, 4),
    Collective('reduce-scatter', 2 * (6 * 4 + 4 * 2), 2),
    Collective('collective-permute', 20, 2),
    Collective('all-reduce', 24, 8),
    Collective('all-reduce', 24, 4),
  ]
  with pytest.raises(ValueError, match='which chips take part: %a ='):
    costs.collectives_in('%a = f32[5]{0} all-reduce(%b), replica_groups=new[]')


@pytest.mark.parametrize(
  ('kind', 'moved'),
  [
    ('all-gather', 75.0),
    ('reduce-scatter', 75.0),
    ('all-to-all', 75.0),
    ('all-reduce', 150.0),
    ('collective-permute', 100.0),
  ],
)
def test_what_a_chip_must_send(kind, moved):
  assert Collective(kind, 100.0, 4).moved == moved


def test_layers_are_extrapolated():
  one = Costs(10.0, 7.0, {'all-gather': (1.0, 8.0, 6.0)})
  two = Costs(
    13.0,
    9.0,
    {'all-gather': (3.0, 24.0, 18.0), 'all-reduce': (1.0, 4.0, 2.0)},
  )
  many = costs.extrapolate(one, two, 24)
  assert many.flops == 10 + 23 * 3 and many.bytes == 7 + 23 * 2
  assert many.collectives == {
    'all-gather': (47.0, 8.0 + 23 * 16, 6.0 + 23 * 12),
    'all-reduce': (23.0, 92.0, 46.0),
  }
  assert many.moved == 6 + 23 * 12 + 46
