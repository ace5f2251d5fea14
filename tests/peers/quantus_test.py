"""Quantus 0.6.0 scores the same maps.

It asks a model through our wrapper. Its own wrapper takes models of tf.keras,
but builds new models from them by Keras 3.
"""

import importlib.util
import warnings
from unittest import mock

import keras as keras3
import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution, evaluation
from keras_attr_preserve.evaluation.imputation import impute
from tests import tiny
from tests.peers.installed import need

need("quantus", "0.6.0", tf_keras=True)

if importlib.util.find_spec("zennit"):
  # Quantus imports it, which alone wants torchvision.
  from tests.peers import zennit_peer  # noqa: F401

import quantus  # noqa: E402
from quantus.functions.perturb_func import (  # noqa: E402
  noisy_linear_imputation,
)
from quantus.helpers.model import model_interface, tf_model  # noqa: E402

# Float64 sums in another order, of float32 maps.
CLOSE = dict(rtol=1e-6, atol=1e-9)
AS_IT_IS = dict(abs=False, normalise=False, disable_warnings=True)


class _Wrapper(model_interface.ModelInterface):
  """Asks a tf_keras model for logits; images come with channels first."""

  def __init__(self, net, models=()):
    super().__init__(net, channel_first=False, softmax=False)
    self._models = models

  def predict(self, x, **kwargs):
    return self.model(np.float32(x)).numpy()

  def shape_input(self, x, shape, channel_first=None, batched=False):
    return np.moveaxis(np.reshape(x, shape), 1, -1)

  def get_model(self):
    return self.model

  def get_random_layer_generator(self, order="top_down", seed=42):
    return iter(self._models)

  @property
  def random_layer_generator_length(self):
    return len(self._models)

  def _none(self, *args, **kwargs):
    raise NotImplementedError

  get_softmax_arg_model = state_dict = load_state_dict = _none
  add_mean_shift_to_first_layer = get_hidden_representations = _none


def _ask(metric, *, net, pictures, maps, classes, **settings):
  with mock.patch.object(
      quantus.helpers.utils, "get_wrapped_model",
      lambda model, **_: _Wrapper(model)), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return metric(
        model=net, x_batch=pictures, y_batch=np.asarray(classes), a_batch=maps,
        channel_first=False, **settings)


def _judge(metric, maps, masks):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return np.float64(metric(
        model=None, x_batch=np.zeros([*maps.shape, 1]),
        y_batch=np.zeros(len(maps), int), a_batch=maps,
        s_batch=masks[:, None], channel_first=False))


def _grey_net(seed=0):
  layers = keras.layers
  return tiny.shake(keras.Sequential([
      keras.Input((6, 6, 1)), layers.Conv2D(4, 3, activation="relu"),
      layers.Flatten(), layers.Dense(3)]), seed)


def _grey(count=4, seed=0):
  pictures = tiny.images(count, seed)[..., :1]
  return pictures, tiny.images(count, seed + 50)[..., 0], np.arange(count) % 3


class FaithfulnessTest(parameterized.TestCase):

  @parameterized.parameters(1, 4, 9)
  def test_pixel_flipping(self, pixels):
    """Deletion; its curve has no point before the first pixel."""
    model = _grey_net()
    pictures, maps, classes = _grey()
    want = _ask(quantus.PixelFlipping(
        features_in_step=pixels, perturb_baseline=0.3, **AS_IT_IS),
        net=model, pictures=pictures, maps=maps, classes=classes)
    got = evaluation.deletion(
        model, pictures, maps, classes, steps=36 // pixels, baseline=0.3)
    # Float32 logits of batches of another size.
    np.testing.assert_allclose(
        got.scores[:, 1:], want, rtol=1e-4, atol=1e-5)

  def test_pixel_flipping_in_colour(self):
    """It flips one channel of a pixel at a time; we flip all at once.

    Both channels of a pixel have one value in the map. So an even number of its
    "features" is whole pixels.
    """
    model = tiny.conv_net(tail="flatten")
    pictures, (_, maps, classes) = tiny.images(4), _grey()
    want = _ask(quantus.PixelFlipping(
        features_in_step=4, perturb_baseline=0.0, **AS_IT_IS),
        net=model, pictures=pictures, maps=maps, classes=classes)
    got = evaluation.deletion(model, pictures, maps, classes, steps=18)
    # Float32 logits of batches of another size.
    np.testing.assert_allclose(
        got.scores[:, 1:], want, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(0.1, 0.4, 0.9)
  def test_imputation(self, share):
    """Its noise is absolute, and is left out here."""
    for seed in range(5):
      image = np.float64(tiny.images(1, seed, size=9)[0])
      rng = np.random.default_rng(seed)
      missing = rng.permutation(81)[:round(share * 81)]
      want = noisy_linear_imputation(
          np.moveaxis(image, -1, 0), missing, noise=0.0)
      gone = np.zeros(81, bool)
      gone[missing] = True
      # Far below the 1e-8 beneath: the system's condition adds to a residual.
      got = impute(image, gone.reshape(9, 9), tolerance=1e-12)
      # Two float64 solvers of one system, a direct one and an iterative one.
      np.testing.assert_allclose(
          got, np.moveaxis(want, 0, -1), rtol=1e-8, atol=1e-8)
      # By default the iteration stops where the residual is 1e-4.
      np.testing.assert_allclose(
          impute(image, gone.reshape(9, 9)), got, atol=5e-4)

  def test_road(self):
    """Its score is the share of images whose class stays."""
    model = _grey_net()
    pictures, maps, _ = _grey(count=12)
    classes = model(pictures).numpy().argmax(1)
    want = _ask(quantus.ROAD(
        percentages=[25, 50, 75], noise=0.0, **AS_IT_IS),
        net=model, pictures=pictures, maps=maps, classes=classes)
    got = evaluation.road(
        lambda batch: np.eye(3)[model(batch).numpy().argmax(1)],
        pictures, maps, classes, steps=4, noise=0.0)
    np.testing.assert_allclose(
        got.scores[:, 1:-1].mean(0), list(want.values()), **CLOSE)
    self.assertLess(min(want.values()), 1)

  def test_road_in_colour(self):
    """It numbers pixels by all the channels' values and leaves the image."""
    model = tiny.conv_net(tail="flatten")
    pictures, (_, maps, classes) = tiny.images(4), _grey()
    with self.assertRaises(IndexError):
      _ask(quantus.ROAD(percentages=[50], noise=0.0, **AS_IT_IS),
           net=model, pictures=pictures, maps=maps, classes=classes)
    curves = evaluation.road(model, pictures, maps, classes, steps=2, noise=0.0)
    for i, attribution_map in enumerate(maps):
      left = impute(pictures[i], attribution_map > np.median(attribution_map))
      # Float32 logits of an image alone and in a batch.
      self.assertAlmostEqual(
          curves.scores[i, 1],
          float(model(np.float32(left[None]))[0, classes[i]]), places=4)

  @parameterized.parameters(0.1, 0.5)
  def test_faithfulness_correlation(self, share):
    """Sensitivity-n of one n, over our random sets.

    Its own SensitivityN takes another correlation: over images, of the score
    without all pixels so far with the map's value of the last ones alone.
    """
    model = _grey_net()
    pictures, maps, classes = _grey()
    draws, count = 20, round(share * 36)
    got = evaluation.sensitivity_n(
        model, pictures, maps, classes, shares=[share], draws=draws)
    for i in range(len(pictures)):
      rng = np.random.default_rng(0)
      with mock.patch.object(np.random, "choice", rng.choice):
        want, = _ask(quantus.FaithfulnessCorrelation(
            nr_runs=draws, subset_size=count, perturb_baseline=0.0,
            return_aggregate=False, **AS_IT_IS),
            net=model, pictures=pictures[[i]], maps=maps[[i]],
            classes=classes[[i]])
      # Scores are float32.
      self.assertAlmostEqual(got[i, 0], want, delta=1e-5)

  def test_sensitivity_n_of_a_linear_net(self):
    """Gradient x input has all of it; by the peer's measure it has not."""
    model = keras.Sequential([
        keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    tiny.shake(model)
    pictures, _, classes = _grey(count=8)
    maps = attribution.gradient_x_input(model, pictures, classes)
    # A fall is the difference of two float32 logits, and loses digits.
    np.testing.assert_allclose(
        evaluation.sensitivity_n(model, pictures, maps, classes), 1, atol=1e-4)
    want = _ask(quantus.SensitivityN(
        perturb_baseline=0.0, return_aggregate=False, **AS_IT_IS),
        net=model, pictures=pictures, maps=maps, classes=classes)
    # Were it the same measure, it would be 1.
    self.assertLess(np.mean(want), 0.9)


class LocalizationTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.maps = np.float32(rng.integers(0, 6, (12, 7, 7)))  # Many ties.
    self.masks = rng.random((12, 7, 7)) < 0.3
    self.found = evaluation.localization(self.maps, self.masks)

  def test_auc(self):
    np.testing.assert_allclose(
        self.found["roc_auc"],
        _judge(quantus.AUC(**AS_IT_IS), self.maps, self.masks), **CLOSE)

  def test_relevance_mass(self):
    np.testing.assert_allclose(
        self.found["energy_inside"], _judge(
            quantus.RelevanceMassAccuracy(**AS_IT_IS), self.maps, self.masks),
        **CLOSE)

  def test_relevance_mass_of_a_dead_map(self):
    """It divides zero by zero; we say that no energy is inside."""
    self.maps[2] = 0  # Of dead maps alone it would refuse the whole batch.
    want = _judge(
        quantus.RelevanceMassAccuracy(**AS_IT_IS), self.maps, self.masks)
    self.assertEqual(list(np.flatnonzero(np.isnan(want))), [2])
    energies = evaluation.localization(self.maps, self.masks)["energy_inside"]
    self.assertEqual(energies[2], 0)
    np.testing.assert_allclose(
        np.delete(energies, 2), np.delete(want, 2), **CLOSE)

  def test_pointing_game(self):
    """Of tied peaks it takes the best; we take the share that hits."""
    best = _judge(quantus.PointingGame(**AS_IT_IS), self.maps, self.masks)
    np.testing.assert_array_equal(self.found["pointing"] > 0, best)
    self.assertTrue((self.found["pointing"] < best).any())
    self.maps[2] = 0  # A full score for pointing nowhere.
    self.assertEqual(_judge(
        quantus.PointingGame(**AS_IT_IS), self.maps, self.masks)[2], 1)
    maps = self.maps + tiny.images(12, size=7)[..., 0] / 50  # No ties.
    maps -= maps.min()
    np.testing.assert_array_equal(
        evaluation.localization(maps, self.masks)["pointing"],
        _judge(quantus.PointingGame(**AS_IT_IS), maps, self.masks))

  @parameterized.parameters(0.1, 0.3)
  def test_top_k(self, share):
    """Its overlap h with a mask of k positions is h / (2 - h) as an IoU."""
    first, second = (tiny.images(12, seed, size=7)[..., 0] for seed in (1, 2))
    count = round(share * 49)
    strongest = np.argsort(-second.reshape(12, -1))[:, :count]
    mask = np.zeros([12, 49], bool)
    np.put_along_axis(mask, strongest, True, axis=1)
    hit = _judge(quantus.TopKIntersection(k=count, **AS_IT_IS), first,
                 mask.reshape(12, 7, 7))
    np.testing.assert_allclose(
        evaluation.agreement(first, second, top_share=share)["top_k_iou"],
        hit / (2 - hit), **CLOSE)


class AgreementTest(absltest.TestCase):

  def test_correlations(self):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, (2, 8, 5, 5)).astype(float)
    got = evaluation.agreement(
        first, second, scores=("spearman", "pearson", "kendall", "cosine"))
    flat = first.reshape(8, -1), second.reshape(8, -1)
    for name, function in (
        ("spearman", quantus.similarity_func.correlation_spearman),
        ("pearson", quantus.similarity_func.correlation_pearson),
        ("kendall", quantus.similarity_func.correlation_kendall_tau)):
      np.testing.assert_allclose(
          got[name], function(*flat, batched=True), **CLOSE)
    np.testing.assert_allclose(  # Its "cosine" is a distance.
        got["cosine"],
        [1 - quantus.similarity_func.cosine(*pair) for pair in zip(*flat)],
        **CLOSE)


class SanityTest(absltest.TestCase):

  def test_parameter_randomization(self):
    """MPRT, of the models that our function makes on its way."""
    conv_model = tiny.conv_net(tail="block")
    pictures, classes = tiny.images(4), np.array([0, 1, 2, 0])
    drawn = []

    def explain(model, batch):
      copy = tiny.copy_of(model)
      drawn.append(copy)
      return attribution.gradient_x_input(model, batch, classes)

    got = evaluation.cascading_randomization(conv_model, pictures, explain)
    names = list(got)
    # First of all the model itself; then its copy as it is, "none".
    models = list(zip(names[1:], drawn[2:]))
    metric = quantus.MPRT(normalise=False, disable_warnings=True)

    def again(model, inputs, targets):
      # The model itself gets images as they are, the others channels first.
      if inputs.shape[1] == 2:
        inputs = np.moveaxis(inputs, 1, -1)
      return attribution.gradient_x_input(model, inputs, targets)

    with mock.patch.object(
        quantus.helpers.utils, "get_wrapped_model",
        lambda model, **_: _Wrapper(model, models)):
      want = metric(
          model=conv_model, x_batch=pictures, y_batch=classes,
          channel_first=False, explain_func=again)
    self.assertEqual(list(want), ["original", *names[1:]])
    for name, values in want.items():
      # Float64 correlations of ranks, which are whole numbers.
      np.testing.assert_allclose(
          got["none" if name == "original" else name], values, atol=1e-6)

  def test_its_own_nets_are_random_from_the_start(self):
    """It clones a model without its weights: all layers are new at once."""
    inputs = keras3.Input((6, 6, 2))
    x = keras3.layers.Conv2D(3, 3, name="conv")(inputs)
    x = keras3.layers.Flatten()(x)
    keras3_model = keras3.Model(
        inputs, keras3.layers.Dense(3, name="logits")(x))
    wrapper = tf_model.TensorFlowModel(keras3_model)
    name, randomized = next(wrapper.get_random_layer_generator())
    self.assertEqual(name, "logits")
    self.assertFalse(np.allclose(
        keras3_model.get_layer("conv").kernel,
        randomized.get_layer("conv").kernel))
    twin = tiny.conv_net()
    steps = []
    evaluation.cascading_randomization(
        twin, tiny.images(2), lambda model, batch: (
            steps.append(model.get_weights()),
            attribution.saliency(model, batch, 0))[1])
    # The last layer's weights come last; all weights before are unchanged.
    self.assertTrue(tiny.weights_equal(
        steps[2][:-2], twin.get_weights()[:-2]))
    self.assertFalse(tiny.weights_equal(steps[2][-2:], steps[0][-2:]))


if __name__ == "__main__":
  absltest.main()
