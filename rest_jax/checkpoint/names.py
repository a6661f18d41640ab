"""One table of names: our tree, which is T5X's, and Hugging Face's.

A name of ours is the path of a parameter, `encoder/layers_0/mlp/wo/kernel`. A
matrix of ours is [inputs, outputs]; Hugging Face's (PyTorch's) is turned. The
table serves every format and both directions:

- T5X's trees have our names; those of its `scan_layers` networks stack all
  layers of one side in `encoder/encoder/…` and `decoder/decoder/…`.
- Untied models have `logits_dense`, tied ones have not; gated ones have `wi_0`
  and `wi_1`, plain ones `wi`. What a model has decides, so no variant needs a
  table of its own.
- Relative biases stand in a side's first layer and serve all of them (T5, mT5)
  or in every layer (UMT5, and T5X's `scalable_t5`).
- A reward model's read-out, [emb_dim, 1], is one row of `lm_head`.
"""

import re

EMBEDDING = 'token_embedder/embedding'
LOGITS = 'decoder/logits_dense/kernel'
SCORE = 'decoder/score_dense/kernel'

SHARED = 'shared.weight'
LM_HEAD = 'lm_head.weight'

# Ours; Hugging Face's, without its last part `.weight`; whether it is turned.
_WHOLE = (
  ('token_embedder/embedding', 'shared', False),
  ('encoder/encoder_norm/scale', 'encoder.final_layer_norm', False),
  ('decoder/decoder_norm/scale', 'decoder.final_layer_norm', False),
  ('decoder/logits_dense/kernel', 'lm_head', True),
)
_SELF = 'layer.0.SelfAttention'
_CROSS = 'layer.1.EncDecAttention'
# In `encoder/layers_{i}/` and in `encoder.block.{i}.`.
_ENCODER_LAYER = (
  ('pre_attention_layer_norm/scale', 'layer.0.layer_norm', False),
  ('attention/query/kernel', f'{_SELF}.q', True),
  ('attention/key/kernel', f'{_SELF}.k', True),
  ('attention/value/kernel', f'{_SELF}.v', True),
  ('attention/out/kernel', f'{_SELF}.o', True),
  ('relpos_bias/rel_embedding', f'{_SELF}.relative_attention_bias', True),
  ('pre_mlp_layer_norm/scale', 'layer.1.layer_norm', False),
  ('mlp/wi/kernel', 'layer.1.DenseReluDense.wi', True),
  ('mlp/wi_0/kernel', 'layer.1.DenseReluDense.wi_0', True),
  ('mlp/wi_1/kernel', 'layer.1.DenseReluDense.wi_1', True),
  ('mlp/wo/kernel', 'layer.1.DenseReluDense.wo', True),
)
# In `decoder/layers_{i}/` and in `decoder.block.{i}.`.
_DECODER_LAYER = (
  ('pre_self_attention_layer_norm/scale', 'layer.0.layer_norm', False),
  ('self_attention/query/kernel', f'{_SELF}.q', True),
  ('self_attention/key/kernel', f'{_SELF}.k', True),
  ('self_attention/value/kernel', f'{_SELF}.v', True),
  ('self_attention/out/kernel', f'{_SELF}.o', True),
  ('relpos_bias/rel_embedding', f'{_SELF}.relative_attention_bias', True),
  ('pre_cross_attention_layer_norm/scale', 'layer.1.layer_norm', False),
  ('encoder_decoder_attention/query/kernel', f'{_CROSS}.q', True),
  ('encoder_decoder_attention/key/kernel', f'{_CROSS}.k', True),
  ('encoder_decoder_attention/value/kernel', f'{_CROSS}.v', True),
  ('encoder_decoder_attention/out/kernel', f'{_CROSS}.o', True),
  ('pre_mlp_layer_norm/scale', 'layer.2.layer_norm', False),
  ('mlp/wi/kernel', 'layer.2.DenseReluDense.wi', True),
  ('mlp/wi_0/kernel', 'layer.2.DenseReluDense.wi_0', True),
  ('mlp/wi_1/kernel', 'layer.2.DenseReluDense.wi_1', True),
  ('mlp/wo/kernel', 'layer.2.DenseReluDense.wo', True),
)
_TABLE = (
  *_WHOLE,
  *(
    (f'encoder/layers_{{i}}/{ours}', f'encoder.block.{{i}}.{theirs}', turned)
    for ours, theirs, turned in _ENCODER_LAYER
  ),
  *(
    (f'decoder/layers_{{i}}/{ours}', f'decoder.block.{{i}}.{theirs}', turned)
    for ours, theirs, turned in _DECODER_LAYER
  ),
)
# The biases that all layers of a side share stand in the side itself, or in
# its first layer.
_RELPOS = 'relpos_bias/rel_embedding'

# Names that old Hugging Face files have beside `shared.weight`, equal to it.
EMBEDDING_COPIES = (
  'decoder.embed_tokens.weight',
  'encoder.embed_tokens.weight',
)
# A name that old files have and that no version of the network ever used.
IGNORED = (
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
)

_TO_HUGGINGFACE = {
  ours: (f'{theirs}.weight', turned) for ours, theirs, turned in _TABLE
}
_FROM_HUGGINGFACE = {
  theirs: ours for ours, (theirs, _) in _TO_HUGGINGFACE.items()
}
_LAYER = re.compile(r'(?<=layers_)\d+(?=/)')
_BLOCK = re.compile(r'(?<=\.block\.)\d+(?=\.)')


def to_huggingface(ours: str) -> tuple[str, bool]:
  """The Hugging Face name of a parameter, and whether it is turned there.

  >>> to_huggingface('decoder/layers_7/mlp/wo/kernel')
  ('decoder.block.7.layer.2.DenseReluDense.wo.weight', True)

  A reward model's read-out is named `lm_head.weight`, of which it is one row.

  Raises:
    KeyError: it is no name of ours.
  """
  if ours == SCORE:
    return LM_HEAD, True
  side, _, rest = ours.partition('/')
  if rest == _RELPOS:
    ours = f'{side}/layers_0/{rest}'
  theirs, turned = _TO_HUGGINGFACE[_LAYER.sub('{i}', ours)]
  layer = _LAYER.search(ours)
  return theirs.replace('{i}', layer.group() if layer else ''), turned


def from_huggingface(theirs: str, relpos_per_layer: bool) -> str | None:
  """Our name of a Hugging Face tensor; None: there is none.

  >>> from_huggingface('encoder.block.1.layer.0.layer_norm.weight', False)
  'encoder/layers_1/pre_attention_layer_norm/scale'

  Args:
    theirs: the name in the file.
    relpos_per_layer: whether every layer has relative biases of its own.
  """
  ours = _FROM_HUGGINGFACE.get(_BLOCK.sub('{i}', theirs))
  if ours is None:
    return None
  block = _BLOCK.search(theirs)
  layer = block.group() if block else ''
  if ours.endswith(_RELPOS) and not relpos_per_layer:
    return ours.replace('layers_{i}/', '') if layer == '0' else None
  return ours.replace('{i}', layer)


def unstacked(path: str, layer: int) -> str | None:
  """Our name of one layer of a parameter in a T5X `scan_layers` tree.

  >>> unstacked('encoder/encoder/mlp/wo/kernel', 3)
  'encoder/layers_3/mlp/wo/kernel'

  Returns:
    None for a parameter that stacks no layers.
  """
  side, _, rest = path.partition('/')
  if side not in ('encoder', 'decoder') or not rest.startswith(f'{side}/'):
    return None
  return f'{side}/layers_{layer}/{rest.removeprefix(f"{side}/")}'


def problems(
  wanted: dict[str, tuple[int, ...]],
  stored: dict[str, tuple[int, ...]],
) -> list[str]:
  """What stands between stored parameters and a model, by our names.

  Args:
    wanted: name → shape of what the model has.
    stored: name → shape of what the checkpoint has.

  Returns:
    One phrase for every name that is missing, unknown or has another shape.
  """
  found = [f'{name} is missing' for name in wanted if name not in stored]
  found += [f'{name} is unknown' for name in stored if name not in wanted]
  found += [
    f'{name} has shape {tuple(stored[name])}, not {tuple(shape)}'
    for name, shape in wanted.items()
    if name in stored and tuple(stored[name]) != tuple(shape)
  ]
  return found
