"""Tests of held_weights.py: pruned and clustered weights stay so."""

import functools
import itertools
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.models.held_weights import hold
from tests import tiny

SPARSITY = tfmot.sparsity.keras
CLUSTERING = tfmot.clustering.keras
COMBINE = tfmot.experimental.combine
PICTURES, LABELS = tiny.images(8, size=4), tiny.labels(8)
LOST = "lost zeros.*share of zeros before -> after"


def _compiled(model, **settings):
  model.compile(keras.optimizers.Adam(0.05, **settings), tiny.cross_entropy(),
                run_eagerly=True)
  return model


@functools.cache
def _teacher():
  return tiny.smooth_net(0)


def _pruned(schedule=None):
  """A pruned student: 3 of 4 weights of each kernel are zero."""
  return SPARSITY.prune_low_magnitude(
      tiny.smooth_net(1),
      schedule or SPARSITY.ConstantSparsity(0.75, 0, frequency=2))


def _sparse(model):
  """Halves the kernels of a model, by magnitude."""
  for layer in model.layers:
    for weight in layer.weights:
      if "kernel" in weight.name:
        value = weight.numpy()
        weight.assign(value * (abs(value) > np.median(abs(value))))
  return model


def _few_values(model):
  """Gives the kernels of a model no values but -0.5, 0 and 0.5."""
  for layer in _sparse(model).layers:
    for weight in layer.weights:
      if "kernel" in weight.name:
        weight.assign(0.5 * np.sign(weight))
  return model


def _apply(model, scheme):
  return tfmot.quantization.keras.quantize_apply(
      tfmot.quantization.keras.quantize_annotate_model(model), scheme)


def _kernels(model):
  """By the names of variables, whatever wraps their layers."""
  return {weight.name: weight.numpy() for weight in model.trainable_weights
          if weight.name.endswith("/kernel:0")}


def _shares(model):
  return {name: float((kernel == 0).mean())
          for name, kernel in _kernels(model).items()}


class _Restore(keras.callbacks.Callback):
  """Sets the weights that training began with, or went through.

  As restored, averaged or reloaded weights do.
  """

  def __init__(self, moment, begin="on_train_begin"):
    super().__init__()
    setattr(self, begin, self.keep)
    setattr(self, moment, self.restore)
    self.weights = None

  def keep(self, *_, **__):
    if self.weights is None:
      self.weights = self.model.get_weights()

  def restore(self, *_, **__):
    self.model.set_weights(self.weights)


class _Watch(keras.callbacks.Callback):
  """Notes the shares of zeros after each step."""

  def __init__(self):
    super().__init__()
    self.shares = []

  def on_train_batch_end(self, batch, logs=None):
    self.shares.append([*_shares(self.model).values()])


class HoldTest(parameterized.TestCase):

  def test_masks_by_hand(self):
    inputs = keras.Input([2])
    model = SPARSITY.prune_low_magnitude(keras.Model(
        inputs, keras.layers.Dense(2, use_bias=False, name="dense")(inputs)))
    (kernel, mask, _), = model.layers[1].pruning_vars
    kernel.assign([[1.0, 2.0], [3.0, np.nan]])
    self.assertEqual(hold(model), [])
    mask.assign([[1, 0], [1, 0]])
    lost, = hold(model)
    self.assertEqual(kernel.numpy().tolist(), [[1, 0], [3, 0]])
    self.assertEqual(lost, ("dense", "zeros", 0.0, 0.5))
    self.assertEqual(str(lost), "dense 0.000 -> 0.500")
    self.assertEqual(hold(model), [])

  def test_several_kernels_of_a_layer(self):
    inputs = keras.Input([3, 2])
    model = SPARSITY.prune_low_magnitude(keras.Model(
        inputs, keras.layers.SimpleRNN(2, name="rnn")(inputs)))
    for _, mask, _ in model.layers[1].pruning_vars:
      mask.assign(np.eye(2))
    self.assertEqual([str(change) for change in hold(model)], [
        "rnn/kernel 0.000 -> 0.500", "rnn/recurrent_kernel 0.000 -> 0.500"])

  def test_a_model_in_a_model(self):
    inner = tiny.smooth_net(1)
    inputs = keras.Input([4, 4, 2])
    model = SPARSITY.prune_low_magnitude(keras.Model(inputs, inner(inputs)))
    wrapper = model.get_layer("net").get_layer("prune_low_magnitude_logits")
    (kernel, mask, _), = wrapper.pruning_vars
    mask.assign(np.eye(3))
    before = kernel.numpy()
    with self.assertWarnsRegex(UserWarning, LOST):
      stripped = kap.strip(model)
    self.assertEmpty([module for module in stripped.submodules
                      if hasattr(module, "pruning_vars")])
    np.testing.assert_array_equal(
        stripped.get_layer("net").get_layer("logits").kernel,
        np.eye(3) * before)

  def test_zeros_under_quantization(self):
    model = _apply(_sparse(tiny.smooth_net(1)),
                   COMBINE.Default8BitPrunePreserveQuantizeScheme())
    before = _kernels(model)
    self.assertEqual(hold(model), [])
    for weight in model.trainable_weights:
      weight.assign_add(0.25 * np.ones_like(weight))
    self.assertCountEqual(
        [change.layer for change in hold(model)], ["conv", "logits"])
    for name, kernel in _kernels(model).items():
      np.testing.assert_array_equal(
          kernel, np.where(before[name] == 0, 0, before[name] + 0.25))

  def test_sparse_clusters_under_quantization(self):
    self.check_clusters_under_quantization(True)

  @pytest.mark.slow("saving")
  def test_clusters_under_quantization(self):
    self.check_clusters_under_quantization(False)

  def check_clusters_under_quantization(self, sparse):
    model = _apply(
        _few_values(tiny.smooth_net(1)),
        COMBINE.Default8BitClusterPreserveQuantizeScheme(sparse))
    before = _kernels(model)
    self.assertEqual(hold(model), [])
    noise = np.random.default_rng(0)
    for weight in model.trainable_weights:
      if weight.name.endswith("/kernel:0"):
        weight.assign_add(noise.normal(size=weight.shape) / 9)
    lost = {change.layer: change for change in hold(model)
            if change.what == "values"}
    # 0 and 0.5 of 9; -0.5 too of 18, in a channel of the convolution.
    self.assertEqual(lost["logits"][2:], (9, 2))
    self.assertEqual(lost["conv"][2:], (18, 3))
    for name, kernel in _kernels(model).items():
      np.testing.assert_array_equal(kernel, before[name])


class FitTest(parameterized.TestCase):

  def fit(self, model, before=(), after=(), epochs=1, **settings):
    keras.utils.set_random_seed(0)
    return model.fit(
        PICTURES, LABELS, batch_size=4, epochs=epochs, verbose=0, callbacks=[
            *before, kap.PreserveAttribution(_teacher(), kap.WCAM("act")),
            *after], **settings)

  @parameterized.parameters(("on_epoch_end", True), ("on_train_end", False))
  def test_weights_that_another_callback_sets(self, moment, first):
    self.check_weights_that_another_callback_sets(moment, first)

  @parameterized.parameters(("on_epoch_end", False), ("on_train_end", True))
  @pytest.mark.slow("training")
  def test_weights_that_it_sets_in_the_other_place(self, moment, first):
    self.check_weights_that_another_callback_sets(moment, first)

  def check_weights_that_another_callback_sets(self, moment, first):
    """Masks of ones and all weights, of before the first step."""
    model, other = _compiled(_pruned()), [_Restore(moment)]
    with self.assertWarnsRegex(UserWarning, f"{LOST}.*conv 0.000 -> 0.7"):
      self.fit(model, *((other, ()) if first else ((), other)))
    start = dict(zip(
        [weight.name for weight in model.weights], other[0].weights))
    # 54 and 9 weights: whole numbers of them stay.
    self.assertEqual(_shares(model), {
        "conv/kernel:0": 40 / 54, "logits/kernel:0": 7 / 9})
    for name, kernel in _kernels(model).items():
      np.testing.assert_array_equal(
          kernel, np.where(kernel == 0, 0, start[name]))

  def test_the_best_weights_of_an_earlier_epoch(self):
    self.check_the_best_weights_of_an_earlier_epoch(True)

  @pytest.mark.slow("training")
  def test_the_best_weights_by_a_later_callback(self):
    self.check_the_best_weights_of_an_earlier_epoch(False)

  def check_the_best_weights_of_an_earlier_epoch(self, first):
    """Earlier weights have less pruning; the later rounds' zeros apply too."""
    model = _compiled(_pruned(kap.IterativePruning(
        rounds=2, share=0.5, steps_per_round=2)))
    stop = [keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=9, restore_best_weights=True)]
    stop[0].monitor_op = lambda now, best: best == -np.inf  # The first.
    with self.assertWarnsRegex(UserWarning, f"{LOST}.*conv 0.500 -> 0.7"):
      self.fit(model, *((stop, ()) if first else ((), stop)), epochs=2)
    self.assertEqual(_shares(model)["conv/kernel:0"], 40 / 54)

  def test_zero_after_every_step(self):
    """Also for callbacks that come first, and with a hand-held sparsity."""
    start = _sparse(tiny.smooth_net(1))
    model, watch = _compiled(kap.hold_zeros(start)), _Watch()
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      self.fit(model, [watch])
    self.assertEqual(watch.shares, [[*_shares(start).values()]] * 2)
    self.assertGreater(min(watch.shares[0]), 0)
    # Control: the rest trains.
    self.assertFalse(np.array_equal(
        _kernels(model)["logits/kernel:0"],
        start.get_layer("logits").kernel))

  @pytest.mark.slow("pruning")
  def test_a_round_inside_an_epoch_wakes_nothing(self):
    """A rate at which tfmot alone wakes weights; see IterativePruning."""
    model = _pruned(kap.IterativePruning(
        rounds=4, share=0.2, steps_per_round=1))
    model.compile(keras.optimizers.Adam(0.5), tiny.cross_entropy(),
                  run_eagerly=True)
    masks = []
    self.fit(model, [keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: masks.append(np.concatenate([
            mask.numpy().ravel() for layer in model.layers
            for _, mask, _ in getattr(layer, "pruning_vars", ())])))], epochs=2)
    self.assertLen(masks, 4)
    for mask, later in itertools.pairwise(masks):
      self.assertFalse(((mask == 0) & (later != 0)).any())

  def test_averages_of_the_optimizer(self):
    self.check_averages_of_the_optimizer(None)

  @pytest.mark.slow("training")
  def test_averages_that_the_optimizer_uses_at_once(self):
    self.check_averages_of_the_optimizer(1)

  def check_averages_of_the_optimizer(self, overwrite):
    model = _compiled(_pruned(), use_ema=True,
                      ema_overwrite_frequency=overwrite)
    with self.assertWarnsRegex(UserWarning, LOST):
      self.fit(model)
    self.assertEqual(_shares(model), {
        "conv/kernel:0": 40 / 54, "logits/kernel:0": 7 / 9})

  @pytest.mark.slow("saving")
  def test_averages_of_clusters(self):
    """Keras's average leaves out a kernel that has no gradient."""
    model = _compiled(_apply(
        _few_values(tiny.smooth_net(1)),
        COMBINE.Default8BitClusterPreserveQuantizeScheme(True)), use_ema=True,
        ema_momentum=0.5)
    before = _kernels(model)
    with self.assertWarnsRegex(UserWarning, "left out of the optimizer's ave"):
      self.fit(model)
    for name, kernel in _kernels(model).items():
      self.assertLessEqual(len(np.unique(kernel.reshape(-1, 3)[:, 0])), 3)
      np.testing.assert_array_equal(kernel == 0, before[name] == 0)
      self.assertFalse(np.array_equal(kernel, before[name]), name)

  @pytest.mark.slow("training")
  def test_a_list_of_callbacks_is_left_as_it_came(self):
    model = _compiled(_pruned())
    callbacks = keras.callbacks.CallbackList(
        [kap.PreserveAttribution(_teacher(), kap.WCAM("act"))], model=model,
        epochs=1, steps=2)
    model.fit(PICTURES, LABELS, batch_size=4, verbose=0, callbacks=callbacks)
    self.assertLen(callbacks.callbacks, 1)

  @pytest.mark.slow("training")
  def test_compiled_by_xla(self):
    model = _pruned()
    model.compile(keras.optimizers.Adam(0.05, use_ema=True),
                  tiny.cross_entropy(), jit_compile=True)
    self.fit(model, epochs=2)
    self.assertEqual(_shares(model)["conv/kernel:0"], 40 / 54)


  @pytest.mark.slow("devices")
  def test_mirrored(self):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
      model = _pruned()
      model.compile(keras.optimizers.Adam(0.05, use_ema=True),
                    tiny.cross_entropy())
    with self.assertWarnsRegex(UserWarning, LOST):
      self.fit(model)
    self.assertEqual(_shares(model)["conv/kernel:0"], 40 / 54)


class WrittenDownTest(parameterized.TestCase):
  """By tfmot alone, without a callback of ours."""

  def trained(self):
    model = _compiled(_pruned())
    model.fit(PICTURES, LABELS, verbose=0,
              callbacks=[SPARSITY.UpdatePruningStep()])
    model.train_on_batch(PICTURES, LABELS)  # Undoes the zeros.
    # Of 40, hardly any is left.
    self.assertLess(_shares(model)["conv/kernel:0"], 0.5)
    return model

  def test_stripped(self):
    model = self.trained()
    with self.assertWarnsRegex(UserWarning, f"strip: .*{LOST}"):
      stripped = kap.strip(model)
    np.testing.assert_array_equal(stripped(PICTURES), model(PICTURES))
    self.assertEqual(_shares(stripped)["conv/kernel:0"], 40 / 54)
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      kap.strip(model)

  @pytest.mark.slow("files")
  def test_converted(self):
    with self.assertWarnsRegex(UserWarning, f"strip: .*{LOST}"):
      content = kap.export.convert(
          self.trained(), kap.WCAM("act"), mode="float32")
    # 47 of 63 weights; the file holds a few numbers besides.
    self.assertGreater(kap.export.file_sizes(content)["sparsity"], 0.7)

  def test_saved(self):
    model, path = self.trained(), tiny.folder(self) / "net.h5"
    with self.assertWarnsRegex(UserWarning, f"save_model: .*{LOST}"):
      kap.save_model(model, path)
    with SPARSITY.prune_scope():
      loaded = keras.models.load_model(path)
    self.assertEqual([*_shares(loaded).values()], [40 / 54, 7 / 9])

  def test_loaded_from_a_checkpoint_of_keras(self):
    model, path = self.trained(), tiny.folder(self) / "net.h5"
    model.save(path)
    with self.assertWarnsRegex(UserWarning, f"load_model: .*{LOST}"):
      loaded = kap.load_model(path)
    self.assertEqual([*_shares(loaded).values()], [40 / 54, 7 / 9])

  def test_zeros_that_a_file_does_not_tell_of(self):
    path = tiny.folder(self) / "net.h5"
    _apply(_sparse(tiny.smooth_net(1)),
           COMBINE.Default8BitPrunePreserveQuantizeScheme()).save(path)
    with self.assertWarnsRegex(UserWarning, "quant_conv 0.500.*not say"):
      kap.load_model(path)

  def test_two_of_four(self):
    self.check_two_of_four(".keras")

  @parameterized.parameters(".h5", "")
  @pytest.mark.slow("saving")
  def test_two_of_four_in_another_format(self, ending):
    self.check_two_of_four(ending)

  def check_two_of_four(self, ending):
    """Weights grow from the last to the first: others would go."""
    inputs = keras.Input([8])
    model = _compiled(SPARSITY.prune_low_magnitude(
        keras.Model(inputs, keras.layers.Dense(3, name="dense")(inputs)),
        SPARSITY.ConstantSparsity(0.5, 0, frequency=1), sparsity_m_by_n=(2, 4)))
    path = tiny.folder(self) / f"net{ending}"
    kap.save_model(model, path)
    loaded = kap.load_model(path)
    loaded.layers[1].layer.kernel.assign(
        np.arange(1.0, 25.0).reshape(8, 3)[::-1])
    loaded.fit(np.zeros([4, 8]), LABELS[:4], verbose=0,
               callbacks=[SPARSITY.UpdatePruningStep()])
    zeros = loaded.layers[1].layer.kernel.numpy() == 0
    self.assertEqual(zeros[:, 0].tolist(), [False, False, True, True] * 2)

  @parameterized.parameters(".h5", ".keras", "")
  @pytest.mark.slow("saving")
  def test_sparse_clusters(self, ending):
    keras.utils.set_random_seed(0)
    model = _compiled(CLUSTERING.cluster_weights(
        _sparse(tiny.smooth_net(1)), number_of_clusters=4,
        cluster_centroids_init=CLUSTERING.CentroidInitialization.LINEAR,
        preserve_sparsity=True))
    model.fit(PICTURES, LABELS, batch_size=4, verbose=0)
    path = tiny.folder(self) / f"net{ending}"
    kap.save_model(model, path)
    loaded = kap.load_model(path)
    np.testing.assert_array_equal(loaded(PICTURES), model(PICTURES))
    before = _kernels(kap.strip(model))
    loaded.run_eagerly = True
    loaded.fit(PICTURES, LABELS, batch_size=4, verbose=0)
    for name, kernel in _kernels(kap.strip(loaded)).items():
      self.assertLessEqual(len(np.unique(kernel)), 4)
      self.assertTrue((kernel[before[name] == 0] == 0).all())
      self.assertGreaterEqual((kernel == 0).mean(), 4 / 9)  # Half, of 9.


if __name__ == "__main__":
  absltest.main()
