#define KAPNET_SENSITIVITY_LIMIT @limit@
KAPNET_ASSERT(map, (int64_t)255 * KAPNET_SENSITIVITY_LIMIT * KAPNET_CHANNELS <=
                       INT32_MAX);

static uint64_t magnitude(int64_t value) {
  return value < 0 ? (uint64_t)0 - (uint64_t)value : (uint64_t)value;
}

static uint64_t halved(uint64_t value, unsigned shift) {
  return shift ? (value + ((uint64_t)1 << (shift - 1))) >> shift : value;
}

/* How often `largest` must be halved to come down to the limit. */
static unsigned shift_to(uint64_t largest, uint64_t limit) {
  unsigned shift = 0;
  while (halved(largest, shift) > limit) ++shift;
  return shift;
}

/* Halves so often, rounded away from zero at one half. */
static int32_t scaled_down(int64_t value, unsigned shift) {
  int32_t size = (int32_t)halved(magnitude(value), shift);
  return value < 0 ? -size : size;
}

static void weigh_features(const int8_t *features, kapnet_explanation *out) {
  size_t p, c;
  for (p = 0; p < KAPNET_MAP_SIZE; ++p) {
    int32_t sum = 0;
    for (c = 0; c < KAPNET_CHANNELS; ++c) {
      sum += (*features++ - KAPNET_FEATURES_ZERO_POINT) * out->sensitivity[c];
    }
    out->raw[p] = sum > 0 ? (uint32_t)sum : 0u;
  }
}

