#define KAPNET_CELLS @cells@
@tables@
KAPNET_ASSERT(cells, (int64_t)128 * KAPNET_CELLS <= INT32_MAX);
KAPNET_ASSERT(classes,
              ((int64_t)1 << KAPNET_CLASS_SCALE_BITS) <=
                  INT64_MAX / 128 / 128 / KAPNET_CELLS / KAPNET_LOGITS);

/* The sensitivity of one channel: the weighted classes' weights, summed over
 * the cells of a flattened map. Classes from `first` to before `last`. */
static int64_t channel_sum(const int8_t *class_weights, size_t first,
                           size_t last, size_t channel) {
  int64_t sum = 0;
  size_t k, cell;
  for (k = first; k < last; ++k) {
    const int8_t *weight =
        class_kernel + k * (KAPNET_CELLS * KAPNET_CHANNELS) + channel;
    int32_t cells = 0;
    if (class_weights[k - first] == 0) continue;
    for (cell = 0; cell < KAPNET_CELLS; ++cell) {
      cells += weight[cell * KAPNET_CHANNELS];
    }
    sum += (int64_t)class_weights[k - first] * class_scales[k] * cells;
  }
  return sum;
}

static kapnet_status explain(const int8_t *features,
                             const int8_t *class_weights, size_t first,
                             size_t last, kapnet_explanation *out) {
  uint64_t largest = 0;
  unsigned shift;
  size_t c;
  for (c = 0; c < KAPNET_CHANNELS; ++c) {
    uint64_t size = magnitude(channel_sum(class_weights, first, last, c));
    if (size > largest) largest = size;
  }
  shift = shift_to(largest, KAPNET_SENSITIVITY_LIMIT);
  for (c = 0; c < KAPNET_CHANNELS; ++c) {
    out->sensitivity[c] = (int16_t)scaled_down(
        channel_sum(class_weights, first, last, c), shift);
  }
  out->exponent = (int)shift;
  weigh_features(features, out);
  return normalize(out);
}

