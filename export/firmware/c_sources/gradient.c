KAPNET_ASSERT(map, (int64_t)255 * 255 * KAPNET_CHANNELS <= INT32_MAX);

static int8_t clipped(int32_t value) {
  return (int8_t)(value < -128 ? -128 : value > 127 ? 127 : value);
}

kapnet_status kapnet_ask_class(int target, int8_t input[KAPNET_LOGITS]) {
  int k;
  if (target < 0 || target >= KAPNET_CLASSES) return KAPNET_BAD_CLASS;
  for (k = 0; k < KAPNET_LOGITS; ++k) {
    /* The score of class 0 of a single logit is its negative. */
    int32_t weight = KAPNET_LOGITS == 1 ? 2 * target - 1 : k == target;
    input[k] = clipped(KAPNET_CLASS_WEIGHTS_ZERO_POINT +
                       weight * KAPNET_CLASS_WEIGHTS_ONE);
  }
  return KAPNET_ALIVE;
}

void kapnet_ask_weighted(const int8_t class_weights[KAPNET_LOGITS],
                         int8_t input[KAPNET_LOGITS]) {
  int32_t largest = 1;
  int k;
  for (k = 0; k < KAPNET_LOGITS; ++k) {
    int32_t size = class_weights[k] < 0 ? -class_weights[k] : class_weights[k];
    if (size > largest) largest = size;
  }
  for (k = 0; k < KAPNET_LOGITS; ++k) {
    int32_t steps = class_weights[k] * KAPNET_CLASS_WEIGHTS_ONE;
    /* Rounded away from zero at one half. */
    steps = (2 * steps + (steps < 0 ? -largest : largest)) / (2 * largest);
    input[k] = clipped(KAPNET_CLASS_WEIGHTS_ZERO_POINT + steps);
  }
}

kapnet_status kapnet_explain(const int8_t *features,
                             const int8_t sensitivity[KAPNET_CHANNELS],
                             kapnet_explanation *out) {
  size_t p, c;
  for (p = 0; p < KAPNET_MAP_SIZE; ++p) {
    int32_t sum = 0;
    for (c = 0; c < KAPNET_CHANNELS; ++c) {
      sum += (*features++ - KAPNET_FEATURES_ZERO_POINT) *
             (sensitivity[c] - KAPNET_SENSITIVITY_ZERO_POINT);
    }
    out->raw[p] = sum > 0 ? (uint32_t)sum : 0u;
  }
  return normalize(out);
}
