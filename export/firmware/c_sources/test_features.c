int kapnet_test_outputs(int image, const int8_t *logits,
                        const int8_t *features) {
  return differing(logits, kapnet_vector_logits[image], KAPNET_LOGITS) +
         differing(features, kapnet_vector_features[image],
                   KAPNET_MAP_SIZE * KAPNET_CHANNELS);
}

int kapnet_test_maps(void) {
  static kapnet_explanation out;
  int wrong = 0;
  int i;
  for (i = 0; i < KAPNET_VECTOR_MAPS; ++i) {
    int image = kapnet_vector_images[i];
    const int8_t *features = kapnet_vector_features[image];
    kapnet_status status = kapnet_explain_weighted(
        features, kapnet_vector_weights[i], &out);
    wrong += differing_map(&out, status, i);
    if (kapnet_vector_targets[i] < 0) continue;
    status = kapnet_explain_class(features, kapnet_vector_targets[i], &out);
    wrong += differing_map(&out, status, i);
    if (i > 0 && kapnet_vector_images[i - 1] == image) continue;
    /* The first map of an image is that of its top class. */
    status = kapnet_explain_top(features, kapnet_vector_logits[image], &out);
    wrong += differing_map(&out, status, i);
  }
  wrong += kapnet_explain_class(kapnet_vector_features[0], -1, &out) !=
           KAPNET_BAD_CLASS;
  wrong += kapnet_explain_class(kapnet_vector_features[0], KAPNET_CLASSES,
                                &out) != KAPNET_BAD_CLASS;
  return wrong;
}
