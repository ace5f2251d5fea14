/* Explains the top class.
 * features: the model's output "features", KAPNET_MAP_SIZE * KAPNET_CHANNELS.
 * logits: its output "logits". */
kapnet_status kapnet_explain_top(const int8_t *features,
                                 const int8_t logits[KAPNET_LOGITS],
                                 kapnet_explanation *out);

/* Explains one class, 0 .. KAPNET_CLASSES - 1. */
kapnet_status kapnet_explain_class(const int8_t *features, int target,
                                   kapnet_explanation *out);

/* Explains a weighted sum of the logits, such as +1 for one class and -1 for
 * another: what speaks for the one against the other. */
kapnet_status kapnet_explain_weighted(
    const int8_t *features, const int8_t class_weights[KAPNET_LOGITS],
    kapnet_explanation *out);
