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
    kapnet_status status = kapnet_explain(kapnet_vector_features[image], &out);
    wrong += differing_map(&out, status, i);
    wrong += kapnet_top_class(kapnet_vector_logits[image]) !=
             kapnet_vector_top[image];
  }
  return wrong;
}
