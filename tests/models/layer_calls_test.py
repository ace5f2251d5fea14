"""Tests of layer_calls.py: the calls of a graph, worked out by hand."""

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest

from keras_attr_preserve.models.layer_calls import calls, refuse_wrapped

_layers = keras.layers


class CallsTest(absltest.TestCase):

  def test_each_after_what_it_reads_and_shared_layers_twice(self):
    first, second = keras.Input([2], name="a"), keras.Input([2], name="b")
    shared = _layers.Dense(2, name="shared")
    added = _layers.Add(name="added")([shared(first), shared(second)])
    model = keras.Model([first, second], _layers.Dense(1, name="out")(added))
    # A call of the same layer that another model makes is not this model's.
    keras.Model(first, shared(_layers.ReLU(name="elsewhere")(first)))
    names = [layer.name for layer, _ in calls(model)]
    self.assertEqual(names, ["shared", "shared", "added", "out"])

  def test_a_node_has_the_attributes_that_are_read(self):
    """They are not documented: this fails where a version has none."""
    inputs = keras.Input([2])
    layer = _layers.Dropout(0.5, name="dropped")
    model = keras.Model(inputs, layer(inputs, training=True))
    (called, node), = calls(model)
    self.assertIs(called, layer)
    self.assertIs(node.outputs, model.outputs[0])
    self.assertLen(node.keras_inputs, 1)
    self.assertLen(node.call_args, 1)
    self.assertEqual(node.call_kwargs, {"training": True})

  def test_wrapped_models_are_refused(self):
    model = keras.Sequential([keras.Input([4]), _layers.Dense(3, name="d")])
    refuse_wrapped(model)
    pruned = tfmot.sparsity.keras.prune_low_magnitude(model)
    with self.assertRaisesRegex(ValueError, "is wrapped by tfmot, at"):
      refuse_wrapped(pruned)
    np.testing.assert_array_equal(model.get_weights()[1], 0)


if __name__ == "__main__":
  absltest.main()
