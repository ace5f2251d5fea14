"""Score-CAM: channels weighted by the score of the image that they mask."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import (
  last_layer,
  score_weights,
)
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.models.running import full_batch, graph_of, run_batches
from keras_attr_preserve.utils.progress import Progress, reporter

__all__ = ["score_cam"]


def score_cam(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int | None = None,
    progress: Progress = None,
) -> np.ndarray:
  """Explains a score by features, weighted by the scores of masked images.

      M = ReLU(sum_c w_c A_c),   w = softmax_c(score(x * H_c) - score(0))
      H_c = A_c enlarged to the image, then scaled to 0..1

  The method takes no gradient. A channel with one value everywhere has H = 0.
  Each image runs once for each channel.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes; 0
      is taken for "nothing there".
    targets: as for `grad_cam`.
    layer: a layer's name; None for the last layer with a spatial map.
    batch_size: masked images that run at once, which bounds memory; if there
      are fewer images, several channels of each. None for 64, or more for
      images under 96x96.
    progress: as for `integrated_gradients`.

  Returns:
    Maps, float32 `[images, layer height, layer width]`, not negative.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Wang et al. 2020, https://arxiv.org/abs/1910.01279, definitions 3 and 4.
  """
  layer = layer or last_layer(model)
  tap = KnownTap(model, [layer])
  tap.input.maps_places()
  images = tap.images(images)
  batch_size = full_batch(batch_size, images)
  weights = score_weights(model, tap, images, targets, batch_size)

  def look(pictures):
    return tf.cast(tap(pictures).features[0], tf.float32)

  def behind(pictures, seed, features, channels):
    masks = tf.image.resize(tf.gather(features, channels, axis=-1),
                            tf.shape(pictures)[1:3])
    masks -= tf.reduce_min(masks, [1, 2], keepdims=True)
    masks = tf.math.divide_no_nan(
        masks, tf.reduce_max(masks, [1, 2], keepdims=True))
    shown = pictures * tf.transpose(masks, [3, 0, 1, 2])[..., None]
    logits = tap(tf.reshape(shown, [-1, *pictures.shape[1:]])).logits
    logits = tf.reshape(tf.cast(logits, tf.float32),
                        [-1, *tf.unstack(tf.shape(seed))])
    return tf.transpose(tf.reduce_sum(seed * logits, -1))

  count, done = tap.shapes[0][-1], 0
  report = reporter(progress, "score_cam", count * len(images))

  def explain(pictures, seed):
    nonlocal done
    features = graph_of(
        model, ("score_cam", layer, "features"), look, images)(pictures)
    scores = []
    graph = graph_of(model, ("score_cam", layer), behind, images, weights,
                     features, np.zeros(1, np.int32))
    at_once = max(1, batch_size // len(pictures))
    for start in range(0, count, at_once):
      channels = tf.range(start, min(start + at_once, count))
      scores.append(graph(pictures, seed, features, channels))
      done += len(channels) * len(pictures)
      report(done)
    # A softmax ignores score(0), which is the same for all channels.
    shares = tf.nn.softmax(tf.concat(scores, 1))[:, None, None]
    return (tf.nn.relu(tf.reduce_sum(shares * features, -1)),)

  maps, = run_batches(explain, images, weights, batch_size=batch_size)
  return maps
