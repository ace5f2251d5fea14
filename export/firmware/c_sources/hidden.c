#define KAPNET_HIDDEN @hidden@
/* The hidden layer sees KAPNET_ROWS x KAPNET_COLUMNS cells, each a window of
 * the features, pooled. */
#define KAPNET_ROWS @rows@
#define KAPNET_COLUMNS @columns@
#define KAPNET_CELLS (KAPNET_ROWS * KAPNET_COLUMNS)
#define KAPNET_POOL_IS_MAX @pool_is_max@
#define KAPNET_POOL_COUNT @pool_count@
@tables@
KAPNET_ASSERT(products, (int64_t)255 * 128 * KAPNET_POOL_COUNT <= INT32_MAX);
KAPNET_ASSERT(cells, (int64_t)128 * KAPNET_CELLS <= INT32_MAX);
KAPNET_ASSERT(units, (int64_t)255 * 128 * KAPNET_POOL_COUNT <=
                         INT64_MAX / 2 / KAPNET_CELLS / KAPNET_CHANNELS);
KAPNET_ASSERT(classes, ((int64_t)1 << KAPNET_CLASS_SCALE_BITS) <=
                           INT64_MAX / 128 / 128 / KAPNET_LOGITS);
KAPNET_ASSERT(channels, ((int64_t)1 << (15 + KAPNET_UNIT_SCALE_BITS)) <=
                            INT64_MAX / 128 / KAPNET_CELLS / KAPNET_HIDDEN);

/* One window of one channel: its largest number or, times KAPNET_POOL_COUNT,
 * its mean, each less the zero point. */
static int32_t pooled(const int8_t *features, int row, int column,
                      size_t channel) {
  int top = @start_row@ + row * @stride_row@;
  int left = @start_column@ + column * @stride_column@;
  int bottom = top + @window_height@;
  int right = left + @window_width@;
  int32_t value = KAPNET_POOL_IS_MAX ? -128 - KAPNET_FEATURES_ZERO_POINT : 0;
  int y, x;
  if (bottom > KAPNET_MAP_HEIGHT) bottom = KAPNET_MAP_HEIGHT;
  if (right > KAPNET_MAP_WIDTH) right = KAPNET_MAP_WIDTH;
  for (y = top > 0 ? top : 0; y < bottom; ++y) {
    for (x = left > 0 ? left : 0; x < right; ++x) {
      int32_t one = features[(size_t)(y * KAPNET_MAP_WIDTH + x) *
                                 KAPNET_CHANNELS + channel] -
                    KAPNET_FEATURES_ZERO_POINT;
      if (!KAPNET_POOL_IS_MAX) value += one;
      else if (one > value) value = one;
    }
  }
  return value;
}

/* What the hidden units get, before their ReLU, each in a scale of its own. */
static void run_hidden(const int8_t *features, int64_t *units) {
  const int8_t *weight = hidden_kernel;
  int row, column;
  size_t c, j;
  for (j = 0; j < KAPNET_HIDDEN; ++j) units[j] = hidden_bias[j];
  for (row = 0; row < KAPNET_ROWS; ++row) {
    for (column = 0; column < KAPNET_COLUMNS; ++column) {
      for (c = 0; c < KAPNET_CHANNELS; ++c, ++weight) {
        int32_t value = pooled(features, row, column, c);
        for (j = 0; j < KAPNET_HIDDEN; ++j) {
          units[j] += value * weight[j * (KAPNET_CELLS * KAPNET_CHANNELS)];
        }
      }
    }
  }
}

/* Turns what the units get into how the score reacts to it. */
static unsigned differentiate(const int8_t *class_weights, size_t first,
                              size_t last, int64_t *units) {
  uint64_t largest = 0;
  unsigned shift;
  size_t j, k;
  for (j = 0; j < KAPNET_HIDDEN; ++j) {
    int is_on = units[j] > 0 && UNIT_IS_BELOW_CEILING(units[j], j);
    units[j] = 0;
    for (k = first; is_on && k < last; ++k) {
      units[j] += (int64_t)class_weights[k - first] * class_scales[k] *
                  class_kernel[k * KAPNET_HIDDEN + j];
    }
    if (magnitude(units[j]) > largest) largest = magnitude(units[j]);
  }
  shift = shift_to(largest, INT16_MAX);
  for (j = 0; j < KAPNET_HIDDEN; ++j) {
    units[j] = (int64_t)scaled_down(units[j], shift) * unit_scales[j];
  }
  return shift;
}

/* The sensitivity of one channel, summed over the cells. */
static int64_t channel_sum(const int64_t *units, size_t channel) {
  int64_t sum = 0;
  size_t cell, j;
  for (j = 0; j < KAPNET_HIDDEN; ++j) {
    const int8_t *weight =
        hidden_kernel + j * (KAPNET_CELLS * KAPNET_CHANNELS) + channel;
    int32_t cells = 0;
    if (units[j] == 0) continue;
    for (cell = 0; cell < KAPNET_CELLS; ++cell) {
      cells += weight[cell * KAPNET_CHANNELS];
    }
    sum += units[j] * cells;
  }
  return sum;
}

static kapnet_status explain(const int8_t *features,
                             const int8_t *class_weights, size_t first,
                             size_t last, kapnet_explanation *out) {
  uint64_t largest = 0;
  unsigned before, shift;
  size_t c;
  run_hidden(features, out->units);
  before = differentiate(class_weights, first, last, out->units);
  for (c = 0; c < KAPNET_CHANNELS; ++c) {
    uint64_t size = magnitude(channel_sum(out->units, c));
    if (size > largest) largest = size;
  }
  shift = shift_to(largest, KAPNET_SENSITIVITY_LIMIT);
  for (c = 0; c < KAPNET_CHANNELS; ++c) {
    out->sensitivity[c] =
        (int16_t)scaled_down(channel_sum(out->units, c), shift);
  }
  out->exponent = (int)(before + shift);
  weigh_features(features, out);
  return normalize(out);
}

