"""Every compression of tfmot, with the maps held, down to the int8 file.

docs/compressions.md says what these tests show.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.tflite.schema import (
    operator_name,
    read_model,
    signatures,
)
from tests import export_helpers, tiny

SIZE = 4
COUNT = 32
CLUSTERS = 4
LOGS = {"attr_loss", "attr_agreement", "attr_dead"}

sparsity = tfmot.sparsity.keras
clustering = tfmot.clustering.keras
quantization = tfmot.quantization.keras
combine = tfmot.experimental.combine

Kernels = Sequence[np.ndarray]


def _net(seed: int = 1) -> keras.Model:
  model = tiny.conv_net(tail="block", width=8, size=SIZE, seed=seed)
  for layer in model.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
      layer.momentum = 0.5  # A dozen steps are to move the averages.
  return model


def _sparse() -> keras.Model:
  """A model whose kernels are half zeros."""
  model = _net()
  for layer in model.layers:
    if hasattr(layer, "kernel"):
      kernel = layer.kernel.numpy()
      kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
      layer.kernel.assign(kernel)
  return model


def _cluster(model: keras.Model, **settings) -> keras.Model:
  return clustering.cluster_weights(
      model, CLUSTERS, clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
      **settings)


def _clustered(model: keras.Model, **settings) -> keras.Model:
  return clustering.strip_clustering(_cluster(model, **settings))


def _quantize(model: keras.Model, scheme=None) -> keras.Model:
  annotated = quantization.quantize_annotate_model(model)
  if scheme is None:
    return quantization.quantize_apply(annotated)
  return quantization.quantize_apply(annotated, scheme)


def _cluster_kernels_alone() -> keras.Model:
  """Wraps the layers with a kernel and leaves the others as they are."""
  def wrap(layer):
    if not hasattr(layer, "kernel"):
      return layer
    return clustering.cluster_weights(
        layer, number_of_clusters=CLUSTERS, cluster_centroids_init=(
            clustering.CentroidInitialization.KMEANS_PLUS_PLUS))
  return keras.models.clone_model(_net(), clone_function=wrap)


def _prune_blocks() -> keras.Model:
  """Prunes the head, in blocks of four inputs, and nothing else."""
  def wrap(layer):
    if not isinstance(layer, keras.layers.Dense):
      return layer
    return sparsity.prune_low_magnitude(
        layer, sparsity.ConstantSparsity(0.5, 0, frequency=1),
        block_size=(4, 1))
  return keras.models.clone_model(_net(), clone_function=wrap)


# How each student is made.
WRAP: dict[str, Callable[[], keras.Model]] = {
    "constant": lambda: tiny.prune(_net()),
    "polynomial": lambda: sparsity.prune_low_magnitude(
        _net(), sparsity.PolynomialDecay(0.2, 0.8, 0, 8, frequency=1)),
    "two_of_four": lambda: sparsity.prune_low_magnitude(
        _net(), sparsity.ConstantSparsity(0.5, 0, frequency=1),
        sparsity_m_by_n=(2, 4)),
    "blocks": _prune_blocks,
    "clusters": lambda: _cluster(_net()),
    "clusters_of_kernels_alone": _cluster_kernels_alone,
    "sparse_clusters": lambda: _cluster(_sparse(), preserve_sparsity=True),
    "qat": lambda: _quantize(_net()),
    "pqat": lambda: _quantize(
        _sparse(), combine.Default8BitPrunePreserveQuantizeScheme()),
    "cqat": lambda: _quantize(
        _clustered(_net()), combine.Default8BitClusterPreserveQuantizeScheme()),
    "pcqat": lambda: _quantize(
        _clustered(_sparse(), preserve_sparsity=True),
        combine.Default8BitClusterPreserveQuantizeScheme(
            preserve_sparsity=True)),
}
PRUNED = ("constant", "polynomial", "two_of_four", "blocks")
STRIP = {
    **{name: sparsity.strip_pruning for name in PRUNED},
    **{name: clustering.strip_clustering for name in (
        "clusters", "clusters_of_kernels_alone", "sparse_clusters")},
}


def _callbacks(name: str) -> list[keras.callbacks.Callback]:
  return [sparsity.UpdatePruningStep()] if name in PRUNED else []


# The rest of them differ little from these, and take as long again.
OFTEN = ("constant", "two_of_four", "clusters", "pqat", "pcqat")
HELD_OFTEN = ("constant", "clusters")
FILES_OFTEN = ("pcqat",)


def _but(*names: str) -> tuple[str, ...]:
  return tuple(name for name in WRAP if name not in names)


def _each(*names: str):
  return parameterized.named_parameters(
      *((name, name) for name in names or WRAP))


# The promise of each compression, of kernels as TFLite has them, the outputs
# first and the inputs last. Each raises AssertionError where it was broken.
def _check_sparsity(share: float, kernels: Kernels) -> None:
  for kernel in kernels:
    zeros = (kernel == 0).mean()
    assert zeros >= share - 0.51 / kernel.size, (kernel.shape, zeros)


def _check_two_of_four(kernels: Kernels) -> None:
  wide = [kernel for kernel in kernels if kernel.shape[-1] >= 4]
  assert len(wide) == 2  # Two colours make no block of four.
  for kernel in wide:
    in_block = np.count_nonzero(kernel.reshape(-1, 4), axis=1)
    assert in_block.max() <= 2, (kernel.shape, in_block)


def _check_blocks(kernels: Kernels) -> None:
  head = kernels[-1].reshape(-1, 4)
  assert (head == 0).all(axis=1).sum() == len(head) // 2, head


def _check_clusters(kernels: Kernels) -> None:
  for kernel in kernels:
    # Folding a batch normalization gives each output a scale of its own.
    distinct = [len(np.unique(weights)) for weights in kernel]
    assert 1 < max(distinct) <= CLUSTERS, (kernel.shape, distinct)


def _check_sparse_clusters(kernels: Kernels) -> None:
  _check_sparsity(0.5, kernels)
  _check_clusters(kernels)


CHECK: dict[str, Callable[[Kernels], None]] = {
    "constant": functools.partial(_check_sparsity, 0.5),
    "polynomial": functools.partial(_check_sparsity, 0.8),
    "two_of_four": _check_two_of_four,
    "blocks": _check_blocks,
    "clusters": _check_clusters,
    "clusters_of_kernels_alone": _check_clusters,
    "sparse_clusters": _check_sparse_clusters,
    "qat": lambda kernels: None,
    "pqat": functools.partial(_check_sparsity, 0.5),
    "cqat": _check_clusters,
    "pcqat": _check_sparse_clusters,
}


def _float_kernels(model: keras.Model) -> Kernels:
  """The kernels of a model without wrappers, in TFLite's layout."""
  return [np.moveaxis(layer.kernel.numpy(), -1, 0) for layer in model.layers
          if hasattr(layer, "kernel")]


def _int8_kernels(content: bytes) -> Kernels:
  """The integers of the kernels of a file's `predict`, first layer first."""
  model = read_model(content)
  graph = model.subgraphs[signatures(model)["predict"].subgraph]
  kernels = []
  for operator in graph.operators:
    if operator_name(model, operator) in ("CONV_2D", "FULLY_CONNECTED"):
      tensor = graph.tensors[operator.inputs[1]]
      assert not np.any(tensor.quantization.zeroPoint)  # 0 stands for 0.
      kernels.append(np.frombuffer(
          bytes(model.buffers[tensor.buffer].data), np.int8).reshape(
              tensor.shape))
  assert [kernel.shape for kernel in kernels] == [
      (8, 3, 3, 2), (8, 3, 3, 8), (3, 8)]
  return kernels


class _CompressionTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    keras.utils.set_random_seed(0)
    self.teacher = _net(seed=0)
    self.pictures = tiny.images(COUNT, 5, SIZE)
    self.labels = tiny.labels(COUNT, seed=5)

  def fit(self, student, name="", layer="act2", weight=5.0, epochs=3,
          loss=None, steps=None, graph=False):
    """Fits a student; by default to its labels too, and without a graph.

    To trace a graph takes longer than a dozen steps do.
    """
    student.compile(
        keras.optimizers.Adam(0.02),
        loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=not graph)
    wcam = kap.WCAM(layer, weight=weight)
    return student.fit(
        self.pictures, self.labels, batch_size=8, epochs=epochs,
        steps_per_epoch=steps, verbose=0, callbacks=[
            *_callbacks(name),
            kap.PreserveAttribution(self.teacher, wcam)]).history

  def fit_maps_alone(self, student, name="", **settings):
    """The task's loss has a weight of 0: nothing but the maps trains."""
    return self.fit(student, name, loss=lambda y, scores: (
        0.0 * tf.reduce_sum(scores, -1)), **settings)

  def agreement(self, student) -> float:
    preserve = kap.PreserveAttribution(self.teacher, kap.WCAM("act2"))
    return student.evaluate(
        self.pictures, self.labels, batch_size=8, verbose=0, return_dict=True,
        callbacks=[preserve])["attr_agreement"]

  def convert(self, student, layer="act2") -> bytes:
    return kap.export.convert(
        student, kap.WCAM(layer, weight=4.0), mode="int8",
        representative_images=self.pictures)


class TrainingTest(_CompressionTest):

  @_each(*HELD_OFTEN)
  def test_maps_are_held(self, name):
    self.check_maps_are_held(name, epochs=2)

  @_each(*_but(*HELD_OFTEN))
  @pytest.mark.slow("compressions")
  def test_maps_are_held_by_the_rest(self, name):
    self.check_maps_are_held(name, graph=True)

  def check_maps_are_held(self, name, epochs=6, graph=False):
    agreements = []
    for weight in (0.0, 5.0):
      keras.utils.set_random_seed(0)
      student = WRAP[name]()
      before = self.teacher.get_weights()
      weights = {id(variable): variable.numpy()
                 for variable in student.trainable_variables}
      history = self.fit_maps_alone(
          student, name, weight=weight, epochs=epochs, graph=graph)
      for log in LOGS:
        self.assertTrue(np.isfinite(history[log]).all(), history)
      self.assertTrue(tiny.weights_equal(self.teacher.get_weights(), before))
      self.assertEmpty({"train_step", "test_step"} & set(vars(student)))
      self.assertNoCommonElements(LOGS, student.train_on_batch(
          self.pictures[:8], self.labels[:8], return_dict=True))
      agreements.append(self.agreement(student))
    # Control: the same compression, observed only.
    self.assertGreater(agreements[1], agreements[0] + 0.1)
    self.assertEqual(
        {variable.name for variable in student.trainable_variables
         if np.array_equal(variable.numpy(), weights[id(variable)])},
        {"logits/bias:0"})  # No map depends on it.

  def assertNoCommonElements(self, one, other):  # noqa: N802
    self.assertEmpty(set(one) & set(other))

  @_each(*OFTEN)
  def test_the_tail_learns_through_the_sensitivity_alone(self, name):
    self.check_that_the_tail_learns(name, steps=2)

  @_each("pcqat", *_but(*OFTEN))
  @pytest.mark.slow("compressions")
  def test_the_tail_learns_in_a_graph_and_that_of_the_rest(self, name):
    self.check_that_the_tail_learns(name, graph=True)

  def check_that_the_tail_learns(self, name, **settings):
    """A gradient of a gradient, through centroids and quantizers too."""
    student = WRAP[name]()
    tail = [weight for weight in student.trainable_variables
            if any(word in weight.name for word in ("conv2", "bn2", "logits"))
            and "bias" not in weight.name and "beta" not in weight.name]
    before = [weight.numpy() for weight in tail]
    self.assertGreaterEqual(len(tail), 3)
    if name in PRUNED:  # So that the masks are applied before.
      self.fit_maps_alone(
          student, name, layer="act", weight=0.0, epochs=1, **settings)
      before = [weight.numpy() for weight in tail]
    self.fit_maps_alone(student, name, layer="act", epochs=1, **settings)
    for weight, old in zip(tail, before):
      alive = old != 0
      # Without a gradient nothing moves; Adam's first step is about .02.
      self.assertGreater(
          np.abs(weight.numpy() - old)[alive].max(), 1e-5, weight.name)


class FileTest(_CompressionTest):

  @_each(*FILES_OFTEN)
  def test_what_was_promised_is_in_the_int8_file(self, name):
    self.check_what_was_promised(name, epochs=1)

  @_each(*_but(*FILES_OFTEN))
  @pytest.mark.slow("compressions")
  def test_what_was_promised_by_the_rest_is_in_the_int8_file(self, name):
    self.check_what_was_promised(name)

  def check_what_was_promised(self, name, epochs=3):
    student = WRAP[name]()
    self.fit(student, name, epochs=epochs)
    want = student(self.pictures).numpy()
    content = self.convert(student)
    kernels = _int8_kernels(content)
    CHECK[name](kernels)
    # Converting leaves the student as it came.
    np.testing.assert_array_equal(student(self.pictures), want)
    if name in STRIP:
      stripped = STRIP[name](student)
      np.testing.assert_array_equal(stripped(self.pictures), want)
      floats = _float_kernels(stripped)
      CHECK[name](floats)
      for kernel, other in zip(floats, kernels):
        if "clusters" in name:  # In a whole kernel: nothing is folded yet.
          self.assertBetween(len(np.unique(kernel)), 2, CLUSTERS)
        self.assertTrue((other[kernel == 0] == 0).all())
    got = kap.export.Interpreter(content).predict(self.pictures)
    # Steps of 8 bits in every layer.
    self.assertLess(tiny.relative_error(got, want), 0.1)
    maps, _ = kap.export.Interpreter(content).explain(self.pictures)
    floats = kap.attribution.grad_cam(student, self.pictures, layer="act2")
    alive = floats.max(axis=(1, 2)) > 0
    # Most maps are alive, or the median below says nothing.
    self.assertGreater(alive.mean(), 0.5)
    # Steps of 8 bits in features and weights. Faint maps are few steps high, so
    # the median passes over them.
    self.assertGreater(np.median(export_helpers.cosines(
        maps[alive], floats[alive])), 0.98)

  @_each("pqat", "cqat", "pcqat")
  @pytest.mark.slow("compressions")
  def test_plain_quantization_would_lose_it(self, name):
    build = {"pqat": _sparse, "cqat": lambda: _clustered(_net()),
             "pcqat": lambda: _clustered(
                 _sparse(), preserve_sparsity=True)}[name]
    CHECK[name](_float_kernels(build()))
    student = _quantize(build())
    self.fit(student)
    with self.assertRaises(AssertionError):
      CHECK[name](_int8_kernels(self.convert(student)))

  def test_with_a_backward_pass_in_the_file(self):
    self.check_with_a_backward_pass("pcqat", epochs=1, graph=True)

  @_each("two_of_four", "sparse_clusters")
  @pytest.mark.slow("compressions")
  def test_of_others_with_a_backward_pass_in_the_file(self, name):
    self.check_with_a_backward_pass(name)

  def check_with_a_backward_pass(self, name, **settings):
    student = WRAP[name]()
    self.fit(student, name, layer="act", **settings)
    content = self.convert(student, layer="act")
    self.assertLen(read_model(content).subgraphs, 2)
    CHECK[name](_int8_kernels(content))

  def test_the_checks_see_an_untouched_net(self):
    kernels = _int8_kernels(self.convert(_net()))
    for name, check in CHECK.items():
      if name != "qat":
        with self.assertRaises(AssertionError, msg=name):
          check(kernels)

  @pytest.mark.slow("compressions")
  def test_one_after_another(self):
    """The chain of docs/compressions.md."""
    # Control: the same chain, observed only. Measured: .2 and more between.
    for held, observed in zip(self.chain(5.0), self.chain(0.0), strict=True):
      self.assertGreater(held, observed + 0.1)

  def chain(self, weight):
    """Returns the agreement after each compression."""
    keras.utils.set_random_seed(0)
    agreements = []

    def fit(student, name=""):
      self.fit(student, name, weight=weight)
      agreements.append(self.agreement(student))

    student = sparsity.prune_low_magnitude(
        kap.clone_model(self.teacher),
        sparsity.PolynomialDecay(0, 0.5, 0, 8, frequency=1))
    fit(student, "polynomial")
    student = clustering.cluster_weights(
        sparsity.strip_pruning(student), number_of_clusters=CLUSTERS,
        cluster_centroids_init=(
            clustering.CentroidInitialization.KMEANS_PLUS_PLUS),
        preserve_sparsity=True)
    fit(student)
    student = quantization.quantize_apply(
        quantization.quantize_annotate_model(
            clustering.strip_clustering(student)),
        combine.Default8BitClusterPreserveQuantizeScheme(
            preserve_sparsity=True))
    fit(student)
    _check_sparse_clusters(_int8_kernels(self.convert(student)))
    return agreements


@pytest.mark.slow("compressions")
class SavingTest(_CompressionTest):

  def saved(self, student, kind):
    path = str(tiny.folder(self) / {
        "h5": "net.h5", "keras": "net.keras", "tf": "net"}[kind])
    student.save(path, save_format=kind)
    return path

  @parameterized.parameters(
      ("constant", "h5", sparsity.prune_scope),
      ("constant", "keras", sparsity.prune_scope),
      ("blocks", "h5", sparsity.prune_scope),
      ("clusters", "h5", clustering.cluster_scope),
      ("clusters", "keras", clustering.cluster_scope),
      ("qat", "h5", quantization.quantize_scope))
  def test_loaded_within_a_scope(self, name, kind, scope):
    student = WRAP[name]()
    self.fit(student, name)
    path = self.saved(student, kind)
    with scope():
      loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(
        loaded(self.pictures), student(self.pictures))
    self.fit(loaded, name, epochs=1)  # It trains on.
    CHECK[name](_int8_kernels(self.convert(loaded)))

  @_each("pqat", "cqat", "pcqat")
  def test_saved_model(self, name):
    student = WRAP[name]()
    self.fit(student, graph=True)
    loaded = keras.models.load_model(self.saved(student, "tf"))
    np.testing.assert_array_equal(
        loaded(self.pictures), student(self.pictures))
    CHECK[name](_int8_kernels(self.convert(loaded)))

  @_each("cqat", "pcqat")
  def test_h5_of_these_does_not_load(self, name):
    """Trap: the centroids are made from the weights, which come later."""
    path = self.saved(WRAP[name](), "h5")
    with quantization.quantize_scope(), self.assertRaisesRegex(
        ValueError, "mismatch"):
      keras.models.load_model(path)

  @_each("constant", "two_of_four", "clusters", "sparse_clusters")
  def test_stripped_ones_need_no_scope(self, name):
    student = WRAP[name]()
    self.fit(student, name)
    path = self.saved(STRIP[name](student), "h5")
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(
        loaded(self.pictures), student(self.pictures))
    CHECK[name](_int8_kernels(self.convert(loaded)))


@pytest.mark.slow("compressions")
class TrapsTest(_CompressionTest):
  """Of tfmot 0.8.1; docs/compressions.md warns of them."""

  def test_sparse_clusters_do_not_load_as_they_were(self):
    """Their masks are no weights: those of new weights take their place."""
    student = WRAP["sparse_clusters"]()
    self.fit(student)
    path = str(tiny.folder(self) / "net.h5")
    student.save(path)
    with clustering.cluster_scope():
      loaded = keras.models.load_model(path)
    # Far above rounding: one that loads as it was gives the same to the bit.
    self.assertGreater(tiny.relative_error(
        loaded(self.pictures), student(self.pictures)), 0.05)

  def test_pqat_loaded_in_a_scope_forgets_its_zeros(self):
    """It loads and predicts right, but masks come of new weights here too."""
    student = WRAP["pqat"]()
    self.fit(student, epochs=1)
    path = str(tiny.folder(self) / "net.h5")
    student.save(path)
    with quantization.quantize_scope():
      loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(
        loaded(self.pictures), student(self.pictures))
    CHECK["pqat"](_int8_kernels(self.convert(loaded)))
    self.fit(loaded, epochs=1)
    with self.assertRaises(AssertionError):
      CHECK["pqat"](_int8_kernels(self.convert(loaded)))

  def test_two_of_four_is_forgotten(self):
    student = WRAP["two_of_four"]()
    path = str(tiny.folder(self) / "net.h5")
    student.save(path)
    with sparsity.prune_scope():
      loaded = keras.models.load_model(path)
    for model, want in ((student, (2, 4)), (loaded, None)):
      for layer in model.layers[1:]:
        self.assertEqual(layer.sparsity_m_by_n, want)

  @parameterized.parameters("clusters", "clusters_of_kernels_alone")
  def test_clustered_batch_normalization_does_not_train(self, name):
    """The wrapper does not hand `training` on to its layer."""
    student = WRAP[name]()
    self.fit(student)
    means = [mean.numpy() for mean in student.variables
             if "moving_mean" in mean.name]
    olds = [mean.numpy() for mean in _net().variables
            if "moving_mean" in mean.name]
    self.assertLen(means, 2)
    for mean, old in zip(means, olds):
      self.assertEqual(np.array_equal(mean, old), name == "clusters")

  def test_a_sparse_net_pruned_less_wakes(self):
    """The threshold is 0, which every weight reaches."""
    student = sparsity.prune_low_magnitude(
        _sparse(), sparsity.ConstantSparsity(0.2, 0, frequency=1))
    self.fit(student, "constant")
    kernels = _float_kernels(sparsity.strip_pruning(student))
    # Below the half that was zero: a fifth is asked for, and the rest wakes.
    self.assertLess(max((kernel == 0).mean() for kernel in kernels), 0.45)


if __name__ == "__main__":
  absltest.main()
