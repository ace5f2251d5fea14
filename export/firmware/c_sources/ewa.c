KAPNET_ASSERT(map, (uint64_t)255 * 255 * KAPNET_CHANNELS <= UINT32_MAX);

kapnet_status kapnet_explain(const int8_t *features, kapnet_explanation *out) {
  size_t p, c;
  for (p = 0; p < KAPNET_MAP_SIZE; ++p) {
    uint32_t sum = 0;
    for (c = 0; c < KAPNET_CHANNELS; ++c) {
      int32_t feature = *features++ - KAPNET_FEATURES_ZERO_POINT;
      sum += (uint32_t)(feature * feature);
    }
    out->raw[p] = sum;
  }
  return normalize(out);
}
