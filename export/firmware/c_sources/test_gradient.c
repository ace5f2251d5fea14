void kapnet_test_ask(int image, int8_t *input) {
  int k;
  for (k = 0; k < KAPNET_LOGITS; ++k) {
    input[k] = kapnet_vector_class_weights[image * KAPNET_VECTOR_PER_IMAGE][k];
  }
}

int kapnet_test_outputs(int image, const int8_t *logits,
                        const int8_t *features, const int8_t *sensitivity) {
  return differing(logits, kapnet_vector_logits[image], KAPNET_LOGITS) +
         differing(features, kapnet_vector_features[image],
                   KAPNET_MAP_SIZE * KAPNET_CHANNELS) +
         differing(sensitivity,
                   kapnet_vector_sensitivity[image * KAPNET_VECTOR_PER_IMAGE],
                   KAPNET_CHANNELS);
}

int kapnet_test_maps(void) {
  static kapnet_explanation out;
  static int8_t input[KAPNET_LOGITS];
  int wrong = 0;
  int i;
  for (i = 0; i < KAPNET_VECTOR_MAPS; ++i) {
    int image = kapnet_vector_images[i];
    int target = kapnet_vector_targets[i];
    kapnet_status status = kapnet_explain(
        kapnet_vector_features[image], kapnet_vector_sensitivity[i], &out);
    wrong += differing_map(&out, status, i);
    kapnet_ask_weighted(kapnet_vector_weights[i], input);
    wrong += differing(input, kapnet_vector_class_weights[i], KAPNET_LOGITS);
    if (target < 0) continue;
    wrong += kapnet_ask_class(target, input) != KAPNET_ALIVE;
    wrong += differing(input, kapnet_vector_class_weights[i], KAPNET_LOGITS);
    if (i > 0 && kapnet_vector_images[i - 1] == image) continue;
    /* The first map of an image is that of its top class. */
    wrong += kapnet_top_class(kapnet_vector_logits[image]) != target;
  }
  wrong += kapnet_ask_class(-1, input) != KAPNET_BAD_CLASS;
  wrong += kapnet_ask_class(KAPNET_CLASSES, input) != KAPNET_BAD_CLASS;
  return wrong;
}
