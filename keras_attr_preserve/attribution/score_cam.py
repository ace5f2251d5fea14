"""Score-CAM: channels weighted by the score of what they show."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.batches import class_weights, run_model
from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.images import check_images
from keras_attr_preserve.layers import last_spatial_layer
from keras_attr_preserve.tap import Tap, top_class_seed

__all__ = ["score_cam"]


def score_cam(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int = 64,
) -> np.ndarray:
  """Explains a score by features, each weighted by the score of what it shows.

      M = ReLU(sum_c w_c A_c),   w = softmax_c(score(x * H_c) - score(0))
      H_c = A_c enlarged to the picture, its least value 0 and its largest 1

  No gradient is taken. A channel that is the same everywhere shows nothing: its
  H is 0. One run of each picture for each channel.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes; 0
      is taken for "nothing there".
    targets: as for `grad_cam`.
    layer: a layer's name; None for the last one with a spatial map.
    batch_size: images a batch; one channel of each runs at a time.

  Returns:
    Maps, float32 `[images, layer height, layer width]`, not negative.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Wang et al. 2020, https://arxiv.org/abs/1910.01279, definitions 3 and 4.
  """
  check_keras(model)
  layer = layer or last_spatial_layer(model)
  tap = Tap(model, [layer])
  images = check_images(images, tap.picture_shape)
  weights = () if targets is None else (
      class_weights(targets, len(images), tap.classes),)

  def explain(batch, *seed):
    tapped = tap(batch)
    seed, = seed or (top_class_seed(tapped.logits),)
    features = tf.cast(tapped.features[0], tf.float32)

    def behind(channel):
      mask = tf.image.resize(channel[..., None], tf.shape(batch)[1:3])
      mask -= tf.reduce_min(mask, [1, 2], keepdims=True)
      mask = tf.math.divide_no_nan(
          mask, tf.reduce_max(mask, [1, 2], keepdims=True))
      logits = tf.cast(tap(batch * mask).logits, tf.float32)
      return tf.reduce_sum(seed * logits, -1)

    scores = tf.map_fn(behind, tf.transpose(features, [3, 0, 1, 2]),
                       parallel_iterations=1)
    # score(0) is the same for all channels, and a softmax does not see it.
    shares = tf.nn.softmax(tf.transpose(scores))[:, None, None]
    return (tf.nn.relu(tf.reduce_sum(shares * features, -1)),)

  maps, = run_model(model, ("score_cam", layer), explain, images, *weights,
                      batch_size=batch_size)
  return maps
