"""Tests of match_metrics.py: from which share of dead maps on a fit warns."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve import WCAM
from keras_attr_preserve.training.match_metrics import MatchMeter
from keras_attr_preserve.training.wcam import Match

COUNT = 8


def _match(dead, valid=None, explained=None):
  """A batch of one map an image at each layer, `[images, layers]`."""
  dead = tf.constant(dead, tf.float32)
  ones = tf.ones_like(dead)
  return Match(
      distance=dead, agreement=1 - dead, dead=dead,
      valid=ones if valid is None else tf.constant(valid, tf.float32),
      explained=ones if explained is None else tf.constant(
          explained, tf.float32))


def _column(count):
  """`[COUNT, 1]`: 1 for so many images, then 0."""
  return np.float32(np.arange(COUNT) < count)[:, None]


class WarningsTest(parameterized.TestCase):

  def warnings(self, layers, *matches):
    meter = MatchMeter(WCAM(layers))
    for match in matches:
      meter.update(match, tf.constant(0.0))
    return meter.warnings()

  def test_half_of_the_maps_dead(self):
    (about, sentence), = self.warnings("act", _match(_column(COUNT // 2)))
    self.assertEqual(about, "student act")
    self.assertStartsWith(
        sentence, "50% of the student's maps at layer 'act' are all zero")

  def test_hardly_less_than_half_of_them(self):
    # The next float32, of one image: its mean is not rounded.
    below = np.nextafter(np.float32(0.5), np.float32(0))
    self.assertEmpty(self.warnings("act", _match([[below]])))
    self.assertLen(self.warnings("act", _match([[0.5]])), 1)
    self.assertEmpty(self.warnings("act", _match(_column(COUNT // 2 - 1))))

  def test_of_all_batches_together(self):
    alive, dead = _match(_column(0)), _match(_column(COUNT))
    self.assertLen(self.warnings("act", alive, dead), 1)
    self.assertEmpty(self.warnings("act", alive, dead, alive))

  def test_where_the_teachers_maps_are_alive(self):
    """A map counts no more than the teacher's is alive."""
    dead = _column(2)
    self.assertLen(self.warnings("act", _match(dead, _column(4))), 1)
    self.assertEmpty(self.warnings("act", _match(dead, _column(5))))

  def test_of_each_layer_by_itself(self):
    dead = np.concatenate([_column(4), _column(3)], axis=1)
    (about, _), = self.warnings(["act", "act2"], _match(dead))
    self.assertEqual(about, "student act")

  @parameterized.parameters((0, True), (1, False))
  def test_a_teacher_whose_maps_are_all_dead(self, alive, warns):
    warnings = self.warnings("act", _match(_column(0), _column(alive)))
    self.assertEqual(
        [about for about, _ in warnings], ["teacher act"] if warns else [])

  def test_nothing_to_speak_of(self):
    """No image has an explained class, or there is no image at all."""
    zeros = np.zeros((COUNT, 1))
    self.assertEmpty(self.warnings("act", _match(zeros, zeros, zeros)))
    self.assertEmpty(self.warnings("act"))


if __name__ == "__main__":
  absltest.main()
