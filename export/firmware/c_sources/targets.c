kapnet_status kapnet_explain_top(const int8_t *features,
                                 const int8_t logits[KAPNET_LOGITS],
                                 kapnet_explanation *out) {
  return kapnet_explain_class(features, kapnet_top_class(logits), out);
}

kapnet_status kapnet_explain_class(const int8_t *features, int target,
                                   kapnet_explanation *out) {
  /* The score of class 0 of a single logit is its negative. */
  int8_t weight = KAPNET_LOGITS == 1 && target == 0 ? -1 : 1;
  size_t first = KAPNET_LOGITS == 1 ? 0u : (size_t)target;
  if (target < 0 || target >= KAPNET_CLASSES) return KAPNET_BAD_CLASS;
  return explain(features, &weight, first, first + 1, out);
}

kapnet_status kapnet_explain_weighted(
    const int8_t *features, const int8_t class_weights[KAPNET_LOGITS],
    kapnet_explanation *out) {
  return explain(features, class_weights, 0, KAPNET_LOGITS, out);
}
